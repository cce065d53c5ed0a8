"""From host batches to the device: which rows this host makes, their placement, the time waited."""

import time
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from vlalign.parallel.mesh import batch_sharding

# Fields that describe rows to people; the device has no use for them.
HOST_FIELDS = ("index",)


def local_rows(mesh: Mesh, batch_size: int) -> tuple[int, ...]:
    """The rows of a global batch that lie on devices of this process, in rising order."""
    parts = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    spans = {(part or (slice(None),))[0].indices(batch_size) for part in parts}
    return tuple(sorted({row for span in spans for row in range(*span)}))


class Feed:
    """Batches on the mesh, in order.

    waited: seconds spent waiting for the host's batches so far.
    """

    def __init__(
        self,
        batches: Iterator[Mapping[str, np.ndarray]],
        mesh: Mesh,
        rows: tuple[int, ...],
        size: int,
    ):
        """batches: of this host's `rows` (see `local_rows`).   size: rows of the global batch."""
        self._batches, self._sharding, self._size = batches, batch_sharding(mesh), size
        self._place = {row: place for place, row in enumerate(rows)}
        self.waited = 0.0
        self._marked, self._since = 0.0, time.perf_counter()

    def next(self) -> dict[str, jax.Array]:
        """The next batch as global arrays."""
        start = time.perf_counter()
        batch = next(self._batches)
        self.waited += time.perf_counter() - start
        return {
            name: self._global(array) for name, array in batch.items() if name not in HOST_FIELDS
        }

    def _global(self, local: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            first, stop, _ = (index or (slice(None),))[0].indices(self._size)
            start = self._place[first]  # a device's rows are neighbours here as they are there
            return local[start : start + stop - first]

        shape = (self._size, *local.shape[1:])
        return jax.make_array_from_callback(shape, self._sharding, part)

    def wait_share(self) -> float:
        """Share of the time since the last call (or the first batch) spent waiting for data."""
        now = time.perf_counter()
        share = (self.waited - self._marked) / max(now - self._since, 1e-9)
        self._marked, self._since = self.waited, now
        return min(share, 1.0)
