"""From host batches to the device: placement, counting of bad rows, time spent waiting."""

import collections
import time
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from vlalign.errors import UserError
from vlalign.parallel.mesh import batch_sharding

# Fields that describe rows to people; the device has no use for them.
HOST_FIELDS = ("index", "problem", "truncated")


class Feed:
    """Batches on the mesh, in order, with the account of what was wrong with their rows.

    problems: kind -> rows of weight 0 so far.   truncated: captions cut.   seen: rows so far.
    """

    def __init__(
        self,
        batches: Iterator[Mapping[str, np.ndarray]],
        mesh: Mesh,
        *,
        kinds: Sequence[str],
        max_bad_share: float,
    ):
        """kinds: names of the problem codes.   max_bad_share: of rows, above which the run stops
        (looked at after the first 1,000 rows).
        """
        self._batches, self._sharding = batches, batch_sharding(mesh)
        self._kinds, self._limit = kinds, max_bad_share
        self.problems: collections.Counter[str] = collections.Counter()
        self.truncated = self.seen = 0
        self._waited, self._since = 0.0, time.perf_counter()

    def next(self) -> dict[str, jax.Array]:
        """The next batch as global arrays. Raises UserError if too many rows are bad."""
        start = time.perf_counter()
        batch = next(self._batches)
        self._waited += time.perf_counter() - start
        self._account(batch)
        return {
            name: jax.make_array_from_process_local_data(self._sharding, array)
            for name, array in batch.items()
            if name not in HOST_FIELDS
        }

    def wait_share(self) -> float:
        """Share of the time since the last call (or the first batch) spent waiting for data."""
        now = time.perf_counter()
        share = self._waited / max(now - self._since, 1e-9)
        self._waited, self._since = 0.0, now
        return min(share, 1.0)

    def _account(self, batch: Mapping[str, np.ndarray]) -> None:
        codes = batch["problem"]
        self.seen += len(codes)
        self.truncated += int(batch["truncated"].sum())
        for code, count in zip(*np.unique(codes[codes != 0], return_counts=True), strict=True):
            self.problems[self._kinds[int(code)]] += int(count)
        bad = self.problems.total()
        if self.seen >= 1000 and bad > self._limit * self.seen:
            raise UserError(
                f"{bad} of {self.seen} rows could not be used ({self.summary()}), over the limit "
                f"train.max_bad_share={self._limit}; mend the data or raise the limit"
            )

    def summary(self) -> str:
        """`corrupt image: 3, ...`, empty if all is well."""
        parts = [f"{kind}: {count}" for kind, count in sorted(self.problems.items())]
        if self.truncated:
            parts.append(f"captions cut to the context length: {self.truncated}")
        return ", ".join(parts)
