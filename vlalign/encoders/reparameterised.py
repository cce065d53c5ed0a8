"""Layers of several branches in training that are one convolution afterwards.

MobileOne (Vasu et al. 2022, arXiv:2206.04040), RepLKNet (Ding et al. 2022, arXiv:2203.06717) and
FastViT (Vasu et al. 2023, arXiv:2303.14189). Convolutions and norms with stored statistics are
linear, so their sum is one convolution. Each layer has both forms, and says with `merge` how the
parameters of the first become those of the second.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlalign.encoders.blocks import LayerScale
from vlalign.encoders.convolution import Conv
from vlalign.encoders.layers import ACTIVATIONS, Dtype
from vlalign.encoders.norms import BatchNorm

EPSILON = 1e-5  # of all norms here
Params = Mapping[str, Any]


class ConvNorm(nn.Module):
    """BatchNorm of a convolution: parameters `conv`, `norm`. The fields are those of `Conv`."""

    outputs: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (b, h, w, c) -> (b, h/stride, w/stride, outputs)."""
        args = (self.outputs, self.kernel, self.stride, self.groups)
        x = Conv(*args, bias=False, dtype=self.dtype, name="conv")(x)
        return BatchNorm(EPSILON, name="norm")(x)


class SqueezeExcite(nn.Module):
    """x times a gate for each channel, of the means of all channels (Hu et al. 2018).

    hidden: channels between the gate's two maps.
    """

    hidden: int
    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (b, h, w, c) -> (b, h, w, c)."""
        y = x.mean(axis=(1, 2), keepdims=True)
        y = nn.relu(Conv(self.hidden, dtype=self.dtype, name="down")(y))
        return x * nn.sigmoid(Conv(x.shape[-1], dtype=self.dtype, name="up")(y))


class Branches(nn.Module):
    """act(squeeze(large(x) + small(x) + skip(x))): convolutions of two sizes and a norm alone.

    Merged, the three are `conv`. Parameters: `large`, `small`, `skip` or `conv`, and `squeeze`.

    large, small: side of the kernels; 0 leaves the branch out.   skip: whether there is the norm.
    groups: as in `Conv`.   squeeze: hidden width of a `SqueezeExcite`; None has none.
    act: whether a GELU follows.   merged: which form.
    """

    outputs: int
    large: int = 3
    small: int = 1
    skip: bool = False
    stride: int = 1
    groups: int = 1
    squeeze: int | None = None
    act: bool = True
    merged: bool = False
    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (b, h, w, c) -> (b, h/stride, w/stride, outputs)."""
        if self.merged:
            args = (self.outputs, self.large, self.stride, self.groups)
            y = Conv(*args, dtype=self.dtype, name="conv")(x)
        else:
            y = sum(branch(x) for branch in self._branches())
        if self.squeeze is not None:
            y = SqueezeExcite(self.squeeze, self.dtype, name="squeeze")(y)
        return ACTIVATIONS["gelu"](y) if self.act else y

    def _branches(self) -> list[nn.Module]:
        sizes = {"large": self.large, "small": self.small}
        rest = (self.stride, self.groups, self.dtype)
        branches: list[nn.Module] = [
            ConvNorm(self.outputs, size, *rest, name=name) for name, size in sizes.items() if size
        ]
        return [*branches, BatchNorm(EPSILON, name="skip")] if self.skip else branches


def merge_branches(params: Params) -> dict[str, Any]:
    """Parameters of `Branches` as those of its merged form."""
    convs = [
        _folded(params[n]["conv"]["kernel"], params[n]["norm"])
        for n in ("large", "small")
        if n in params
    ]
    if "skip" in params:
        norm = params["skip"]
        depthwise = convs[0][0].shape[2] == 1
        convs.append(_folded(_identity(norm["scale"].size, depthwise), norm))
    side = max(kernel.shape[0] for kernel, _ in convs)
    kernel = sum(_widened(kernel, side) for kernel, _ in convs)
    merged: dict[str, Any] = {"conv": {"kernel": kernel, "bias": sum(bias for _, bias in convs)}}
    return {**merged, "squeeze": params["squeeze"]} if "squeeze" in params else merged


class RepMixer(nn.Module):
    """x + scale (mixer(x) - norm(x)), per channel: parameters `mixer`, `norm`, `ls`, or `conv`.

    kernel: of the mixer.   layer_scale: initial value of the scale.   merged: which form.
    """

    kernel: int
    layer_scale: float
    merged: bool = False
    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (b, h, w, c) -> (b, h, w, c)."""
        c = x.shape[-1]
        if self.merged:
            return Conv(c, self.kernel, groups=0, dtype=self.dtype, name="conv")(x)
        mixer = Branches(
            c, self.kernel, skip=True, groups=0, act=False, dtype=self.dtype, name="mixer"
        )
        y = mixer(x) - BatchNorm(EPSILON, name="norm")(x)
        return x + LayerScale(self.layer_scale, name="ls")(y)


def merge_mixer(params: Params) -> dict[str, Any]:
    """Parameters of `RepMixer` as those of its merged form."""
    conv = merge_branches(params["mixer"])["conv"]
    scale = params["ls"]["scale"]
    identity = _identity(scale.size, depthwise=True)
    norm, bias = _folded(identity, params["norm"])
    side = conv["kernel"].shape[0]
    difference = (conv["kernel"] - _widened(norm, side)) * scale[None, None, None]
    return {
        "conv": {
            "kernel": _widened(identity, side) + difference,
            "bias": scale * (conv["bias"] - bias),
        }
    }


class PositionConv(nn.Module):
    """x + a depthwise convolution of x: positions by what is around (Chu et al. 2021, CPVT).

    Merged, the two are one convolution of the same shape.
    """

    kernel: int
    merged: bool = False
    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (b, h, w, c) -> (b, h, w, c)."""
        y = Conv(x.shape[-1], self.kernel, groups=0, dtype=self.dtype, name="conv")(x)
        return y if self.merged else x + y


def merge_position(params: Params) -> dict[str, Any]:
    """Parameters of `PositionConv` as those of its merged form."""
    kernel, bias = params["conv"]["kernel"], params["conv"]["bias"]
    identity = _identity(kernel.shape[3], depthwise=True)
    return {"conv": {"kernel": kernel + _widened(identity, kernel.shape[0]), "bias": bias}}


def _identity(channels: int, depthwise: bool) -> jax.Array:
    """The kernel (1, 1, c/groups, c) of the convolution that changes nothing."""
    eye = jnp.eye(channels, dtype=jnp.float32)
    return jnp.ones((1, 1, 1, channels), jnp.float32) if depthwise else eye[None, None]


def _folded(kernel: jax.Array, norm: Params) -> tuple[jax.Array, jax.Array]:
    """Kernel (k, k, i, o) and bias (o,) of a convolution with the norm behind it."""
    factor = norm["scale"] * jax.lax.rsqrt(norm["var"] + EPSILON)
    return kernel * factor[None, None, None], norm["bias"] - norm["mean"] * factor


def _widened(kernel: jax.Array, side: int) -> jax.Array:
    """The kernel (k, k, i, o) in the middle of zeros of that side."""
    edge = (side - kernel.shape[0]) // 2
    return jnp.pad(kernel, ((edge, edge), (edge, edge), (0, 0), (0, 0)))
