"""What the losses over rows have in common: checks, weights, left-out rows, unit vectors."""

import jax
import jax.numpy as jnp
from jax import lax

from vlalign.losses.inputs import check_shape
from vlalign.losses.loss import Loss

# Accelerators must not round float32 factors down.
EXACT = lax.Precision.HIGHEST
# Norms below it count as this length, as in torch's `cosine_similarity`.
_SHORTEST = 1e-8


def take(
    axes: str, row_weight_b: jax.Array | None, mask_bl: jax.Array | None = None, **arrays: jax.Array
) -> tuple[jax.Array, ...]:
    """Weights, and arrays with zeroes where the weight is 0 (nan * 0 is nan), to calculate with.

    axes: the arrays' axes in words, "(B, d)", for the error. arrays: by their names, all alike.
    row_weight_b: (B,), None for ones; mask_bl: (B, l), bool or weights; if there is one, the
    weights are those of tokens, (B, l). What is not above 0 counts as 0.
    All in float32, or float64 if one of the arrays is.
    Raises ValueError unless the shapes fit together and the arrays hold floats.
    """
    _check_alike(axes, arrays)
    shape, dtype = next(iter(arrays.values())).shape, wide(*arrays.values())
    weight = weights(shape, dtype, row_weight_b, mask_bl)
    return weight, *(zero_left_out(a.astype(dtype), weight) for a in arrays.values())


def wide(*arrays: jax.Array) -> jnp.dtype:
    """The dtype to accumulate in: float32, or float64 if one of the arrays is float64."""
    return jnp.dtype(jnp.float64 if any(a.dtype == jnp.float64 for a in arrays) else jnp.float32)


def weights(
    shape: tuple[int, ...],
    dtype: jnp.dtype,
    row_weight_b: jax.Array | None,
    mask_bl: jax.Array | None = None,
) -> jax.Array:
    """Weights of the rows of a shape, (B,), or with a mask of its tokens, (B, l); as in `take`."""
    weight = jnp.ones(shape[:1], dtype)
    if row_weight_b is not None:
        check_shape("row_weight_b", row_weight_b, shape[:1])
        weight = _positive(row_weight_b, dtype)
    if mask_bl is None:
        return weight
    check_shape("mask_bl", mask_bl, shape[:2])
    return weight[:, None] * _positive(mask_bl, dtype)


def zero_left_out(a: jax.Array, weight: jax.Array) -> jax.Array:
    """`a` with zeroes where the weight of its leading axes is 0."""
    present = jnp.expand_dims(weight > 0, range(weight.ndim, a.ndim))
    return jnp.where(present, a, jnp.zeros((), a.dtype))


def shares(weight_b: jax.Array) -> jax.Array:
    """Weights that sum to 1; zeroes if all are left out."""
    total = jnp.sum(weight_b)
    return weight_b / jnp.where(total > 0, total, 1.0)


def unit(x: jax.Array) -> jax.Array:
    """Unit vectors along the last axis; zeroes stay zeroes, with a gradient that is finite."""
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * lax.rsqrt(jnp.maximum(square, _SHORTEST**2))


def row_loss(loss: jax.Array, weight: jax.Array, **metrics: jax.Array) -> Loss:
    """A loss that is a weighted mean of the rows' (or tokens') own losses and metrics."""

    def total(a: jax.Array) -> jax.Array:
        return jnp.sum(weight * a)

    return Loss(
        sum=total(loss),
        count=jnp.sum(weight),
        metrics=lax.stop_gradient({name: total(a) for name, a in metrics.items()}),
    )


def batch_loss(value: jax.Array, weight_b: jax.Array, **metrics: jax.Array) -> Loss:
    """A loss () that is no mean of rows: its `mean`, and its metrics' means, are the values."""
    count = jnp.sum(weight_b)
    return Loss(
        sum=count * value,
        count=count,
        metrics=lax.stop_gradient({name: count * a for name, a in metrics.items()}),
    )


def check_integers(name: str, a: jax.Array, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless `a` has the shape and an integer dtype."""
    check_shape(name, a, shape)
    if not jnp.issubdtype(a.dtype, jnp.integer):
        raise ValueError(f"{name} {a.dtype}: must be an integer dtype")


def _positive(weight: jax.Array, dtype: jnp.dtype) -> jax.Array:
    weight = jnp.asarray(weight).astype(dtype)
    return jnp.where(weight > 0, weight, 0.0)


def _check_alike(axes: str, arrays: dict[str, jax.Array]) -> None:
    shapes = {a.shape for a in arrays.values()}
    shape = next(iter(shapes))
    floats = all(jnp.issubdtype(a.dtype, jnp.floating) for a in arrays.values())
    if len(shapes) > 1 or len(shape) != axes.count(",") + 1 or 0 in shape or not floats:
        given = ", ".join(f"{name} {a.shape} {a.dtype}" for name, a in arrays.items())
        raise ValueError(f"{given}: must be {axes}, not empty, all of one shape, of float dtypes")
