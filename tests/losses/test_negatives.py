"""Columns made in feature space, and the mining that finds what to make them from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.losses.companions import mesh_of, normal, unit
from vlalign.losses.contrast import Extra
from vlalign.losses.margin import hardest_negatives
from vlalign.losses.negatives import (
    extrapolated,
    geodesic_mix,
    hardest_mixes,
    interpolated,
    strongest_tokens,
)
from vlalign.losses.scores import tokens

B, D = 16, 8
RNG = np.random.default_rng(1)
X, Y, EXTRA = (unit(normal(RNG, n, D)) for n in (B, B, 5))


@settings(max_examples=10)
@given(share=st.floats(0, 1), seed=st.integers(0, 99))
def test_geodesic_mix_divides_the_angle(share, seed):
    rng = np.random.default_rng(seed)
    u, v = (unit(normal(rng, 3, D)) for _ in range(2))
    mix = np.asarray(geodesic_mix(u, v, share))
    whole, part = (np.arccos(np.clip(np.sum(a * v, 1), -1, 1)) for a in (u, mix))
    np.testing.assert_allclose(np.linalg.norm(mix, axis=1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(part, share * whole, atol=2e-3)


def test_geodesic_mix_of_equals_is_finite():
    def total(u):
        return jnp.sum(geodesic_mix(u, X, 0.3))

    np.testing.assert_allclose(geodesic_mix(X, X, 0.3), X, atol=1e-6)
    assert np.all(np.isfinite(jax.grad(total)(X)))


def test_hardest_mixes_lie_between_their_parents():
    hard = unit(normal(RNG, B, 4, D))
    mixes = np.asarray(hardest_mixes(X, hard, jax.random.key(0), pairs=5, with_query=3))
    assert mixes.shape == (B, 8, D)
    np.testing.assert_allclose(np.linalg.norm(mixes, axis=2), 1.0, rtol=1e-6)
    for row in range(B):
        for k, mix in enumerate(mixes[row]):
            parents = [(n, m) for n in hard[row] for m in (hard[row] if k < 5 else [X[row]])]
            assert any(_between(mix, *pair, at_most=1.0 if k < 5 else 0.5) for pair in parents)
    again = hardest_mixes(X, hard, jax.random.key(0), pairs=5, with_query=3)
    np.testing.assert_array_equal(mixes, again)


def _between(mix, n, m, at_most):
    """Whether mix is along (1 - a) n + a m, 0 <= a <= at_most."""
    if np.allclose(n, m):
        return np.allclose(mix, n, atol=1e-5)
    a, b = np.linalg.lstsq(np.stack([n, m], 1), mix, rcond=None)[0]
    close = np.allclose(a * n + b * m, mix, atol=1e-5)
    return close and a > -1e-5 and -1e-5 < b <= at_most * (a + b) + 1e-5


def test_no_gradient_through_mixes():
    hard = unit(normal(RNG, B, 4, D))

    def total(x, h):
        return jnp.sum(hardest_mixes(x, h, jax.random.key(0), pairs=2, with_query=2))

    for grad in jax.grad(total, (0, 1))(X, hard):
        np.testing.assert_array_equal(grad, 0.0)


def test_extrapolation_moves_a_pair_apart_and_interpolation_mixes():
    factor = np.linspace(1.1, 1.9, B).astype(np.float32)
    u, v = extrapolated(X, Y, factor)
    np.testing.assert_allclose(u, unit(factor[:, None] * X + (1 - factor)[:, None] * Y), atol=1e-6)
    assert np.all(np.sum(u * v, 1) < np.sum(X * Y, 1))
    order = RNG.permutation(B)
    mixed = interpolated(X, order, 0.25)
    np.testing.assert_allclose(mixed, unit(0.25 * X + 0.75 * X[order]), atol=1e-6)


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_hardest_negatives(devices):
    group = np.arange(B, dtype=np.int32) // 2
    extra = Extra(EXTRA, np.asarray([True, False, True, True, True]))
    scores = np.concatenate([X @ Y.T, X @ EXTRA.T], axis=1)
    scores[:, B + 1] = -np.inf
    scores[:, :B][group[:, None] == group[None]] = -np.inf
    expected = np.argsort(-scores, axis=1)[:, :4]
    options = {"logit_scale": 1.0, "group_b": group, "extra": extra, "block_size": 3}
    if devices == 1:
        top, at = hardest_negatives(X, Y, k=4, **options)
    else:
        with jax.set_mesh(mesh_of(devices)):
            top, at = hardest_negatives(X, Y, k=4, **options)
    np.testing.assert_array_equal(at, expected)
    np.testing.assert_allclose(top, np.take_along_axis(scores, expected, 1), rtol=1e-5)


def test_fewer_negatives_than_asked_for():
    top, at = hardest_negatives(X[:3], Y[:3], k=4, logit_scale=1.0)
    assert np.all(np.asarray(at)[:, 2:] == -1)
    assert np.all(np.asarray(top)[:, 2:] < -1e29)


def test_strongest_tokens():
    x, y = unit(normal(RNG, 6, 5, D)), unit(normal(RNG, 6, 4, D))
    mask_x, mask_y = (RNG.random((6, n)) < 0.6 for n in (5, 4))
    mask_x[:, 0] = mask_y[:, 0] = True
    best = np.einsum("bld,cmd->blcm", x, y)
    best = np.where(mask_y[None, None], best, -np.inf).max((2, 3))
    best = np.where(mask_x, best, -np.inf)
    kept = strongest_tokens(tokens(x, mask_x), tokens(y, mask_y), keep=2)
    for row in range(6):
        expected = np.argsort(-best[row])[:2]
        counts = mask_x[row, expected]
        np.testing.assert_array_equal(kept["mask"][row], counts)
        np.testing.assert_array_equal(kept["z"][row][counts], x[row, expected][counts])
    with pytest.raises(ValueError, match="keep=6: must be 1 to 5"):
        strongest_tokens(tokens(x), tokens(y), keep=6)
