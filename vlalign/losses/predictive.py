"""Losses that predict a target's features: the target side never gets a gradient."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from vlalign.losses import rows
from vlalign.losses.loss import Loss

Regression = Literal["l2", "cosine", "smooth_l1"]


def negative_cosine(
    p_bd: jax.Array, z_bd: jax.Array, *, row_weight_b: jax.Array | None = None
) -> Loss:
    """Negative cosine of a prediction and its target.

    SimSiam (Chen & He 2021, arXiv:2011.10566, equation 1). A norm counts as 1e-8 at least, as in
    lightly.

    p_bd, z_bd: prediction and target (B, d), of any length; no gradient flows into z_bd.
    row_weight_b: (B,), 0 leaves the row out, whatever it holds.
    Raises ValueError for inputs that do not fit together.
    """
    weight_b, p_bd, z_bd = rows.take("(B, d)", row_weight_b, p_bd=p_bd, z_bd=z_bd)
    return rows.row_loss(-_cosine(p_bd, lax.stop_gradient(z_bd)), weight_b)


def simsiam(
    p1_bd: jax.Array,
    p2_bd: jax.Array,
    z1_bd: jax.Array,
    z2_bd: jax.Array,
    *,
    row_weight_b: jax.Array | None = None,
) -> Loss:
    """Half the negative cosines of two views, each predicting the other one's target.

    SimSiam (Chen & He 2021, arXiv:2011.10566, equation 2).

    p1_bd, p2_bd: predictions from the first and the second view; z1_bd, z2_bd: the views' targets,
    without gradient. All (B, d). Weights and errors as in `negative_cosine`.
    """
    weight_b, p1_bd, p2_bd, z1_bd, z2_bd = rows.take(
        "(B, d)", row_weight_b, p1_bd=p1_bd, p2_bd=p2_bd, z1_bd=z1_bd, z2_bd=z2_bd
    )
    z1_bd, z2_bd = lax.stop_gradient((z1_bd, z2_bd))
    return rows.row_loss(-0.5 * (_cosine(p1_bd, z2_bd) + _cosine(p2_bd, z1_bd)), weight_b)


def byol(
    p1_bd: jax.Array,
    p2_bd: jax.Array,
    z1_bd: jax.Array,
    z2_bd: jax.Array,
    *,
    row_weight_b: jax.Array | None = None,
) -> Loss:
    """Squared distances of unit vectors, 2 - 2 cos, of two views: 4 + 4 times `simsiam`.

    BYOL (Grill et al. 2020, arXiv:2006.07733, equation 2, the sum of both directions). Small
    losses keep their digits. Arguments and errors as in `simsiam`.
    """
    weight_b, p1_bd, p2_bd, z1_bd, z2_bd = rows.take(
        "(B, d)", row_weight_b, p1_bd=p1_bd, p2_bd=p2_bd, z1_bd=z1_bd, z2_bd=z2_bd
    )
    z1_bd, z2_bd = lax.stop_gradient((z1_bd, z2_bd))
    first_bd = rows.unit(p1_bd) - rows.unit(z2_bd)
    second_bd = rows.unit(p2_bd) - rows.unit(z1_bd)
    return rows.row_loss(jnp.sum(first_bd**2 + second_bd**2, axis=1), weight_b)


def feature_regression(
    student: jax.Array,
    target: jax.Array,
    *,
    kind: Regression = "l2",
    beta: float = 1.0,
    mask_bl: jax.Array | None = None,
    row_weight_b: jax.Array | None = None,
) -> Loss:
    """Regression of a target's features; with tokens, the mean over those of the mask.

    EVA (Fang et al. 2022, arXiv:2211.07636, section 2) and MVP (Wei et al. 2022, arXiv:2203.05175,
    section 3) are "cosine" on masked tokens; feature distillation (Wei et al. 2022,
    arXiv:2205.14141, section 3) is "smooth_l1" on all.

    student, target: (B, d), or with a mask (B, l, d); no gradient flows into the target.
    kind: "l2", the mean of squared differences over d; "smooth_l1", the mean over d of
    difference^2 / (2 beta) below beta and |difference| - beta / 2 above (PyTorch's scale);
    "cosine", the negative cosine.
    mask_bl: (B, l), bool or weights of tokens; 0 leaves a token out, whatever it holds.
    row_weight_b: (B,), multiplies the weights of the row's tokens. `count` is the weight of tokens.
    Raises ValueError for inputs that do not fit together, an unknown kind or a beta not above 0.
    """
    axes = "(B, d)" if mask_bl is None else "(B, l, d)"
    weight, student, target = rows.take(axes, row_weight_b, mask_bl, student=student, target=target)
    target = lax.stop_gradient(target)
    if kind == "cosine":
        return rows.row_loss(-_cosine(student, target), weight)
    if beta <= 0:
        raise ValueError(f"beta={beta}: must be above 0")
    if kind == "l2":
        each = (student - target) ** 2
    elif kind == "smooth_l1":
        size = jnp.abs(student - target)
        each = jnp.where(size < beta, size**2 / (2.0 * beta), size - 0.5 * beta)
    else:
        raise ValueError(f'kind={kind!r}: must be "l2", "cosine" or "smooth_l1"')
    return rows.row_loss(jnp.mean(each, axis=-1), weight)


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.sum(rows.unit(a) * rows.unit(b), axis=-1)
