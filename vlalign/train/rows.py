"""The account of rows that could not be used: counted in the step, over all hosts alike."""

import collections
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from vlalign.data.record import PROBLEMS
from vlalign.errors import UserError


def count_rows(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Of a batch: rows of each kind in PROBLEMS (the first is "ok"), and rows with a cut caption.

    batch: with "problem" (b,) int32 and "truncated" (b,) bool -> "problems" (kinds,) int32,
    "truncated" () int32.
    """
    kinds = jnp.arange(len(PROBLEMS), dtype=jnp.int32)[None, :]
    same = (batch["problem"][:, None] == kinds).astype(jnp.int32)
    return {
        "problems": jnp.sum(same, axis=0),
        "truncated": jnp.sum(batch["truncated"].astype(jnp.int32)),
    }


class Rows:
    """What was wrong with the rows of the steps so far, in this process's time.

    problems: kind -> rows of weight 0.   truncated: rows with a cut caption.   seen: all rows.
    """

    def __init__(self, limit: float):
        """limit: share of bad rows above which the run stops (looked at from 1,000 rows on)."""
        self.limit = limit
        self.problems: collections.Counter[str] = collections.Counter()
        self.truncated = self.seen = 0

    def add(self, counts: Mapping[str, np.ndarray]) -> None:
        """One step's counts, from `count_rows`. Raises UserError if too many rows are bad."""
        self.seen += int(counts["problems"].sum())
        self.truncated += int(counts["truncated"])
        for kind, count in zip(PROBLEMS[1:], counts["problems"][1:], strict=True):
            if count:
                self.problems[kind] += int(count)
        bad = self.problems.total()
        if self.seen >= 1000 and bad > self.limit * self.seen:
            raise UserError(
                f"{bad} of {self.seen} rows could not be used ({self.summary()}), over the limit "
                f"train.max_bad_share={self.limit}; mend the data or raise the limit"
            )

    def summary(self) -> str:
        """`corrupt image: 3, ...`, empty if all is well."""
        parts = [f"{kind}: {count}" for kind, count in sorted(self.problems.items())]
        if self.truncated:
            parts.append(f"captions cut to the context length: {self.truncated}")
        return ", ".join(parts)
