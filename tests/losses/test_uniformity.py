"""Alignment and uniformity on the sphere."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.losses.companions import Case, Companion, mesh_of, normal, unit, weights
from vlalign.losses.rows import wide
from vlalign.losses.uniformity import alignment, uniformity

B, D = 16, 6
RNG = np.random.default_rng(0)
X = unit(normal(RNG, B, D))
PAIRS = {"x": X, "y": unit(X + np.float32(0.7) * normal(RNG, B, D))}
WEIGHT = weights(RNG, B)


def alignment_twin(alpha):
    def twin(x, y, weight):
        return jnp.average(jnp.linalg.norm(x - y, axis=1) ** alpha, 0, weight)

    return twin


def aligned(alpha):
    def ours(x, y, weight):
        return alignment(x, y, alpha=alpha, row_weight_b=weight)

    return ours


def uniformity_twin(x, weight, t):
    """Of vectors on the sphere; the distances of ours are those of there only."""
    x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    i, j = np.nonzero(~np.eye(len(x), dtype=bool))
    kernel = jnp.exp(-t * jnp.sum((x[i] - x[j]) ** 2, axis=1))
    return jnp.log(jnp.average(kernel, 0, (weight[i] + weight[j]) / 2))


def on_sphere(t):
    def ours(x, weight):
        present = weight[:, None] > 0
        z = jnp.where(present, x, 1.0).astype(wide(x))
        z = (z / jnp.linalg.norm(z, axis=1, keepdims=True)).astype(x.dtype)
        return uniformity(jnp.where(present, z, x), t=t, row_weight_b=weight)

    return ours


class TestAlignment(Companion):
    cases = tuple(
        Case(f"alpha={alpha}", aligned(alpha), alignment_twin(alpha), PAIRS, {"weight": WEIGHT})
        for alpha in (2.0, 1.0)
    )


class TestUniformity(Companion):
    cases = tuple(
        Case(
            f"t={t}",
            on_sphere(t),
            lambda x, weight, t=t: uniformity_twin(x, weight, t),
            {"x": X},
            {"weight": WEIGHT},
        )
        for t in (2.0, 0.5)
    )


def test_equal_vectors_have_a_slope_of_zero():
    grad = jax.grad(lambda x: alignment(x, X, alpha=1.0).mean)(X)
    np.testing.assert_array_equal(grad, 0.0)


def test_one_vector_is_neither_uniform_nor_not():
    weight = np.zeros(B, np.float32)
    for present in (0, 1):
        weight[:present] = 2.0
        value, grad = jax.value_and_grad(lambda x: uniformity(x, row_weight_b=weight).mean)(X)
        assert value == 0
        np.testing.assert_array_equal(grad, 0.0)


@settings(max_examples=8)
@given(seed=st.integers(0, 2**16), t=st.sampled_from([0.1, 2.0, 50.0]))
def test_bounds_and_rotations(seed, t):
    rng = np.random.default_rng(seed)
    x = unit(normal(rng, B, D))
    value = uniformity(x, t=t).mean
    assert -4 * t <= value <= 0
    rotation = np.linalg.qr(rng.normal(size=(D, D)))[0].astype(np.float32)
    np.testing.assert_allclose(uniformity(x @ rotation, t=t).mean, value, rtol=1e-4)
    same = np.tile(x[:1], (B, 1))
    np.testing.assert_allclose(uniformity(same, t=t).mean, 0.0, atol=1e-5 * t)


def test_memory_is_linear_in_the_batch():
    def temporaries(batch):
        x = jax.ShapeDtypeStruct((batch, 16), jnp.float32)
        step = jax.jit(jax.value_and_grad(lambda z: uniformity(z).mean))
        return step.lower(x).compile().memory_analysis().temp_size_in_bytes

    small, large = temporaries(4096), temporaries(16384)
    assert large - small < 12 * 4 * 16 * (16384 - 4096)


def test_uniformity_of_a_batch_over_devices_without_jit():
    with jax.set_mesh(mesh_of(8)):
        value = uniformity(X, row_weight_b=WEIGHT).mean
    np.testing.assert_allclose(value, uniformity(X, row_weight_b=WEIGHT).mean, rtol=1e-5)


def test_errors_say_what_would_be_right():
    with pytest.raises(ValueError, match=r"y_bd \(16, 2\).*must be \(B, d\).*of one shape"):
        alignment(X, X[:, :2])
    with pytest.raises(ValueError, match="alpha=0: must be above 0"):
        alignment(X, X, alpha=0)
    with pytest.raises(ValueError, match="t=-1: must be above 0"):
        uniformity(X, t=-1)
    with pytest.raises(ValueError, match=r"row_weight_b \(3,\): must be \(16,\)"):
        uniformity(X, row_weight_b=WEIGHT[:3])
