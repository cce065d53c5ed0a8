"""From tokens to one vector."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlalign.encoders.attention import cross_attention
from vlalign.encoders.blocks import Mlp, hidden_width
from vlalign.encoders.layers import Activation, Dtype, LayerNorm, named


def mean_pool(tokens_bld: jax.Array, mask_bl: jax.Array) -> jax.Array:
    """Mean over the tokens that are not padding: (b, l, d), (b, l) -> (b, d)."""
    weight = mask_bl.astype(tokens_bld.dtype)[:, :, None]
    count = jnp.maximum(jnp.sum(weight, axis=1), jnp.ones((), weight.dtype)[None, None])
    return jnp.sum(tokens_bld * weight, axis=1) / count


def last_pool(tokens_bld: jax.Array, mask_bl: jax.Array) -> jax.Array:
    """The last token that is not padding (the end-of-text token): (b, l, d), (b, l) -> (b, d)."""
    positions = jnp.arange(mask_bl.shape[1], dtype=jnp.int32)[None, :]
    return pick(tokens_bld, jnp.max(jnp.where(mask_bl, positions, 0), axis=1))


def pick(tokens_bld: jax.Array, place_b: jax.Array) -> jax.Array:
    """One token of each example: (b, l, d), (b,) -> (b, d)."""
    return jnp.take_along_axis(tokens_bld, place_b[:, None, None], axis=1)[:, 0]


class MapHead(nn.Module):
    """Multi-head attention pooling with a learned probe (SigLIP; "Scaling ViT", section 3.4).

    y = attention(probe, tokens); pooled = y + mlp(norm(y)).
    width, heads, hidden: d, h, m as in the blocks.
    """

    width: int
    heads: int
    hidden: int
    activation: Activation
    epsilon: float
    dtype: Dtype

    @nn.compact
    def __call__(self, tokens_bld: jax.Array, mask: jax.Array) -> jax.Array:
        """tokens_bld: (b, l, d); mask: (b, l) -> (b, d).

        With a mask (b, k, l) each example is read k times, each time where its mask is True:
        -> (b * k, d).
        """
        seen = mask[:, None] if mask.ndim == 3 else mask[:, None, None, :]
        init = named(nn.initializers.xavier_uniform(), None, "embed")
        probe = self.param("probe", init, (1, self.width), jnp.float32)
        probe = jnp.broadcast_to(probe[None], (1, seen.shape[2], self.width))
        y = cross_attention(probe, tokens_bld, seen, heads=self.heads, dtype=self.dtype)
        y = y.reshape(-1, self.width)
        norm = LayerNorm(self.epsilon, name="ln")(y).astype(y.dtype)
        mlp = Mlp(self.width, self.hidden, self.activation, 1.0, self.dtype, name="mlp")
        return y + mlp(norm)

    def flops(self, length: int, readings: int = 1) -> int:
        """Forward FLOPs of the matrix products for one example of `length` tokens."""
        keys_values = 4 * length * self.width**2
        one_token = 4 * self.width**2 + 4 * self.width * self.hidden
        return keys_values + readings * (one_token + 4 * length * self.width)


def map_head_of(tower: Any, heads: int, **scope: Any) -> MapHead:
    """The pooling head of a tower with the usual fields; scope: as in `stack_of`."""
    hidden = hidden_width(tower.width, tower.mlp_ratio)
    args = (tower.width, heads, hidden, tower.activation, tower.epsilon, tower.dtype)
    return MapHead(*args, **scope)
