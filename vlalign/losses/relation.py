"""Losses on relations: a student's similarities to a set of others follow those of a teacher."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from vlalign.losses import rows
from vlalign.losses.loss import Loss

# "Minus infinity" of scores: finite, so that the difference of two is 0 and not nan.
_EXCLUDED = -1e30


def relation_kl(
    student_bk: jax.Array,
    teacher_bk: jax.Array,
    *,
    student_temperature: ArrayLike,
    teacher_temperature: ArrayLike,
    stop_teacher: bool = True,
    valid_k: jax.Array | None = None,
    row_weight_b: jax.Array | None = None,
) -> Loss:
    """KL(teacher || student) of each row's softmax over a common set of anchors.

    SEED (Fang et al. 2021, arXiv:2101.04731, section 3) and ReSSL (Zheng et al. 2021,
    arXiv:2107.09282, section 3) over a queue. What they minimise is the cross-entropy, this loss
    plus "teacher_entropy": the same gradients, as long as the teacher gets none.

    student_bk, teacher_bk: scores (B, K), not yet divided by the temperatures ().
    stop_teacher: whether the teacher's scores get no gradient.
    valid_k: bool (K,), False leaves an anchor out, whatever it holds (a queue not yet full).
    row_weight_b: (B,), 0 leaves the row out, whatever it holds.
    metrics: "teacher_entropy".
    Raises ValueError for inputs that do not fit together.
    """
    weight_b, student_bk, teacher_bk = rows.take(
        "(B, K)", row_weight_b, student_bk=student_bk, teacher_bk=teacher_bk
    )
    if valid_k is None:
        valid_k = jnp.ones(student_bk.shape[1:], jnp.bool_)
    rows.check_shape("valid_k", valid_k, student_bk.shape[1:])
    kl_b, entropy_b = _divergence(
        _log_p(student_bk, student_temperature, valid_k[None, :]),
        _log_p(teacher_bk, teacher_temperature, valid_k[None, :], stop=stop_teacher),
    )
    return rows.row_loss(kl_b, weight_b, teacher_entropy=entropy_b)


def token_relation_kl(
    student_bll: jax.Array,
    teacher_bll: jax.Array,
    *,
    student_temperature: ArrayLike,
    teacher_temperature: ArrayLike,
    stop_teacher: bool = True,
    mask_bl: jax.Array | None = None,
    row_weight_b: jax.Array | None = None,
) -> Loss:
    """KL(teacher || student) of each token's softmax over the tokens of its sample.

    Attention relations of MiniLM (Wang et al. 2020, arXiv:2002.10957, section 3.1), or similarities
    of the tokens' features; the mean is over all tokens of the batch.

    student_bll, teacher_bll: scores (B, l, l) of each token (second axis) with the others (third).
    mask_bl: (B, l), bool or weights of tokens; 0 leaves a token out of both axes.
    row_weight_b: (B,), multiplies the weights of the row's tokens. `count` is the weight of tokens.
    All else as in `relation_kl`.
    """
    if student_bll.ndim == 3 and student_bll.shape[1] != student_bll.shape[2]:
        raise ValueError(f"student_bll {student_bll.shape}: must be (B, l, l)")
    if mask_bl is None:
        mask_bl = jnp.ones(student_bll.shape[:2], jnp.bool_)
    weight_bl, student_bll, teacher_bll = rows.take(
        "(B, l, l)", row_weight_b, mask_bl, student_bll=student_bll, teacher_bll=teacher_bll
    )
    valid_b1l = weight_bl[:, None, :] > 0
    kl_bl, entropy_bl = _divergence(
        _log_p(student_bll, student_temperature, valid_b1l),
        _log_p(teacher_bll, teacher_temperature, valid_b1l, stop=stop_teacher),
    )
    return rows.row_loss(kl_bl, weight_bl, teacher_entropy=entropy_bl)


def _log_p(
    scores: jax.Array, temperature: ArrayLike, valid: jax.Array, *, stop: bool = False
) -> jax.Array:
    """Log-probabilities over the last axis, of what is valid."""
    scores = jnp.where(valid, scores, 0.0) / jnp.asarray(temperature).astype(scores.dtype)
    log_p = jax.nn.log_softmax(jnp.where(valid, scores, _EXCLUDED), axis=-1)
    return lax.stop_gradient(log_p) if stop else log_p


def _divergence(student: jax.Array, teacher: jax.Array) -> tuple[jax.Array, jax.Array]:
    """KL(teacher || student) and the teacher's entropy, from log-probabilities."""
    p = jnp.exp(teacher)
    return jnp.sum(p * (teacher - student), axis=-1), -jnp.sum(p * teacher, axis=-1)
