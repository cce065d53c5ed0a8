"""The towers of CoCa (Yu et al. 2022, arXiv:2205.01917), which a caption decoder stands behind."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlalign.encoders.attention import cross_attention
from vlalign.encoders.blocks import BlockSpec, stack_of
from vlalign.encoders.encoding import Encoding
from vlalign.encoders.layers import Activation, Dtype, LayerNorm, Linear, named
from vlalign.encoders.remat import Remat
from vlalign.encoders.vit import ViT
from vlalign.errors import UserError
from vlalign.parallel.constraint import whole


class AttentionalPooler(nn.Module):
    """So many learned queries that attend to a sequence: x (b, s, c) -> (b, n, d).

    queries: n.   width, heads: d, h.   epsilon: of the norms of the queries and of what they see.
    """

    queries: int
    width: int
    heads: int
    epsilon: float
    dtype: Dtype

    @nn.compact
    def __call__(self, seen_bsc: jax.Array) -> jax.Array:
        """seen_bsc: (b, s, c) -> (b, n, d)."""
        init = named(nn.initializers.normal(1.0), None, "embed")
        probe = self.param("probe", init, (self.queries, self.width), jnp.float32)
        query = LayerNorm(self.epsilon, name="ln_q")(probe)[None]
        seen = LayerNorm(self.epsilon, name="ln_k")(seen_bsc)
        return cross_attention(query, seen, None, heads=self.heads, dtype=self.dtype)

    def flops(self, length: int, width: int) -> int:
        """Forward FLOPs of the matrix products for one example of `length` tokens of `width`."""
        n, d = self.queries, self.width
        return 4 * n * d**2 + 4 * length * width * d + 4 * n * length * d


class CocaImage(nn.Module):
    """Images -> Encoding whose tokens are what a decoder of captions reads.

    The trunk has no output map of its own and pools its class token, which nobody reads.

    trunk: of the patches. Its last norm is of the "tokens", or "none" with pool="first", where the
      norm comes behind the pooler.
    queries: of the pooler whose outputs are the tokens.   heads: of all poolers.
    embed_dim: width of the tokens and of the pooled output.
    pool: "first" of the queries, which then is not among the tokens (open_clip), or a pooler of one
      query of its own, beside the other ("parallel") or behind it ("cascade"; section 3.2).
    """

    trunk: ViT = ViT(patch_size=32, pre_norm=True, patch_bias=False, final_norm="none")
    queries: int = 256
    heads: int = 8
    embed_dim: int = 512
    pool: Literal["first", "parallel", "cascade"] = "first"

    def _check(self) -> None:
        if self.embed_dim % self.heads:
            raise UserError(
                f"CocaImage embed_dim={self.embed_dim} does not divide into heads={self.heads}"
            )
        wanted = "none" if self.pool == "first" else "tokens"
        have = (self.trunk.pool, self.trunk.embed_dim, self.trunk.final_norm)
        if have != ("class", None, wanted):
            raise UserError(
                f'CocaImage pool="{self.pool}" wants of its trunk pool="class", embed_dim=None, '
                f'final_norm="{wanted}"; it has {have}'
            )

    def _pooler(self, queries: int, **scope: object) -> AttentionalPooler:
        width, trunk = self.embed_dim, self.trunk
        return AttentionalPooler(queries, width, self.heads, trunk.epsilon, trunk.dtype, **scope)  # type: ignore[arg-type]

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool = False, rows: jax.Array | None = None
    ) -> Encoding:
        """images: (b, h, w, 3) -> Encoding with tokens (b, queries or one less, embed_dim).

        train, rows: see `ViT`.
        """
        self._check()
        d, trunk = self.embed_dim, self.trunk
        seen = trunk(images, train=train, rows=rows).tokens
        tokens = self._pooler(self.queries, name="pooler")(seen)
        if self.pool == "first":
            tokens = LayerNorm(trunk.epsilon, name="ln_post")(tokens)
            pooled, tokens = tokens[:, 0], tokens[:, 1:]
        else:
            seen = tokens if self.pool == "cascade" else seen
            pooled = self._pooler(1, name="pooler_class")(seen)[:, 0]
        pooled = Linear((d,), (d,), ("embed", "joint"), bias=False, name="proj")(pooled)
        mask = jnp.ones(tokens.shape[:2], bool)
        tokens = tokens.astype(jnp.float32)
        return Encoding(pooled=pooled.astype(jnp.float32), tokens=tokens, mask=mask)

    def flops(self, shape: tuple[int, ...], *, train: bool = False) -> int:
        """Forward FLOPs of the matrix products for one image of `shape` (h, w, 3)."""
        length, width = self.trunk.length(shape, train=train), self.trunk.width
        total = self.trunk.flops(shape, train=train)
        total += self._pooler(self.queries, parent=None).flops(length, width)
        if self.pool != "first":
            seen = (length, width) if self.pool == "parallel" else (self.queries, self.embed_dim)
            total += self._pooler(1, parent=None).flops(*seen)
        return total + 2 * self.embed_dim**2


class CocaText(nn.Module):
    """Token ids -> Encoding by a causal transformer with a class token behind the text.

    The tokens are the last hidden states without a norm, as the decoder reads them; the class token
    sees all of the text, and none of the others sees it.

    vocab_size, width, depth, heads, mlp_ratio, pad_id, activation, epsilon, scan, remat, dtype: as
    in `TextTransformer`.   length: the most tokens of a text.
    embed_dim: width of the pooled output after a linear map.
    padding: which keys attention leaves out: padding ("exact"), or, one place on, those behind
      padding, so that a padded text's class token does not see itself ("shifted": open_clip's
      models were trained like this).
    """

    vocab_size: int = 49408
    length: int = 76
    width: int = 512
    depth: int = 12
    heads: int = 8
    mlp_ratio: float = 4.0
    embed_dim: int = 512
    padding: Literal["exact", "shifted"] = "exact"
    pad_id: int = 0
    activation: Activation = "gelu"
    epsilon: float = 1e-5
    scan: bool = True
    remat: Remat = "none"
    dtype: Dtype = "float32"

    def setup(self) -> None:
        """Makes the parts, which the tower and its single steps share."""
        d, positions = self.width, self.length + 1
        if d % self.heads:
            raise UserError(f"CocaText width={d} does not divide into heads={self.heads}")
        rough, fine = nn.initializers.normal(0.02), nn.initializers.normal(0.01)
        vocab, length = named(rough, "vocab", "embed"), named(fine, "length", "embed")
        self.token = self.param("token", vocab, (self.vocab_size, d), jnp.float32)
        self.position = self.param("position", length, (positions, d), jnp.float32)
        self.class_token = self.param(
            "class_token", named(fine, None, "embed"), (1, d), jnp.float32
        )
        self.transformer = stack_of(self, BlockSpec())
        self.ln_final = LayerNorm(self.epsilon)
        self.proj = Linear((d,), (self.embed_dim,), ("embed", "joint"), bias=False)

    def __call__(
        self, tokens: jax.Array, *, train: bool = False, rows: jax.Array | None = None
    ) -> Encoding:
        """tokens: (b, l) int32 -> Encoding. Nothing is drawn: `train` and `rows` change nothing.

        Raises UserError if the texts are longer than `length`.
        """
        del train, rows
        (b, l), d = tokens.shape, self.width
        if l > self.length:
            raise UserError(f"texts of {l} tokens, and CocaText length={self.length}")
        last = jnp.broadcast_to(self.class_token[None], (b, 1, d))
        x = jnp.concatenate([self._look_up(tokens), last], axis=1) + self.position[None, : l + 1]
        real_bl, one = tokens != self.pad_id, jnp.ones((b, 1), bool)
        seen = [one, real_bl] if self.padding == "shifted" else [real_bl, one]
        mask = causal(l + 1) & jnp.concatenate(seen, axis=1)[:, None, None, :]
        x = self.transformer(x.astype(jnp.dtype(self.dtype)), mask).astype(jnp.float32)
        pooled = self.proj(self.ln_final(x[:, -1])).astype(jnp.float32)
        return Encoding(pooled=pooled, tokens=x[:, :-1], mask=real_bl)

    def hidden(self, tokens: jax.Array, place: jax.Array, mask: jax.Array) -> jax.Array:
        """The tokens of the encoding for some tokens of a text: (b, l) -> (b, l, width).

        place: () int32, where the first of them stands.   mask: (1, 1, l, s), which of the s tokens
        that the cache holds each of them sees.
        """
        position = jax.lax.dynamic_slice_in_dim(self.position, place, tokens.shape[1])
        x = self._look_up(tokens) + position[None]
        return self.transformer(x.astype(jnp.dtype(self.dtype)), mask).astype(jnp.float32)

    def _look_up(self, tokens: jax.Array) -> jax.Array:
        return jnp.take(whole(self.token), tokens, axis=0)

    def flops(self, shape: tuple[int, ...], *, train: bool = False) -> int:
        """Forward FLOPs of the matrix products for one text of `shape` (l,)."""
        del train
        # parent=None: it is read for its numbers, outside of any scope.
        return (
            stack_of(self, BlockSpec(), parent=None).flops(shape[0] + 1)
            + 2 * self.width * self.embed_dim
        )


def causal(length: int) -> jax.Array:
    """The mask by which each token sees itself and those before it: (1, 1, length, length)."""
    index = jnp.arange(length, dtype=jnp.int32)
    return (index[None, :] <= index[:, None])[None, None]
