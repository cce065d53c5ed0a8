"""Cross-entropy over classes, the one copy of it: neither pass makes an array of log-probabilities.

The gradient is written by hand: what is kept for it is the logits as they came and two numbers a
row. What is as large as the logits is their gradient, in their dtype.
"""

import functools

import jax
import jax.numpy as jnp

from vlalign.losses import rows


def cross_entropy(
    logits: jax.Array, target: jax.Array, present: jax.Array, label_smoothing: float = 0.0
) -> jax.Array:
    """Cross-entropy of each row's class, (...), 0 for rows that are not present.

    logits: (..., v). target: integer (...); the loss of a class outside [0, v) is nan.
    present: bool (...), False leaves a row out, whatever it holds, with gradient 0.
    label_smoothing: share of the target that is spread over all v classes (Szegedy et al. 2016,
    arXiv:1512.00567, section 7), the target's own included; 0 up to below 1, else a ValueError.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing={label_smoothing}: must be 0 up to below 1")
    return _cross_entropy(logits, target, present, label_smoothing)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _cross_entropy(
    logits: jax.Array, target: jax.Array, present: jax.Array, label_smoothing: float
) -> jax.Array:
    return _forward(logits, target, present, label_smoothing)[0]


def _forward(
    logits: jax.Array, target: jax.Array, present: jax.Array, label_smoothing: float
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    scores = logits.astype(rows.wide(logits))
    own = jnp.sum(jnp.where(_is_target(logits, target), scores, 0.0), axis=-1)
    top = jnp.max(scores, axis=-1)
    total = jnp.sum(jnp.exp(scores - top[..., None]), axis=-1)
    # Differences to the maximum first: for a class that is nearly certain they are exact.
    loss = jnp.log(total) + (1.0 - label_smoothing) * (top - own)
    if label_smoothing:
        loss += label_smoothing * (top - jnp.mean(scores, axis=-1))
    known = (target >= 0) & (target < logits.shape[-1])
    loss = jnp.where(present, jnp.where(known, loss, jnp.nan), 0.0)
    return loss, (logits, target, present, top, total)


def _backward(
    label_smoothing: float, kept: tuple[jax.Array, ...], cotangent: jax.Array
) -> tuple[jax.Array, None, None]:
    # The barrier: or else the compiler may keep the forward pass's exponentials for this one.
    logits, target, present, top, total = jax.lax.optimization_barrier(kept)
    wanted = jnp.where(_is_target(logits, target), 1.0 - label_smoothing, 0.0)
    wanted += label_smoothing / logits.shape[-1]
    p = jnp.exp(logits.astype(top.dtype) - top[..., None]) / total[..., None]
    # Selected here and not in the logits: a copy of those would be as large as they.
    grad = jnp.where(present[..., None], cotangent[..., None] * (p - wanted), 0.0)
    return grad.astype(logits.dtype), None, None


_cross_entropy.defvjp(_forward, _backward)


def _is_target(logits: jax.Array, target: jax.Array) -> jax.Array:
    # Compared rather than looked up: it needs no gather over a vocabulary cut over devices.
    place = jax.lax.broadcasted_iota(target.dtype, logits.shape, logits.ndim - 1)
    return place == target[..., None]
