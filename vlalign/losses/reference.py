"""The dense forms of the losses in `contrast.py`: (B, B) arrays, for tests and for reading.

A loss returns (sum over rows, count). Call with float64 arrays under `jax.enable_x64(True)` for
reference values and gradients.
"""

import jax
import jax.numpy as jnp


def softmax_dense(
    x_bd: jax.Array, y_cd: jax.Array, scale: jax.Array, target_bc: jax.Array, weight_b: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of target_bc (rows sum to 1) with the softmax over columns: one direction."""
    logits_bc = scale * (x_bd @ y_cd.T)
    loss_b = -jnp.sum(target_bc * jax.nn.log_softmax(logits_bc, axis=1), axis=1)
    return jnp.sum(weight_b * loss_b), jnp.sum(weight_b)


def sigmoid_dense(
    x_bd: jax.Array,
    y_cd: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    positive_bc: jax.Array,
    weight_bc: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Logistic loss of all pairs, label +1 where positive_bc, else -1; the count is B."""
    logits_bc = scale * (x_bd @ y_cd.T) + bias
    loss_bc = -jax.nn.log_sigmoid(jnp.where(positive_bc, logits_bc, -logits_bc))
    return jnp.sum(weight_bc * loss_bc), jnp.asarray(x_bd.shape[0], loss_bc.dtype)


def uniform_target(
    row_group_b: jax.Array, column_group_c: jax.Array, dtype: jnp.dtype
) -> jax.Array:
    """Uniform over the columns of a row's group; the identity if both sides are an arange."""
    same_bc = (row_group_b[:, None] == column_group_c[None, :]).astype(dtype)
    return same_bc / jnp.sum(same_bc, axis=1, keepdims=True)


def distilled_target(
    positive_bc: jax.Array, x_bd: jax.Array, y_cd: jax.Array, scale: jax.Array, alpha: jax.Array
) -> jax.Array:
    """(1 - alpha) * positives + alpha * softmax of the teacher's scores, no gradient (ALBEF)."""
    teacher_bc = jax.nn.softmax(scale * (x_bd @ y_cd.T), axis=1)
    return jax.lax.stop_gradient((1.0 - alpha) * positive_bc + alpha * teacher_bc)
