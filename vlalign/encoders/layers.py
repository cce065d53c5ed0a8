"""The smallest parts of the towers: linear maps, norms, activations.

Letters: b batch, l tokens, n = b*l flattened tokens, d width, h heads, k head width, m MLP width.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlalign.encoders.remat import keep_inputs

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu"]
Dtype = Literal["float32", "bfloat16"]
NormKind = Literal["layer", "rms"]


def gelu(x: jax.Array) -> jax.Array:
    """x P(z < x) of a standard normal z (Hendrycks & Gimpel 2016, arXiv:1606.08415), exactly.

    By erf in float32: erfc, which keeps more of tails that vanish in the sum behind it, is three
    passes on CPU where this is one.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": keep_inputs(gelu),
    "gelu_tanh": keep_inputs(lambda x: nn.gelu(x, approximate=True)),
    "quick_gelu": keep_inputs(lambda x: x * nn.sigmoid(1.702 * x)),
    "silu": keep_inputs(lambda x: x * nn.sigmoid(x)),
}


def named(init: Callable[..., Any], *axes: str | None) -> Callable[..., Any]:
    """An initialiser whose parameter carries the meaning of its axes for `parallel/rules.py`."""
    return nn.with_logical_partitioning(init, axes)


def uniform_by_row(key: jax.Array, rows: jax.Array, size: int) -> jax.Array:
    """Uniform numbers of 0..1 for each example, the same however the batch is cut up.

    rows: (b,) int32, each example's place in the whole batch -> (b, size) float32.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
    return jax.vmap(lambda key: jax.random.uniform(key, (size,)))(keys)


def _last(x: jax.Array, scale: jax.Array) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes of `x` that `scale` spans, and the shape of `scale` with the rank of `x`."""
    free = x.ndim - scale.ndim
    return tuple(range(free, x.ndim)), (1,) * free + scale.shape


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) scale + bias, in float32.

    x: (..., *s); scale, bias: s, the axes that are normalised together -> (..., *s) float32.
    """
    axes, row = _last(x, scale)
    x = x.astype(jnp.float32)
    x = x - jnp.mean(x, axis=axes, keepdims=True)
    variance = jnp.mean(x * x, axis=axes, keepdims=True)
    return x * jax.lax.rsqrt(variance + epsilon) * scale.reshape(row) + bias.reshape(row)


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """x / sqrt(mean(x^2) + epsilon) scale (Zhang & Sennrich 2019, arXiv:1910.07467), in float32.

    x: (..., *s); scale: s, the axes that are normalised together -> (..., *s) float32.
    """
    axes, row = _last(x, scale)
    x = x.astype(jnp.float32)
    square = jnp.mean(x * x, axis=axes, keepdims=True)
    return x * jax.lax.rsqrt(square + epsilon) * scale.reshape(row)


class LayerNorm(nn.Module):
    """LayerNorm over the last axes, computed in float32 whatever comes in.

    epsilon: added to the variance.   axes: names of the axes that are normalised together.
    """

    epsilon: float = 1e-6
    axes: tuple[str, ...] = ("embed",)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (..., *axes) -> (..., *axes) float32."""
        shape = x.shape[-len(self.axes) :]
        scale = self.param("scale", named(nn.initializers.ones, *self.axes), shape, jnp.float32)
        bias = self.param("bias", named(nn.initializers.zeros, *self.axes), shape, jnp.float32)
        return keep_inputs(functools.partial(layer_norm, epsilon=self.epsilon))(x, scale, bias)


class RmsNorm(nn.Module):
    """Division by the root mean square of the last axes, in float32; fields as in `LayerNorm`."""

    epsilon: float = 1e-6
    axes: tuple[str, ...] = ("embed",)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (..., *axes) -> (..., *axes) float32."""
        shape = x.shape[-len(self.axes) :]
        scale = self.param("scale", named(nn.initializers.ones, *self.axes), shape, jnp.float32)
        return keep_inputs(functools.partial(rms_norm, epsilon=self.epsilon))(x, scale)


NORMS: dict[str, type[LayerNorm] | type[RmsNorm]] = {"layer": LayerNorm, "rms": RmsNorm}


class Linear(nn.Module):
    """y = x W + b over the last axes: x (..., *inputs) -> (..., *outputs).

    inputs, outputs: sizes of the contracted and the new axes.
    axes: their names, inputs first.   bias: whether b exists.   scale: standard deviation times
    sqrt(fan_in) of W at the start.   dtype: compute dtype of the product.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    axes: tuple[str | None, ...]
    bias: bool = True
    scale: float = 1.0
    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (..., *inputs) -> (..., *outputs) in the compute dtype."""
        kernel, bias = self._weights(self.outputs)
        return self._product(x, kernel, bias)

    def _weights(self, bias_shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array | None]:
        """W and b in the compute dtype."""
        count = len(self.inputs)
        init = nn.initializers.variance_scaling(
            self.scale**2,
            "fan_in",
            "truncated_normal",
            in_axis=tuple(range(count)),
            out_axis=tuple(range(count, count + len(self.outputs))),
        )
        shape = self.inputs + self.outputs
        kernel = self.param("kernel", named(init, *self.axes), shape, jnp.float32)
        dtype = jnp.dtype(self.dtype)
        if not self.bias:
            return kernel.astype(dtype), None
        zeros = named(nn.initializers.zeros, *self.axes[count:])
        bias = self.param("bias", zeros, bias_shape, jnp.float32)
        return kernel.astype(dtype), bias.astype(dtype)

    def _product(self, x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
        count = len(self.inputs)
        last = tuple(range(x.ndim - count, x.ndim))
        contract = ((last, tuple(range(count))), ((), ()))
        y = jax.lax.dot_general(x.astype(kernel.dtype), kernel, contract)
        return y if bias is None else y + jnp.expand_dims(bias, tuple(range(x.ndim - count)))


class Parts(Linear):
    """Several linear maps whose weights lie side by side, as queries, keys and values do.

    As `Linear`, with one input axis; the first of the outputs counts the maps. They are products of
    their own: cut from one product, their results would be laid out anew on TPU, several times a
    layer.   unbiased: maps without a bias, which the array of biases then leaves out.
    """

    unbiased: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:  # type: ignore[override]
        """x: (..., *inputs) -> as many (..., *outputs[1:])."""
        maps = range(self.outputs[0])
        biased = [part for part in maps if part not in self.unbiased]
        kernel, bias = self._weights((len(biased), *self.outputs[1:]))

        def bias_of(part: int) -> jax.Array | None:
            return None if bias is None or part not in biased else bias[biased.index(part)]

        return tuple(self._product(x, kernel[:, part], bias_of(part)) for part in maps)
