"""CLIP with other parts: text towers of the RoBERTa family, CoCa, and a ViT without a class token.

Cherti et al. 2022 (arXiv:2212.07143); Yu et al. 2022 (arXiv:2205.01917), as open_clip has it.
"""

from typing import Any

from vlalign.encoders.attention import AttentionSpec
from vlalign.encoders.bert import Bert
from vlalign.encoders.blocks import BlockSpec
from vlalign.encoders.coca import CocaImage, CocaText
from vlalign.encoders.decoder import CaptionDecoder
from vlalign.encoders.presets.base import Preset, Tokenizer, clip_image, clip_text, model
from vlalign.encoders.presets.clip import SIZES
from vlalign.encoders.vit import ViT


def _roberta(
    size: str, patch: int, tokenizer: Tokenizer, rows: int, text: tuple[int, int, int], **of: Any
) -> Preset:
    width, depth, heads = text
    joint = SIZES[size][1][0]
    words = Bert(
        vocab_size=rows,
        width=width,
        depth=depth,
        heads=heads,
        positions=514,
        position_from="padding",
        token_types=1,
        embed_dim=joint,
        projection="mlp",
        pad_id=1,
        epsilon=1e-5,
    )
    image = clip_image(patch, *SIZES[size][0], embed_dim=joint, **of)
    return model(image, words, tokenizer=tokenizer)


_BASE, _LARGE = (768, 12, 12), (1024, 24, 16)
ROBERTAS = {
    "roberta-ViT-B-32": _roberta("B", 32, "roberta", 50_265, _BASE, activation="quick_gelu"),
    "xlm-roberta-base-ViT-B-32": _roberta("B", 32, "xlm_roberta", 250_002, _BASE),
    "xlm-roberta-large-ViT-H-14": _roberta("H", 14, "xlm_roberta", 250_002, _LARGE),
}


def _coca(size: str, patch: int) -> Preset:
    image, (width, depth) = SIZES[size]
    trunk = clip_image(patch, *image, final_norm="none")
    words: dict[str, Any] = {"width": width, "depth": depth, "heads": width // 64}
    return model(
        CocaImage(trunk=trunk, queries=256, heads=8, embed_dim=width),
        CocaText(embed_dim=width, padding="shifted", **words),
        decoder=CaptionDecoder(**words),
        context_length=76,
    )


def _coca_base() -> Preset:
    """Its decoder reads the patches of a plain tower, which here come with the class token."""
    words: dict[str, Any] = {"vocab_size": 64_000, "width": 768, "depth": 12, "heads": 12}
    return model(
        clip_image(18, *SIZES["B"][0], embed_dim=512),
        CocaText(embed_dim=512, padding="shifted", **words),
        decoder=CaptionDecoder(**words),
        image_size=288,
        context_length=76,
    )


COCAS = {
    "coca_base": _coca_base(),
    "coca_ViT-B-32": _coca("B", 32),
    "coca_ViT-L-14": _coca("L", 14),
}


def _medium() -> Preset:
    spec = BlockSpec(layer_scale=1e-6, attention=AttentionSpec(qkv_bias="none"))
    sizes: dict[str, Any] = {"patch_size": 16, "width": 512, "depth": 12, "heads": 8}
    image = ViT(**sizes, embed_dim=512, pool="mean", block=spec)
    return model(image, clip_text(512), image_size=256)


MEANS = {"vit_medium_patch16_gap_256": _medium()}
