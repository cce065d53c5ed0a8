"""EVA-CLIP (Sun et al. 2023, arXiv:2303.15389) and Perception Encoder (arXiv:2504.13181)."""

from typing import Any

from vlalign.encoders.attention import AttentionSpec
from vlalign.encoders.blocks import BlockSpec
from vlalign.encoders.positions import Rotary
from vlalign.encoders.presets.base import PERCEPTION, Preset, clip_image, clip_text, model
from vlalign.encoders.vit import ViT

_NO_KEY = AttentionSpec(qkv_bias="no_key")
_EVA02: dict[str, Any] = {
    "activation": "silu",
    "block": BlockSpec(
        feed_forward="gated",
        inner_norm=True,
        attention=AttentionSpec(qkv_bias="no_key", inner_norm=True, rotary=Rotary(reference=16)),
    ),
}


def _tower(patch: int, width: int, depth: int, heads: int, hidden: int, **fields: Any) -> ViT:
    ratio = hidden / width
    sizes: dict[str, Any] = {"width": width, "depth": depth, "heads": heads, "mlp_ratio": ratio}
    return ViT(patch_size=patch, bias=True, **sizes, **fields)


_G = _tower(14, 1408, 40, 16, 6144, embed_dim=1024, block=BlockSpec(attention=_NO_KEY))
_L = _tower(14, 1024, 24, 16, 2730, embed_dim=768, **_EVA02)
_E = _tower(
    14, 1792, 64, 16, 15360, embed_dim=1024, block=BlockSpec(order="branch", attention=_NO_KEY)
)
EVAS = {
    "EVA01-g-14": model(_G, clip_text(768, embed_dim=1024)),
    "EVA01-g-14-plus": model(_G, clip_text(1024, 24)),
    "EVA02-B-16": model(_tower(16, 768, 12, 12, 2048, embed_dim=512, **_EVA02), clip_text(512)),
    "EVA02-L-14": model(_L, clip_text(768)),
    "EVA02-L-14-336": model(_L, clip_text(768), image_size=336),
    "EVA02-E-14": model(_E, clip_text(1024, 24)),
    "EVA02-E-14-plus": model(_E, clip_text(1280, 32, embed_dim=1024)),
}


def _perception(
    patch: int, image_size: int, image: tuple[int, int, int, int], text: tuple[int, int]
) -> Preset:
    turns = Rotary(first=1, reference=image_size // patch, order="columns")
    tower = clip_image(
        patch,
        *image,
        embed_dim=text[0],
        bias=True,
        class_token=True,
        pool="map",
        pool_heads=8,
        block=BlockSpec(attention=AttentionSpec(rotary=turns)),
    )
    texts = clip_text(*text)
    return model(tower, texts, pixels=PERCEPTION, image_size=image_size, context_length=32)


PERCEPTIONS = {
    "PE-Core-T-16-384": _perception(16, 384, (192, 12, 3, 768), (512, 12)),
    "PE-Core-S-16-384": _perception(16, 384, (384, 12, 6, 1536), (512, 12)),
    "PE-Core-B-16": _perception(16, 224, (768, 12, 12, 3072), (1024, 24)),
    "PE-Core-L-14-336": _perception(14, 336, (1024, 24, 16, 4096), (1024, 24)),
}
