"""CLIP with a ViT: OpenAI's and LAION's sizes, MetaCLIP, DFN, and CLIPA.

Radford et al. 2021 (arXiv:2103.00020), Cherti et al. 2022 (arXiv:2212.07143), Xu et al. 2023
(arXiv:2309.16671), Fang et al. 2023 (arXiv:2309.17425), Li et al. 2023 (arXiv:2306.15658).
"""

from typing import Any

from vlalign.encoders.blocks import BlockSpec
from vlalign.encoders.presets.base import (
    CLIP,
    CLIP_SQUASH,
    HALF,
    IMAGENET_SQUASH,
    Pixels,
    Preset,
    clip_image,
    clip_text,
    model,
    read,
)

# Width, depth, heads and hidden units of the image tower; width and depth of the text tower.
SIZES = {
    "S": ((384, 12, 6, 1536), (384, 12)),
    "S-alt": ((384, 12, 6, 1536), (256, 10)),
    "M": ((512, 12, 8, 2048), (512, 12)),
    "M-alt": ((512, 12, 8, 2048), (384, 12)),
    "B": ((768, 12, 12, 3072), (512, 12)),
    "B-plus": ((896, 12, 14, 3584), (640, 12)),
    "L": ((1024, 24, 16, 4096), (768, 12)),
    "H": ((1280, 32, 16, 5120), (1024, 24)),
    "g": ((1408, 40, 16, 6144), (1024, 24)),
    "bigG": ((1664, 48, 16, 8192), (1280, 32)),
    "e": ((1792, 56, 16, 15360), (1280, 36)),
}
_PLAIN = (
    *("ViT-S-32", "ViT-S-32-alt", "ViT-S-16", "ViT-S-16-alt"),
    *("ViT-M-32", "ViT-M-32-alt", "ViT-M-16", "ViT-M-16-alt"),
    *("ViT-B-32", "ViT-B-32-256", "ViT-B-32-plus-256"),
    *("ViT-B-16", "ViT-B-16-plus", "ViT-B-16-plus-240"),
    *("ViT-L-16", "ViT-L-16-320", "ViT-L-14", "ViT-L-14-280", "ViT-L-14-336"),
    *("ViT-H-16", "ViT-H-14", "ViT-H-14-378", "ViT-g-14", "ViT-bigG-14", "ViT-e-14"),
    *("ViT-L-14-worldwide", "ViT-H-14-worldwide", "ViT-H-14-worldwide-378"),
    *("ViT-bigG-14-worldwide", "ViT-bigG-14-worldwide-378"),
)
# There is one with OpenAI's activation too.
_QUICK = (
    *("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14", "ViT-H-14-378"),
    *("ViT-bigG-14", "ViT-L-14-worldwide", "ViT-H-14-worldwide"),
)
_CLIPA = (
    *("ViT-L-14-CLIPA", "ViT-L-14-CLIPA-336", "ViT-H-14-CLIPA", "ViT-H-14-CLIPA-336"),
    *("ViT-bigG-14-CLIPA", "ViT-bigG-14-CLIPA-336"),
)
# MetaCLIP 2's vocabularies and the ids of their end.
_MT5: dict[str, Any] = {"vocab_size": 250_100, "pool": "eot_id", "eot_id": 1}
_XLM_V: dict[str, Any] = {"vocab_size": 901_629, "pool": "eot_id", "eot_id": 2}


def _clip(name: str, activation: str = "gelu") -> Preset:
    size, patch, kind, image_size = read(name)
    image, text = SIZES[f"{size}-{kind}" if kind in ("alt", "plus") else size]
    of_image: dict[str, Any] = {"embed_dim": text[0], "activation": activation}
    of_text: dict[str, Any] = {"activation": activation}
    fields: dict[str, Any] = {"image_size": image_size}
    if name == "ViT-M-16-alt":
        of_image["block"] = BlockSpec(layer_scale=1e-4)
    if kind == "worldwide":
        of_text |= _MT5 if size == "L" else _XLM_V
        fields["tokenizer"] = "mt5" if size == "L" else "xlm_v"
    if image_size == 378:
        fields["pixels"] = CLIP_SQUASH
    tower = clip_image(patch, *image, **of_image)
    return model(tower, clip_text(*text, **of_text), **fields)


def _clipa(name: str) -> Preset:
    size, patch, _, image_size = read(name)
    image, text = SIZES[size]
    mean: dict[str, Any] = {"pool": "mean", "class_token": True, "final_norm": "pooled"}
    return model(
        clip_image(patch, *image, embed_dim=text[0], pre_norm=False, **mean),
        clip_text(*text, vocab_size=32_000, causal=False, pool="last"),
        pixels=IMAGENET_SQUASH,
        image_size=image_size,
        context_length=32,
        tokenizer="bert",
    )


def _prepared(preset: Preset, pixels: Pixels) -> Preset:
    """A preset whose images are prepared in another way."""
    fields = ("image_size", "context_length", "tokenizer")
    same = {field: getattr(preset, field) for field in fields}
    return model(preset.image, preset.text, pixels=pixels, **same)


CLIPS = {name: _clip(name) for name in _PLAIN}
CLIPS |= {f"{name}-quickgelu": _clip(name, "quick_gelu") for name in _QUICK}
CLIPAS = {name: _clipa(name) for name in _CLIPA}
# Weights of these shapes, under the names they have on the hub, with what they want.
WEIGHTS = {
    "CLIP-ViT-L-14-laion2B-s32B-b82K": ("ViT-L-14", HALF),
    "DFN2B-CLIP-ViT-B-16": ("ViT-B-16-quickgelu", CLIP),
    "DFN2B-CLIP-ViT-L-14": ("ViT-L-14-quickgelu", CLIP),
    "DFN2B-CLIP-ViT-L-14-39B": ("ViT-L-14", CLIP),
    "DFN5B-CLIP-ViT-H-14": ("ViT-H-14-quickgelu", CLIP_SQUASH),
    "DFN5B-CLIP-ViT-H-14-378": ("ViT-H-14-378-quickgelu", CLIP_SQUASH),
    "MetaCLIP-ViT-B-32": ("ViT-B-32-quickgelu", CLIP),
    "MetaCLIP-ViT-B-16": ("ViT-B-16-quickgelu", CLIP),
    "MetaCLIP-ViT-L-14": ("ViT-L-14-quickgelu", CLIP),
    "MetaCLIP-ViT-H-14": ("ViT-H-14-quickgelu", CLIP),
    "MetaCLIP-ViT-bigG-14": ("ViT-bigG-14-quickgelu", CLIP),
}
CLIPS |= {name: _prepared(CLIPS[of], pixels) for name, (of, pixels) in WEIGHTS.items()}
