"""The dense forms of the losses over pairs: (B, C) arrays, for tests and for reading.

Scores and losses are apart: any score goes into any loss. Losses return (sum over rows, sum of
weights) of one direction; the other one is that of the transposed scores. Call with float64 arrays
under `jax.enable_x64(True)` for reference values and gradients.
"""

import jax
import jax.numpy as jnp

Sums = tuple[jax.Array, jax.Array]


def cosine(x_bd: jax.Array, y_cd: jax.Array, scale: jax.Array) -> jax.Array:
    """scale * <x, y>."""
    return scale * (x_bd @ y_cd.T)


def negative_distance(x_bd: jax.Array, y_cd: jax.Array, scale: jax.Array) -> jax.Array:
    """-scale * ||x - y||^2."""
    return -scale * jnp.sum(jnp.square(x_bd[:, None] - y_cd[None]), axis=-1)


def late_interaction(
    x_bld: jax.Array, x_mask: jax.Array, y_cmd: jax.Array, y_mask: jax.Array, smoothness: float
) -> jax.Array:
    """Mean over tokens of x of the maximum (or smooth maximum) over those of y (FILIP, Norton)."""
    sims = jnp.einsum("bld,cmd->bclm", x_bld, y_cmd)
    sims = jnp.where(y_mask[None, :, None, :], sims, -jnp.inf)
    if smoothness:
        best = smoothness * jax.nn.logsumexp(sims / smoothness, axis=3)
    else:
        best = sims.max(axis=3)
    counts = x_mask[:, None, :].astype(best.dtype)
    return jnp.sum(counts * best, axis=2) / jnp.sum(counts, axis=2)


def volume(x_bd: jax.Array, y_ckd: jax.Array) -> jax.Array:
    """Volume spanned by x and the k vectors of a column: sqrt(det Gram) (GRAM)."""

    def one(x_d: jax.Array, y_kd: jax.Array) -> jax.Array:
        span = jnp.concatenate([x_d[None], y_kd])
        return jnp.sqrt(jnp.linalg.det(span @ span.T))

    return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(x_bd, y_ckd)


def gated(
    x_bd: jax.Array, y_cd: jax.Array, row_b: jax.Array, column_c: jax.Array, gate_kkd: jax.Array
) -> jax.Array:
    """Cosine of the parts that the gate of the two classes lets through (Hydra)."""
    gate_bcd = gate_kkd[row_b][:, column_c]
    u, v = gate_bcd * x_bd[:, None], gate_bcd * y_cd[None]
    lengths = jnp.linalg.norm(u, axis=-1) * jnp.linalg.norm(v, axis=-1)
    return jnp.sum(u * v, axis=-1) / lengths


def softmax_dense(
    scores_bc: jax.Array,
    target_bc: jax.Array,
    weight_b: jax.Array,
    denominator_bc: jax.Array | None = None,
) -> Sums:
    """Cross-entropy of target_bc (rows sum to 1) with the softmax over what is in denominator_bc.

    denominator_bc: how often each pair is counted there; None: once.
    """
    counts_bc = jnp.ones_like(scores_bc) if denominator_bc is None else denominator_bc
    lse_b = jax.nn.logsumexp(scores_bc, axis=1, b=counts_bc.astype(scores_bc.dtype))
    loss_b = lse_b - jnp.sum(target_bc * scores_bc, axis=1)
    return jnp.sum(weight_b * loss_b), jnp.sum(weight_b)


def sigmoid_dense(scores_bc: jax.Array, label_bc: jax.Array, weight_bc: jax.Array) -> Sums:
    """Logistic loss of all pairs with labels from 0 to 1; the count is B."""
    log_p, log_q = jax.nn.log_sigmoid(scores_bc), jax.nn.log_sigmoid(-scores_bc)
    loss_bc = -label_bc * log_p - (1.0 - label_bc) * log_q
    return jnp.sum(weight_bc * loss_bc), jnp.asarray(scores_bc.shape[0], loss_bc.dtype)


def triplet_dense(
    scores_bc: jax.Array,
    positive_bc: jax.Array,
    margin: jax.Array,
    mining: str,
    weight_b: jax.Array,
) -> Sums:
    """Hinge over negatives "all", or the hardest ("hard", "semihard": below the positive)."""
    positive_b = jnp.min(jnp.where(positive_bc, scores_bc, jnp.inf), axis=1)
    negative_bc = jnp.where(positive_bc, -jnp.inf, scores_bc)
    if mining == "semihard":
        negative_bc = jnp.where(scores_bc < positive_b[:, None], negative_bc, -jnp.inf)
    if mining != "all":
        negative_bc = negative_bc.max(axis=1, keepdims=True)
    hinge_bc = jax.nn.relu(margin + negative_bc - positive_b[:, None])
    return jnp.sum(weight_b * jnp.sum(hinge_bc, axis=1)), jnp.sum(weight_b)


def matching_dense(
    scores_bc: jax.Array, target_bc: jax.Array, epsilon: float, weight_b: jax.Array
) -> Sums:
    """KL of the softmax of the scores against the targets (IRRA)."""
    log_p = jax.nn.log_softmax(scores_bc, axis=1)
    loss_b = jnp.sum(jnp.exp(log_p) * (log_p - jnp.log(target_bc + epsilon)), axis=1)
    return jnp.sum(weight_b * loss_b), jnp.sum(weight_b)


def sinkhorn_dense(scores_bc: jax.Array, iterations: int) -> jax.Array:
    """The plan with rows and columns that sum to 1, rows and columns made so in turns."""
    log_plan = scores_bc
    for _ in range(iterations):
        log_plan = jax.nn.log_softmax(jax.nn.log_softmax(log_plan, axis=1), axis=0)
    return jnp.exp(log_plan)


def uniform_target(
    row_group_b: jax.Array, column_group_c: jax.Array, dtype: jnp.dtype
) -> jax.Array:
    """Uniform over the columns of a row's group; the identity if both sides are an arange."""
    same_bc = (row_group_b[:, None] == column_group_c[None, :]).astype(dtype)
    return same_bc / jnp.sum(same_bc, axis=1, keepdims=True)


def distilled_target(positive_bc: jax.Array, teacher_bc: jax.Array, alpha: jax.Array) -> jax.Array:
    """(1 - alpha) * positives + alpha * softmax of the teacher's scores, no gradient (ALBEF)."""
    soft_bc = jax.nn.softmax(teacher_bc, axis=1)
    return jax.lax.stop_gradient((1.0 - alpha) * positive_bc + alpha * soft_bc)
