"""FastViT (Vasu et al. 2023, arXiv:2303.14189) as MobileCLIP's image tower: MCi0 to MCi4.

MobileCLIP: Vasu et al. 2023, arXiv:2311.17049; MCi3 and MCi4: Faghri et al. 2025, arXiv:2508.20691.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlalign.encoders.attention import Attention, AttentionSpec
from vlalign.encoders.blocks import LayerScale
from vlalign.encoders.convolution import Conv, keep, keep_factors, repeated
from vlalign.encoders.encoding import Encoding
from vlalign.encoders.flops import traced_flops
from vlalign.encoders.grids import grid_of
from vlalign.encoders.layers import ACTIVATIONS, Dtype, LayerNorm, Linear
from vlalign.encoders.norms import BatchNorm
from vlalign.encoders.pixels import Channels, normalise
from vlalign.encoders.remat import Remat, mark
from vlalign.encoders.reparameterised import (
    EPSILON,
    Branches,
    ConvNorm,
    Params,
    PositionConv,
    RepMixer,
    merge_branches,
    merge_mixer,
    merge_position,
)
from vlalign.errors import UserError
from vlalign.parallel.constraint import shard_batch

HEAD_WIDTH = 32
SQUEEZE = {"down": 4, "final": 16}  # channels over hidden channels of the gates


class ConvMlp(nn.Module):
    """down(gelu(up(norm(depthwise convolution of x)))): (b, h, w, d) -> (b, h, w, d).

    hidden: width between.
    """

    hidden: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (b, h, w, d) -> (b, h, w, d)."""
        d = x.shape[-1]
        y = ConvNorm(d, 7, groups=0, dtype=self.dtype, name="mix")(x)
        up = Conv(self.hidden, axes=("embed", "mlp"), dtype=self.dtype, name="up")
        y = ACTIVATIONS["gelu"](mark(up(y), "mlp_hidden"))
        return Conv(d, axes=("mlp", "embed"), dtype=self.dtype, name="down")(y)


