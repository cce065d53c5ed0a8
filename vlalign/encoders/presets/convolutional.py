"""CLIP with convolutions: OpenAI's ResNets, LAION's ConvNeXts, ViTamin and MobileCLIP.

Chen et al. 2024 (arXiv:2404.02132), Vasu et al. 2023 (arXiv:2311.17049), Faghri et al. 2025
(arXiv:2508.20691).
"""

from typing import Any

from vlalign.encoders.blocks import BlockSpec
from vlalign.encoders.convnext import ConvNext
from vlalign.encoders.fastvit import FastVit
from vlalign.encoders.hybrid import HybridViT
from vlalign.encoders.presets.base import MOBILE, UNIT, Pixels, Preset, clip_image, clip_text, model
from vlalign.encoders.presets.clip import SIZES
from vlalign.encoders.resnet import ResNet
from vlalign.encoders.stems import MbConvSpec, PatchSpec

# Image size, bottlenecks, width, width of the output and of the text tower.
_RESNETS = {
    "RN50": (224, (3, 4, 6, 3), 64, 1024, 512),
    "RN101": (224, (3, 4, 23, 3), 64, 512, 512),
    "RN50x4": (288, (4, 6, 10, 6), 80, 640, 640),
    "RN50x16": (384, (6, 8, 18, 8), 96, 768, 768),
    "RN50x64": (448, (3, 15, 36, 10), 128, 1024, 1024),
}


