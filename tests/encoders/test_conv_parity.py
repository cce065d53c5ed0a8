"""Convolutional towers against open_clip's and timm's at the same random weights.

The golden files are written by make_golden_conv.py.
"""

import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from vlalign.encoders import fastvit
from vlalign.encoders.convnext import ConvNext
from vlalign.encoders.fastvit import FastVit
from vlalign.encoders.hybrid import HybridViT
from vlalign.encoders.resnet import ResNet
from vlalign.encoders.stems import MbConvSpec, PatchSpec
from vlalign.interop.names import convnext as convnext_names
from vlalign.interop.names import fastvit as fastvit_names
from vlalign.interop.names import hybrid as hybrid_names
from vlalign.interop.names import resnet as resnet_names
from vlalign.interop.names.batch_norm import COUNTERS
from vlalign.interop.rows import Table, export_params, import_params
from vlalign.parallel.rules import path_str

GOLDEN = Path(__file__).parent / "golden"
HYBRID: dict[str, Any] = dict(width=32, depth=3, heads=4, embed_dim=12)
STEM = MbConvSpec(start=8, widths=(8, 16))
CONVNEXT: dict[str, Any] = dict(depths=(1, 2, 3, 1), widths=(8, 16, 24, 32), embed_dim=12)
MOBILECLIP_B: dict[str, Any] = dict(mlp_ratio=4.0, feed_forward="mlp", bias=True, pool="class")
ATTENTION = ("convolution",) * 3 + ("attention",)

# The towers of the golden files, and the table of each.
TOWERS: dict[str, tuple[Any, Any]] = {
    "resnet": (ResNet(depths=(1, 2, 4, 2), width=4, heads=4, embed_dim=16), resnet_names),
    "convnext_linear": (ConvNext(**CONVNEXT), convnext_names),
    "convnext_mlp": (ConvNext(**CONVNEXT, head="mlp", epsilon=1e-2), convnext_names),
    "vitamin": (HybridViT(STEM, **HYBRID), hybrid_names),
    "vitamin_xl": (HybridViT(STEM, **HYBRID, positions=False), hybrid_names),
    "mobileclip_b": (HybridViT(PatchSpec(inner=8), **HYBRID, **MOBILECLIP_B), hybrid_names),
    "fastvit_mci0": (
        FastVit(depths=(1, 2, 3, 2), widths=(8, 16, 32, 64), mixers=ATTENTION, embed_dim=12),
        fastvit_names,
    ),
    "fastvit_mci3": (
        FastVit(
            depths=(1, 1, 3, 1, 2),
            widths=(8, 8, 16, 32, 32),
            mixers=(*ATTENTION, "attention"),
            mlp_ratio=4.0,
            squeeze=(False,) * 5,
            norm="layer",
            stem_scale=False,
            embed_dim=12,
        ),
        fastvit_names,
    ),
}


