"""open_clip's names of MobileCLIP's FastViT: timm's under `trunk`, in both forms."""

import dataclasses

from vlalign.encoders.fastvit import FastVit
from vlalign.interop.hows import Arrays, Shapes
from vlalign.interop.names.batch_norm import batch_norm, conv, conv_norm
from vlalign.interop.names.open_clip import linear, norm
from vlalign.interop.rows import Row, under


@dataclasses.dataclass(frozen=True)
class Channels:
    """A vector (c,) <-> (c, 1, 1)."""

    def shapes(self, ours: Shapes) -> Shapes:
        return tuple((*shape, 1, 1) for shape in ours)

    def into(self, theirs: Arrays, ours: Shapes) -> Arrays:
        return tuple(x.reshape(shape) for x, shape in zip(theirs, ours, strict=True))

    def out(self, ours: Arrays) -> Arrays:
        return tuple(x[..., None, None] for x in ours)


def _scale(ours: str, theirs: str) -> Row:
    return Row(f"{ours}/scale", f"{theirs}.gamma", Channels())


def _squeeze(theirs: str) -> tuple[Row, ...]:
    return conv("squeeze/down", f"{theirs}.fc1") + conv("squeeze/up", f"{theirs}.fc2")


def _mobile_one(*, merged: bool, small: bool, skip: bool) -> tuple[Row, ...]:
    if merged:
        return conv("conv", "reparam_conv")
    return (
        *conv_norm("large", "conv_kxk.0"),
        *(conv_norm("small", "conv_scale") if small else ()),
        *(batch_norm("skip", "identity") if skip else ()),
    )


def _down(tower: FastVit, index: int) -> tuple[Row, ...]:
    """Between two stages: a convolution that halves the grid, and one of single places."""
    if tower.merged:
        down = conv("conv", "reparam_conv")
    else:
        down = conv_norm("large", "large_conv") + conv_norm("small", "small_conv")
    if tower.squeeze[index]:
        down += _squeeze("se")
    point = _mobile_one(merged=tower.merged, small=False, skip=True)
    return (
        *under(down, f"down_{index + 1}/", "proj.0."),
        *under(point, f"point_{index + 1}/", "proj.1."),
    )


def _block(tower: FastVit, mixer: str) -> tuple[Row, ...]:
    mlp = (*conv_norm("mlp/mix", "mlp.conv"), *conv("mlp/up", "mlp.fc1"))
    mlp += conv("mlp/down", "mlp.fc2")
    if mixer == "attention":
        return (
            *(batch_norm if tower.norm == "batch" else norm)("norm", "norm"),
            *linear("attn/qkv", "token_mixer.qkv", bias=False),
            *linear("attn/out", "token_mixer.proj", inputs=2),
            _scale("ls_1", "layer_scale_1"),
            *mlp,
            _scale("ls_2", "layer_scale_2"),
        )
    if tower.merged:
        rows = conv("conv", "reparam_conv")
    else:
        branches = _mobile_one(merged=False, small=True, skip=True)
        rows = (
            *under(branches, "mixer/", "mixer."),
            *batch_norm("norm", "norm.identity"),
            _scale("ls", "layer_scale"),
        )
    return (*under(rows, "mixer/", "token_mixer."), *mlp, _scale("ls_2", "layer_scale"))


def image_rows(tower: FastVit) -> tuple[Row, ...]:
    """The image tower, without a prefix."""
    rows: list[Row] = []
    for index, (small, skip) in enumerate(
        ((tower.stem_scale, False), (tower.stem_scale, False), (False, True))
    ):
        branches = _mobile_one(merged=tower.merged, small=small, skip=skip)
        rows += under(branches, f"stem_{index + 1}/", f"stem.{index}.")
    for index, mixer in enumerate(tower.mixers):
        name, stage = f"_{index + 1}", f"stages.{index}."
        if index:
            rows += under(_down(tower, index), "", f"{stage}downsample.")
        if mixer == "attention":
            position = "reparam_conv" if tower.merged else "pos_enc"
            rows += conv(f"position{name}/conv", f"{stage}pos_emb.{position}")
        rows += under(_block(tower, mixer), f"stage{name}/", f"{stage}blocks.{{i}}.")
    final = _mobile_one(merged=tower.merged, small=True, skip=False) + _squeeze("se")
    rows += under(final, "final/", "final_conv.")
    return under((*rows, *linear("proj", "head.fc")), "", "trunk.")
