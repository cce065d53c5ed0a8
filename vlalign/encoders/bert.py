"""Text towers of the BERT family: BERT, MiniLM, RoBERTa, XLM-RoBERTa, MPNet, DistilBERT."""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vlalign.encoders.blocks import BlockSpec, stack_of
from vlalign.encoders.encoding import Encoding
from vlalign.encoders.layers import ACTIVATIONS, Activation, Dtype, LayerNorm, Linear, named
from vlalign.encoders.pooling import mean_pool
from vlalign.encoders.remat import Remat
from vlalign.errors import UserError
from vlalign.parallel.constraint import whole

_FURTHEST = 128  # tokens; all that are further away share a bucket


class Bert(nn.Module):
    """Token ids -> Encoding, by a transformer with norms behind the sums (Devlin et al. 2018).

    The defaults are BERT base's. Every token is of the first type, as in texts that are not pairs;
    padding is left out of attention. A token id outside the table makes the row nan.

    vocab_size: rows of the token table.   pad_id: padding; also where `position_from` counts from.
    width, depth, heads, mlp_ratio, activation, epsilon, scan, remat, dtype: as in `ViT`.
    positions: rows of the position table, the most tokens of a text.
    position_from: "start" of the row, or "padding": the real tokens are counted from pad_id + 1,
      and padding has the position pad_id (RoBERTa, MPNet); texts are then pad_id + 1 shorter.
    token_types: rows of the table of types; 0: none (MPNet, DistilBERT).
    relative_buckets: learned distances between tokens, one number a head, the same in all layers
      (MPNet; see `distance_buckets`); 0: none.
    pool: the "class" token, which is the first, the "mean" of the tokens that are not padding
      (sentence-transformers), or "tanh": a linear map of the class token behind a tanh (BERT).
    embed_dim: width of the pooled output; None leaves it at `width`.
    projection: the map to it, "linear" or "mlp": two maps and a GELU of (width + embed_dim) // 2
      units, as open_clip has it; neither has a bias.
    """

    vocab_size: int = 30522
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    positions: int = 512
    position_from: Literal["start", "padding"] = "start"
    token_types: int = 2
    relative_buckets: int = 0
    pool: Literal["class", "mean", "tanh"] = "mean"
    embed_dim: int | None = None
    projection: Literal["linear", "mlp"] = "linear"
    pad_id: int = 0
    activation: Activation = "gelu"
    epsilon: float = 1e-12
    scan: bool = True
    remat: Remat = "none"
    dtype: Dtype = "float32"

    @property
    def longest(self) -> int:
        """The most tokens of a text."""
        return self.positions - (self.pad_id + 1 if self.position_from == "padding" else 0)

    def _check(self, length: int) -> None:
        if self.width % self.heads:
            raise UserError(f"Bert width={self.width} does not divide into heads={self.heads}")
        if not 0 <= self.pad_id < self.vocab_size:
            raise UserError(f"Bert pad_id={self.pad_id} is no id below {self.vocab_size}")
        if self.relative_buckets % 4:
            raise UserError(f"Bert relative_buckets={self.relative_buckets} must be fours, or 0")
        if length > self.longest:
            raise UserError(
                f"texts of {length} tokens, and Bert positions={self.positions} has places for "
                f"{self.longest}: let the tokenizer cut them there"
            )

    @nn.compact
    def __call__(
        self, tokens: jax.Array, *, train: bool = False, rows: jax.Array | None = None
    ) -> Encoding:
        """tokens: (b, l) int32 -> Encoding. Nothing is drawn: `train` and `rows` change nothing.

        Raises UserError if the texts are longer than the positions.
        """
        del train, rows
        self._check(tokens.shape[1])
        real_bl = tokens != self.pad_id
        x = LayerNorm(self.epsilon, name="ln_pre")(self._embed(tokens, real_bl))
        x = stack_of(self, BlockSpec(order="post"), name="transformer")(
            x.astype(jnp.dtype(self.dtype)), self._mask(real_bl)
        )
        x = x.astype(jnp.float32)
        return Encoding(pooled=self._project(self._pool(x, real_bl)), tokens=x, mask=real_bl)

    def _table(self, name: str, rows: int, axis: str | None) -> jax.Array:
        init = named(nn.initializers.normal(0.02), axis, "embed")
        return self.param(name, init, (rows, self.width), jnp.float32)

    def _embed(self, tokens: jax.Array, real_bl: jax.Array) -> jax.Array:
        """Token, its place and its type, summed: (b, l) -> (b, l, d)."""
        table = whole(self._table("token", self.vocab_size, "vocab"))
        x = jnp.take(table, tokens, axis=0)
        position = self._table("position", self.positions, "length")
        if self.position_from == "padding":
            real = real_bl.astype(jnp.int32)
            x = x + jnp.take(position, jnp.cumsum(real, axis=1) * real + self.pad_id, axis=0)
        else:
            x = x + position[None, : tokens.shape[1]]
        if self.token_types:
            x = x + self._table("type", self.token_types, None)[None, :1]
        return x

    def _mask(self, real_bl: jax.Array) -> jax.Array:
        """What attention may see, or with distances what is added to its scores."""
        real = real_bl[:, None, None, :]
        if not self.relative_buckets:
            return real
        init = named(nn.initializers.normal(0.02), None, "heads")
        shape = (self.relative_buckets, self.heads)
        relative = self.param("relative", init, shape, jnp.float32)
        buckets = distance_buckets(real_bl.shape[1], self.relative_buckets)
        bias = jnp.take(relative, buckets, axis=0).transpose(2, 0, 1)[None]
        return jnp.where(real, bias, jnp.finfo(jnp.float32).min)

    def _pool(self, x_bld: jax.Array, real_bl: jax.Array) -> jax.Array:
        if self.pool == "mean":
            return mean_pool(x_bld, real_bl)
        first, d = x_bld[:, 0], (self.width,)
        if self.pool == "class":
            return first
        return jnp.tanh(Linear(d, d, ("embed", None), name="pooler")(first))

    def _project(self, pooled_bd: jax.Array) -> jax.Array:
        if self.embed_dim is None:
            return pooled_bd
        d, m, e = (self.width,), (self._hidden,), (self.embed_dim,)
        if self.projection == "linear":
            return Linear(d, e, ("embed", "joint"), bias=False, name="proj")(pooled_bd)
        up = Linear(d, m, ("embed", "mlp"), bias=False, name="proj_up")
        down = Linear(m, e, ("mlp", "joint"), bias=False, name="proj_down")
        return down(ACTIVATIONS["gelu"](up(pooled_bd)))

    @property
    def _hidden(self) -> int:
        return (self.width + (self.embed_dim or 0)) // 2

    def flops(self, shape: tuple[int, ...], *, train: bool = False) -> int:
        """Forward FLOPs of the matrix products for one text of `shape` (l,)."""
        del train
        # parent=None: it is read for its numbers, outside of any scope.
        total = stack_of(self, BlockSpec(order="post"), parent=None).flops(shape[0])
        if self.pool == "tanh":
            total += 2 * self.width**2
        if self.embed_dim is None:
            return total
        if self.projection == "linear":
            return total + 2 * self.width * self.embed_dim
        return total + 2 * self._hidden * (self.width + self.embed_dim)


def distance_buckets(length: int, buckets: int) -> np.ndarray:
    """The bucket of the distance from each token to each other: (length, length) int32.

    A half of the buckets is for what stands before, a half for what comes behind; of a half's n the
    first n / 2 are one distance each, the rest grow by equal factors up to 128 tokens, beyond which
    all is one (T5, Raffel et al. 2020, arXiv:1910.10683, section 2.1).
    """
    half, exact = buckets // 2, buckets // 4
    places = np.arange(length, dtype=np.int32)
    offset = places[None, :] - places[:, None]
    distance = np.abs(offset)
    # In float32 as the originals compute it, so that the same distances fall on the same side.
    share = np.log(np.maximum(distance, exact).astype(np.float32) / exact)
    share = share / math.log(_FURTHEST / exact) * (half - exact)
    far = np.minimum(exact + share.astype(np.int32), half - 1)
    found = np.where(distance < exact, distance, far) + np.where(offset > 0, half, 0)
    return found.astype(np.int32)
