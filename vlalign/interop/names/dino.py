"""Hugging Face's names of DINOv2, with registers or without, and of DINOv3's ViTs."""

from vlalign.encoders.vit import ViT
from vlalign.interop.hows import Below, Dense, Flat, Ones, Parts, Patch, TokenAndPositions
from vlalign.interop.names.open_clip import linear, norm
from vlalign.interop.rows import Row, Table, Unused, under

# Of masked images in pre-training.
_UNUSED = (Unused("*embeddings.mask_token"),)


def _around(blocks: tuple[Row, ...], last: str, patch: str, tower: ViT) -> tuple[Row, ...]:
    """Blocks with what stands before and after them."""
    rows: tuple[Row, ...] = (
        Row("patch/kernel", f"{patch}.weight", Patch()),
        Row("patch/bias", f"{patch}.bias"),
    )
    if tower.registers:
        rows += (Row("registers", "embeddings.register_tokens", Ones(theirs=1)),)
    return rows + blocks + norm("ln_post", last)


def _scales() -> tuple[Row, ...]:
    return tuple(Row(f"ls_{n}/scale", f"layer_scale{n}.lambda1") for n in (1, 2))


def v2_table(tower: ViT) -> Table:
    """`Dinov2Model`, and `Dinov2WithRegistersModel` where the tower has registers."""
    into = tuple(f"attention.attention.{name}" for name in ("query", "key", "value"))
    rows = (
        *norm("ln_1", "norm1"),
        Row("attn/qkv/kernel", tuple(f"{n}.weight" for n in into), Parts(Dense(), axis=1)),
        Row("attn/qkv/bias", tuple(f"{n}.bias" for n in into), Parts(Flat())),
        *linear("attn/out", "attention.output.dense", inputs=2),
        *norm("ln_2", "norm2"),
        *_scales(),
    )
    if tower.block.feed_forward == "gated":
        gated = (("mlp/gate/kernel", "mlp/up/kernel"), ("mlp/gate/bias", "mlp/up/bias"))
        rows += (
            Row(gated[0], "mlp.weights_in.weight", Below(Dense())),
            Row(gated[1], "mlp.weights_in.bias", Below(Flat())),
            *linear("mlp/down", "mlp.weights_out"),
        )
    else:
        rows += (*linear("mlp/up", "mlp.fc1"), *linear("mlp/down", "mlp.fc2"))
    places = Row(
        ("class_token", "position"),
        ("embeddings.cls_token", "embeddings.position_embeddings"),
        TokenAndPositions(axes=3),
    )
    blocks = under(rows, "transformer/blocks/", "encoder.layer.{i}.")
    patch = "embeddings.patch_embeddings.projection"
    return Table(rows=(places, *_around(blocks, "layernorm", patch, tower)), unused=_UNUSED)


def v3_table(tower: ViT) -> Table:
    """`DINOv3ViTModel`."""
    spec = tower.block
    rows = (
        *norm("ln_1", "norm1"),
        Row(
            "attn/qkv/kernel",
            tuple(f"attention.{n}_proj.weight" for n in "qkv"),
            Parts(Dense(), axis=1),
        ),
        *linear("attn/out", "attention.o_proj", bias=spec.attention.out_bias, inputs=2),
        *norm("ln_2", "norm2"),
        *_scales(),
        *(linear("mlp/gate", "mlp.gate_proj", bias=spec.bias) if _gated(tower) else ()),
        *linear("mlp/up", "mlp.up_proj", bias=spec.bias),
        *linear("mlp/down", "mlp.down_proj", bias=spec.bias),
    )
    biased = {"all": "qkv", "no_key": "qv", "none": ""}[spec.attention.qkv_bias]
    if biased:
        names = tuple(f"attention.{n}_proj.bias" for n in biased)
        rows += (Row("attn/qkv/bias", names, Parts(Flat())),)
    token = Row("class_token", "embeddings.cls_token", Ones(ours=1, theirs=2))
    blocks = under(rows, "transformer/blocks/", "layer.{i}.")
    patch = "embeddings.patch_embeddings"
    return Table(rows=(token, *_around(blocks, "norm", patch, tower)), unused=_UNUSED)


def _gated(tower: ViT) -> bool:
    return tower.block.feed_forward == "gated"
