"""Regularisers of where two modalities lie, and of the geometry that they should share."""

import jax
import jax.numpy as jnp
from jax import lax

from vlalign.losses import rows
from vlalign.losses.loss import Loss


def centroid_distance(
    x_bd: jax.Array, y_bd: jax.Array, *, row_weight_b: jax.Array | None = None
) -> Loss:
    """Squared distance of the modalities' mean embeddings.

    Liang et al. 2022, arXiv:2203.02053, section 4.2 (its gap is the vector between the means).

    x_bd, y_bd: embeddings (B, d). row_weight_b: (B,), 0 leaves the pair out, whatever it holds.
    `sum` is the value times `count`. Raises ValueError for inputs that do not fit together.
    """
    weight_b, x_bd, y_bd = rows.take("(B, d)", row_weight_b, x_bd=x_bd, y_bd=y_bd)
    gap_d = jnp.sum(rows.shares(weight_b)[:, None] * (x_bd - y_bd), axis=0)
    return rows.batch_loss(jnp.sum(gap_d**2), weight_b)


def random_feature_alignment(
    x_bd: jax.Array,
    y_bd: jax.Array,
    reference_bd: jax.Array,
    *,
    row_weight_b: jax.Array | None = None,
) -> Loss:
    """Both embeddings of a pair drawn to one random vector: mean of (|x - z|^2 + |y - z|^2) / 2.

    RaFA of CLIP-Refine (Yamaguchi et al. 2025, arXiv:2504.12717, L_RaFA); the authors' code
    has another scale, 2 / d times this one.

    x_bd, y_bd: embeddings (B, d). reference_bd: z, (B, d), a sample of the prior for each pair (the
    paper: standard normal), which gets no gradient.
    row_weight_b: (B,), 0 leaves the pair out, whatever it holds.
    Raises ValueError for inputs that do not fit together.
    """
    weight_b, x_bd, y_bd, reference_bd = rows.take(
        "(B, d)", row_weight_b, x_bd=x_bd, y_bd=y_bd, reference_bd=reference_bd
    )
    reference_bd = lax.stop_gradient(reference_bd)
    square_bd = (x_bd - reference_bd) ** 2 + (y_bd - reference_bd) ** 2
    return rows.row_loss(0.5 * jnp.sum(square_bd, axis=1), weight_b)


def in_modal_consistency(
    x_bd: jax.Array, y_bd: jax.Array, *, row_weight_b: jax.Array | None = None
) -> Loss:
    """Both modalities with the same similarities: sum over i, j of (<x_i, x_j> - <y_i, y_j>)^2 / B.

    CyCLIP (Goel et al. 2022, arXiv:2205.14459, section 3), in O(B d^2) time and O(B d + d^2)
    memory. The expansion into three Gram matrices loses all digits of pairs that are nearly
    equal. With p = x - y and q = x + y the double sum is
    (<P'P, Q'Q> + <P'Q, Q'P>) / 2 and that of `cross_modal_consistency` the same with a minus, so
    that in float32 each is exact to about 1e-6 of the sum of the two, however small that is.

    x_bd, y_bd: unit-norm embeddings (B, d).
    row_weight_b: (B,), 0 leaves the pair out, whatever it holds; i and j weigh the product of their
    weights relative to the mean one, and B is the number of pairs that are not left out.
    `sum` is the value times `count`.
    Raises ValueError for inputs that do not fit together.
    """
    return _consistency(x_bd, y_bd, 1.0, row_weight_b)


def cross_modal_consistency(
    x_bd: jax.Array, y_bd: jax.Array, *, row_weight_b: jax.Array | None = None
) -> Loss:
    """Symmetric scores of mismatched pairs: sum over i, j of (<x_i, y_j> - <x_j, y_i>)^2 / B.

    CyCLIP (Goel et al. 2022, arXiv:2205.14459, section 3). All else as in `in_modal_consistency`.
    """
    return _consistency(x_bd, y_bd, -1.0, row_weight_b)


def _consistency(
    x_bd: jax.Array, y_bd: jax.Array, sign: float, row_weight_b: jax.Array | None
) -> Loss:
    weight_b, x_bd, y_bd = rows.take("(B, d)", row_weight_b, x_bd=x_bd, y_bd=y_bd)
    share_b = rows.shares(weight_b)
    p_bd, q_bd = x_bd - y_bd, x_bd + y_bd

    def gram(a_bd: jax.Array, b_bd: jax.Array) -> jax.Array:
        return jnp.matmul((share_b[:, None] * a_bd).T, b_bd, precision=rows.EXACT)

    # |PQ'|^2 and <PQ', QP'>: XX' - YY' is half of PQ' + QP', and XY' - YX' half of QP' - PQ'.
    square = jnp.sum(gram(p_bd, p_bd) * gram(q_bd, q_bd))
    mixed_dd = gram(p_bd, q_bd)
    mean = 0.5 * (square + sign * jnp.sum(mixed_dd * mixed_dd.T))
    batch = jnp.sum((weight_b > 0).astype(mean.dtype))
    return rows.batch_loss(batch * mean, weight_b)
