"""One mesh for every run: axes `data`, `fsdp`, `tensor`; the batch lies over the first two."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vlalign.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSpec:
    """How many devices each axis has; at most one axis is -1, "all that remain".

    data: copies of the parameters, each with its own part of the batch.
    fsdp: parts of the batch that also share the parameters among them.
    tensor: devices that split each layer's heads, hidden units and vocabulary.
    devices: how many of the devices at hand are used, the first ones; None: all.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    devices: int | None = None

    def sizes(self, devices: int) -> tuple[int, int, int]:
        """The three sizes for a number of devices. Raises UserError if they cannot fit."""
        sizes = [self.data, self.fsdp, self.tensor]
        if sum(size == -1 for size in sizes) > 1 or any(size < 1 and size != -1 for size in sizes):
            raise UserError(f"mesh {self}: sizes must be positive, at most one of them -1")
        known = int(np.prod([size for size in sizes if size != -1]))
        if -1 in sizes and devices % known == 0:
            sizes[sizes.index(-1)] = devices // known
        if int(np.prod(sizes)) != devices:
            raise UserError(
                f"mesh data={self.data} fsdp={self.fsdp} tensor={self.tensor} does not cover "
                f"{devices} device(s): the product must be {devices} (one axis may be -1)"
            )
        return sizes[0], sizes[1], sizes[2]

    def build(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """The mesh over `devices` (default: all). Raises UserError if they do not fit."""
        devices = jax.devices() if devices is None else list(devices)
        if self.devices is not None:
            if not 1 <= self.devices <= len(devices):
                raise UserError(f"mesh.devices={self.devices}: there are {len(devices)}")
            devices = devices[: self.devices]
        sizes = self.sizes(len(devices))
        return jax.make_mesh(sizes, AXES, devices=devices, axis_types=(AxisType.Auto,) * len(AXES))


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is cut on this mesh."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over `data` and `fsdp`, everything else whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(batch_size: int, mesh: Mesh, *, where: str) -> None:
    """Raises UserError if a global batch cannot be cut evenly over the mesh."""
    shards = batch_shards(mesh)
    if batch_size % shards:
        raise UserError(
            f"{where}={batch_size} does not divide over the mesh: data x fsdp = {shards}; "
            f"the nearest sizes that do are {batch_size // shards * shards or shards} "
            f"and {(batch_size // shards + 1) * shards}"
        )
