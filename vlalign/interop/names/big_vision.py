"""big_vision's names of a two-tower model with ViTs (SigLIP), as its `.npz` files have them."""

from vlalign.encoders.text import TextTransformer
from vlalign.encoders.vit import ViT
from vlalign.interop.hows import Ones, Parts, Patch, Same
from vlalign.interop.rows import Row, Table, under


def _dense(ours: str, theirs: str) -> tuple[Row, ...]:
    return tuple(Row(f"{ours}/{name}", f"{theirs}/{name}") for name in ("kernel", "bias"))


def _norm(ours: str, theirs: str) -> tuple[Row, ...]:
    return tuple(Row(f"{ours}/{name}", f"{theirs}/{name}") for name in ("scale", "bias"))


def _joined(ours: str, parts: tuple[str, ...]) -> tuple[Row, ...]:
    """Separate maps of flax, side by side in ours."""
    return tuple(
        Row(f"{ours}/{name}", tuple(f"{part}/{name}" for part in parts), Parts(Same(), axis))
        for name, axis in (("kernel", 1), ("bias", 0))
    )


_MLP = (*_dense("mlp/up", "MlpBlock_0/Dense_0"), *_dense("mlp/down", "MlpBlock_0/Dense_1"))
_MHA = "MultiHeadDotProductAttention_0"


def _encoder(ours: str, theirs: str) -> tuple[Row, ...]:
    block = (
        *_norm("ln_1", "LayerNorm_0"),
        *_joined("attn/qkv", (f"{_MHA}/query", f"{_MHA}/key", f"{_MHA}/value")),
        *_dense("attn/out", f"{_MHA}/out"),
        *_norm("ln_2", "LayerNorm_1"),
        *_MLP,
    )
    return (
        *under(block, "transformer/blocks/", f"{theirs}/encoderblock_{{i}}/"),
        *_norm(ours, f"{theirs}/encoder_norm"),
    )


def _map_head() -> tuple[Row, ...]:
    return (
        Row("probe", "probe", Ones(ours=1, theirs=2)),
        *_dense("query", f"{_MHA}/query"),
        *_joined("kv", (f"{_MHA}/key", f"{_MHA}/value")),
        *_dense("out", f"{_MHA}/out"),
        *_norm("ln", "LayerNorm_0"),
        *_MLP,
    )


def table(image: ViT, text: TextTransformer) -> Table:
    """All of a model whose stacks are unrolled: `encoderblock_0`, `encoderblock_1`, ..."""
    vision = (
        Row("patch/kernel", "embedding/kernel", Patch(hwio=True)),
        Row("patch/bias", "embedding/bias"),
        Row("position", "pos_embedding", Ones(theirs=1)),
        *_encoder("ln_post", "Transformer"),
        *under(_map_head(), "map/", "MAPHead_0/"),
        *(_dense("proj", "head") if image.embed_dim is not None else ()),
    )
    words = (
        Row("token", "Embed_0/embedding"),
        Row("position", "pos_embedding", Ones(theirs=1)),
        *_encoder("ln_final", "Encoder_0"),
        *(under(_map_head(), "map/", "MAPHead_0/") if text.pool == "map" else ()),
        *(_dense("proj", "head") if text.embed_dim is not None else ()),
    )
    return Table(
        rows=(
            *under(vision, "image/", "img/"),
            *under(words, "text/", "txt/"),
            Row("logit_scale", "t", Ones(theirs=1)),
            Row("logit_bias", "b", Ones(theirs=1)),
        ),
        wrappers=("params/",),
    )
