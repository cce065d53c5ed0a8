"""`open_clip_config.json` in our terms, and back."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from vlalign.data.preprocess import Preprocess, clip
from vlalign.encoders.blocks import BlockSpec
from vlalign.encoders.resnet import ResNet
from vlalign.encoders.text import TextTransformer
from vlalign.encoders.vit import ViT
from vlalign.errors import UserError
from vlalign.interop.settings import Settings, side, triple

_EPSILON = 1e-5  # of torch's LayerNorm
# Of training, of the start, or of parts that these towers do not have.
_HARMLESS = ("init_logit_scale", "nonscalar_logit_scale", "custom_text", "output_dict")
_HARMLESS_VISION = ("image_size", "patch_dropout", "output_tokens", "attn_pooler_*", "timm_*")
_HARMLESS_TEXT = ("output_tokens", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type")
_TOKENIZER = ("hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs")
_TRICKS = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner")
_IMAGE_POOLS = {"tok": "class", "avg": "mean"}
_TEXT_POOLS = {"argmax": "largest", "eos": "eot_id", "first": "first", "last": "last"}


@dataclasses.dataclass(frozen=True)
class Config:
    """What a configuration says. aside: its settings that have no say in the numbers."""

    image: ViT | ResNet
    text: TextTransformer
    preprocess: Preprocess
    context_length: int
    logit_bias: bool
    aside: tuple[str, ...]


def parse(config: Mapping[str, Any], where: str) -> Config:
    """A configuration in our terms. Raises UserError for what our towers do not compute."""
    root = Settings(config, where)
    model, prepared = root.part("model_cfg"), root.part("preprocess_cfg")
    root.finish()
    vision, text = model.part("vision_cfg"), model.part("text_cfg")
    embed_dim = model.whole("embed_dim", 0)
    quick = model.take("quick_gelu", False)
    bias = model.take("init_logit_bias", None) is not None
    size = side(vision.take("image_size", None) or 224, f"{vision.where}: image_size")
    aside = model.finish(_HARMLESS)
    preprocess, of_pixels = _preprocess(prepared, size)
    tower = _resnet if isinstance(vision.take("layers", None), list) else _vision
    image, of_image = tower(vision, embed_dim, quick, preprocess)
    words, length, of_text = _text(text, embed_dim, quick)
    names = (*aside, *of_pixels, *of_image, *of_text)
    return Config(image, words, preprocess, length, bias, names)


def _preprocess(settings: Settings, size: int) -> tuple[Preprocess, tuple[str, ...]]:
    default = clip()
    settings.require("mode", "RGB")
    given = settings.take("size", None)
    if given is not None and side(given, f"{settings.where}: size") != size:
        raise UserError(f"{settings.where}: size = {given}, but the tower's image_size is {size}")
    # "random" is of training; open_clip evaluates such a model with bicubic.
    filters = {"bicubic": "bicubic", "bilinear": "bilinear", "random": "bicubic"}
    modes = {mode: mode for mode in ("shortest", "squash", "longest")}
    preprocess = Preprocess(
        size=size,
        mean=triple(settings.take("mean", list(default.mean)), f"{settings.where}: mean"),
        std=triple(settings.take("std", list(default.std)), f"{settings.where}: std"),
        interpolation=settings.choose("interpolation", "bicubic", filters),
        resize_mode=settings.choose("resize_mode", "shortest", modes),
    )
    if preprocess.resize_mode == "longest":
        settings.require("fill_color", 0)
    return preprocess, settings.finish(("fill_color",))


def _activation(settings: Settings, quick: bool) -> Literal["gelu", "gelu_tanh", "quick_gelu"]:
    options = settings.part("act_kwargs")
    kinds: dict[str, Literal["gelu", "gelu_tanh"]] = {"none": "gelu", "tanh": "gelu_tanh"}
    exact: Literal["gelu", "gelu_tanh"] = "gelu"
    if not quick:
        exact = options.choose("approximate", "none", kinds)
    options.finish()
    return "quick_gelu" if quick else exact


def _common(settings: Settings, quick: bool) -> dict[str, Any]:
    """Fields that both towers have."""
    settings.require("block_type", "default")
    for name in (*_TRICKS, "scale_attn", "scale_fc"):
        settings.require(name, False)
    norm = settings.part("norm_kwargs")
    epsilon = norm.number("eps", _EPSILON)
    scaled = settings.take("ls_init_value", None) is not None
    norm.finish()
    return {
        "activation": _activation(settings, quick),
        "epsilon": epsilon,
        "mlp_ratio": settings.number("mlp_ratio", 4.0),
        "block": BlockSpec(layer_scale=settings.number("ls_init_value", 1.0) if scaled else None),
    }


def _vision(
    settings: Settings, embed_dim: int, quick: bool, preprocess: Preprocess
) -> tuple[ViT, tuple[str, ...]]:
    if name := settings.take("timm_model_name", ""):
        raise UserError(
            f"{settings.where}: timm_model_name = {name!r}; towers of timm are not read from "
            "open_clip's files. SigLIP is on the hub as a Hugging Face model too: convert that one"
        )
    if isinstance(settings.take("layers", None), list):
        raise UserError(
            f"{settings.where}: layers is a list; CLIP's ResNets are not read from here"
        )
    settings.require("attentional_pool", False)
    settings.require("pos_embed_type", "learnable", "sin_cos_2d")  # both are in the file
    width, per_head = settings.whole("width", 768), settings.whole("head_width", 64)
    pool = settings.choose("pool_type", "tok", _IMAGE_POOLS)
    patch = settings.take("patch_size", None) or 16
    image = ViT(
        patch_size=side(patch, f"{settings.where}: patch_size"),
        width=width,
        depth=settings.whole("layers", 12),
        heads=max(1, width // per_head),
        embed_dim=embed_dim,
        pool=pool,
        class_token=pool == "mean",
        pre_norm=not settings.take("no_ln_pre", False),
        final_norm="pooled" if settings.take("final_ln_after_pool", False) else "tokens",
        patch_bias=False,
        pixel_mean=preprocess.mean,
        pixel_std=preprocess.std,
        **_common(settings, quick),
    )
    return image, settings.finish(_HARMLESS_VISION)


def _resnet(
    settings: Settings, embed_dim: int, quick: bool, preprocess: Preprocess
) -> tuple[ResNet, tuple[str, ...]]:
    """CLIP's residual network: `layers` counts the bottlenecks of its four stages."""
    del quick  # its activation is ReLU
    depths, width = settings.take("layers", []), settings.whole("width", 768)
    if len(depths) != 4 or not all(type(depth) is int and depth > 0 for depth in depths):
        raise UserError(
            f"{settings.where}: layers = {depths}; four counts of a ResNet's bottlenecks"
        )
    image = ResNet(
        depths=(depths[0], depths[1], depths[2], depths[3]),
        width=width,
        heads=width * 32 // settings.whole("head_width", 64),
        embed_dim=embed_dim,
        pixel_mean=preprocess.mean,
        pixel_std=preprocess.std,
    )
    return image, settings.finish((*_HARMLESS_VISION, "mlp_ratio", "patch_size"))


