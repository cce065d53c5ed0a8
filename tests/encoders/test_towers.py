"""Transformer towers against those of open_clip, timm and transformers at random weights.

Values of `pooled` and `tokens` and gradients, by the files that `make_golden_towers.py` wrote.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.encoders.originals import check_gradients, golden, parameters, part, wave
from vlalign.encoders.attention import AttentionSpec
from vlalign.encoders.blocks import BlockSpec
from vlalign.encoders.positions import Rotary
from vlalign.encoders.text import TextTransformer
from vlalign.encoders.vit import ViT
from vlalign.interop.hows import Dense, Ones
from vlalign.interop.names import dino, eva, hugging_face, open_clip
from vlalign.interop.rows import Row, Table, Unused, under

SIZES: dict[str, Any] = dict(width=24, depth=2, heads=3, mlp_ratio=2.0)
IMAGE: dict[str, Any] = SIZES | dict(patch_size=4)
CLIP: dict[str, Any] = IMAGE | dict(embed_dim=16, patch_bias=False, pre_norm=True, epsilon=1e-5)
HF = 40 / 24  # whose product with 24 is 40 but for rounding
SCALED = BlockSpec(layer_scale=1e-5)
SIGLIP: dict[str, Any] = IMAGE | dict(mlp_ratio=HF, pool="map", activation="gelu_tanh")
DINOV3: dict[str, Any] = IMAGE | dict(
    heads=2, mlp_ratio=HF, registers=2, position="none", epsilon=1e-5
)
EVA: dict[str, Any] = IMAGE | dict(heads=2, embed_dim=16, bias=True)
DINO_TURNS = Rotary(base=100.0, coordinates="centred", layout="halves")
EVA02 = BlockSpec(
    feed_forward="gated",
    inner_norm=True,
    attention=AttentionSpec(qkv_bias="no_key", inner_norm=True, rotary=Rotary(reference=16)),
)
NO_KEY = AttentionSpec(qkv_bias="no_key")
TEXT: dict[str, Any] = SIZES | dict(vocab_size=50, embed_dim=16, epsilon=1e-5, mask_padding=False)

IMAGES: dict[str, ViT] = {
    "clip": ViT(**CLIP, activation="quick_gelu"),
    "clip_layer_scale": ViT(**CLIP, block=SCALED),
    "clip_average": ViT(**CLIP, pool="mean", class_token=True),
    "clipa": ViT(
        **(CLIP | dict(pre_norm=False)),
        pool="mean",
        class_token=True,
        position="sincos",
        final_norm="pooled",
    ),
    "clip_qk_norm": ViT(**CLIP, block=BlockSpec(attention=AttentionSpec(qk_norm=True))),
    "clip_hf": ViT(**(CLIP | dict(mlp_ratio=HF)), activation="quick_gelu"),
    "siglip": ViT(**SIGLIP),
    "siglip_resized": ViT(**SIGLIP, position_resize="bicubic_aliased"),
    "siglip2": ViT(**SIGLIP, position_resize="linear"),
    "dinov2": ViT(**IMAGE, block=SCALED),
    "dinov2_resized": ViT(**IMAGE, block=SCALED, position_resize="bicubic_aliased"),
    "dinov2_registers": ViT(
        **(IMAGE | dict(mlp_ratio=32 / 24)),
        registers=2,
        activation="silu",
        block=BlockSpec(layer_scale=1.0, feed_forward="gated"),
    ),
    "dinov3": ViT(
        **DINOV3,
        block=BlockSpec(
            layer_scale=1.0, attention=AttentionSpec(qkv_bias="no_key", rotary=DINO_TURNS)
        ),
    ),
    "dinov3_gated": ViT(
        **DINOV3,
        activation="silu",
        block=BlockSpec(
            layer_scale=1.0,
            feed_forward="gated",
            attention=AttentionSpec(qkv_bias="none", rotary=DINO_TURNS),
        ),
    ),
    "eva02": ViT(**(EVA | dict(mlp_ratio=8 / 3)), activation="silu", block=EVA02),
    "eva02_mean": ViT(
        **(EVA | dict(mlp_ratio=8 / 3)),
        activation="silu",
        block=EVA02,
        pool="mean",
        class_token=True,
        final_norm="pooled",
    ),
    "eva02_post": ViT(**EVA, block=BlockSpec(order="branch", attention=NO_KEY)),
    "pe": ViT(
        **(EVA | dict(patch_bias=False, epsilon=1e-5)),
        pre_norm=True,
        pool="map",
        pool_heads=3,
        class_token=True,
        block=BlockSpec(
            attention=AttentionSpec(rotary=Rotary(first=1, reference=6, order="columns"))
        ),
    ),
    "eva01": ViT(**EVA, block=BlockSpec(attention=NO_KEY)),
}
TEXTS: dict[str, TextTransformer] = {
    "clip": TextTransformer(**TEXT, pool="largest"),
    "clip_both_ways": TextTransformer(
        **TEXT, pool="largest", causal=False, activation="quick_gelu", block=SCALED
    ),
    "clip_masked": TextTransformer(
        **(TEXT | dict(mask_padding=True)), pool="first", causal=False, bias=True
    ),
    "clip_eos": TextTransformer(**TEXT, pool="eot_id", eot_id=49),
    "clip_hf_old": TextTransformer(
        **(TEXT | dict(mlp_ratio=HF)), pool="largest", activation="quick_gelu"
    ),
    "clip_hf": TextTransformer(
        **(TEXT | dict(mlp_ratio=HF)), pool="eot_id", eot_id=49, activation="quick_gelu"
    ),
    "siglip": TextTransformer(
        **(TEXT | dict(mlp_ratio=HF, epsilon=1e-6)),
        pool="last",
        causal=False,
        bias=True,
        pad_id=1,
        activation="gelu_tanh",
    ),
}
TEXTS["siglip2"] = TEXTS["siglip"]


def only(table: Table, ours: str, theirs: str) -> Table:
    """A table's rows of one tower, without the prefixes of the whole model."""
    rows = tuple(
        Row(
            tuple(path.removeprefix(ours) for path in row.paths),
            tuple(name.removeprefix(theirs) for name in row.names),
            row.how,
        )
        for row in table.rows
        if row.paths[0].startswith(ours)
    )
    return Table(rows=rows)


