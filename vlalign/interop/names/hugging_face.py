"""Hugging Face's names of CLIP and SigLIP (transformers `CLIPModel`, `SiglipModel`)."""

from vlalign.interop.hows import Below, Dense, Flat, Ones, Parts, Patch, TokenAndPositions
from vlalign.interop.names.open_clip import linear, norm
from vlalign.interop.rows import Row, Table, Unused, under

_QKV = ("q_proj", "k_proj", "v_proj")


def _blocks() -> tuple[Row, ...]:
    weights = tuple(f"self_attn.{name}.weight" for name in _QKV)
    biases = tuple(f"self_attn.{name}.bias" for name in _QKV)
    rows = (
        *norm("ln_1", "layer_norm1"),
        Row("attn/qkv/kernel", weights, Parts(Dense(), axis=1)),
        Row("attn/qkv/bias", biases, Parts(Flat())),
        *linear("attn/out", "self_attn.out_proj", inputs=2),
        *norm("ln_2", "layer_norm2"),
        *linear("mlp/up", "mlp.fc1"),
        *linear("mlp/down", "mlp.fc2"),
    )
    return under(rows, "transformer/blocks/", "encoder.layers.{i}.")


def _text() -> tuple[Row, ...]:
    return (
        Row("token", "embeddings.token_embedding.weight"),
        Row("position", "embeddings.position_embedding.weight"),
        *_blocks(),
        *norm("ln_final", "final_layer_norm"),
    )


def _map_head() -> tuple[Row, ...]:
    return (
        Row("probe", "probe", Ones(ours=1, theirs=2)),
        Row(("query/kernel", "kv/kernel"), "attention.in_proj_weight", Below(Dense())),
        Row(("query/bias", "kv/bias"), "attention.in_proj_bias", Below(Flat())),
        *linear("out", "attention.out_proj", inputs=2),
        *norm("ln", "layernorm"),
        *linear("mlp/up", "mlp.fc1"),
        *linear("mlp/down", "mlp.fc2"),
    )


def clip_table() -> Table:
    """`CLIPModel`. The first norm of its image tower is spelled `pre_layrnorm` there."""
    vision = (
        Row("patch/kernel", "embeddings.patch_embedding.weight", Patch()),
        Row(
            ("class_token", "position"),
            ("embeddings.class_embedding", "embeddings.position_embedding.weight"),
            TokenAndPositions(),
        ),
        *norm("ln_pre", "pre_layrnorm"),
        *_blocks(),
        *norm("ln_post", "post_layernorm"),
    )
    return Table(
        rows=(
            *under(vision, "image/", "vision_model."),
            *linear("image/proj", "visual_projection", bias=False),
            *under(_text(), "text/", "text_model."),
            *linear("text/proj", "text_projection", bias=False),
            Row("logit_scale", "logit_scale"),
        ),
        unused=(Unused("*.embeddings.position_ids"),),
    )


def siglip_image_rows(*, naflex: bool = False) -> tuple[Row, ...]:
    """SigLIP's image tower, without a prefix. naflex: whether its map of patches is dense."""
    return (
        Row("patch/kernel", "embeddings.patch_embedding.weight", Dense() if naflex else Patch()),
        Row("patch/bias", "embeddings.patch_embedding.bias"),
        Row("position", "embeddings.position_embedding.weight"),
        *_blocks(),
        *norm("ln_post", "post_layernorm"),
        *under(_map_head(), "map/", "head."),
    )


def siglip_table(*, naflex: bool = False) -> Table:
    """`SiglipModel`: SigLIP, and SigLIP 2 of one image size; `Siglip2Model` with `naflex`."""
    return Table(
        rows=(
            *under(siglip_image_rows(naflex=naflex), "image/", "vision_model."),
            *under(_text(), "text/", "text_model."),
            *linear("text/proj", "text_model.head"),
            Row("logit_scale", "logit_scale", Ones(theirs=1)),
            Row("logit_bias", "logit_bias", Ones(theirs=1)),
        ),
        unused=(Unused("*.embeddings.position_ids"),),
    )