def _resnet(name: str, activation: str = "gelu") -> Preset:
    image_size, depths, width, joint, words = _RESNETS[name]
    image = ResNet(depths=depths, width=width, heads=width // 2, embed_dim=joint)
    text = clip_text(words, embed_dim=joint, activation=activation)
    return model(image, text, image_size=image_size)


RESNETS = {name: _resnet(name) for name in _RESNETS}
RESNETS |= {f"{name}-quickgelu": _resnet(name, "quick_gelu") for name in _RESNETS}

# Blocks, first width, and other fields.
_CONVNEXT: dict[str, tuple[tuple[int, int, int, int], int, dict[str, Any]]] = {
    "tiny": ((3, 3, 9, 3), 96, {}),
    "small": ((3, 3, 27, 3), 96, {}),
    "base": ((3, 3, 27, 3), 128, {}),
    "large": ((3, 3, 27, 3), 192, {}),
    "large_d": ((3, 3, 27, 3), 192, {"head": "mlp"}),
    "xlarge": ((3, 3, 27, 3), 256, {}),
    "xxlarge": ((3, 4, 30, 3), 384, {"epsilon": 1e-5}),
}


def _convnext(size: str, image_size: int, joint: int, text: tuple[int, int]) -> Preset:
    depths, width, fields = _CONVNEXT[size]
    widths = (width, 2 * width, 4 * width, 8 * width)
    image = ConvNext(depths=depths, widths=widths, embed_dim=joint, drop_path=0.1, **fields)
    return model(image, clip_text(*text, embed_dim=joint), image_size=image_size)


CONVNEXTS = {
    "convnext_tiny": _convnext("tiny", 224, 1024, (512, 12)),
    "convnext_small": _convnext("small", 224, 512, (512, 12)),
    "convnext_base": _convnext("base", 224, 512, (512, 12)),
    "convnext_base_w": _convnext("base", 256, 640, (640, 12)),
    "convnext_base_w_320": _convnext("base", 320, 640, (640, 12)),
    "convnext_large": _convnext("large", 224, 768, (768, 12)),
    "convnext_large_d": _convnext("large_d", 256, 768, (768, 16)),
    "convnext_large_d_320": _convnext("large_d", 320, 768, (768, 16)),
    "convnext_xlarge": _convnext("xlarge", 256, 1024, (1024, 20)),
    "convnext_xxlarge": _convnext("xxlarge", 256, 1024, (1024, 24)),
    "convnext_xxlarge_320": _convnext("xxlarge", 320, 1024, (1024, 24)),
}

# Channels of the convolutions; width, depth and heads of the blocks.
_VITAMIN = {
    "S": (64, 384, 14, 6),
    "B": (128, 768, 14, 12),
    "L": (160, 1024, 31, 16),
    "XL": (192, 1152, 32, 16),
}


def _vitamin(size: str, image_size: int, text: tuple[int, int], **of_text: Any) -> Preset:
    start, width, depth, heads = _VITAMIN[size]
    image = HybridViT(
        MbConvSpec(start=start, widths=(start, 2 * start)),
        width=width,
        depth=depth,
        heads=heads,
        embed_dim=text[0],
        positions=size != "XL",
        drop_path=0.1,
    )
    return model(image, clip_text(*text, **of_text), image_size=image_size)


VITAMINS = {
    "ViTamin-S": _vitamin("S", 224, (384, 12)),
    "ViTamin-S-LTT": _vitamin("S", 224, (768, 12)),
    "ViTamin-B": _vitamin("B", 224, (512, 12)),
    "ViTamin-B-LTT": _vitamin("B", 224, (768, 12)),
    **{
        f"ViTamin-{name}{'' if size == 224 else f'-{size}'}": _vitamin("L", size, text)
        for name, text in (("L", (768, 12)), ("L2", (1024, 24)))
        for size in (224, 256, 336, 384)
    },
    **{
        f"ViTamin-XL-{size}": _vitamin("XL", size, (1152, 27), heads=16) for size in (256, 336, 384)
    },
}

_EARLY: dict[str, Any] = {"mixers": (*("convolution",) * 3, "attention", "attention")}
_LATE = _EARLY | {"mlp_ratio": 4.0, "squeeze": (False,) * 5, "norm": "layer", "stem_scale": False}
# MCi0 to MCi4: blocks, first width, other fields.
_FASTVIT: tuple[tuple[tuple[int, ...], int, dict[str, Any]], ...] = (
    ((2, 6, 10, 2), 64, {}),
    ((4, 12, 20, 4), 64, {}),
    ((4, 12, 24, 4), 80, {}),
    ((2, 12, 24, 4, 2), 96, _LATE),
    ((2, 12, 24, 4, 4), 128, _LATE),
)


def _fastvit(number: int, pixels: Pixels) -> Preset:
    depths, width, fields = _FASTVIT[number]
    joint = 512 if number < 3 else 768
    widths = tuple(width * 2**stage for stage in range(len(depths)))
    image = FastVit(depths=depths, widths=widths, embed_dim=joint, **fields)
    return model(image, clip_text(joint, causal=False), pixels=pixels, image_size=256)


def _mobile_b() -> Preset:
    ours: dict[str, Any] = {"mlp_ratio": 4.0, "feed_forward": "mlp", "bias": True, "pool": "class"}
    sizes: dict[str, Any] = {"width": 768, "depth": 12, "heads": 12, "embed_dim": 512}
    return model(HybridViT(PatchSpec(), **sizes, **ours), clip_text(512), pixels=UNIT)


def _mobile_l() -> Preset:
    image = clip_image(14, *SIZES["L"][0], embed_dim=768, bias=True, block=BlockSpec(drop_path=0.1))
    return model(image, clip_text(768, causal=False))


MOBILES = {
    "MobileCLIP-S1": _fastvit(1, UNIT),
    "MobileCLIP-S2": _fastvit(2, UNIT),
    "MobileCLIP-B": _mobile_b(),
    "MobileCLIP2-S0": _fastvit(0, UNIT),
    "MobileCLIP2-S2": _fastvit(2, UNIT),
    "MobileCLIP2-S3": _fastvit(3, MOBILE),
    "MobileCLIP2-S4": _fastvit(4, MOBILE),
    "MobileCLIP2-B": _mobile_b(),
    "MobileCLIP2-L-14": _mobile_l(),
}
