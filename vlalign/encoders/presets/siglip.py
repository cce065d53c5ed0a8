"""SigLIP (Zhai et al. 2023, arXiv:2303.15343) and SigLIP 2 (Tschannen et al. 2025).

SigLIP 2: arXiv:2502.14786. All layers have the tanh form of GELU, as the models were trained;
open_clip has the exact one in the text towers of SigLIP and in the image towers of both but a few.
"""

from typing import Any, Literal

from vlalign.encoders.presets.base import HALF_SQUASH, Preset, Tokenizer, model, read
from vlalign.encoders.text import TextTransformer
from vlalign.encoders.vit import ViT

# Width, depth, heads and hidden units; of the text tower too, but for gopt.
_SIZES = {
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "SO400M": (1152, 27, 16, 4304),
    "gopt": (1536, 40, 16, 6144),
}
# Rows of the token table, id of padding.
_VOCABULARIES: dict[str, tuple[Tokenizer, int, int]] = {
    "SigLIP": ("siglip", 32_000, 1),
    "SigLIP-i18n": ("siglip_i18n", 250_000, 1),
    "SigLIP2": ("gemma", 256_000, 0),
}
_NAMES = (
    *("ViT-B-16-SigLIP", "ViT-B-16-SigLIP-256", "ViT-B-16-SigLIP-384", "ViT-B-16-SigLIP-512"),
    *("ViT-L-16-SigLIP-256", "ViT-L-16-SigLIP-384"),
    *("ViT-SO400M-14-SigLIP", "ViT-SO400M-14-SigLIP-378", "ViT-SO400M-14-SigLIP-384"),
    *("ViT-B-16-SigLIP-i18n-256", "ViT-SO400M-16-SigLIP-i18n-256"),
)
_NAMES_2 = (
    *("ViT-B-32-SigLIP2-256", "ViT-B-16-SigLIP2", "ViT-B-16-SigLIP2-256"),
    *("ViT-B-16-SigLIP2-384", "ViT-B-16-SigLIP2-512", "ViT-L-16-SigLIP2-256"),
    *("ViT-L-16-SigLIP2-384", "ViT-L-16-SigLIP2-512", "ViT-SO400M-14-SigLIP2"),
    *("ViT-SO400M-14-SigLIP2-378", "ViT-SO400M-16-SigLIP2-256", "ViT-SO400M-16-SigLIP2-384"),
    *("ViT-SO400M-16-SigLIP2-512", "ViT-gopt-16-SigLIP2-256", "ViT-gopt-16-SigLIP2-384"),
)


def _fields(width: int, depth: int, heads: int, hidden: int) -> dict[str, Any]:
    ratio = hidden / width
    sizes: dict[str, Any] = {"width": width, "depth": depth, "heads": heads, "mlp_ratio": ratio}
    return sizes | {"activation": "gelu_tanh", "epsilon": 1e-6}


def _siglip(name: str) -> Preset:
    size, patch, kind, image_size = read(name)
    tokenizer, rows, padding = _VOCABULARIES[kind]
    # So400m/14 at 384 reads 27 x 27 patches, and leaves 6 pixels on two sides unread.
    uneven: Literal["crop", "error"] = "crop" if image_size % patch else "error"
    image = ViT(patch_size=patch, uneven=uneven, pool="map", **_fields(*_SIZES[size]))
    bare = name == "ViT-SO400M-16-SigLIP-i18n-256"
    text = TextTransformer(
        vocab_size=rows,
        pad_id=padding,
        causal=False,
        pool="last",
        mask_padding=False,
        embed_dim=None if bare else image.width,
        bias=not bare,
        **_fields(*_SIZES["SO400M" if size == "gopt" else size]),
    )
    return model(
        image,
        text,
        pixels=HALF_SQUASH,
        image_size=image_size,
        context_length=16 if name == "ViT-SO400M-14-SigLIP" else 64,
        tokenizer=tokenizer,
        objective="sigmoid",
        logit_scale_init=10.0,
        logit_bias_init=-10.0,
    )


SIGLIPS = {name: _siglip(name) for name in _NAMES}
SIGLIPS_2 = {name: _siglip(name) for name in _NAMES_2}
