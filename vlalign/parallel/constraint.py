"""The helpers by which encoders pin arrays to the mesh: layouts, which never change a value."""

import contextlib
import contextvars
import math
from collections.abc import Iterator

import jax
from jax.sharding import AxisType, PartitionSpec

from vlalign.parallel.mesh import BATCH_AXES

# The mesh axes that a `jax.vmap` around this code stands for.
_mapped: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar(
    "mapped", default=frozenset()
)


def batch_axes() -> tuple[str, ...]:
    """The axes of the mesh in use that cut the batch here: those of `BATCH_AXES` over 1 device.

    Left out are axes that a `shard_map` around this code runs over, or a `mapped_over`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return tuple(
        axis
        for axis in BATCH_AXES
        if types.get(axis) == AxisType.Auto and mesh.shape[axis] > 1 and axis not in _mapped.get()
    )


@contextlib.contextmanager
def mapped_over(axis: str) -> Iterator[None]:
    """While it is traced, what stands inside is in a `jax.vmap` that stands for the mesh `axis`."""
    token = _mapped.set(_mapped.get() | {axis})
    try:
        yield
    finally:
        _mapped.reset(token)


def shard_batch(x: jax.Array) -> jax.Array:
    """Pins the leading (batch) axis of `x` to the batch axes of the mesh in use, the rest whole.

    Without it the compiler may choose to gather the batch inside a deep stack when parameters are
    sharded over `fsdp`. A no-op without a mesh, on one device, and for batches that do not divide
    (the tiny batches of initialisation).
    """
    axes = batch_axes()
    if not axes or x.shape[0] % math.prod(_size(axis) for axis in axes):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes))


def whole(x: jax.Array) -> jax.Array:
    """Pins a parameter to lie whole on every device where it is used: a table that rows are taken
    from. From a table that is cut the compiler would take the rows of all devices' batches and
    send those around, which is more than the table.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or AxisType.Auto not in mesh.axis_types:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec())


def _size(axis: str) -> int:
    return jax.sharding.get_abstract_mesh().shape[axis]
