"""What a preset is, and what the families of presets share."""

import dataclasses
from typing import Any, Literal

import flax.linen as nn

from vlalign.encoders.pixels import CLIP_MEAN, CLIP_STD, Channels
from vlalign.encoders.text import TextTransformer
from vlalign.encoders.vit import ViT

ResizeMode = Literal["shortest", "squash"]
Interpolation = Literal["bicubic", "bilinear"]
Tokenizer = Literal[
    "clip", "siglip", "siglip_i18n", "gemma", "bert", "roberta", "xlm_roberta", "xlm_v", "mt5"
]
Objective = Literal["softmax", "sigmoid"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """A published model: its towers, and what it was trained to be given.

    image, text: the towers.   decoder: of captions (CoCa).
    image_size: side of the images, pixels.   resize_mode, interpolation: how they get there, in
    the words of `data.preprocess.Preprocess`; mean and std are fields of the image tower.
    context_length: tokens of a text.   tokenizer: whose vocabulary: "clip", "siglip" (c4_en,
    32,000 pieces), "siglip_i18n" (mc4, 250,000), "gemma" (256,000), "bert" (uncased), ...
    objective: "softmax" (CLIP) or "sigmoid" (SigLIP).   logit_scale_init, logit_bias_init: of the
    scores at the start of training, as the objectives' fields of these names.
    """

    image: nn.Module
    text: nn.Module
    decoder: nn.Module | None = None
    image_size: int = 224
    resize_mode: ResizeMode = "shortest"
    interpolation: Interpolation = "bicubic"
    context_length: int = 77
    tokenizer: Tokenizer = "clip"
    objective: Objective = "softmax"
    logit_scale_init: float = 1 / 0.07
    logit_bias_init: float | None = None

    @property
    def towers(self) -> dict[str, nn.Module]:
        """Tower name -> module, the decoder left out: an experiment's `model`."""
        return {"image": self.image, "text": self.text}

    @property
    def mean(self) -> Channels:
        """Of red, green and blue, in 0..1."""
        mean: Channels = _pixels(self.image).pixel_mean
        return mean

    @property
    def std(self) -> Channels:
        """Of red, green and blue, in 0..1."""
        std: Channels = _pixels(self.image).pixel_std
        return std


def _pixels(tower: nn.Module) -> Any:
    """The module whose fields normalise the pixels."""
    return getattr(tower, "trunk", tower)


def changed(tower: nn.Module, **fields: Any) -> nn.Module:
    """A tower with other fields; those of its trunk where it is built around one."""
    inner: nn.Module | None = getattr(tower, "trunk", None)
    return tower.clone(**fields) if inner is None else tower.clone(trunk=inner.clone(**fields))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pixels:
    """How a family prepares images, where it is not CLIP's way."""

    mean: Channels = CLIP_MEAN
    std: Channels = CLIP_STD
    resize_mode: ResizeMode = "shortest"
    interpolation: Interpolation = "bicubic"


_HALF: Channels = (0.5, 0.5, 0.5)
CLIP = Pixels()
CLIP_SQUASH = Pixels(resize_mode="squash")
HALF = Pixels(mean=_HALF, std=_HALF)
HALF_SQUASH = Pixels(mean=_HALF, std=_HALF, resize_mode="squash")
PERCEPTION = Pixels(mean=_HALF, std=_HALF, resize_mode="squash", interpolation="bilinear")
UNIT = Pixels(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation="bilinear")
MOBILE = Pixels(interpolation="bilinear")
IMAGENET_SQUASH = Pixels(
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    resize_mode="squash",
    interpolation="bilinear",
)


def model(image: nn.Module, text: nn.Module, *, pixels: Pixels = CLIP, **fields: Any) -> Preset:
    """A preset whose image tower normalises as `pixels` says. fields: the others of `Preset`."""
    return Preset(
        image=changed(image, pixel_mean=pixels.mean, pixel_std=pixels.std),
        text=text,
        resize_mode=pixels.resize_mode,
        interpolation=pixels.interpolation,
        **fields,
    )


def read(name: str) -> tuple[str, int, str, int]:
    """The parts of ViT-SIZE-PATCH[-KIND][-IMAGE SIZE], as `ViT-B-16-SigLIP-i18n-256` has them."""
    _, size, patch, *kind = name.split("-")
    image_size = int(kind.pop()) if kind and kind[-1].isdigit() else 224
    return size, int(patch), "-".join(kind), image_size


def clip_image(patch: int, width: int, depth: int, heads: int, hidden: int, **options: Any) -> ViT:
    """CLIP's image tower."""
    fields: dict[str, Any] = {"pre_norm": True, "patch_bias": False, "epsilon": 1e-5} | options
    return ViT(
        patch_size=patch, width=width, depth=depth, heads=heads, mlp_ratio=hidden / width, **fields
    )


def clip_text(width: int = 512, depth: int = 12, **options: Any) -> TextTransformer:
    """CLIP's text tower; its heads are 64 wide, and its output as wide as its blocks."""
    fields: dict[str, Any] = {
        "heads": width // 64,
        "embed_dim": width,
        "pool": "largest",
        "mask_padding": False,
        "epsilon": 1e-5,
    }
    return TextTransformer(width=width, depth=depth, **fields | options)
