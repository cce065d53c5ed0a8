"""Losses on second moments: values, gradients and what they are blind to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.losses.companions import Case, Companion, normal, weights
from vlalign.losses.redundancy import barlow_twins, vicreg, whitened_mse

B, D = 32, 5
RNG = np.random.default_rng(0)
X = normal(RNG, B, D) + normal(RNG, 1, D)
VIEWS = {"x": X, "y": X + np.float32(0.5) * normal(RNG, B, D)}
# Some features vary by more than 1, where the hinge of VICReg is flat.
SPREAD = {k: (z * np.asarray([0.1, 0.5, 0.8, 1.5, 2.0], np.float32)) for k, z in VIEWS.items()}
WEIGHT = weights(RNG, B)


def share(weight):
    return weight / jnp.sum(weight)


def covariance(x, weight, unbiased):
    """What numpy calls `aweights`, one pair of features after the other."""
    p = share(weight)
    scale = 1 - jnp.sum(p**2) if unbiased else 1.0
    centred = x - (p @ x)[None, :]
    return jnp.einsum("b,bi,bj->ij", p, centred, centred) / scale


def off_diagonal(a):
    return jnp.sum(a**2) - jnp.sum(jnp.diag(a) ** 2)


def barlow_twin(x, y, weight):
    both = covariance(jnp.concatenate([x, y], axis=1), weight, unbiased=False)
    deviation = jnp.sqrt(jnp.diag(both) + 1e-5)
    correlation = (both / jnp.outer(deviation, deviation))[:D, D:]
    return jnp.sum((1 - jnp.diag(correlation)) ** 2) + 0.05 * off_diagonal(correlation)


def vicreg_twin(x, y, weight):
    p, total = share(weight), 0.0
    for z in (x, y):
        c = covariance(z, weight, unbiased=True)
        hinge = jnp.maximum(0, 1 - jnp.sqrt(jnp.diag(c) + 1e-4))
        total += 25 / 2 * jnp.mean(hinge) + off_diagonal(c) / D
    return total + 25 * jnp.sum(p[:, None] * (x - y) ** 2) / D


def whitened_twin(epsilon):
    def twin(x, y, weight):
        white = []
        for z in (x, y):
            c = (1 - epsilon) * covariance(z, weight, unbiased=True) + epsilon * jnp.eye(D)
            z = (z - (share(weight) @ z)[None, :]) @ jnp.linalg.inv(jnp.linalg.cholesky(c)).T
            white.append(z / jnp.linalg.norm(z, axis=1, keepdims=True))
        return 2 - 2 * jnp.sum(share(weight) * jnp.sum(white[0] * white[1], axis=1))

    return twin


def rows(loss, **options):
    def ours(x, y, weight):
        return loss(x, y, row_weight_b=weight, **options)

    return ours


GIVEN = {"weight": WEIGHT}


class TestRedundancy(Companion):
    cases = (
        Case("barlow", rows(barlow_twins, redundancy_weight=0.05), barlow_twin, VIEWS, GIVEN),
        Case("vicreg", rows(vicreg), vicreg_twin, SPREAD, GIVEN),
        Case("whitened", rows(whitened_mse), whitened_twin(0.0), VIEWS, GIVEN),
        Case("shrunk", rows(whitened_mse, epsilon=0.3), whitened_twin(0.3), VIEWS, GIVEN),
    )


def test_moments_of_numpy():
    x, y = VIEWS["x"], VIEWS["y"]
    means = vicreg(x, y, row_weight_b=WEIGHT).metric_means()
    found = [np.cov(z.astype(np.float64).T, aweights=WEIGHT) for z in (x, y)]
    squares = [np.sum(c**2) - np.sum(np.diag(c) ** 2) for c in found]
    np.testing.assert_allclose(means["covariance"], sum(squares) / D, rtol=1e-5)
    hinges = [np.mean(np.maximum(0, 1 - np.sqrt(np.diag(c) + 1e-4))) for c in found]
    np.testing.assert_allclose(means["variance"], np.mean(hinges), rtol=1e-4, atol=1e-7)


@settings(max_examples=10)
@given(seed=st.integers(0, 2**16), scale=st.sampled_from([0.1, 1.0, 100.0]))
def test_identical_decorrelated_views_cost_nothing(seed, scale):
    z = np.random.default_rng(seed).normal(size=(B, D))
    z = np.linalg.qr(z - z.mean(0))[0] * np.sqrt(B - 1)
    x = (scale * z + seed % 7).astype(np.float32)
    # 1 - C_ii is epsilon over the variance.
    assert barlow_twins(x, x).mean < (1e-5 if scale == 0.1 else 1e-7)
    assert whitened_mse(x, x).mean == 0
    means = vicreg(z.astype(np.float32), z.astype(np.float32)).metric_means()
    assert all(value < 1e-4 for value in means.values())


@settings(max_examples=10)
@given(seed=st.integers(0, 2**16))
def test_barlow_and_whitening_do_not_see_scale_and_shift(seed):
    rng = np.random.default_rng(seed)
    scale = rng.uniform(1.0, 3.0, size=D).astype(np.float32)
    y = VIEWS["y"] * scale + normal(rng, 1, D)
    for loss in (barlow_twins, whitened_mse):
        np.testing.assert_allclose(loss(X, y).mean, loss(X, VIEWS["y"]).mean, rtol=1e-3)


def test_weights_and_metrics():
    x, y = SPREAD["x"], SPREAD["y"]
    twice = np.repeat(np.arange(B), 2)
    for loss in (barlow_twins, vicreg):
        found = loss(x, y, row_weight_b=np.full(B, 2.0, np.float32))
        assert found.count == 2 * B
        plain = loss(x, y)
        np.testing.assert_allclose(found.mean, plain.mean, rtol=1e-6)
        for name, value in found.metric_means().items():
            np.testing.assert_allclose(value, plain.metric_means()[name], rtol=1e-5)
    means = vicreg(x, y).metric_means()
    total = 25 * (means["invariance"] + means["variance"]) + means["covariance"]
    np.testing.assert_allclose(vicreg(x, y).mean, total, rtol=1e-6)
    doubled = barlow_twins(x[twice], y[twice])
    np.testing.assert_allclose(doubled.mean, barlow_twins(x, y).mean, rtol=1e-5)


def test_one_row_has_no_variance():
    weight = np.zeros(B, np.float32)
    weight[3] = 0.7
    value, grad = jax.value_and_grad(lambda x: vicreg(x, X, row_weight_b=weight).mean)(VIEWS["y"])
    assert np.isfinite(value)
    assert np.all(np.isfinite(grad))
    np.testing.assert_array_equal(grad[weight == 0], 0.0)


def test_errors_say_what_would_be_right():
    with pytest.raises(ValueError, match=r"5 rows of 5 features.*more than 5 rows.*epsilon > 0"):
        whitened_mse(X[:5], X[:5])
    assert np.isfinite(whitened_mse(X[:5], VIEWS["y"][:5], epsilon=0.1).mean)
    for loss in (barlow_twins, vicreg, whitened_mse):
        with pytest.raises(ValueError, match=r"y_bd \(32, 4\).*must be \(B, d\).*of one shape"):
            loss(X, X[:, :4])
