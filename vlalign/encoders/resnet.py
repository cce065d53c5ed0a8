"""CLIP's residual networks (Radford et al. 2021, section 2.4): RN50, RN101, RN50x4, x16, x64."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlalign.encoders.attention import attend
from vlalign.encoders.convolution import Conv, average_pool, remembered, repeated
from vlalign.encoders.encoding import Encoding
from vlalign.encoders.flops import traced_flops
from vlalign.encoders.grids import grid_of, learned_positions
from vlalign.encoders.layers import Dtype, Linear
from vlalign.encoders.norms import BatchNorm
from vlalign.encoders.pixels import CLIP_MEAN, CLIP_STD, Channels, normalise
from vlalign.encoders.remat import Remat
from vlalign.errors import UserError
from vlalign.parallel.constraint import shard_batch

STRIDE = 32  # pixels of an image a place of the last grid


class Bottleneck(nn.Module):
    """x + three convolutions of x: (b, h, w, c) -> (b, h/stride, w/stride, 4 width).

    All convolutions have stride 1: means of squares are taken behind the second one, and on the
    way around before a convolution of its own.

    width: of the first two convolutions.   project: whether the way around has a convolution.
    """

    width: int
    stride: int = 1
    project: bool = False
    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, _: None = None) -> tuple[jax.Array, None]:
        """x: (b, h, w, c) -> (b, h/stride, w/stride, 4 width), and None as `nn.scan` wants it."""
        x = shard_batch(x)
        d = self.width
        y = self._conv(d, 1, 1, ("embed", None))(x)
        y = nn.relu(BatchNorm(axis=None, name="norm_1")(y))
        y = self._conv(d, 3, 2, (None, "mlp"))(y)
        y = nn.relu(BatchNorm(axis="mlp", name="norm_2")(y))
        y = self._conv(4 * d, 1, 3, ("mlp", "embed"))(average_pool(y, self.stride))
        y = BatchNorm(start=0.0, name="norm_3")(y)
        x = x.astype(y.dtype)
        if self.project:
            around = Conv(4 * d, 1, bias=False, dtype=self.dtype, name="conv")
            x = BatchNorm(name="norm")(around(average_pool(x, self.stride)))
        return nn.relu(x + y), None

    def _conv(self, outputs: int, kernel: int, index: int, axes: Any) -> Conv:
        name = f"conv_{index}"
        return Conv(outputs, kernel, bias=False, axes=axes, dtype=self.dtype, name=name)


class Stage(nn.Module):
    """A bottleneck that changes the grid, then equal ones: parameters `first`, and `blocks`.

    width, stride: of the bottlenecks.   depth: their number.   scan, remat: see `repeated`.
    """

    width: int
    depth: int
    stride: int
    scan: bool
    remat: Remat
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (b, h, w, c) -> (b, h/stride, w/stride, 4 width)."""
        first = remembered(Bottleneck, self.remat)
        x, _ = first(self.width, self.stride, True, self.dtype, name="first")(x)
        if self.depth > 1:
            rest = repeated(Bottleneck, self.depth - 1, scan=self.scan, remat=self.remat)
            x, _ = rest(self.width, dtype=self.dtype, name="blocks")(x, None)
        return x


class AttentionPool(nn.Module):
    """One query of the mean place to all places and their mean: (b, h, w, d) -> (b, outputs).

    Positions are those of the grid at initialisation, resized for another one; the first is the
    mean's own.   heads: must divide d.
    """

    heads: int
    outputs: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (b, h, w, d) -> (b, outputs)."""
        b, rows, columns, d = x.shape
        if d % self.heads:
            raise UserError(f"attention pooling: width={d} does not divide into {self.heads} heads")
        h, k = self.heads, d // self.heads
        x = x.reshape(b, rows * columns, d)
        x = jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)
        x = x + learned_positions(self, (rows, columns), d, extra=1).astype(x.dtype)[None]
        into = ("embed", "heads", "head_dim")

        def project(name: str, x: jax.Array) -> jax.Array:
            return Linear((d,), (h, k), into, dtype=self.dtype, name=name)(x)

        y = attend(project("query", x[:, :1]), project("key", x), project("value", x), None)
        back = ("heads", "head_dim", "joint")
        out = Linear((h, k), (self.outputs,), back, dtype=self.dtype, name="out")
        return out(y[:, 0])


class ResNet(nn.Module):
    """Images -> Encoding, by convolutions and attention pooling.

    Three convolutions in place of one at the start, means of squares in place of strides, and a
    learned query in place of a mean. `tokens` are the last grid, before the pooling, row by row.
    The statistics of its norms are not trained: see `BatchNorm`.

    depths: bottlenecks of the four stages.   width: of the first stage's inner convolutions; the
    last grid is 32 times as wide.   heads: of the pooling; they divide 32 width.
    embed_dim: width of the pooled output.
    scan, remat: see `repeated`.   dtype, pixel_mean, pixel_std: as in `ViT`.
    """

    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    width: int = 64
    heads: int = 32
    embed_dim: int = 1024
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

        train, rows: change nothing here; there are no random numbers.
        Raises UserError for sizes that are no multiples of 32.
        """
        grid_of(images.shape[1], images.shape[2], STRIDE)
        x = self._stem(normalise(images, self.pixel_mean, self.pixel_std))
        for index, depth in enumerate(self.depths):
            stride = 1 if index == 0 else 2
            args = (self.width * 2**index, depth, stride, self.scan, self.remat, self.dtype)
            x = Stage(*args, name=f"stage_{index + 1}")(x)
        pooled = AttentionPool(self.heads, self.embed_dim, self.dtype, name="pool")(x)
        tokens = x.reshape(x.shape[0], -1, x.shape[-1]).astype(jnp.float32)
        mask = jnp.ones(tokens.shape[:2], bool)
        return Encoding(pooled=pooled.astype(jnp.float32), tokens=tokens, mask=mask)

    def _stem(self, x: jax.Array) -> jax.Array:
        """(b, h, w, 3) -> (b, h/4, w/4, width)."""
        for index, (width, stride) in enumerate(
            ((self.width // 2, 2), (self.width // 2, 1), (self.width, 1)), start=1
        ):
            conv = Conv(width, 3, stride, bias=False, dtype=self.dtype, name=f"conv_{index}")
            x = nn.relu(BatchNorm(name=f"norm_{index}")(conv(x)))
        return average_pool(x, 2)

    def flops(self, shape: tuple[int, ...], *, train: bool = False) -> int:
        """Forward FLOPs of convolutions and matrix products for one image of `shape` (h, w, 3)."""
        return traced_flops(self, shape)
