"""open_clip's names of CLIP with a ViT and a text transformer, which are OpenAI's too."""

from vlalign.encoders.blocks import BlockSpec
from vlalign.encoders.text import TextTransformer
from vlalign.encoders.vit import ViT
from vlalign.interop.hows import Dense, Flat, Patch, TokenAndPositions
from vlalign.interop.rows import Row, Table, Unused, under

# Of OpenAI's archives: sizes as tensors. Of older files: a mask, positions 0, 1, 2, ..., counters.
_UNUSED = tuple(
    Unused(name)
    for name in (
        *("input_resolution", "context_length", "vocab_size"),
        *("*attn_mask", "*position_ids", "*.num_batches_tracked"),
    )
)


def norm(ours: str, theirs: str) -> tuple[Row, ...]:
    """A LayerNorm of torch."""
    return Row(f"{ours}/scale", f"{theirs}.weight"), Row(f"{ours}/bias", f"{theirs}.bias")


def linear(ours: str, theirs: str, *, bias: bool = True, inputs: int = 1) -> tuple[Row, ...]:
    """A Linear of torch; with heads among our axes, all in order."""
    kernel = Row(f"{ours}/kernel", f"{theirs}.weight", Dense(inputs))
    return (kernel, Row(f"{ours}/bias", f"{theirs}.bias", Flat())) if bias else (kernel,)


def block_rows(spec: BlockSpec) -> tuple[Row, ...]:
    """One block, without a prefix."""
    rows = (
        *norm("ln_1", "ln_1"),
        Row("attn/qkv/kernel", "attn.in_proj_weight", Dense()),
        Row("attn/qkv/bias", "attn.in_proj_bias", Flat()),
        *linear("attn/out", "attn.out_proj", inputs=2),
        *norm("ln_2", "ln_2"),
        *linear("mlp/up", "mlp.c_fc"),
        *linear("mlp/down", "mlp.c_proj"),
    )
    if spec.layer_scale is not None:
        rows += tuple(Row(f"ls_{n}/scale", f"ls_{n}.gamma") for n in (1, 2))
    return rows


def _blocks(spec: BlockSpec) -> tuple[Row, ...]:
    return under(block_rows(spec), "transformer/blocks/", "transformer.resblocks.{i}.")


def image_rows(tower: ViT) -> tuple[Row, ...]:
    """The image tower, without a prefix."""
    rows = (
        Row("patch/kernel", "conv1.weight", Patch()),
        Row(
            ("class_token", "position"),
            ("class_embedding", "positional_embedding"),
            TokenAndPositions(),
        ),
        *(norm("ln_pre", "ln_pre") if tower.pre_norm else ()),
        *_blocks(tower.block),
        *(norm("ln_post", "ln_post") if tower.final_norm != "none" else ()),
    )
    return rows if tower.embed_dim is None else (*rows, Row("proj/kernel", "proj"))


def text_rows(tower: TextTransformer) -> tuple[Row, ...]:
    """The text tower, without a prefix."""
    rows = (
        Row("token", "token_embedding.weight"),
        Row("position", "positional_embedding"),
        *_blocks(tower.block),
        *norm("ln_final", "ln_final"),
    )
    if tower.embed_dim is None:
        return rows
    if tower.bias:
        return rows + linear("proj", "text_projection")
    return (*rows, Row("proj/kernel", "text_projection"))


def table(image: tuple[Row, ...], text: TextTransformer, *, bias: bool, prefix: str = "") -> Table:
    """All of a model.

    image: rows of its image tower, without a prefix.   bias: whether it has a `logit_bias`.
    prefix: of the text tower's names.
    """
    return Table(
        rows=(
            *under(image, "image/", "visual."),
            *under(text_rows(text), "text/", prefix),
            Row("logit_scale", "logit_scale"),
            *((Row("logit_bias", "logit_bias"),) if bias else ()),
        ),
        unused=_UNUSED,
    )
