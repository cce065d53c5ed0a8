"""From tokens to one vector."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlalign.encoders.layers import Activation, Dtype, LayerNorm, Linear, Mlp, Parts, attend, named


def mean_pool(tokens_bld: jax.Array, mask_bl: jax.Array) -> jax.Array:
    """Mean over the tokens that are not padding: (b, l, d), (b, l) -> (b, d)."""
    weight = mask_bl.astype(tokens_bld.dtype)[:, :, None]
    count = jnp.maximum(jnp.sum(weight, axis=1), jnp.ones((), weight.dtype)[None, None])
    return jnp.sum(tokens_bld * weight, axis=1) / count


def last_pool(tokens_bld: jax.Array, mask_bl: jax.Array) -> jax.Array:
    """The last token that is not padding (the end-of-text token): (b, l, d), (b, l) -> (b, d)."""
    positions = jnp.arange(mask_bl.shape[1], dtype=jnp.int32)[None, :]
    last_b = jnp.max(jnp.where(mask_bl, positions, 0), axis=1)
    return jnp.take_along_axis(tokens_bld, last_b[:, None, None], axis=1)[:, 0]


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
    def __call__(self, tokens_bld: jax.Array, mask_bl: jax.Array) -> jax.Array:
        """tokens_bld: (b, l, d); mask_bl: (b, l) -> (b, d)."""
        b, _, d = tokens_bld.shape
        h, k = self.heads, d // self.heads
        init = named(nn.initializers.xavier_uniform(), None, "embed")
        probe = self.param("probe", init, (1, d), jnp.float32)
        to_q = ("embed", "heads", "head_dim")
        q = Linear((d,), (h, k), to_q, dtype=self.dtype, name="query")(probe)
        to_kv = ("embed", "qkv", "heads", "head_dim")
        key, value = Parts((d,), (2, h, k), to_kv, dtype=self.dtype, name="kv")(tokens_bld)
        q = jnp.broadcast_to(q[None], (b, 1, h, k))
        y = attend(q, key, value, mask_bl[:, None, None, :])
        back = ("heads", "head_dim", "embed")
        y = Linear((h, k), (d,), back, dtype=self.dtype, name="out")(y.reshape(b, h, k))
        norm = LayerNorm(self.epsilon, name="ln")(y).astype(y.dtype)
        mlp = Mlp(self.width, self.hidden, self.activation, 1.0, self.dtype, name="mlp")
        return y + mlp(norm)

    def flops(self, length: int) -> int:
        """Forward FLOPs of the matrix products for one example of `length` tokens."""
        keys_values = 4 * length * self.width**2
        one_token = 4 * self.width**2 + 4 * self.width * self.hidden
        return keys_values + one_token + 4 * length * self.width
