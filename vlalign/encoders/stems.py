"""Convolutions before a transformer, for `HybridViT`: those of ViTamin and of MobileCLIP-B."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlalign.encoders.convolution import Conv, remembered, repeated
from vlalign.encoders.layers import ACTIVATIONS, Dtype, LayerNorm
from vlalign.encoders.norms import BatchNorm
from vlalign.encoders.remat import Remat, mark
from vlalign.parallel.constraint import shard_batch

STRIDE = 16  # pixels of an image a place of their grids


class MbConv(nn.Module):
    """x + down(gelu(depthwise(gelu(up(norm(x)))))): (b, h, w, c) -> (b, h/stride, w/stride, o).

    The inverted bottleneck of MobileNetV2 (Sandler et al. 2018) with a LayerNorm before it. With
    stride 2 the way around is a mean of 3x3 places, and a linear map if the channels change.

    outputs: o; four times as many in between.
    """

    outputs: int
    stride: int = 1
    epsilon: float = 1e-6
    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, _: None = None) -> tuple[jax.Array, None]:
        """x: (b, h, w, c) -> (b, h/stride, w/stride, outputs), and None as `nn.scan` wants it."""
        x = shard_batch(x)
        gelu, dtype, inner = ACTIVATIONS["gelu"], self.dtype, 4 * self.outputs
        y = LayerNorm(self.epsilon, name="norm")(x)
        y = mark(Conv(inner, axes=("embed", "mlp"), dtype=dtype, name="up")(y), "mlp_hidden")
        mix = Conv(inner, 3, self.stride, groups=0, axes=(None, None), dtype=dtype, name="mix")
        y = Conv(self.outputs, axes=("mlp", "embed"), dtype=dtype, name="down")(gelu(mix(gelu(y))))
        if self.stride == 2:
            edge = ((1, 1), (1, 1))
            wide = x.astype(jnp.float32)
            x = nn.avg_pool(wide, (3, 3), (2, 2), edge, count_include_pad=False).astype(y.dtype)
        if x.shape[-1] != self.outputs:
            x = Conv(self.outputs, dtype=dtype, name="around")(x)
        return y + x.astype(y.dtype), None


@dataclasses.dataclass(frozen=True, kw_only=True)
class MbConvSpec:
    """ViTamin's stages before the transformer (Chen et al. 2024, arXiv:2404.02132, section 3.2).

    Two convolutions, two stages of `MbConv`, a norm and a convolution.

    start: channels of the first convolutions.   widths, depths: of the stages.
    """

    start: int = 64
    widths: tuple[int, int] = (64, 128)
    depths: tuple[int, int] = (2, 4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchSpec:
    """MobileCLIP-B's three convolutions of patches (Vasu et al. 2023, arXiv:2311.17049).

    Patches of 4, 2 and 2 places, with a norm and a GELU behind the first two.

    inner: channels of the first two.
    """

    inner: int = 192


class MbConvStem(nn.Module):
    """Images -> the grid of `MbConvSpec`: (b, h, w, 3) -> (b, h/16, w/16, outputs).

    spec: the choices.   outputs: width of the transformer.   epsilon: of the norms.
    scan, remat: see `repeated`.
    """

    spec: MbConvSpec
    outputs: int
    epsilon: float
    scan: bool
    remat: Remat
    dtype: Dtype

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """images: (b, h, w, 3) float -> (b, h/16, w/16, outputs)."""
        x = Conv(self.spec.start, 3, 2, dtype=self.dtype, name="conv_1")(images)
        x = ACTIVATIONS["gelu"](LayerNorm(self.epsilon, name="norm_1")(x))
        x = Conv(self.spec.start, 3, dtype=self.dtype, name="conv_2")(x)
        stages = zip(self.spec.widths, self.spec.depths, strict=True)
        for index, (width, depth) in enumerate(stages, start=1):
            first = remembered(MbConv, self.remat)
            x, _ = first(width, 2, self.epsilon, self.dtype, name=f"stage_{index}_first")(x)
            if depth > 1:
                rest = repeated(MbConv, depth - 1, scan=self.scan, remat=self.remat)
                x, _ = rest(width, 1, self.epsilon, self.dtype, name=f"stage_{index}")(x, None)
        x = LayerNorm(self.epsilon, name="norm_2")(x)
        return Conv(self.outputs, 3, 2, dtype=self.dtype, name="conv_3")(x)


class PatchStem(nn.Module):
    """Images -> the grid of `PatchSpec`: (b, h, w, 3) -> (b, h/16, w/16, outputs).

    spec: the choices.   outputs: width of the transformer.
    """

    spec: PatchSpec
    outputs: int
    dtype: Dtype

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """images: (b, h, w, 3) float -> (b, h/16, w/16, outputs)."""
        x = images
        for index, side in ((1, 4), (2, 2)):
            name = f"conv_{index}"
            x = Conv(self.spec.inner, side, side, bias=False, dtype=self.dtype, name=name)(x)
            x = ACTIVATIONS["gelu"](BatchNorm(name=f"norm_{index}")(x))
        return Conv(self.outputs, 2, 2, dtype=self.dtype, name="conv_3")(x)
