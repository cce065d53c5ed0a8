"""A tile of scores, and which of its pairs are positives, negatives or left out."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from vlalign.losses.kernel.sweep import Side

Positives = Literal["diagonal", "group"]
# Which pairs of a row (or of a column) a statistic counts.
Over = Literal["all", "positives", "negatives"]

# "Minus infinity" of scores: finite, so that the difference of two is 0 and not nan.
EXCLUDED = -1e30


class Tile:
    """Scores (r, c) of r rows against c columns; masks are made when they are first asked for.

    scores: by name: "score", and where there are such "teacher" and "pair_weight".
    positives: "diagonal", or "group": equal ids. same_items: rows and columns are the same items,
    and an item makes no pair with itself. share: the teacher's share in a pair's label, or None.
    """

    def __init__(
        self,
        scores: dict[str, jax.Array],
        row: Side,
        column: Side,
        *,
        positives: Positives,
        same_items: bool,
        share: jax.Array | None,
    ) -> None:
        self.all_scores, self.row, self.column = scores, row, column
        self.scores, self.teacher = scores["score"], scores.get("teacher")
        self.share = share
        self._positives, self._same_items = positives, same_items

    def side(self, axis: int) -> Side:
        """The rows if a statistic reduces over columns (axis=1), else the columns."""
        return self.row if axis == 1 else self.column

    def places(self, axis: int) -> jax.Array:
        """Places (1, c) of what rows are reduced over (axis=1), or (r, 1) of columns."""
        return self.column.place[None, :] if axis == 1 else self.row.place[:, None]

    @functools.cached_property
    def present(self) -> jax.Array | None:
        """Pairs that exist at all; None: all."""
        row, column = self.row, self.column
        mask = None if row.valid is None else row.valid[:, None]
        if column.valid is not None:
            mask = both(mask, column.valid[None, :])
        if self._same_items:
            mask = both(mask, ~self._diagonal)
        if column.owner is not None:
            mask = both(mask, row.place[:, None] != column.owner[None, :])
        return mask

    @functools.cached_property
    def positive(self) -> jax.Array | None:
        """Positives, whether present or not; None where no pair of the tile can be one."""
        if self._positives == "diagonal":
            return self._diagonal
        if self.row.group is None or self.column.group is None:
            return None
        return self.row.group[:, None] == self.column.group[None, :]

    @functools.cached_property
    def pair_weight(self) -> jax.Array | None:
        """Weights (r, c) of the negatives in the denominator, not negative; None: all one."""
        weight = self.all_scores.get("pair_weight")
        if weight is None:
            return None
        weight = jnp.maximum(weight, 0.0)
        return weight if self.positive is None else jnp.where(self.positive, 1.0, weight)

    def counted(self, over: Over, axis: int) -> jax.Array | None:
        """The pairs that count for rows (axis=1) or columns (axis=0); None: all of them."""
        if over == "positives":
            if self.positive is None:
                return jnp.zeros(self.scores.shape, jnp.bool_)
            return both(self.present, self.positive)
        mask = self._negative(axis)
        if over == "all":
            if not self._narrowed(axis):
                return self.present
            if mask is not None and self.positive is not None:
                mask = mask | self.positive
        return self.present if mask is None else both(self.present, mask)

    def sample_weight(self, dtype: jnp.dtype) -> jax.Array | None:
        """Mean weight of the two samples of a pair, 0 if one is left out; None: all one."""
        row, column = self.row, self.column
        if row.weight is None:
            return None if self.present is None else self.present.astype(dtype)
        weight = row.weight[:, None]
        if column.weight is not None:
            weight = 0.5 * (weight + column.weight[None, :])
        return weight if self.present is None else jnp.where(self.present, weight, 0.0)

    @functools.cached_property
    def _diagonal(self) -> jax.Array:
        return self.row.place[:, None] == self.column.place[None, :]

    def _narrowed(self, axis: int) -> bool:
        """Whether some pairs are neither positives nor negatives."""
        side = self.side(axis)
        keys = self.row.key is not None and self.column.key is not None
        return keys or side.floor is not None or side.ceiling is not None

    def _negative(self, axis: int) -> jax.Array | None:
        """Negatives, whether present or not; None: all."""
        mask = None if self.positive is None else ~self.positive
        if self.row.key is not None and self.column.key is not None:
            mask = both(mask, self.row.key[:, None] != self.column.key[None, :])
        side = self.side(axis)
        if side.floor is not None:
            mask = both(mask, self.scores > across(side.floor, axis))
        if side.ceiling is not None:
            mask = both(mask, self.scores < across(side.ceiling, axis))
        return mask


def across(v: jax.Array, axis: int) -> jax.Array:
    """A vector of rows (axis=1) or of columns (axis=0), to stand against a tile."""
    return jnp.expand_dims(v, axis)


def both(a: jax.Array | None, b: jax.Array) -> jax.Array:
    """Logical and, None being all True."""
    return b if a is None else a & b


def keep(scores: jax.Array, mask: jax.Array | None, other: float = EXCLUDED) -> jax.Array:
    """The scores, `other` where the mask is False; None: all kept."""
    return scores if mask is None else jnp.where(mask, scores, jnp.asarray(other, scores.dtype))


def log_sum(top: jax.Array, total: jax.Array) -> jax.Array:
    """top + log(total), "minus infinity" where nothing was kept."""
    empty = is_empty(top) | (total <= 0)
    return jnp.where(empty, EXCLUDED, top + jnp.log(jnp.where(empty, 1.0, total)))


def subtrahend(lse: jax.Array) -> jax.Array:
    """An lse to subtract from scores: where nothing was kept, all probabilities come out 0."""
    return jnp.where(is_empty(lse), -EXCLUDED, lse)


def is_empty(top: jax.Array) -> jax.Array:
    """Whether a maximum or an lse has seen no kept score."""
    return top <= 0.5 * EXCLUDED
