"""The hand-written gradient of the cross-entropy, its digits and its unknown classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlalign.losses.cross_entropy import cross_entropy


def loss_of(logits, target, smoothing=0.0):
    present = np.ones(target.shape, bool)
    return jnp.sum(cross_entropy(logits, target, present, smoothing))


def twin(logits, target, smoothing):
    wanted = (1 - smoothing) * jax.nn.one_hot(target, logits.shape[-1], dtype=logits.dtype)
    log_p = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    return -jnp.sum((wanted + smoothing / logits.shape[-1]) * log_p)


@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**16),
    classes=st.integers(1, 6),
    scale=st.sampled_from([1e-3, 1.0, 100.0]),
    smoothing=st.sampled_from([0.0, 0.1]),
)
def test_values_and_gradients(seed, classes, scale, smoothing):
    rng = np.random.default_rng(seed)
    logits = (scale * rng.normal(size=(3, 2, classes))).astype(np.float32)
    target = rng.integers(0, classes, size=(3, 2), dtype=np.int32)
    with jax.enable_x64(True):
        wide = jnp.asarray(logits, jnp.float64)
        value, grad = jax.value_and_grad(twin)(wide, target, smoothing)
    found, slope = jax.value_and_grad(loss_of)(logits, target, smoothing)
    np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slope, grad, atol=1e-6)


def test_a_nearly_certain_class_keeps_its_digits():
    """At scores of 1000 the log-sum-exp is rounded to 6e-5; the loss is 4.5e-5."""
    logits = np.asarray([[1000.0, 990.0, 0.0]], np.float32)
    found = loss_of(logits, np.zeros(1, np.int32))
    np.testing.assert_allclose(found, np.log1p(np.exp(-10.0)), rtol=1e-2)


def test_unknown_classes_are_nan_and_absent_rows_nothing():
    logits = np.zeros((3, 4), np.float32)
    logits[1] = np.inf
    target = np.asarray([4, -1, -1], np.int32)
    present = np.asarray([True, False, True])
    loss, pull = jax.vjp(lambda z: cross_entropy(z, target, present), logits)
    np.testing.assert_array_equal(loss, [np.nan, 0.0, np.nan])
    np.testing.assert_array_equal(pull(jnp.ones(3))[0][1], 0.0)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_smoothing_outside_its_range(smoothing):
    with pytest.raises(ValueError, match="must be 0 up to below 1"):
        loss_of(np.zeros((1, 2), np.float32), np.zeros(1, np.int32), smoothing)