def _text(
    settings: Settings, embed_dim: int, quick: bool
) -> tuple[TextTransformer, int, tuple[str, ...]]:
    if name := settings.take("hf_model_name", ""):
        raise UserError(
            f"{settings.where}: hf_model_name = {name!r}; such towers are not read here"
        )
    settings.require("embed_cls", False)
    settings.require("final_ln_after_pool", False)
    pool, end = settings.choose("pool_type", "argmax", _TEXT_POOLS), settings.take("eos_id", 2)
    kinds: dict[str, int | None] = {"linear": embed_dim, "none": None}
    projection = settings.choose("proj_type", "linear", kinds)
    bias = settings.take("proj_bias", False)
    text = TextTransformer(
        vocab_size=settings.whole("vocab_size", 49408),
        width=settings.whole("width", 512),
        depth=settings.whole("layers", 12),
        heads=settings.whole("heads", 8),
        embed_dim=projection,
        causal=not settings.take("no_causal_mask", False),
        pool=pool,
        eot_id=end if pool == "eot_id" else None,
        mask_padding=False,
        pad_id=settings.take("pad_id", 0),
        bias=projection is not None and bias,
        **_common(settings, quick),
    )
    length = settings.whole("context_length", 77)
    return text, length, settings.finish((*_TOKENIZER, *_HARMLESS_TEXT))


def compose(
    image: ViT, text: TextTransformer, preprocess: Preprocess, length: int, *, bias: bool
) -> dict[str, Any]:
    """The configuration of towers; whether it says all of them, `parse` of it tells."""
    quick = image.activation == text.activation == "quick_gelu"
    vision = _common_back(image) | {
        "image_size": preprocess.size,
        "patch_size": image.patch_size,
        "head_width": image.width // image.heads,
        "pool_type": _reverse(_IMAGE_POOLS, image.pool),
        "no_ln_pre": not image.pre_norm,
        "final_ln_after_pool": image.final_norm == "pooled",
    }
    words: dict[str, Any] = _common_back(text) | {
        "heads": text.heads,
        "context_length": length,
        "vocab_size": text.vocab_size,
        "no_causal_mask": not text.causal,
        "pool_type": _reverse(_TEXT_POOLS, text.pool),
        "pad_id": text.pad_id,
        "proj_bias": text.bias,
        "proj_type": "none" if text.embed_dim is None else "linear",
    }
    if text.eot_id is not None:
        words["eos_id"] = text.eot_id
    model: dict[str, Any] = {"embed_dim": image.embed_dim or image.width, "quick_gelu": quick}
    pixels = {
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "interpolation": preprocess.interpolation,
        "resize_mode": preprocess.resize_mode,
    }
    model |= {"init_logit_bias": 0.0} if bias else {}
    return {
        "model_cfg": model | {"vision_cfg": vision, "text_cfg": words},
        "preprocess_cfg": pixels,
    }


def _common_back(tower: ViT | TextTransformer) -> dict[str, Any]:
    found: dict[str, Any] = {
        "layers": tower.depth,
        "width": tower.width,
        "mlp_ratio": tower.mlp_ratio,
    }
    if tower.epsilon != _EPSILON:
        found["norm_kwargs"] = {"eps": tower.epsilon}
    if tower.block.layer_scale is not None:
        found["ls_init_value"] = tower.block.layer_scale
    if tower.activation == "gelu_tanh":
        found["act_kwargs"] = {"approximate": "tanh"}
    return found


def _reverse(kinds: Mapping[str, str], ours: str) -> str:
    """Their word for ours; ours itself where they have none, which `parse` then refuses."""
    return next((theirs for theirs, own in kinds.items() if own == ours), ours)
