"""open_clip's names of CoCa's two towers and of its decoder."""

from vlalign.encoders.blocks import BlockSpec
from vlalign.encoders.coca import CocaImage, CocaText
from vlalign.encoders.text import TextTransformer
from vlalign.interop.hows import Below, Dense, Flat, Ones, Parts
from vlalign.interop.names import open_clip
from vlalign.interop.names.open_clip import linear, norm
from vlalign.interop.rows import Row, Table, under


def _attention(*, fused: bool) -> tuple[Row, ...]:
    """Attention to another sequence, whose projections are one where the two have one width."""
    kernels: tuple[Row, ...]
    if fused:
        kernels = (Row(("query/kernel", "kv/kernel"), "in_proj_weight", Below(Dense())),)
    else:
        kernels = (
            Row("query/kernel", "q_proj_weight", Dense()),
            Row("kv/kernel", ("k_proj_weight", "v_proj_weight"), Parts(Dense(), axis=1)),
        )
    biases = Row(("query/bias", "kv/bias"), "in_proj_bias", Below(Flat()))
    return (*kernels, biases, *linear("out", "out_proj", inputs=2))


def _pooler(*, fused: bool) -> tuple[Row, ...]:
    attention = under(_attention(fused=fused), "", "attn.")
    return (Row("probe", "query"), *norm("ln_q", "ln_q"), *norm("ln_k", "ln_k"), *attention)


def image_rows(tower: CocaImage) -> tuple[Row, ...]:
    """The image tower, without a prefix."""
    fused = tower.trunk.width == tower.embed_dim
    rows: tuple[Row, ...] = (
        *under(open_clip.image_rows(tower.trunk), "trunk/", ""),
        *under(_pooler(fused=fused), "pooler/", "attn_pool."),
        Row("proj/kernel", "proj"),
    )
    if tower.pool == "first":
        return rows + norm("ln_post", "ln_post")
    seen_first = tower.pool == "cascade" or fused
    return rows + under(_pooler(fused=seen_first), "pooler_class/", "attn_pool_contrastive.")


def text_rows(tower: CocaText) -> tuple[Row, ...]:
    """The text tower, without a prefix."""
    alike = TextTransformer(embed_dim=tower.embed_dim)
    return (*open_clip.text_rows(alike), Row("class_token", "cls_emb", Ones(ours=1)))


def decoder_rows() -> tuple[Row, ...]:
    """The decoder, without a prefix. Its text and its image are of one width there."""
    image = (
        *norm("ln_1", "ln_1"),
        *norm("ln_image", "ln_1_kv"),
        *under(_attention(fused=True), "attn/", "attn."),
        *norm("ln_2", "ln_2"),
        *linear("mlp/up", "mlp.c_fc"),
        *linear("mlp/down", "mlp.c_proj"),
    )
    return (
        *under(open_clip.block_rows(BlockSpec()), "blocks/text/", "resblocks.{i}."),
        *under(image, "blocks/image/", "cross_attn.{i}."),
        *norm("ln_final", "ln_final"),
        Row("logits/kernel", "text_projection"),
    )


def table(image: CocaImage, text: CocaText) -> Table:
    """All of a model."""
    return Table(
        rows=(
            *under(image_rows(image), "image/", "visual."),
            *under(text_rows(text), "text/", "text."),
            *under(decoder_rows(), "decoder/", "text_decoder."),
            Row("logit_scale", "logit_scale"),
        )
    )
