"""Activations, norm and attention: values and gradients of the plain formulas in float64."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlalign.encoders.attention import attend
from vlalign.encoders.blocks import Block
from vlalign.encoders.layers import ACTIVATIONS, gelu, layer_norm
from vlalign.encoders.remat import keep_inputs

X = np.random.default_rng(0).normal(size=(6, 32)) * 3.0
G = np.random.default_rng(1).normal(size=(6, 32))


def pulled(function: Callable[..., Any], g: np.ndarray, *args: np.ndarray) -> list[np.ndarray]:
    """Value and the gradients of sum(value * g), computed in float32."""
    arrays = [jnp.asarray(a, jnp.float32) for a in args]
    value, pull = jax.vjp(jax.jit(function), *arrays)
    return [np.asarray(x) for x in (value, *pull(jnp.asarray(g, jnp.float32)))]


def agree(got: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def gelu_twin(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    below = 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    return x * below, below + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def tanh_twin(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    inner, slope = (x + 0.044715 * x**3), 1 + 3 * 0.044715 * x**2
    t = np.tanh(math.sqrt(2 / math.pi) * inner)
    return 0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * slope * math.sqrt(2 / math.pi)


def quick_twin(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    s = 1 / (1 + np.exp(-1.702 * x))
    return x * s, s + 1.702 * x * s * (1 - s)


@pytest.mark.parametrize(
    ("name", "twin"), [("gelu", gelu_twin), ("gelu_tanh", tanh_twin), ("quick_gelu", quick_twin)]
)
def test_activations(
    name: str, twin: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
) -> None:
    value, slope = twin(X)
    agree(pulled(ACTIVATIONS[name], G, X), [value, G * slope])


def test_gelu_far_out() -> None:
    x = jnp.asarray([-1e4, -30.0, -6.0, 0.0, 30.0, 1e4], jnp.float32)
    np.testing.assert_allclose(gelu(x), [0, 0, 0, 0, 30, 1e4], atol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(x), [0, 0, 0, 0.5, 1, 1], atol=1e-6)


def test_gelu_computes_wide_and_returns_narrow() -> None:
    x = jnp.asarray(X, jnp.bfloat16)
    y = gelu(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, gelu(x.astype(jnp.float32)).astype(jnp.bfloat16))


def test_layer_norm() -> None:
    rng, epsilon, d = np.random.default_rng(2), 1e-3, X.shape[1]
    x, scale, bias = X + 5.0, rng.normal(size=d), rng.normal(size=d)
    centred = x - x.mean(1, keepdims=True)
    r = 1 / np.sqrt((centred**2).mean(1, keepdims=True) + epsilon)
    z, gs = centred * r, G * scale
    dx = r * (gs - gs.mean(1, keepdims=True) - z * (gs * z).mean(1, keepdims=True))
    wanted = [z * scale + bias, dx, (G * z).sum(0), G.sum(0)]
    agree(pulled(lambda x, s, b: layer_norm(x, s, b, epsilon), G, x, scale, bias), wanted)


@pytest.mark.parametrize("causal", [False, True])
def test_attention(causal: bool) -> None:
    rng = np.random.default_rng(3)
    b, l, h, k = 2, 7, 3, 8
    q, key, v, g = (rng.normal(size=(b, l, h, k)) for _ in range(4))
    allowed = np.tril(np.ones((l, l), bool)) if causal else np.ones((l, l), bool)
    scores = np.where(allowed, np.einsum("blhk,bshk->bhls", q, key) / math.sqrt(k), -np.inf)
    w = np.exp(scores - scores.max(-1, keepdims=True))
    w /= w.sum(-1, keepdims=True)
    dw = np.einsum("blhk,bshk->bhls", g, v)
    ds = w * (dw - (dw * w).sum(-1, keepdims=True)) / math.sqrt(k)
    wanted = [
        np.einsum("bhls,bshk->blhk", w, v),
        np.einsum("bhls,bshk->blhk", ds, key),
        np.einsum("bhls,blhk->bshk", ds, q),
        np.einsum("bhls,blhk->bshk", w, g),
    ]
    mask = jnp.asarray(allowed)[None, None] if causal else None
    agree(pulled(lambda q, k, v: attend(q, k, v, mask), g, q, key, v), wanted)


def test_what_is_kept_of_a_norm_and_an_activation_is_their_input() -> None:
    def kept(function: Callable[..., jax.Array], *args: jax.Array) -> set[tuple[int, ...]]:
        _, pull = jax.vjp(keep_inputs(function), *args)
        return {leaf.shape for leaf in jax.tree.leaves(pull)}

    x, row = jnp.asarray(X, jnp.float32), jnp.ones(X.shape[1], jnp.float32)
    assert kept(gelu, x) == {x.shape}
    assert kept(lambda x, s, b: layer_norm(x, s, b, 1e-6), x, row, row) <= {x.shape, row.shape}


def test_a_block_works_forward_mapped_and_in_forward_mode() -> None:
    block = Block(32, 4, 128, "gelu", 1.0, 1e-6, "float32")
    x = jnp.asarray(np.random.default_rng(4).normal(size=(4, 5, 32)), jnp.float32)
    params = block.init(jax.random.key(0), x, None)

    def apply(x: jax.Array) -> jax.Array:
        y: jax.Array = block.apply(params, x, None)[0]
        return y

    whole = jax.jit(apply)(x)
    parts = jax.jit(jax.vmap(apply))(x.reshape(2, 2, 5, 32))
    np.testing.assert_allclose(parts.reshape(whole.shape), whole, atol=1e-5)
    _, forward = jax.jvp(apply, (x,), (jnp.ones_like(x),))
    gradient = jax.grad(lambda x: jnp.sum(apply(x)))(x)
    np.testing.assert_allclose(jnp.sum(forward), jnp.sum(gradient), rtol=1e-4)
