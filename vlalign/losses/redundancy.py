"""Losses on the second moments of a batch: decorrelated features instead of negatives.

Statistics are weighted: a row of weight 0 is not in the batch, and weights that are all multiplied
by the same factor change nothing. They are of the whole batch, over all devices.
"""

import jax
import jax.numpy as jnp

from vlalign.losses import rows
from vlalign.losses.loss import Loss


def barlow_twins(
    x_bd: jax.Array,
    y_bd: jax.Array,
    *,
    redundancy_weight: float = 5e-3,
    epsilon: float = 1e-5,
    row_weight_b: jax.Array | None = None,
) -> Loss:
    """Cross-correlation of two views' features drawn to the identity.

    Zbontar et al. 2021, arXiv:2103.03230, equation 1: sum_i (1 - C_ii)^2
    + redundancy_weight * sum_{i != j} C_ij^2, with C of features standardised over the batch.
    Where the paper is silent, as batch normalisation does in the authors' code and in lightly: the
    variance is the biased one, and epsilon is added to it.

    x_bd, y_bd: features (B, d), of any length. redundancy_weight: the paper's lambda.
    row_weight_b: (B,), 0 leaves the row out, whatever it holds. `sum` is the value times `count`.
    metrics: "invariance" and "redundancy", the two sums before weighting.
    Raises ValueError for inputs that do not fit together.
    """
    weight_b, x_bd, y_bd = rows.take("(B, d)", row_weight_b, x_bd=x_bd, y_bd=y_bd)
    share_b = rows.shares(weight_b)

    def standardise(z_bd: jax.Array) -> jax.Array:
        centred_bd = _centred(z_bd, share_b)
        variance_d = jnp.sum(share_b[:, None] * centred_bd**2, axis=0)
        return centred_bd * jax.lax.rsqrt(variance_d + epsilon)[None, :]

    correlation_dd = _second_moment(standardise(x_bd), standardise(y_bd), share_b)
    invariance = jnp.sum((jnp.diagonal(correlation_dd) - 1.0) ** 2)
    redundancy = _off_diagonal_squares(correlation_dd)
    value = invariance + redundancy_weight * redundancy
    return rows.batch_loss(value, weight_b, invariance=invariance, redundancy=redundancy)


def vicreg(
    x_bd: jax.Array,
    y_bd: jax.Array,
    *,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
    epsilon: float = 1e-4,
    row_weight_b: jax.Array | None = None,
) -> Loss:
    """Variance, invariance and covariance of two views' features.

    Bardes et al. 2022, arXiv:2105.04906, equations 1 to 6, with the scales of the authors' code
    (and of lightly), for which the weights were tuned; the paper's text has other ones:
    invariance = mean over rows and features of (x - y)^2 (text: sum over features);
    variance = mean over features of max(0, 1 - sqrt(Var + epsilon)), mean of the views (text: sum);
    covariance = sum_{i != j} Cov_ij^2 / d, sum of the views.
    Var and Cov are unbiased; with weights, those of reliability weights (for weights 0 and 1 the
    divisor is n - 1). A batch of one row has variance 0.

    x_bd, y_bd: features (B, d), of any length.
    row_weight_b: (B,), 0 leaves the row out, whatever it holds. `sum` is the value times `count`.
    metrics: "invariance", "variance" and "covariance", before weighting.
    Raises ValueError for inputs that do not fit together.
    """
    weight_b, x_bd, y_bd = rows.take("(B, d)", row_weight_b, x_bd=x_bd, y_bd=y_bd)
    share_b = rows.shares(weight_b)
    dim = x_bd.shape[1]
    x_dd, y_dd = (_covariance(_centred(z_bd, share_b), share_b) for z_bd in (x_bd, y_bd))

    def hinge(covariance_dd: jax.Array) -> jax.Array:
        deviation_d = jnp.sqrt(jnp.diagonal(covariance_dd) + epsilon)
        return jnp.mean(jax.nn.relu(1.0 - deviation_d))

    invariance = jnp.sum(share_b * jnp.mean((x_bd - y_bd) ** 2, axis=1))
    variance = 0.5 * (hinge(x_dd) + hinge(y_dd))
    covariance = (_off_diagonal_squares(x_dd) + _off_diagonal_squares(y_dd)) / dim
    value = (
        invariance_weight * invariance + variance_weight * variance + covariance_weight * covariance
    )
    return rows.batch_loss(
        value, weight_b, invariance=invariance, variance=variance, covariance=covariance
    )


