"""ConvNeXt (Liu et al. 2022, arXiv:2201.03545), as the image tower of CLIP."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlalign.encoders.blocks import LayerScale, Mlp
from vlalign.encoders.convolution import Conv, keep, keep_factors, repeated
from vlalign.encoders.encoding import Encoding
from vlalign.encoders.flops import traced_flops
from vlalign.encoders.grids import grid_of
from vlalign.encoders.layers import ACTIVATIONS, Dtype, LayerNorm, Linear
from vlalign.encoders.pixels import CLIP_MEAN, CLIP_STD, Channels, normalise
from vlalign.encoders.remat import Remat
from vlalign.errors import UserError
from vlalign.parallel.constraint import shard_batch

STRIDE = 32  # pixels of an image a place of the last grid


class ConvNextBlock(nn.Module):
    """x + ls(mlp(norm(depthwise convolution of x))): (b, h, w, d) -> (b, h, w, d).

    width: d.   kernel: of the convolution.   layer_scale: initial value of `ls`; None: no scale.
    """

    width: int
    kernel: int
    layer_scale: float | None
    epsilon: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, factors_1b: jax.Array | None) -> tuple[jax.Array, None]:
        """x: (b, h, w, d); factors_1b: see `keep_factors` -> (b, h, w, d), None."""
        x = shard_batch(x)
        b, h, w, d = x.shape
        y = Conv(d, self.kernel, groups=0, dtype=self.dtype, name="conv")(x)
        y = LayerNorm(self.epsilon, name="norm")(y).astype(y.dtype)
        mlp = Mlp(d, 4 * d, "gelu", dtype=self.dtype, name="mlp")
        y = mlp(y.reshape(b * h * w, d)).reshape(b, h, w, d)
        if self.layer_scale is not None:
            y = LayerScale(self.layer_scale, name="ls")(y)
        return x + keep(y, None if factors_1b is None else factors_1b[0]), None


class ConvNext(nn.Module):
    """Images -> Encoding, by depthwise convolutions and feed-forward layers.

    pooled = head(norm(mean over places)); `tokens` are the places, each with the same norm.

    depths, widths: blocks and channels of the four stages.   kernel: of the depthwise convolutions.
    embed_dim: width of the pooled output.   head: "linear" without a bias, or "mlp" of hidden width
    2 embed_dim, without a bias at its end (open_clip's `timm_proj`).
    layer_scale: of each block's output at the start; None has none.
    drop_path: rate of stochastic depth at the last block in training, from 0 at the first one.
    epsilon: of the norms (1e-5 in convnext_xxlarge).
    scan, remat: see `repeated`.   dtype, pixel_mean, pixel_std: as in `ViT`.
    """

    depths: tuple[int, int, int, int] = (3, 3, 27, 3)
    widths: tuple[int, int, int, int] = (128, 256, 512, 1024)
    kernel: int = 7
    embed_dim: int = 640
    head: Literal["linear", "mlp"] = "linear"
    layer_scale: float | None = 1e-6
    drop_path: float = 0.0
    epsilon: float = 1e-6
    scan: bool = True
    remat: Remat = "none"
    dtype: Dtype = "float32"
    pixel_mean: Channels = CLIP_MEAN
    pixel_std: Channels = CLIP_STD

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool = False, rows: jax.Array | None = None
    ) -> Encoding:
        """images: (b, h, w, 3) uint8, or float already normalised -> Encoding.

        train: leave out blocks (needs the rng stream "drop").   rows: (b,) int32, each example's
        place in the whole batch.   Raises UserError for sizes that are no multiples of 32.
        """
        if self.kernel % 2 == 0:
            raise UserError(f"ConvNext kernel={self.kernel} must be odd")
        if not 0.0 <= self.drop_path < 1.0:
            raise UserError(f"ConvNext drop_path={self.drop_path} must be in [0, 1)")
        grid_of(images.shape[1], images.shape[2], STRIDE)
        factors = self._factors(images.shape[0], rows) if train and self.drop_path else [None] * 4
        x = normalise(images, self.pixel_mean, self.pixel_std)
        for index, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            x = self._down(x, index)
            block = repeated(ConvNextBlock, depth, scan=self.scan, remat=self.remat)
            args = (width, self.kernel, self.layer_scale, self.epsilon, self.dtype)
            x, _ = block(*args, name=f"stage_{index + 1}")(x, factors[index])
        return self._head(x)

    def _factors(self, batch: int, rows: jax.Array | None) -> list[jax.Array]:
        if rows is None:
            rows = jnp.arange(batch, dtype=jnp.int32)
        return keep_factors(self.make_rng("drop"), rows, self.drop_path, self.depths)

    def _down(self, x: jax.Array, index: int) -> jax.Array:
        """A grid of a quarter of the side (at the start) or half of it, and of the stage's width.

        At the start the norm comes behind the convolution, later before it.
        """
        name = f"down_{index + 1}"
        norm = LayerNorm(self.epsilon, name=f"{name}_norm")
        side = 4 if index == 0 else 2
        conv = Conv(self.widths[index], side, side, dtype=self.dtype, name=name)
        if index == 0:
            return norm(conv(x)).astype(self.dtype)
        return conv(norm(x))

    def _head(self, x: jax.Array) -> Encoding:
        b, h, w, d = x.shape
        tokens = x.reshape(b, h * w, d)
        norm = LayerNorm(self.epsilon, name="norm")
        y = norm(tokens.astype(jnp.float32).mean(axis=1))
        if self.head == "mlp":
            hidden = 2 * self.embed_dim
            y = ACTIVATIONS["gelu"](
                Linear((d,), (hidden,), ("embed", "mlp"), dtype=self.dtype, name="up")(y)
            )
            d, into = hidden, ("mlp", "joint")
        else:
            into = ("embed", "joint")
        y = Linear((d,), (self.embed_dim,), into, bias=False, dtype=self.dtype, name="proj")(y)
        mask = jnp.ones((b, h * w), bool)
        return Encoding(pooled=y.astype(jnp.float32), tokens=norm(tokens), mask=mask)

    def flops(self, shape: tuple[int, ...], *, train: bool = False) -> int:
        """Forward FLOPs of convolutions and matrix products for one image of `shape` (h, w, 3).

        A block that stochastic depth leaves out is computed all the same, so `train` is no less.
        """
        return traced_flops(self, shape)
