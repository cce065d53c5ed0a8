"""Which pairs of a tile are present, positive or left out, and small helpers on tiles."""

import jax
import jax.numpy as jnp

from vlalign.losses._tiles import Side

# "Minus infinity" of scores: finite, so that the difference of two is 0 and not nan.
EXCLUDED = -1e30


def across(v: jax.Array, axis: int) -> jax.Array:
    """A vector of rows (axis=1) or of columns (axis=0), to stand against a tile."""
    return jnp.expand_dims(v, axis)


def both(a: jax.Array | None, b: jax.Array) -> jax.Array:
    """Logical and, None being all True."""
    return b if a is None else a & b


def keep(scores: jax.Array, mask: jax.Array | None) -> jax.Array:
    """The scores, "minus infinity" where the mask is False; None: all kept."""
    return scores if mask is None else jnp.where(mask, scores, jnp.asarray(EXCLUDED, scores.dtype))


def present(row: Side, column: Side) -> jax.Array | None:
    """Pairs of two valid samples; None: all."""
    mask = None if row.valid is None else row.valid[:, None]
    return mask if column.valid is None else both(mask, column.valid[None, :])


def diagonal(row: Side, column: Side) -> jax.Array:
    """Pairs of a sample with itself."""
    return row.place[:, None] == column.place[None, :]


def same_group(row: Side, column: Side) -> jax.Array | None:
    """Pairs of one group; None where columns have no groups, and so hold no positive."""
    if row.group is None or column.group is None:
        return None
    return row.group[:, None] == column.group[None, :]


def pair_weight(row: Side, column: Side, dtype: jnp.dtype) -> jax.Array | None:
    """Mean weight of the two samples of a pair, 0 if one is left out; None: all one."""
    mask = present(row, column)
    if row.weight is None:
        return None if mask is None else mask.astype(dtype)
    weight = row.weight[:, None]
    if column.weight is not None:
        weight = 0.5 * (weight + column.weight[None, :])
    return weight if mask is None else jnp.where(mask, weight, jnp.zeros((), dtype))


def log_sum(top: jax.Array, total: jax.Array) -> jax.Array:
    """top + log(total), "minus infinity" where nothing was kept."""
    empty = is_empty(top)
    return jnp.where(empty, EXCLUDED, top + jnp.log(jnp.where(empty, 1.0, total)))


def subtrahend(lse: jax.Array) -> jax.Array:
    """An lse to subtract from scores: where nothing was kept, all probabilities come out 0."""
    return jnp.where(is_empty(lse), -EXCLUDED, lse)


def is_empty(top: jax.Array) -> jax.Array:
    """Whether a maximum or an lse has seen no kept score."""
    return top <= 0.5 * EXCLUDED
