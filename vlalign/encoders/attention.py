"""Attention: who looks at whom, and what of the projections around it can be chosen.

Letters: b batch, l tokens, s tokens looked at, d width, h heads, k head width.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlalign.encoders.cache import RememberedParts, extended, remembers
from vlalign.encoders.fused import applies, fused_attend
from vlalign.encoders.layers import NORMS, Dtype, Linear, NormKind, Parts
from vlalign.encoders.positions import Rotary, rotate
from vlalign.encoders.remat import mark


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """What of a block's attention can be chosen; the defaults are CLIP's.

    qkv_bias: which projections into the heads have a bias; "no_key": queries and values (EVA).
    out_bias: whether the projection back has one.
    qk_norm: a norm of each head's queries and keys, before they are turned (Dehghani et al. 2023).
    inner_norm: a norm of all heads together before the projection back (EVA's sub-LN).
    rotary: relative positions by turning queries and keys; None: none.
    """

    qkv_bias: Literal["all", "no_key", "none"] = "all"
    out_bias: bool = True
    qk_norm: bool = False
    inner_norm: bool = False
    rotary: Rotary | None = None


def softmax_weights(scores: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Softmax over what may be looked at.

    scores: (b, h, l, s) float32; mask: broadcastable to it, True where allowed, or float32 that is
    added to the scores -> (b, h, l, s) float32. A row whose mask is False everywhere is even.
    """
    if mask is None:
        return jax.nn.softmax(scores, axis=-1)
    if mask.dtype == jnp.bool_:
        return jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(jnp.float32).min), axis=-1)
    return jax.nn.softmax(scores + mask, axis=-1)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    """softmax(q k^T / sqrt(k)) v with the softmax in float32; on TPU one kernel where it fits.

    q: (b, l, h, k); k, v: (b, s, h, k); mask: broadcastable to (b, h, l, s), see `softmax_weights`.
    Returns (b, l, h, k). A row whose mask is False everywhere averages all values.
    """
    if applies(q, k, mask):
        return fused_attend(q, k, v)
    scale = q.shape[-1] ** -0.5
    scores = jnp.einsum("blhk,bshk->bhls", q * scale, k, preferred_element_type=jnp.float32)
    weights = softmax_weights(scores, mask).astype(v.dtype)
    return jnp.einsum("bhls,bshk->blhk", weights, v)


class Attention(nn.Module):
    """Multi-head self-attention: x (b, l, d) -> (b, l, d).

    width: d.   heads: h, must divide d.   depth_scale: of the output kernel.   spec: the choices.
    norm, epsilon: of the norms that `spec` asks for.
    """

    width: int
    heads: int
    depth_scale: float = 1.0
    dtype: Dtype = "float32"
    spec: AttentionSpec = AttentionSpec()
    norm: NormKind = "layer"
    epsilon: float = 1e-6

    @nn.compact
    def __call__(
        self,
        x_bld: jax.Array,
        mask: jax.Array | None,
        turns: tuple[jax.Array, jax.Array] | None = None,
    ) -> jax.Array:
        """x_bld: (b, l, d); mask: see `attend`; turns: cos and sin of `rotary` -> (b, l, d)."""
        spec, d, h, k = self.spec, self.width, self.heads, self.width // self.heads
        norm = NORMS[self.norm]
        into = ("embed", "qkv", "heads", "head_dim")
        qkv = Parts(
            (d,),
            (3, h, k),
            into,
            bias=spec.qkv_bias != "none",
            dtype=self.dtype,
            unbiased=(1,) if spec.qkv_bias == "no_key" else (),
            name="qkv",
        )(x_bld)
        query, key, value = (mark(x, "qkv") for x in qkv)
        if spec.qk_norm:
            dtype, axes = query.dtype, ("head_dim",)
            query = norm(self.epsilon, axes, name="q_norm")(query).astype(dtype)
            key = norm(self.epsilon, axes, name="k_norm")(key).astype(dtype)
        if spec.rotary is not None and turns is not None:
            query, key = (rotate(x, turns, spec.rotary.layout) for x in (query, key))
        if remembers(self):
            key, value = extended(self, (key, value))
        out = mark(attend(query, key, value, mask), "context")
        if spec.inner_norm:
            out = norm(self.epsilon, ("heads", "head_dim"), name="norm")(out).astype(out.dtype)
        back = Linear(
            (h, k),
            (d,),
            ("heads", "head_dim", "embed"),
            bias=spec.out_bias,
            scale=self.depth_scale,
            dtype=self.dtype,
            name="out",
        )
        return mark(back(out), "attention_out")


def cross_attention(
    x_bld: jax.Array,
    seen_bsc: jax.Array,
    mask: jax.Array | None,
    *,
    heads: int,
    dtype: Dtype,
    depth_scale: float = 1.0,
) -> jax.Array:
    """Attention of `x_bld` to another sequence, with its maps in the module that calls this.

    x_bld: (b or 1, l, d), one for all examples where it is 1; seen_bsc: (b, s, c); mask:
    broadcastable to (b, h, l, s), True where allowed -> (b, l, d). Parameters: `query`, `kv`,
    `out`.
    """
    (_, l, d), (b, _, c) = x_bld.shape, seen_bsc.shape
    h, k = heads, d // heads
    into = ("embed", "heads", "head_dim")
    query = Linear((d,), (h, k), into, dtype=dtype, name="query")(x_bld)
    both = ("embed", "qkv", "heads", "head_dim")
    key, value = RememberedParts((c,), (2, h, k), both, dtype=dtype, name="kv")(seen_bsc)
    out = attend(jnp.broadcast_to(query, (b, l, h, k)), key, value, mask)
    back = ("heads", "head_dim", "embed")
    return Linear((h, k), (d,), back, scale=depth_scale, dtype=dtype, name="out")(out)


class CrossAttention(nn.Module):
    """Multi-head attention to another sequence: x (b, l, d), seen (b, s, c) -> (b, l, d).

    heads: h, must divide d.   depth_scale: of the output kernel.
    """

    heads: int
    dtype: Dtype = "float32"
    depth_scale: float = 1.0

    @nn.compact
    def __call__(
        self, x_bld: jax.Array, seen_bsc: jax.Array, mask: jax.Array | None = None
    ) -> jax.Array:
        """x_bld: (b or 1, l, d); seen_bsc: (b, s, c); mask: see `attend` -> (b, l, d)."""
        return cross_attention(
            x_bld,
            seen_bsc,
            mask,
            heads=self.heads,
            dtype=self.dtype,
            depth_scale=self.depth_scale,
        )
