"""The one helper by which encoders pin activations to the mesh."""

import jax
from jax.sharding import PartitionSpec

from vlalign.parallel.mesh import BATCH_AXES


def shard_batch(x: jax.Array) -> jax.Array:
    """Pins the leading (batch) axis of `x` to the batch axes of the mesh in use, the rest whole.

    Without it the compiler may choose to gather the batch inside a deep stack when parameters are
    sharded over `fsdp`. A no-op without a mesh, on one device, and for batches that do not divide
    (the tiny batches of initialisation): it is a layout, it never changes a value.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or not set(BATCH_AXES) <= set(mesh.axis_names):
        return x
    shards = 1
    for axis in BATCH_AXES:
        shards *= mesh.shape[axis]
    if x.shape[0] % shards:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES))