def whitened_mse(
    x_bd: jax.Array,
    y_bd: jax.Array,
    *,
    epsilon: float = 0.0,
    row_weight_b: jax.Array | None = None,
) -> Loss:
    """Squared distance of two views' features, whitened over the batch and brought to unit length.

    W-MSE (Ermolov et al. 2021, arXiv:2007.06346, section 3). Each view is whitened by the
    inverse Cholesky factor of its own covariance, (1 - epsilon) * Cov + epsilon * identity (0 in
    the authors' code and in lightly), over the whole batch: slices of it are the caller's.

    x_bd, y_bd: features (B, d), of any length. With epsilon = 0 the value is nan unless clearly
    more than d rows are present: their covariance has no inverse. The paper asks for 2d.
    row_weight_b: (B,), 0 leaves the row out, whatever it holds.
    Raises ValueError for inputs that do not fit together, or no more rows than features with
    epsilon = 0.
    """
    weight_b, x_bd, y_bd = rows.take("(B, d)", row_weight_b, x_bd=x_bd, y_bd=y_bd)
    batch, dim = x_bd.shape
    if epsilon == 0 and batch <= dim:
        raise ValueError(
            f"{batch} rows of {dim} features: their covariance has no inverse; use more than {dim} "
            "rows (the paper: at least twice as many), or epsilon > 0"
        )
    share_b = rows.shares(weight_b)
    empty = jnp.sum(weight_b) == 0
    identity_dd = jnp.eye(dim, dtype=x_bd.dtype)

    def whiten(z_bd: jax.Array) -> jax.Array:
        centred_bd = _centred(z_bd, share_b)
        covariance_dd = jnp.where(empty, identity_dd, _covariance(centred_bd, share_b))
        factor_dd = jnp.linalg.cholesky((1.0 - epsilon) * covariance_dd + epsilon * identity_dd)
        # The inverse of a small matrix, so that what is as long as the batch is multiplied only.
        inverse_dd = jax.scipy.linalg.solve_triangular(factor_dd, identity_dd, lower=True)
        return jnp.matmul(centred_bd, inverse_dd.T, precision=rows.EXACT)

    difference_bd = rows.unit(whiten(x_bd)) - rows.unit(whiten(y_bd))
    return rows.row_loss(jnp.sum(difference_bd**2, axis=1), weight_b)


def _centred(z_bd: jax.Array, share_b: jax.Array) -> jax.Array:
    return z_bd - jnp.sum(share_b[:, None] * z_bd, axis=0, keepdims=True)


def _second_moment(x_bd: jax.Array, y_bd: jax.Array, share_b: jax.Array) -> jax.Array:
    """Weighted mean of the rows' outer products, (d, d)."""
    return jnp.matmul((share_b[:, None] * x_bd).T, y_bd, precision=rows.EXACT)


def _covariance(centred_bd: jax.Array, share_b: jax.Array) -> jax.Array:
    """Unbiased; 0 for one row."""
    free = 1.0 - jnp.sum(share_b**2)
    return _second_moment(centred_bd, centred_bd, share_b) / jnp.where(free > 0, free, 1.0)


def _off_diagonal_squares(a_dd: jax.Array) -> jax.Array:
    off_diagonal = 1.0 - jnp.eye(a_dd.shape[0], dtype=a_dd.dtype)
    return jnp.sum(off_diagonal * a_dd**2)
