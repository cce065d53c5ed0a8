"""Convolutions, channels last, and the stages that are made of them.

Letters: b batch, h and w places down and across, c channels.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vlalign.encoders.layers import Dtype, named, uniform_by_row
from vlalign.encoders.remat import Remat, policy
from vlalign.errors import UserError


class Conv(nn.Module):
    """Convolution: x (b, h, w, c) -> (b, h/stride, w/stride, outputs), kernel (k, k, c/groups, o).

    An odd kernel is centred on its place: k // 2 zeros on every side, whatever the stride. (XLA's
    "SAME" puts one zero less before an even image of stride 2, and shifts it by a pixel.) An even
    kernel cuts patches: it must be as large as the stride, and there are no zeros.

    kernel: k, the side of the square.   groups: 0 is one for each channel of x (depthwise).
    axes: names of the channels that go in and out.   dtype: compute dtype of the product.
    """

    outputs: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    bias: bool = True
    axes: tuple[str | None, str | None] = (None, "embed")
    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (b, h, w, c) -> (b, h/stride, w/stride, outputs) in the compute dtype."""
        groups = self.groups or x.shape[-1]
        self._check(x.shape, groups)
        shape = (self.kernel, self.kernel, x.shape[-1] // groups, self.outputs)
        init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
        kernel = self.param("kernel", named(init, None, None, *self.axes), shape, jnp.float32)
        dtype = jnp.dtype(self.dtype)
        zeros = self.kernel // 2 if self.kernel % 2 else 0
        y = jax.lax.conv_general_dilated(
            x.astype(dtype),
            kernel.astype(dtype),
            window_strides=(self.stride, self.stride),
            padding=((zeros, zeros), (zeros, zeros)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )
        if not self.bias:
            return y
        start = named(nn.initializers.zeros, self.axes[1])
        bias = self.param("bias", start, (self.outputs,), jnp.float32)
        return y + bias.astype(dtype)[None, None, None]

    def _check(self, shape: tuple[int, ...], groups: int) -> None:
        where = self.name or "Conv"
        if len(shape) != 4:
            raise UserError(f"{where}: a convolution takes (b, h, w, c), not {shape}")
        if shape[-1] % groups or self.outputs % groups:
            raise UserError(
                f"{where}: {shape[-1]} channels in and {self.outputs} out do not both divide "
                f"into groups={groups}"
            )
        if self.kernel % 2 == 0 and self.kernel != self.stride:
            raise UserError(
                f"{where}: kernel={self.kernel} is even, so that it cuts patches, and must "
                f"equal stride={self.stride}"
            )
        if shape[1] % self.stride or shape[2] % self.stride:
            raise UserError(
                f"{where}: {shape[1]}x{shape[2]} places do not divide by stride={self.stride}"
            )


def average_pool(x: jax.Array, stride: int) -> jax.Array:
    """Means of squares of stride x stride: (b, h, w, c) -> (b, h/stride, w/stride, c)."""
    if stride == 1:
        return x
    b, h, w, c = x.shape
    return x.reshape(b, h // stride, stride, w // stride, stride, c).mean(axis=(2, 4))


def keep_factors(
    key: jax.Array, rows: jax.Array, most: float, depths: tuple[int, ...], *, branches: int = 1
) -> list[jax.Array]:
    """Factors of residual branches under stochastic depth (Huang et al. 2016): 0 or 1/(1 - rate).

    rows: (b,) int32, each example's place in the whole batch: it draws the same numbers however
    the batch is cut up.   most: the rate at the last block; it grows linearly from 0 at the first.
    depths: blocks of each stage, each with so many branches
    -> for each stage (depth, branches, b) float32.
    """
    count = sum(depths)
    rates = jnp.linspace(0.0, most, count, dtype=jnp.float32)[:, None, None]
    noise = uniform_by_row(key, rows, count * branches).T.reshape(count, branches, -1)
    factors = jnp.where(noise >= rates, 1.0 / (1.0 - rates), 0.0)
    return jnp.split(factors, np.cumsum(depths)[:-1])


def keep(y: jax.Array, factors_b: jax.Array | None) -> jax.Array:
    """A residual branch y (b, ...) times each example's factor; None: as it is."""
    if factors_b is None:
        return y
    return y * factors_b.astype(y.dtype).reshape(-1, *(1,) * (y.ndim - 1))


def remembered(block: Any, remat: Remat, *, looped: bool = False) -> Any:
    """The module class `block`, of which the backward pass keeps what `remat` says."""
    if remat == "none":
        return block
    # Inside a scan the loop itself keeps the compiler from merging the two passes.
    return nn.remat(block, prevent_cse=not looped, policy=policy(remat))


def repeated(block: Any, count: int, *, scan: bool, remat: Remat) -> Any:
    """The module class `block` as `count` equal blocks, one behind the other.

    Called with (x, factors) -> (x, None): `factors` is cut along its first axis, one for each
    block. Parameters have a leading `layers` axis.
    scan: more than two blocks are one compiled body in a loop; else they are unrolled.
    """
    looped = scan and count > 2
    return nn.scan(
        remembered(block, remat, looped=looped),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=0,
        length=count,
        unroll=1 if looped else count,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