def image_table(name: str) -> Table:
    tower = IMAGES[name]
    kind = name.partition("_")[0]
    if name == "clip_hf":
        return only(hugging_face.clip_table(), "image/", "")
    if kind == "siglip" or kind == "siglip2":
        rows = only(hugging_face.siglip_table(), "image/", "vision_model.")
        if kind == "siglip":
            return rows
        flat = Row("patch/kernel", "embeddings.patch_embedding.weight", Dense())
        return Table(rows=(flat, *(row for row in rows.rows if row.ours[0] != "patch/kernel")))
    if kind == "dinov2":
        return dino.v2_table(tower)
    if kind == "dinov3":
        return dino.v3_table(tower)
    if kind in ("eva01", "eva02", "pe"):
        return Table(rows=under(eva.image_rows(tower), "", "trunk."))
    rows = open_clip.image_rows(tower)
    if name == "clipa":  # the positions are computed, and that of the class token is 0
        token = Row("class_token", "class_embedding", Ones(ours=1))
        rows = (token, *(row for row in rows if "position" not in row.paths))
        return Table(rows=rows, unused=(Unused("positional_embedding"),))
    if name == "clip_qk_norm":
        norms = tuple(
            row for one in "qk" for row in open_clip.norm(f"attn/{one}_norm", f"attn.ln_{one}")
        )
        rows += under(norms, "transformer/blocks/", "transformer.resblocks.{i}.")
    return Table(rows=rows)


def text_table(name: str) -> Table:
    tower = TEXTS[name]
    if name.startswith("clip_hf"):
        return only(hugging_face.clip_table(), "text/", "")
    if name.startswith("siglip"):
        return only(hugging_face.siglip_table(), "text/", "text_model.")
    return Table(rows=open_clip.text_rows(tower))


@pytest.mark.parametrize("name", IMAGES)
def test_image_tower(name: str) -> None:
    tower, file = IMAGES[name], golden(f"image_{name}")
    side = (12, 20) if name.startswith("eva") else (16, 16)
    made_for = jnp.zeros((1, *side, 3), jnp.float32)
    params = parameters(tower, image_table(name), part(file, "param/"), made_for)

    def outputs(pixels: jax.Array) -> Any:
        got: Any = tower.apply({"params": params}, pixels)
        # Those of open_clip return the patches alone.
        patches = name.startswith("clip") and name != "clip_hf"
        tokens = got.tokens[:, 1:] if patches else got.tokens
        total = jnp.sum(wave(got.pooled) * got.pooled) + jnp.sum(wave(tokens) * tokens)
        return total, (got.pooled, tokens)

    run = jax.jit(jax.value_and_grad(outputs, has_aux=True))
    (_, (pooled, tokens)), gradient = run(jnp.asarray(file["pixels"]))
    np.testing.assert_allclose(pooled, file["pooled"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(tokens, file["tokens"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(gradient, file["grad"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", TEXTS)
def test_text_tower(name: str) -> None:
    tower, table, file = TEXTS[name], text_table(name), golden(f"text_{name}")
    ids = jnp.asarray(file["ids"])
    params = parameters(tower, table, part(file, "param/"), ids)

    def outputs(params: Any) -> Any:
        got: Any = tower.apply({"params": params}, ids)
        sums = (jnp.sum(wave(x) * x) for x in (got.pooled, got.tokens))
        return sum(sums, jnp.zeros(())), got

    (_, got), gradient = jax.jit(jax.value_and_grad(outputs, has_aux=True))(params)
    np.testing.assert_allclose(got.pooled, file["pooled"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(got.tokens, file["tokens"], rtol=0, atol=1e-4)
    check_gradients(table, gradient, file, least=2)
