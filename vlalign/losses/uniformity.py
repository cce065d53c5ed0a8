"""Alignment of pairs, and uniformity of what is not a pair, on the unit sphere."""

import jax
import jax.numpy as jnp

from vlalign.losses import contrast, rows
from vlalign.losses.loss import Loss


def alignment(
    x_bd: jax.Array, y_bd: jax.Array, *, alpha: float = 2.0, row_weight_b: jax.Array | None = None
) -> Loss:
    """Mean distance of pairs to the power alpha: mean ||x - y||^alpha.

    Wang & Isola 2020, arXiv:2005.10242, section 4.1 (L_align).

    x_bd, y_bd: unit-norm embeddings (B, d), of any float dtypes.
    alpha: above 0. row_weight_b: (B,), 0 leaves the pair out, whatever it holds.
    Raises ValueError for inputs that do not fit together.
    """
    if alpha <= 0:
        raise ValueError(f"alpha={alpha}: must be above 0")
    weight_b, x_bd, y_bd = rows.take("(B, d)", row_weight_b, x_bd=x_bd, y_bd=y_bd)
    square_b = jnp.sum((x_bd - y_bd) ** 2, axis=1)
    # The root of 0 has no finite slope: equal vectors get gradient 0.
    apart_b = square_b > 0
    distance_b = jnp.where(apart_b, square_b, 1.0) ** (0.5 * alpha)
    return rows.row_loss(jnp.where(apart_b, distance_b, 0.0), weight_b)


def uniformity(x_bd: jax.Array, *, t: float = 2.0, row_weight_b: jax.Array | None = None) -> Loss:
    """Logarithm of the mean Gaussian potential of pairs i != j: log mean exp(-t ||x_i - x_j||^2).

    Wang & Isola 2020, arXiv:2005.10242, section 4.1 (L_uniform; t = 2 is theirs, lightly has 1).
    For unit vectors -t ||x_i - x_j||^2 is 2t <x_i, x_j> - 2t, so it is one direction of the
    contrast kernel, in memory linear in the batch and on any mesh.

    x_bd: unit-norm embeddings (B, d).
    t: above 0, static.
    row_weight_b: (B,), 0 leaves the row out, whatever it holds; a pair weighs its rows' mean.
    The loss of fewer than two rows is 0. `sum` is the value times `count`.
    Raises ValueError for inputs that do not fit together or a batch that the mesh does not divide.
    """
    if t <= 0:
        raise ValueError(f"t={t}: must be above 0")
    weight_b, _ = rows.take("(B, d)", row_weight_b, x_bd=x_bd)
    log_sum_b = contrast.log_sum_negatives(x_bd, x_bd, logit_scale=2.0 * t, row_weight_b=weight_b)
    partners = jnp.sum((weight_b > 0).astype(weight_b.dtype)) - 1.0
    log_sum = jax.nn.logsumexp(log_sum_b, b=rows.shares(weight_b))
    value = log_sum - jnp.log(jnp.maximum(partners, 1.0)) - 2.0 * t
    return rows.batch_loss(jnp.where(partners > 0, value, 0.0), weight_b)
