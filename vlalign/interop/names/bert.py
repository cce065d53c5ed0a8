"""Hugging Face's names of `Bert`: BERT and RoBERTa share theirs, MPNet and DistilBERT differ."""

import dataclasses
from typing import Literal

from vlalign.encoders.bert import Bert
from vlalign.interop.hows import Dense, Flat, Parts
from vlalign.interop.names.open_clip import linear, norm
from vlalign.interop.rows import Row, Table, Unused, under

Family = Literal["bert", "mpnet", "distilbert"]


@dataclasses.dataclass(frozen=True)
class _Names:
    """Of one block: query, key and value; the norms; the maps of the feed-forward layer."""

    blocks: str
    qkv: tuple[str, str, str]
    out: str
    ln_1: str
    ln_2: str
    up: str
    down: str


_FEED_FORWARD = dict(ln_2="output.LayerNorm", up="intermediate.dense", down="output.dense")
_NAMES = {
    "bert": _Names(
        "encoder.layer.{i}.",
        ("attention.self.query", "attention.self.key", "attention.self.value"),
        "attention.output.dense",
        "attention.output.LayerNorm",
        **_FEED_FORWARD,
    ),
    "mpnet": _Names(
        "encoder.layer.{i}.",
        ("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        "attention.attn.o",
        "attention.LayerNorm",
        **_FEED_FORWARD,
    ),
    "distilbert": _Names(
        "transformer.layer.{i}.",
        ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        "attention.out_lin",
        "sa_layer_norm",
        "output_layer_norm",
        "ffn.lin1",
        "ffn.lin2",
    ),
}


def trunk_rows(tower: Bert, family: Family = "bert") -> tuple[Row, ...]:
    """Everything but the projection, without a prefix: the names of `BertModel` and its kin."""
    names = _NAMES[family]
    blocks = (
        Row("attn/qkv/kernel", tuple(f"{n}.weight" for n in names.qkv), Parts(Dense(), axis=1)),
        Row("attn/qkv/bias", tuple(f"{n}.bias" for n in names.qkv), Parts(Flat())),
        *linear("attn/out", names.out, inputs=2),
        *norm("ln_1", names.ln_1),
        *linear("mlp/up", names.up),
        *linear("mlp/down", names.down),
        *norm("ln_2", names.ln_2),
    )
    rows: tuple[Row, ...] = (
        Row("token", "embeddings.word_embeddings.weight"),
        Row("position", "embeddings.position_embeddings.weight"),
        *norm("ln_pre", "embeddings.LayerNorm"),
        *under(blocks, "transformer/blocks/", names.blocks),
    )
    if tower.token_types:
        rows += (Row("type", "embeddings.token_type_embeddings.weight"),)
    if tower.relative_buckets:
        rows += (Row("relative", "encoder.relative_attention_bias.weight"),)
    if tower.pool == "tanh":
        rows += linear("pooler", "pooler.dense")
    return rows


def table(tower: Bert, family: Family = "bert", prefix: str = "") -> Table:
    """A lone tower's file, of `BertModel`, or of a model with a head for masked words.

    prefix: of the tower's names where there is a head too: `bert.`, `roberta.`, `mpnet.`.
    """
    unused = ["embeddings.position_ids", "embeddings.token_type_ids"]
    if tower.pool != "tanh":
        unused.append("pooler.*")
    heads = ("cls", "lm_head", "vocab_transform", "vocab_layer_norm", "vocab_projector")
    names = [prefix + name for name in unused] + [f"{head}.*" for head in heads]
    return Table(
        under(trunk_rows(tower, family), "", prefix), tuple(Unused(name) for name in names)
    )


def open_clip_rows(tower: Bert, family: Family = "bert") -> tuple[Row, ...]:
    """The text tower of an open_clip model with a `HFTextEncoder`, without `text.` in front."""
    rows = under(trunk_rows(tower, family), "", "transformer.")
    if tower.embed_dim is None:
        return rows
    if tower.projection == "linear":
        return rows + linear("proj", "proj", bias=False)
    return (
        *rows,
        *linear("proj_up", "proj.0", bias=False),
        *linear("proj_down", "proj.2", bias=False),
    )
