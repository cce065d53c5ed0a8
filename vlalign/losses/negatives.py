"""Columns made in feature space: mixes, extrapolations, the strongest tokens.

Pure functions that make what `softmax_contrast` takes as `extra`, `own_columns`, `positive_bd` or
tokens. Embeddings are unit-norm, and so is what comes out.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from vlalign.losses.kernel.sweep import wide
from vlalign.losses.kernel.tile import EXCLUDED
from vlalign.losses.scores import product


def geodesic_mix(u_bd: jax.Array, v_bd: jax.Array, share: ArrayLike) -> jax.Array:
    """A point on the great circle from v (share 0) to u (share 1), (B, d): spherical mixup.

    [sin(share * t) u + sin((1 - share) * t) v] / sin(t), t the angle between them: m2-Mix (Oh et
    al. 2023, arXiv:2203.03897, eq. 4). Of images u and their texts v it is a hard negative for
    other samples' images and texts: `softmax_contrast(u, mix, positive_bd=v)`.
    u_bd, v_bd: (B, d). share: () or (B,). Where u and v (nearly) agree it is their straight mix.
    """
    dtype = wide(u_bd.dtype)
    u, v = u_bd.astype(dtype), v_bd.astype(dtype)
    share = jnp.asarray(share).astype(dtype)
    share = share[:, None] if share.ndim else share
    cosine = jnp.sum(u * v, axis=1, keepdims=True)
    # The angle by its tangent: arccos has no digits where the vectors agree.
    across = jnp.maximum(jnp.sum(jnp.square(u - cosine * v), axis=1, keepdims=True), 1e-12)
    sine = jnp.sqrt(across)
    angle = jnp.arctan2(sine, cosine)
    mixed = (jnp.sin(share * angle) * u + jnp.sin((1.0 - share) * angle) * v) / sine
    return _unit(mixed).astype(u_bd.dtype)


def hardest_mixes(
    query_bd: jax.Array,
    hardest_bkd: jax.Array,
    rng: jax.Array,
    *,
    pairs: int,
    with_query: int = 0,
) -> jax.Array:
    """Synthetic negatives (B, pairs + with_query, d) of each query from its hardest ones.

    MoCHi (Kalantidis et al. 2020, arXiv:2010.01028, eq. 3 and 4): a * n_i + (1 - a) * n_j of two of
    the row's hardest, a uniform in (0, 1); and b * query + (1 - b) * n_j, b uniform in (0, 0.5).
    No gradient flows through them. Use as `OwnColumns`.
    query_bd: (B, d). hardest_bkd: (B, k, d), as `margin.hardest_negatives` finds them.
    """
    query_bd, hardest_bkd = jax.lax.stop_gradient((query_bd, hardest_bkd))
    batch, k, _ = hardest_bkd.shape
    dtype = wide(query_bd.dtype)
    keys = jax.random.split(rng, 4)
    query_bd, hardest_bkd = query_bd.astype(dtype), hardest_bkd.astype(dtype)

    def pick(key: jax.Array, n: int) -> jax.Array:
        index_bn = jax.random.randint(key, (batch, n), 0, k)
        return jnp.take_along_axis(hardest_bkd, index_bn[:, :, None], axis=1)

    one, other = pick(keys[0], pairs + with_query), pick(keys[1], pairs)
    a = jax.random.uniform(keys[2], (batch, pairs, 1), dtype)
    b = jax.random.uniform(keys[3], (batch, with_query, 1), dtype, maxval=0.5)
    mixed = a * one[:, :pairs] + (1.0 - a) * other
    near = b * query_bd[:, None, :] + (1.0 - b) * one[:, pairs:]
    return _unit(jnp.concatenate([mixed, near], axis=1)).astype(query_bd.dtype)


def extrapolated(
    x_bd: jax.Array, y_bd: jax.Array, factor: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Two positives moved apart: factor * x + (1 - factor) * y, and the same from y's side.

    Positive extrapolation of FT (Zhu et al. 2021, arXiv:2108.02982, eq. 5; factor 1 + Beta, the
    same for both), and the asymmetric step of Hallucinator. A positive's score is then that of the
    two: `softmax_contrast(x', ..., positive_bd=y')`.
    x_bd, y_bd: (B, d). factor: () or (B,), 1 or more.
    """
    factor = jnp.asarray(factor).astype(x_bd.dtype)
    factor = factor[:, None] if factor.ndim else factor
    return (
        _unit(factor * x_bd + (1.0 - factor) * y_bd),
        _unit(factor * y_bd + (1.0 - factor) * x_bd),
    )


def interpolated(z_qd: jax.Array, order_q: jax.Array, factor: ArrayLike) -> jax.Array:
    """Negatives mixed with each other, (Q, d): factor * z + (1 - factor) * z[order].

    Negative interpolation of FT (as `extrapolated`, eq. 6), for a queue. z_qd: (Q, d). order_q: a
    permutation. factor: () or (Q,), in (0, 1).
    """
    factor = jnp.asarray(factor).astype(z_qd.dtype)
    factor = factor[:, None] if factor.ndim else factor
    return _unit(factor * z_qd + (1.0 - factor) * z_qd[order_q])


def strongest_tokens(
    x: dict[str, jax.Array], y: dict[str, jax.Array], *, keep: int
) -> dict[str, jax.Array]:
    """Of each x the `keep` tokens that are most similar to any token of any y in the batch.

    FILIP (Yao et al. 2021, arXiv:2111.07783, section 3.2) keeps a quarter of the tokens before it
    compares them all. No gradient flows through the choice; fewer may count, if fewer did.
    x, y: `scores.tokens` of (B, l, d) and (B, m, d). Returns the same of (B, keep, d).
    """
    length = x["mask"].shape[1]
    if not 1 <= keep <= length:
        raise ValueError(f"keep={keep}: must be 1 to {length}, the number of tokens")
    z_bld = jax.lax.stop_gradient(x["z"])
    low = jnp.asarray(EXCLUDED, wide(z_bld.dtype))

    def one_y(best_bl: jax.Array, column: dict[str, jax.Array]) -> tuple[jax.Array, None]:
        sims_blm = product(z_bld, column["z"], ((2,), (1,)))
        sims_blm = jnp.where(column["mask"][None, None, :], sims_blm, low)
        return jnp.maximum(best_bl, sims_blm.max(axis=2)), None

    start_bl = jnp.full(x["mask"].shape, low)
    best_bl, _ = jax.lax.scan(one_y, start_bl, jax.lax.stop_gradient(y))
    _, index_bk = jax.lax.top_k(jnp.where(x["mask"], best_bl, 2.0 * low), keep)
    return {
        "z": jnp.take_along_axis(x["z"], index_bk[:, :, None], axis=1),
        "mask": jnp.take_along_axis(x["mask"], index_bk, axis=1),
    }


def _unit(z: jax.Array) -> jax.Array:
    square = jnp.sum(jnp.square(z), axis=-1, keepdims=True)
    return z * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
