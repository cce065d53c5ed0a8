"""Transformer layers shared by the towers.

Letters: b batch, l tokens, n = b*l flattened tokens, d width, h heads, k head width, m MLP width.
Tokens are flattened to two axes around the products of the feed-forward layers: on CPU those with
three are a third slower, on TPU and GPU they are the same.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlalign.encoders.remat import Remat, keep_inputs, mark, policy
from vlalign.parallel.constraint import shard_batch

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]
Dtype = Literal["float32", "bfloat16"]


def gelu(x: jax.Array) -> jax.Array:
    """x P(z < x) of a standard normal z (Hendrycks & Gimpel 2016, arXiv:1606.08415), exactly.

    By erf in float32: erfc, which keeps more of tails that vanish in the sum behind it, is three
    passes on CPU where this is one.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": keep_inputs(gelu),
    "gelu_tanh": keep_inputs(lambda x: nn.gelu(x, approximate=True)),
    "quick_gelu": keep_inputs(lambda x: x * nn.sigmoid(1.702 * x)),
}


def named(init: Callable[..., Any], *axes: str | None) -> Callable[..., Any]:
    """An initialiser whose parameter carries the meaning of its axes for `parallel/rules.py`."""
    return nn.with_logical_partitioning(init, axes)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) scale + bias over the last axis, in float32.

    x: (..., d); scale, bias: (d,) -> (..., d) float32.
    """
    x = x.astype(jnp.float32)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(x * x, axis=-1, keepdims=True)
    row = (1,) * (x.ndim - 1) + scale.shape
    return x * jax.lax.rsqrt(variance + epsilon) * scale.reshape(row) + bias.reshape(row)


class LayerNorm(nn.Module):
    """LayerNorm over the last axis, computed in float32 whatever comes in.

    epsilon: added to the variance.
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (..., d) -> (..., d) float32."""
        shape = (x.shape[-1],)
        scale = self.param("scale", named(nn.initializers.ones, "embed"), shape, jnp.float32)
        bias = self.param("bias", named(nn.initializers.zeros, "embed"), shape, jnp.float32)
        return keep_inputs(functools.partial(layer_norm, epsilon=self.epsilon))(x, scale, bias)


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
        kernel, bias = self._weights()
        return self._product(x, kernel, bias)

    def _weights(self) -> tuple[jax.Array, jax.Array | None]:
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
        bias = self.param("bias", zeros, self.outputs, jnp.float32)
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
    layer.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:  # type: ignore[override]
        """x: (..., *inputs) -> as many (..., *outputs[1:])."""
        kernel, bias = self._weights()
        return tuple(
            self._product(x, kernel[:, part], None if bias is None else bias[part])
            for part in range(self.outputs[0])
        )


class Mlp(nn.Module):
    """Feed-forward layer: x (n, d) -> (n, d).

    width: d.   hidden: m.   activation: between the two products.
    depth_scale: of the second kernel (1/sqrt(2 L) keeps the stream's variance over L layers).
    """

    width: int
    hidden: int
    activation: Activation
    depth_scale: float = 1.0
    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x_nd: jax.Array) -> jax.Array:
        """x_nd: (n, d) -> (n, d)."""
        d, m = (self.width,), (self.hidden,)
        x = Linear(d, m, ("embed", "mlp"), dtype=self.dtype, name="up")(x_nd)
        x = mark(x, "mlp_hidden")
        x = _ACTIVATIONS[self.activation](x)
        scale = self.depth_scale
        return Linear(m, d, ("mlp", "embed"), scale=scale, dtype=self.dtype, name="down")(x)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    """softmax(q k^T / sqrt(k)) v with the softmax in float32.

    q: (b, l, h, k); k, v: (b, s, h, k); mask: broadcastable to (b, h, l, s), True where allowed.
    Returns (b, l, h, k). A row whose mask is False everywhere averages all values.
    """
    scale = q.shape[-1] ** -0.5
    logits = jnp.einsum("blhk,bshk->bhls", q * scale, k, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bhls,bshk->blhk", weights, v)


class Attention(nn.Module):
    """Multi-head self-attention: x (b, l, d) -> (b, l, d).

    width: d.   heads: h, must divide d.   depth_scale: of the output kernel.
    """

    width: int
    heads: int
    depth_scale: float = 1.0
    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x_bld: jax.Array, mask: jax.Array | None) -> jax.Array:
        """x_bld: (b, l, d); mask: see `attend` -> (b, l, d)."""
        d, h, k = self.width, self.heads, self.width // self.heads
        into = ("embed", "qkv", "heads", "head_dim")
        qkv = Parts((d,), (3, h, k), into, dtype=self.dtype, name="qkv")(x_bld)
        query, key, value = (mark(x, "qkv") for x in qkv)
        out = mark(attend(query, key, value, mask), "context")
        back = ("heads", "head_dim", "embed")
        scale = self.depth_scale
        out = Linear((h, k), (d,), back, scale=scale, dtype=self.dtype, name="out")(out)
        return mark(out, "attention_out")


class Block(nn.Module):
    """Pre-norm residual block: x + attention(norm(x)), then x + mlp(norm(x)).

    width, heads, hidden: d, h, m.   depth_scale: of both output kernels.   epsilon: of the norms.
    """

    width: int
    heads: int
    hidden: int
    activation: Activation
    depth_scale: float
    epsilon: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x_bld: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, None]:
        """x_bld: (b, l, d) -> (b, l, d), and None as `nn.scan` wants a second output."""
        x_bld = shard_batch(x_bld)
        b, l, d = x_bld.shape
        attention = Attention(self.width, self.heads, self.depth_scale, self.dtype, name="attn")
        y = attention(LayerNorm(self.epsilon, name="ln_1")(x_bld).astype(x_bld.dtype), mask)
        x = (x_bld + y).reshape(b * l, d)
        mlp = Mlp(
            self.width, self.hidden, self.activation, self.depth_scale, self.dtype, name="mlp"
        )
        x = x + mlp(LayerNorm(self.epsilon, name="ln_2")(x).astype(x.dtype))
        return x.reshape(b, l, d), None


class Stack(nn.Module):
    """A stack of equal blocks, parameters with a leading `layers` axis whether scanned or not.

    depth: number of blocks.   scan: one compiled body for all blocks (compile time independent of
    depth) or all of them unrolled (faster on CPU).   remat: what the backward pass keeps of a
    block, by the names in `remat.py`; a scanned stack keeps it in arrays over all layers.
    """

    width: int
    depth: int
    heads: int
    hidden: int
    activation: Activation = "gelu"
    epsilon: float = 1e-6
    scan: bool = True
    remat: Remat = "none"
    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x_bld: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """x_bld: (b, l, d); mask: broadcastable to (b, h, l, l) -> (b, l, d)."""
        block: Any = Block
        if self.remat != "none":
            # Inside a scan the loop itself keeps the compiler from merging the two passes.
            block = nn.remat(Block, prevent_cse=not self.scan, policy=policy(self.remat))
        blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.depth,
            unroll=1 if self.scan else self.depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(
            self.width,
            self.heads,
            self.hidden,
            self.activation,
            (2 * self.depth) ** -0.5,
            self.epsilon,
            self.dtype,
            name="blocks",
        )
        x_bld, _ = blocks(x_bld, mask)
        return x_bld

    def flops(self, length: int) -> int:
        """Forward FLOPs of the matrix products for one example of `length` tokens."""
        projections = 2 * length * (4 * self.width**2 + 2 * self.width * self.hidden)
        attention = 4 * length**2 * self.width
        return self.depth * (projections + attention)