class FastVitBlock(nn.Module):
    """A mixer over places, then a feed-forward layer: (b, h, w, d) -> (b, h, w, d).

    mixer: "convolution" (`RepMixer`), or "attention" behind a norm.
    hidden: of the feed-forward layer.   layer_scale: initial value of the branches' scales.
    norm: before attention.   merged: see `FastVit`.
    """

    mixer: Literal["convolution", "attention"]
    hidden: int
    layer_scale: float
    norm: Literal["batch", "layer"]
    merged: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, factors_2b: jax.Array | None) -> tuple[jax.Array, None]:
        """x: (b, h, w, d); factors_2b: see `keep`, of both branches -> (b, h, w, d), None.

        The mixer of convolutions is no branch that is left out.
        """
        x = shard_batch(x)
        first, second = (None, None) if factors_2b is None else factors_2b
        if self.mixer == "convolution":
            x = RepMixer(3, self.layer_scale, self.merged, self.dtype, name="mixer")(x)
        else:
            x = x + keep(LayerScale(self.layer_scale, name="ls_1")(self._attention(x)), first)
        y = ConvMlp(self.hidden, self.dtype, name="mlp")(x)
        return x + keep(LayerScale(self.layer_scale, name="ls_2")(y), second), None

    def _attention(self, x: jax.Array) -> jax.Array:
        b, h, w, d = x.shape
        norm = BatchNorm if self.norm == "batch" else LayerNorm
        y = norm(EPSILON, name="norm")(x).astype(x.dtype)
        spec = AttentionSpec(qkv_bias="none")
        attention = Attention(d, d // HEAD_WIDTH, 1.0, self.dtype, spec, name="attn")
        return attention(y.reshape(b, h * w, d), None).reshape(b, h, w, d)


class FastVit(nn.Module):
    """Images -> Encoding, by convolutions of several branches and, late, attention.

    pooled = linear map of the mean over places; `tokens` are the places, of twice the last width,
    after the last convolution and its GELU. Its norms' statistics are not trained: see `BatchNorm`.

    depths, widths: blocks and channels of the stages; each stage halves the grid but the first.
    mixers: of the stages.   mlp_ratio: hidden width of the feed-forward layers over the stage's.
    squeeze: of which stages the first convolution ends in a gate.
    norm: before attention.   stem_scale: whether the stem's convolutions have a 1x1 beside them.
    embed_dim: width of the pooled output.   layer_scale: initial value of the branches' scales.
    drop_path: rate of stochastic depth at the last block in training, from 0 at the first one.
    merged: the form for inference, with one convolution in place of several branches; `merge`
      makes its parameters.
    scan, remat: see `repeated`.   dtype, pixel_mean, pixel_std: as in `ViT`.
    """

    depths: tuple[int, ...] = (2, 6, 10, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    mixers: tuple[str, ...] = ("convolution", "convolution", "convolution", "attention")
    mlp_ratio: float = 3.0
    squeeze: tuple[bool, ...] = (False, False, True, True)
    norm: Literal["batch", "layer"] = "batch"
    stem_scale: bool = True
    embed_dim: int = 512
    layer_scale: float = 1e-5
    drop_path: float = 0.0
    merged: bool = False
    scan: bool = True
    remat: Remat = "none"
    dtype: Dtype = "float32"
    pixel_mean: Channels = (0.0, 0.0, 0.0)
    pixel_std: Channels = (1.0, 1.0, 1.0)

    def _check(self) -> None:
        lengths = {len(x) for x in (self.depths, self.widths, self.mixers, self.squeeze)}
        if len(lengths) > 1:
            raise UserError(
                f"FastVit depths={self.depths}, widths={self.widths}, mixers={self.mixers} and "
                f"squeeze={self.squeeze} must name the same stages"
            )
        for width, mixer in zip(self.widths, self.mixers, strict=True):
            if mixer not in ("convolution", "attention"):
                raise UserError(f"FastVit mixers: {mixer!r} is not 'convolution' or 'attention'")
            if mixer == "attention" and width % HEAD_WIDTH:
                raise UserError(
                    f"FastVit widths: {width} channels do not divide into heads of {HEAD_WIDTH}"
                )
        if not 0.0 <= self.drop_path < 1.0:
            raise UserError(f"FastVit drop_path={self.drop_path} must be in [0, 1)")

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool = False, rows: jax.Array | None = None
    ) -> Encoding:
        """images: (b, h, w, 3) uint8, or float already normalised -> Encoding.

        train: leave out branches (needs the rng stream "drop").   rows: (b,) int32, each example's
        place in the whole batch.   Raises UserError for sizes that the strides do not divide.
        """
        self._check()
        grid_of(images.shape[1], images.shape[2], 2 ** (len(self.depths) + 1))
        factors = self._factors(images.shape[0], rows) if train and self.drop_path else None
        x = self._stem(normalise(images, self.pixel_mean, self.pixel_std))
        for index in range(len(self.depths)):
            x = self._stage(x, index, None if factors is None else factors[index])
        wide = 2 * self.widths[-1]
        squeeze = max(1, round(wide / SQUEEZE["final"]))
        x = self._branches("final", wide, groups=0, squeeze=squeeze)(x)
        tokens = x.reshape(x.shape[0], -1, wide).astype(jnp.float32)
        proj = Linear((wide,), (self.embed_dim,), ("embed", "joint"), dtype=self.dtype, name="proj")
        pooled = proj(tokens.mean(axis=1)).astype(jnp.float32)
        return Encoding(pooled=pooled, tokens=tokens, mask=jnp.ones(tokens.shape[:2], bool))

    def _branches(self, name: str, outputs: int, **options: Any) -> Branches:
        return Branches(outputs, **options, merged=self.merged, dtype=self.dtype, name=name)

    def _stem(self, x: jax.Array) -> jax.Array:
        """(b, h, w, 3) -> (b, h/4, w/4, widths[0])."""
        width, small = self.widths[0], int(self.stem_scale)
        x = self._branches("stem_1", width, small=small, stride=2)(x)
        x = self._branches("stem_2", width, small=small, stride=2, groups=0)(x)
        return self._branches("stem_3", width, large=1, small=0, skip=True)(x)

    def _stage(self, x: jax.Array, index: int, factors: jax.Array | None) -> jax.Array:
        width, mixer, number = self.widths[index], self.mixers[index], index + 1
        if index:
            squeeze = (
                max(8, (width // SQUEEZE["down"] + 4) // 8 * 8) if self.squeeze[index] else None
            )
            down = {"large": 7, "small": 3, "stride": 2, "groups": 0, "squeeze": squeeze}
            x = self._branches(f"down_{number}", width, **down)(x)
            x = self._branches(f"point_{number}", width, large=1, small=0, skip=True)(x)
        if mixer == "attention":
            x = PositionConv(7, self.merged, self.dtype, name=f"position_{number}")(x)
        block = repeated(FastVitBlock, self.depths[index], scan=self.scan, remat=self.remat)
        hidden = int(width * self.mlp_ratio)
        args = (mixer, hidden, self.layer_scale, self.norm, self.merged, self.dtype)
        x, _ = block(*args, name=f"stage_{number}")(x, factors)
        return x

    def _factors(self, batch: int, rows: jax.Array | None) -> list[jax.Array]:
        """For each stage (depth, 2, b)."""
        if rows is None:
            rows = jnp.arange(batch, dtype=jnp.int32)
        return keep_factors(self.make_rng("drop"), rows, self.drop_path, self.depths, branches=2)

    def flops(self, shape: tuple[int, ...], *, train: bool = False) -> int:
        """Forward FLOPs of convolutions and matrix products for one image of `shape` (h, w, 3).

        A branch that stochastic depth leaves out is computed all the same, so `train` is no less.
        """
        return traced_flops(self, shape)


def merge(params: Params) -> dict[str, Any]:
    """Parameters of a `FastVit` as those of the same one with `merged=True`, of equal outputs.

    params: the unboxed tree of parameters of the tower, without "params" in front.
    Raises UserError if they are merged already.
    """
    if "conv" in params["stem_1"]:
        raise UserError("these parameters of FastVit are merged already")
    return {name: _merged(name, part) for name, part in params.items()}


def _merged(name: str, part: Params) -> Any:
    kind = name.split("_")[0]
    if kind == "position":
        return merge_position(part)
    if kind == "stage":
        return {**part, "mixer": jax.vmap(merge_mixer)(part["mixer"])} if "mixer" in part else part
    return part if kind == "proj" else merge_branches(part)
