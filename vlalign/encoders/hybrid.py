"""Transformers over a grid that convolutions have made."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlalign.encoders.attention import Attention
from vlalign.encoders.blocks import BlockSpec, Mlp, hidden_width
from vlalign.encoders.convolution import keep, keep_factors, repeated
from vlalign.encoders.encoding import Encoding
from vlalign.encoders.flops import traced_flops
from vlalign.encoders.grids import grid_of, learned_positions
from vlalign.encoders.layers import Dtype, LayerNorm, Linear, named
from vlalign.encoders.pixels import CLIP_MEAN, CLIP_STD, Channels, normalise
from vlalign.encoders.remat import Remat
from vlalign.encoders.stems import STRIDE, MbConvSpec, MbConvStem, PatchSpec, PatchStem
from vlalign.errors import UserError
from vlalign.parallel.constraint import shard_batch

FeedForward = Literal["mlp", "geglu"]


class HybridBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): (b, l, d) -> (b, l, d).

    width, heads, hidden: d, h, m.   feed_forward: "mlp", or "geglu" with a second norm before it.
    """

    width: int
    heads: int
    hidden: int
    feed_forward: FeedForward
    depth_scale: float
    epsilon: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, factors_2b: jax.Array | None) -> tuple[jax.Array, None]:
        """x: (b, l, d); factors_2b: see `keep_factors` -> (b, l, d), None."""
        x = shard_batch(x)
        b, l, d = x.shape
        first, second = (None, None) if factors_2b is None else factors_2b
        attention = Attention(d, self.heads, self.depth_scale, self.dtype, name="attn")
        x = x + keep(attention(self._norm("ln_1", x), None), first)
        y = self._norm("ln_2", x)
        gated = self.feed_forward == "geglu"
        if gated:
            y = self._norm("ln_3", y)
        spec = BlockSpec(feed_forward="gated" if gated else "mlp")
        mlp = Mlp(d, self.hidden, "gelu", self.depth_scale, self.dtype, spec, name="mlp")
        y = mlp(y.reshape(b * l, d)).reshape(b, l, d)
        return x + keep(y, second), None

    def _norm(self, name: str, x: jax.Array) -> jax.Array:
        return LayerNorm(self.epsilon, name=name)(x).astype(x.dtype)


class HybridViT(nn.Module):
    """Images -> Encoding, by a stem of convolutions and a transformer over its grid.

    Images of another size than at initialisation get the learned positions resized to their grid.
    `tokens` have the last norm; with pool="mean" the mean is taken before that norm.

    stem: which convolutions, of stride 16 together: `MbConvSpec` (ViTamin) or `PatchSpec`
    (MobileCLIP-B).
    width, depth, heads: of the blocks.   mlp_ratio: hidden width of the feed-forward layers over
    `width`.   feed_forward: "mlp", or "geglu" (Shazeer 2020, arXiv:2002.05202) behind a norm more.
    embed_dim: width of the pooled output.   bias: whether its linear map has one.
    pool: a "class" token, without a position, or the "mean" over places.
    positions: whether places have learned ones.
    drop_path: rate of stochastic depth at the last block in training, from 0 at the first one.
    epsilon: of the norms.   scan, remat: see `repeated`.   dtype, pixel_mean, pixel_std: as in
    `ViT`.
    """

    stem: MbConvSpec | PatchSpec = MbConvSpec()
    width: int = 384
    depth: int = 14
    heads: int = 6
    mlp_ratio: float = 2.0
    feed_forward: FeedForward = "geglu"
    embed_dim: int = 384
    bias: bool = False
    pool: Literal["class", "mean"] = "mean"
    positions: bool = True
    drop_path: float = 0.0
    epsilon: float = 1e-6
    scan: bool = True
    remat: Remat = "none"
    dtype: Dtype = "float32"
    pixel_mean: Channels = CLIP_MEAN
    pixel_std: Channels = CLIP_STD

    def _check(self) -> None:
        if self.width % self.heads:
            raise UserError(f"HybridViT width={self.width} does not divide into heads={self.heads}")
        if not 0.0 <= self.drop_path < 1.0:
            raise UserError(f"HybridViT drop_path={self.drop_path} must be in [0, 1)")

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool = False, rows: jax.Array | None = None
    ) -> Encoding:
        """images: (b, h, w, 3) uint8, or float already normalised -> Encoding.

        train: leave out branches (needs the rng stream "drop").   rows: (b,) int32, each example's
        place in the whole batch.   Raises UserError for sizes that are no multiples of 16.
        """
        self._check()
        grid = grid_of(images.shape[1], images.shape[2], STRIDE)
        x = self._stem(normalise(images, self.pixel_mean, self.pixel_std))
        b, d = x.shape[0], self.width
        x = x.reshape(b, grid[0] * grid[1], d)
        if self.positions:
            x = x + learned_positions(self, grid, d).astype(x.dtype)[None]
        if self.pool == "class":
            init = named(nn.initializers.normal(d**-0.5), None, "embed")
            token = self.param("class_token", init, (1, d), jnp.float32).astype(x.dtype)
            x = jnp.concatenate([jnp.broadcast_to(token[None], (b, 1, d)), x], axis=1)
        x = self._blocks(x, train, rows)
        norm = LayerNorm(self.epsilon, name="ln_post")
        tokens = norm(x)
        pooled = tokens[:, 0] if self.pool == "class" else norm(x.astype(jnp.float32).mean(axis=1))
        axes = ("embed", "joint")
        proj = Linear((d,), (self.embed_dim,), axes, self.bias, dtype=self.dtype, name="proj")
        mask = jnp.ones(tokens.shape[:2], bool)
        return Encoding(pooled=proj(pooled).astype(jnp.float32), tokens=tokens, mask=mask)

    def _stem(self, images: jax.Array) -> jax.Array:
        """(b, h, w, 3) -> (b, rows, columns, width)."""
        if isinstance(self.stem, MbConvSpec):
            options = (self.epsilon, self.scan, self.remat, self.dtype)
            return MbConvStem(self.stem, self.width, *options, name="stem")(images)
        return PatchStem(self.stem, self.width, self.dtype, name="stem")(images)

    def _blocks(self, x: jax.Array, train: bool, rows: jax.Array | None) -> jax.Array:
        factors = None
        if train and self.drop_path:
            if rows is None:
                rows = jnp.arange(x.shape[0], dtype=jnp.int32)
            key = self.make_rng("drop")
            (factors,) = keep_factors(key, rows, self.drop_path, (self.depth,), branches=2)
        block = repeated(HybridBlock, self.depth, scan=self.scan, remat=self.remat)
        hidden = hidden_width(self.width, self.mlp_ratio)
        scale = (2 * self.depth) ** -0.5
        args = (self.width, self.heads, hidden, self.feed_forward, scale, self.epsilon, self.dtype)
        x, _ = block(*args, name="blocks")(x, factors)
        return x

    def flops(self, shape: tuple[int, ...], *, train: bool = False) -> int:
        """Forward FLOPs of convolutions and matrix products for one image of `shape` (h, w, 3).

        A branch that stochastic depth leaves out is computed all the same, so `train` is no less.
        """
        return traced_flops(self, shape)