def load(name: str) -> tuple[Any, Table, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The tower, its table, the golden arrays and the peer's tensors."""
    tower, names = TOWERS[name]
    with np.load(GOLDEN / f"conv_{name}.npz") as file:
        golden = dict(file)
    theirs = {key[6:]: value for key, value in golden.items() if key.startswith("param/")}
    return tower, Table(rows=names.image_rows(tower), unused=COUNTERS), golden, theirs


def abstract(tower: nn.Module, images: Any) -> Any:
    shape = jax.ShapeDtypeStruct(images.shape, jnp.float32)
    made = jax.eval_shape(tower.init, jax.random.key(0), shape)
    return meta.unbox(made)["params"]


def parameters(name: str) -> tuple[Any, dict[str, np.ndarray], dict[str, jax.Array]]:
    """The tower, the golden arrays and its parameters from the peer's."""
    tower, table, golden, theirs = load(name)
    leaves, tree = jax.tree_util.tree_flatten_with_path(abstract(tower, golden["images"]))
    paths = [path_str(path) for path, _ in leaves]
    shapes = {path: leaf.shape for path, (_, leaf) in zip(paths, leaves, strict=True)}
    found = import_params(table, theirs, shapes)
    return tower, golden, jax.tree.unflatten(tree, [jnp.asarray(found[path]) for path in paths])


def outputs(tower: nn.Module, params: Any, golden: dict[str, np.ndarray]) -> Any:
    """Pooled, tokens, and the gradient with respect to the pixels, as the golden file has them."""

    def total(images: jax.Array) -> Any:
        out = tower.apply({"params": params}, images)
        summed = jnp.sum(out.pooled * golden["pooled_by"]) + jnp.sum(
            out.tokens * golden["tokens_by"]
        )
        return summed, out

    images = jnp.asarray(golden["images"], jnp.float32)
    slope, out = jax.jit(jax.grad(total, has_aux=True))(images)
    return {"pooled": out.pooled, "tokens": out.tokens, "pixels_by": slope}


@pytest.mark.parametrize("name", TOWERS)
def test_outputs_and_pixel_gradients_are_the_originals(name: str) -> None:
    tower, golden, params = parameters(name)
    for key, value in outputs(tower, params, golden).items():
        assert float(np.std(golden[key])) > 0.2, f"{key}: too small to compare"
        np.testing.assert_allclose(value, golden[key], rtol=0, atol=1e-4, err_msg=key)


@pytest.mark.parametrize("name", TOWERS)
def test_tables_lead_there_and_back(name: str) -> None:
    _, table, _, theirs = load(name)
    _, _, params = parameters(name)
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    back = export_params(table, {path_str(path): np.asarray(leaf) for path, leaf in leaves})
    assert back.keys() == theirs.keys()
    for key, value in back.items():
        np.testing.assert_array_equal(value, theirs[key].astype(np.float32), err_msg=key)


@pytest.mark.parametrize("name", ["fastvit_mci0", "fastvit_mci3"])
def test_merged_fastvit_is_equal(name: str) -> None:
    tower, golden, params = parameters(name)
    merged = tower.clone(merged=True)
    small = jax.jit(fastvit.merge)(params)
    shapes = jax.tree.map(lambda leaf: leaf.shape, abstract(merged, golden["images"]))
    assert jax.tree.map(jnp.shape, small) == shapes
    for key, value in outputs(merged, small, golden).items():
        np.testing.assert_allclose(value, golden[key], rtol=0, atol=1e-4, err_msg=key)
    assert merged.flops((64, 64, 3)) < tower.flops((64, 64, 3))


def published() -> dict[str, tuple[Any, bool]]:
    """Towers of the published sizes."""
    base = dict(depths=(3, 3, 27, 3))
    large = dict(widths=(192, 384, 768, 1536), embed_dim=768, head="mlp")
    huge = dict(depths=(3, 4, 30, 3), widths=(384, 768, 1536, 3072), embed_dim=1024)
    wide = dict(mixers=(*ATTENTION, "attention"), squeeze=(False,) * 5)
    large_stem = MbConvSpec(start=160, widths=(160, 320))
    xl_stem = MbConvSpec(start=192, widths=(192, 384))
    mobile = dict(width=768, depth=12, heads=12, embed_dim=512)
    vitamin_l = dict(width=1024, depth=31, heads=16, embed_dim=768)
    vitamin_xl = dict(width=1152, depth=32, heads=16, embed_dim=1152, positions=False)
    return {
        "RN50": ResNet(),
        "RN50x4": ResNet(depths=(4, 6, 10, 6), width=80, heads=40, embed_dim=640),
        "convnext_base_w": ConvNext(**base),
        "convnext_large_d": ConvNext(**base, **large),
        "convnext_xxlarge": ConvNext(**huge),
        "ViTamin-S": HybridViT(),
        "ViTamin-L": HybridViT(large_stem, **vitamin_l),
        "ViTamin-XL-256": HybridViT(xl_stem, **vitamin_xl),
        "MobileCLIP-B": HybridViT(PatchSpec(), **mobile, **MOBILECLIP_B),
        "MobileCLIP2-S0": FastVit(),
        "MobileCLIP-S1": FastVit(depths=(4, 12, 20, 4)),
        "MobileCLIP-S2": FastVit(depths=(4, 12, 24, 4), widths=(80, 160, 320, 640)),
        "MobileCLIP2-S3": FastVit(
            depths=(2, 12, 24, 4, 2),
            widths=(96, 192, 384, 768, 1536),
            mlp_ratio=4.0,
            norm="layer",
            stem_scale=False,
            embed_dim=768,
            **wide,
        ),
    }


@pytest.mark.parametrize("name", published())
def test_published_sizes_have_the_originals_flops_and_numbers(name: str) -> None:
    tower = published()[name]
    wanted = json.loads((GOLDEN / "conv_counts.json").read_text())[name]
    shape, flops = (wanted["size"], wanted["size"], 3), wanted["flops"]
    if isinstance(tower, ResNet):
        # torch projects and scores all tokens as queries; one of them is needed.
        tokens, d = 1 + (wanted["size"] // 32) ** 2, 32 * tower.width
        flops -= 2 * (tokens - 1) * d * (d + 2 * tokens + tower.embed_dim)
    assert tower.flops(shape) == flops
    leaves = jax.tree.leaves(abstract(tower, np.empty((1, *shape))))
    assert sum(leaf.size for leaf in leaves) == wanted["numbers"]
