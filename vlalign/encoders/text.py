"""Text transformer (CLIP: causal, end-of-text token; SigLIP: bidirectional, last or MAP)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlalign.encoders.blocks import BlockSpec, stack_of
from vlalign.encoders.encoding import Encoding
from vlalign.encoders.layers import NORMS, Activation, Dtype, Linear, named
from vlalign.encoders.pooling import last_pool, map_head_of, mean_pool, pick
from vlalign.encoders.remat import Remat
from vlalign.errors import UserError
from vlalign.parallel.constraint import whole


class TextTransformer(nn.Module):
    """Token ids -> Encoding.

    vocab_size: rows of the token table; at least the tokenizer's.   pad_id: padding, masked out.
    width, depth, heads, mlp_ratio, activation, epsilon, scan, remat, dtype: as in `ViT`.
    embed_dim: width of the pooled output after a linear map; None leaves it at `width`.
    causal: whether a token sees only those before it.
    pool: "eot" (last token that is not padding), "largest" (first of the largest id, as OpenAI's
      CLIP finds its end token), "eot_id" (first token that is `eot_id`), "first" position, "last"
      position, padding or not (SigLIP's sticky end token), "mean" of the tokens that are not
      padding, or "map".
    eot_id: id of the end token; with `pool="eot_id"` alone.
    mask_padding: whether attention leaves padding out (CLIP and SigLIP do not; with `causal` and
      "eot" it changes nothing, and with "last" padding has to be seen).
    bias: whether the output map has a bias (SigLIP's head).
    block: what else of the blocks can be chosen.
    """

    vocab_size: int = 49408
    width: int = 512
    depth: int = 12
    heads: int = 8
    mlp_ratio: float = 4.0
    embed_dim: int | None = None
    causal: bool = True
    pool: Literal["eot", "largest", "eot_id", "first", "last", "mean", "map"] = "eot"
    eot_id: int | None = None
    mask_padding: bool = True
    pad_id: int = 0
    bias: bool = False
    block: BlockSpec = BlockSpec()
    activation: Activation = "gelu"
    epsilon: float = 1e-6
    scan: bool = True
    remat: Remat = "none"
    dtype: Dtype = "float32"

    def _check(self) -> None:
        if self.width % self.heads:
            raise UserError(f"TextTransformer width={self.width} does not divide into {self.heads}")
        if self.pool == "last" and self.mask_padding:
            raise UserError('TextTransformer pool="last" reads padding: set mask_padding=False')
        if (self.pool == "eot_id") != (self.eot_id is not None):
            raise UserError('TextTransformer eot_id belongs to pool="eot_id": set both or neither')

    @nn.compact
    def __call__(
        self, tokens: jax.Array, *, train: bool = False, rows: jax.Array | None = None
    ) -> Encoding:
        """tokens: (b, l) int32 -> Encoding.

        train: drop branches, where `block` says so (needs the rng stream "drop").   rows: (b,)
        int32, each example's place in the whole batch.
        """
        self._check()
        l, d = tokens.shape[1], self.width
        normal = nn.initializers.normal(0.02)
        table = self.param(
            "token", named(normal, "vocab", "embed"), (self.vocab_size, d), jnp.float32
        )
        normal = nn.initializers.normal(0.01)
        position = self.param("position", named(normal, "length", "embed"), (l, d), jnp.float32)
        x = jnp.take(whole(table), tokens, axis=0) + position[None]
        real_bl = tokens != self.pad_id
        x = stack_of(self, self.block, name="transformer")(
            x.astype(jnp.dtype(self.dtype)),
            self._mask(real_bl),
            turns=self._turns(l),
            train=train,
            rows=rows,
        )
        x = NORMS[self.block.norm](self.epsilon, name="ln_final")(x)
        return Encoding(pooled=self._pool(x, tokens, real_bl), tokens=x, mask=real_bl)

    def _turns(self, length: int) -> tuple[jax.Array, jax.Array] | None:
        rotary = self.block.attention.rotary
        return None if rotary is None else rotary.tables((length,), self.width // self.heads)

    def _mask(self, real_bl: jax.Array) -> jax.Array | None:
        """True where attention may look: broadcastable to (b, h, l, l)."""
        mask = None
        if self.causal:
            index = jnp.arange(real_bl.shape[1], dtype=jnp.int32)
            mask = (index[None, :] <= index[:, None])[None, None]
        if self.mask_padding:
            real = real_bl[:, None, None, :]
            mask = real if mask is None else mask & real
        return mask

    def _pool(self, x_bld: jax.Array, tokens: jax.Array, real_bl: jax.Array) -> jax.Array:
        if self.pool == "eot":
            pooled = last_pool(x_bld, real_bl)
        elif self.pool == "largest":
            pooled = pick(x_bld, jnp.argmax(tokens, axis=1))
        elif self.pool == "eot_id":
            pooled = pick(x_bld, jnp.argmax(tokens == self.eot_id, axis=1))
        elif self.pool == "first":
            pooled = x_bld[:, 0]
        elif self.pool == "last":
            pooled = x_bld[:, -1]
        elif self.pool == "mean":
            pooled = mean_pool(x_bld, real_bl)
        else:
            seen = real_bl if self.mask_padding else jnp.ones_like(real_bl)
            pooled = map_head_of(self, self.heads, name="map")(x_bld, seen)
        if self.embed_dim is not None:
            axes = ("embed", "joint")
            proj = Linear((self.width,), (self.embed_dim,), axes, bias=self.bias, name="proj")
            pooled = proj(pooled)
        return pooled.astype(jnp.float32)

    def flops(self, shape: tuple[int, ...], *, train: bool = False) -> int:
        """Forward FLOPs of the matrix products for one text of `shape` (l,)."""
        del train
        # parent=None: these are read for their numbers, outside of any scope.
        total = stack_of(self, self.block, parent=None).flops(shape[0])
        if self.pool == "map":
            total += map_head_of(self, self.heads, parent=None).flops(shape[0])
        return total + 2 * self.width * (self.embed_dim or 0)
