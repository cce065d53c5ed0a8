"""timm's names of the image towers of EVA and of Perception Encoder, as open_clip has them.

In open_clip's files they stand under `visual.trunk.`; the text tower has open_clip's own names.
"""

from vlalign.encoders.blocks import BlockSpec
from vlalign.encoders.vit import ViT
from vlalign.interop.hows import Dense, Flat, Ones, Parts, Patch, TokenAndPositions
from vlalign.interop.names.open_clip import linear, norm
from vlalign.interop.rows import Row, under


def _attention(spec: BlockSpec, fused: bool) -> tuple[Row, ...]:
    if spec.attention.qkv_bias == "all":
        return (
            *linear("qkv", "qkv"),
            *linear("out", "proj", inputs=2),
        )
    biases = ("q_bias", "v_bias") if fused else ("q_proj.bias", "v_proj.bias")
    if fused:
        kernel = Row("qkv/kernel", "qkv.weight", Dense())
    else:
        kernel = Row("qkv/kernel", tuple(f"{n}_proj.weight" for n in "qkv"), Parts(Dense(), axis=1))
    inner = (Row("norm/scale", "norm.weight", Flat()), Row("norm/bias", "norm.bias", Flat()))
    return (
        kernel,
        Row("qkv/bias", biases, Parts(Flat())),
        *(inner if spec.attention.inner_norm else ()),
        *linear("out", "proj", inputs=2),
    )


def _feed_forward(spec: BlockSpec) -> tuple[Row, ...]:
    if spec.feed_forward == "gated":
        into = (*linear("gate", "fc1_g"), *linear("up", "fc1_x"))
    else:
        into = linear("up", "fc1")
    return (*into, *(norm("norm", "norm") if spec.inner_norm else ()), *linear("down", "fc2"))


def _pool() -> tuple[Row, ...]:
    return (
        Row("probe", "latent", Ones(theirs=1)),
        *linear("query", "q"),
        *linear("kv", "kv"),
        *linear("out", "proj", inputs=2),
        *norm("ln", "norm"),
        *linear("mlp/up", "mlp.fc1"),
        *linear("mlp/down", "mlp.fc2"),
    )


def image_rows(tower: ViT) -> tuple[Row, ...]:
    """The image tower, without a prefix. Queries, keys and values are apart where it is gated."""
    spec = tower.block
    rows = (
        *norm("ln_1", "norm1"),
        *under(_attention(spec, fused=spec.feed_forward == "mlp"), "attn/", "attn."),
        *norm("ln_2", "norm2"),
        *under(_feed_forward(spec), "mlp/", "mlp."),
    )
    if tower.class_token or tower.pool == "class":
        names = ("cls_token", "pos_embed")
        places = Row(("class_token", "position"), names, TokenAndPositions(axes=3))
    else:
        places = Row("position", "pos_embed", Ones(theirs=1))
    return (
        *_patch(tower.patch_bias),
        places,
        *(norm("ln_pre", "norm_pre") if tower.pre_norm else ()),
        *under(rows, "transformer/blocks/", "blocks.{i}."),
        *norm("ln_post", "norm" if tower.final_norm == "tokens" else "fc_norm"),
        *(under(_pool(), "map/", "attn_pool.") if tower.pool == "map" else ()),
        *linear("proj", "head", bias=tower.bias),
    )


def _patch(bias: bool) -> tuple[Row, ...]:
    """The map of patches."""
    kernel = Row("patch/kernel", "patch_embed.proj.weight", Patch())
    return (kernel, Row("patch/bias", "patch_embed.proj.bias")) if bias else (kernel,)
