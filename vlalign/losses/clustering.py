"""Losses against prototypes: swapped assignments, and cross-entropy of given clusters.

Arrays are (B, K), samples by prototypes; nothing is (B, B). Reductions over samples are over the
whole batch, on all devices.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from vlalign.losses import rows
from vlalign.losses.cross_entropy import cross_entropy
from vlalign.losses.loss import Loss


def sinkhorn_codes(
    scores_bk: jax.Array,
    *,
    epsilon: float = 0.05,
    iterations: int = 3,
    row_weight_b: jax.Array | None = None,
) -> jax.Array:
    """Soft assignments (B, K) that use all prototypes equally: rows sum to 1, without gradient.

    Sinkhorn-Knopp of SwAV (Caron et al. 2020, arXiv:2006.09882, equations 3 to 5), in the
    logarithm, so that no epsilon overflows. As in the authors' code and in lightly an iteration
    divides first by prototypes, then by samples: rows sum to 1 exactly, and the weighted sums of
    prototypes, sum(weights) / K each, are approached.

    scores_bk: (B, K) cosines of samples and prototypes. epsilon: temperature, above 0.
    iterations: at least 1.
    row_weight_b: (B,), a sample of weight 2 counts as two; 0 leaves the row out, whatever it holds,
    and its codes are 0.
    Raises ValueError for inputs that do not fit together.
    """
    if epsilon <= 0 or iterations < 1:
        raise ValueError(
            f"epsilon={epsilon}, iterations={iterations}: must be above 0, and at least 1"
        )
    weight_b, scores_bk = rows.take(
        "(B, K)", lax.stop_gradient(row_weight_b), scores_bk=lax.stop_gradient(scores_bk)
    )
    weight_b1 = weight_b[:, None]

    def iterate(_: int, log_codes_bk: jax.Array) -> jax.Array:
        log_codes_bk -= jax.nn.logsumexp(log_codes_bk, axis=0, b=weight_b1, keepdims=True)
        return jax.nn.log_softmax(log_codes_bk, axis=1)

    log_codes_bk = lax.fori_loop(0, iterations, iterate, scores_bk / epsilon)
    return jnp.where(weight_b1 > 0, jnp.exp(log_codes_bk), 0.0)


def swapped_prediction(
    scores: Sequence[jax.Array],
    *,
    assign: int = 2,
    temperature: ArrayLike = 0.1,
    epsilon: float = 0.05,
    iterations: int = 3,
    queue_scores: Sequence[jax.Array] = (),
    row_weight_b: jax.Array | None = None,
) -> Loss:
    """Each view predicts the codes of the other ones: the loss of SwAV.

    Caron et al. 2020, arXiv:2006.09882, equations 1, 2 and 6: mean over the
    `assign` views with codes, of the mean over all other views, of the cross-entropy of the codes
    with softmax(scores / temperature).

    scores: one (B, K) a view, cosines with the prototypes; views with codes come first.
    assign: how many of them have codes, 1 to all. temperature: ().
    epsilon, iterations: of the codes, which get no gradient, as in `sinkhorn_codes`.
    queue_scores: one (Q, K) for each view with codes: samples of earlier batches that are assigned
    together with the batch (the paper's section 4.1, small batches), of weight 1.
    row_weight_b: (B,), 0 leaves the row out, whatever it holds.
    Raises ValueError for inputs that do not fit together.
    """
    views = len(scores)
    if views < 2 or not 1 <= assign <= views:
        raise ValueError(f"{views} views, assign={assign}: must be 2 or more, and 1 to all of them")
    if queue_scores and len(queue_scores) != assign:
        raise ValueError(f"{len(queue_scores)} queue_scores: must be one for each assign={assign}")
    named = {f"scores[{i}]": view for i, view in enumerate(scores)}
    weight_b, *scores = rows.take("(B, K)", row_weight_b, **named)
    log_p = [jax.nn.log_softmax(s / jnp.asarray(temperature, s.dtype), axis=1) for s in scores]
    total_b = jnp.zeros_like(weight_b)
    for i in range(assign):
        queue_qk = queue_scores[i] if queue_scores else None
        codes_bk = _codes_with_queue(scores[i], queue_qk, weight_b, epsilon, iterations)
        others_bk = sum((log_p[j] for j in range(views) if j != i), jnp.zeros_like(codes_bk))
        total_b -= jnp.sum(codes_bk * others_bk, axis=1)
    return rows.row_loss(total_b / (assign * (views - 1)), weight_b)


def prototype_cross_entropy(
    x_bd: jax.Array,
    prototypes_kd: jax.Array,
    assignment_b: jax.Array,
    *,
    logit_scale: ArrayLike,
    concentration_k: jax.Array | None = None,
    row_weight_b: jax.Array | None = None,
) -> Loss:
    """Cross-entropy of each sample's cluster with softmax(logit_scale * <x, prototypes>).

    PCL (Li et al. 2021, arXiv:2005.04966, equation 11) with `concentration_k`, its phi, in the
    place of the temperature (then logit_scale = 1); all K prototypes are in the denominator, of
    which the paper samples some. ProtoCLIP (Chen et al. 2022, arXiv:2206.10996) without; its soft
    targets are a `relation_kl` with the teacher's scores <prototypes[assignment], prototypes>.

    x_bd: unit-norm embeddings (B, d). prototypes_kd: (K, d), gradients flow into them.
    assignment_b: integer (B,), the sample's prototype; -1 leaves the row out, another number
    outside [0, K) makes the loss nan.
    logit_scale: (). concentration_k: (K,), above 0, divides the logits of its prototype.
    row_weight_b: (B,), 0 leaves the row out, whatever it holds.
    Raises ValueError for inputs that do not fit together.
    """
    if prototypes_kd.ndim != 2 or prototypes_kd.shape[1:] != x_bd.shape[1:]:
        raise ValueError(
            f"prototypes_kd {prototypes_kd.shape}: must be (K, d), and x_bd {x_bd.shape} (B, d)"
        )
    rows.check_integers("assignment_b", assignment_b, x_bd.shape[:1])
    weight_b = rows.weights(x_bd.shape, rows.wide(x_bd), row_weight_b)
    weight_b = jnp.where(assignment_b == -1, 0.0, weight_b)
    weight_b, x_bd = rows.take("(B, d)", weight_b, x_bd=x_bd)
    prototypes_dk = prototypes_kd.astype(x_bd.dtype).T
    scale = jnp.asarray(logit_scale).astype(x_bd.dtype)
    logits_bk = scale * jnp.matmul(x_bd, prototypes_dk, precision=rows.EXACT)
    if concentration_k is not None:
        rows.check_shape("concentration_k", concentration_k, prototypes_kd.shape[:1])
        logits_bk /= concentration_k.astype(x_bd.dtype)[None, :]
    return rows.row_loss(cross_entropy(logits_bk, assignment_b, weight_b > 0), weight_b)


def _codes_with_queue(
    scores_bk: jax.Array,
    queue_qk: jax.Array | None,
    weight_b: jax.Array,
    epsilon: float,
    iterations: int,
) -> jax.Array:
    """Codes of the batch, assigned together with a queue."""
    batch = scores_bk.shape[0]
    if queue_qk is not None:
        if queue_qk.ndim != 2 or queue_qk.shape[1] != scores_bk.shape[1]:
            raise ValueError(
                f"queue_scores {queue_qk.shape}: must be (Q, K), K = {scores_bk.shape[1]}"
            )
        scores_bk = jnp.concatenate([scores_bk, queue_qk.astype(scores_bk.dtype)])
        weight_b = jnp.concatenate([weight_b, jnp.ones(queue_qk.shape[:1], weight_b.dtype)])
    codes_bk = sinkhorn_codes(
        scores_bk, epsilon=epsilon, iterations=iterations, row_weight_b=weight_b
    )
    return codes_bk[:batch]
