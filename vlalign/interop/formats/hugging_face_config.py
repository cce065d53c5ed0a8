"""`config.json` and `preprocessor_config.json` of transformers in our terms, and back.

Keys that a file leaves out have the defaults of the classes named in the functions.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from vlalign.data.preprocess import Preprocess
from vlalign.encoders.text import TextTransformer
from vlalign.encoders.vit import ViT
from vlalign.errors import UserError
from vlalign.interop.settings import Settings, side, triple

Family = Literal["clip", "siglip"]

_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
# PIL's numbers.
_FILTERS: dict[int, Literal["bicubic", "bilinear"]] = {3: "bicubic", 2: "bilinear"}
# What every configuration of transformers may have: bookkeeping, the start, training, generation.
_HARMLESS = (
    *("_name_or_path", "architectures", "model_type", "torch_dtype", "dtype", "_attn_*"),
    *("transformers_version", "initializer_*", "logit_scale_init_value", "attention_dropout"),
    *("dropout", "gradient_checkpointing", "return_dict*", "output_*", "torchscript", "use_cache"),
    *("use_bfloat16", "id2label", "label2id", "finetuning_task", "task_specific_params", "tf_*"),
    *("problem_type", "tokenizer_class", "prefix", "bos_token_id", "pad_token_id", "sep_token_id"),
    *("decoder_start_token_id", "max_length", "min_length", "do_sample", "early_stopping"),
    *("num_beam*", "diversity_penalty", "temperature", "top_k", "top_p", "typical_p"),
    *("repetition_penalty", "length_penalty", "no_repeat_ngram_size", "bad_words_ids"),
    *("encoder_no_repeat_ngram_size", "num_return_sequences", "forced_*", "suppress_tokens"),
    *("remove_invalid_values", "exponential_decay_length_penalty", "begin_suppress_tokens"),
    *("is_encoder_decoder", "tie_*", "cross_attention_hidden_size", "chunk_size_feed_forward"),
)
# What the towers read, and `*_config_dict` decides where there is one.
_FIELDS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("hidden_act", "layer_norm_eps", "image_size", "patch_size", "num_channels", "vocab_size"),
    *("max_position_embeddings", "eos_token_id"),
)
_IGNORED_PIXELS = (
    *("image_processor_type", "feature_extractor_type", "processor_class", "do_convert_rgb"),
    *("_valid_processor_keys", "data_format", "input_data_format", "device", "return_tensors"),
    *("disable_grouping", "auto_map"),
)


@dataclasses.dataclass(frozen=True)
class Config:
    """What the two files say. aside: settings that have no say in the numbers."""

    family: Family
    image: ViT
    text: TextTransformer
    preprocess: Preprocess
    context_length: int
    aside: tuple[str, ...]
    notes: tuple[str, ...]


def parse(config: Mapping[str, Any], pixels: Mapping[str, Any] | None, where: str) -> Config:
    """The files in our terms. Raises UserError for what our towers do not compute.

    pixels: the image processor's file; None: its family's usual one.
    """
    root = Settings(config, where)
    kind = root.take("model_type", "")
    if kind not in ("clip", "siglip"):
        hint = "; SigLIP 2 of any image size (NaFlex) is another tower" if kind == "siglip2" else ""
        raise UserError(f"{where}: model_type = {kind!r}; read are 'clip' and 'siglip'{hint}")
    family: Family = "clip" if kind == "clip" else "siglip"
    joint = root.whole("projection_dim", 512) if family == "clip" else None
    (vision, of_vision), (text, of_words) = (_part(root, f"{k}_config") for k in ("vision", "text"))
    aside = root.finish(_HARMLESS)
    default = {"clip": 224, "siglip": 224}[family]
    size = side(vision.take("image_size", None) or default, f"{vision.where}: image_size")
    preprocess, of_pixels, notes = _preprocess(pixels, family, size, where)
    image, of_image = _vision(vision, family, joint, preprocess)
    words, length, of_text = _text(text, family, joint)
    names = tuple(dict.fromkeys((*aside, *of_pixels, *of_image, *of_text)))
    return Config(family, image, words, preprocess, length, names, (*of_vision, *of_words, *notes))


def _part(root: Settings, key: str) -> tuple[Settings, tuple[str, ...]]:
    """`text_config` or `vision_config`, and notes.

    Where an old file has `text_config_dict` too, transformers takes that one, and its own defaults
    for what it leaves out, whatever `text_config` says; so it is read here, and said.
    """
    values, old = root.take(key, {}), root.take(f"{key}_dict", None)
    if old is None:
        return Settings(values, f"{root.where}, {key}"), ()
    if not isinstance(old, dict):
        raise UserError(f"{root.where}: {key}_dict = {old!r} is not an object")
    hidden = [name for name in _FIELDS if name in values and values[name] != old.get(name)]
    rest = {name: value for name, value in values.items() if name not in _FIELDS}
    note = f"{key}_dict stands for {key}, as with transformers; there also: {', '.join(hidden)}"
    return Settings(rest | old, f"{root.where}, {key}_dict"), (note,) if hidden else ()


def _preprocess(
    pixels: Mapping[str, Any] | None, family: Family, size: int, where: str
) -> tuple[Preprocess, tuple[str, ...], tuple[str, ...]]:
    usual = Preprocess(size=size)
    if family == "siglip":
        half = (0.5, 0.5, 0.5)
        usual = dataclasses.replace(usual, resize_mode="squash", mean=half, std=half)
    if pixels is None:
        note = (
            f"{where} has no preprocessor_config.json: images are prepared as is usual for {family}"
        )
        return usual, (), (note,)
    settings = Settings(pixels, f"{where}, preprocessor_config.json")
    for key in ("do_resize", "do_normalize", "do_rescale"):
        settings.require(key, True)
    if not math.isclose(settings.number("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-6):
        settings.require("rescale_factor", 1 / 255)
    crop = settings.take("do_center_crop", family == "clip")
    number = settings.take("resample", 3)
    if number not in _FILTERS:
        settings.require("resample", *_FILTERS)
    mode = _resize_mode(settings, size, crop=crop)
    preprocess = dataclasses.replace(
        usual,
        resize_mode=mode,
        interpolation=_FILTERS[number],
        mean=triple(settings.take("image_mean", list(usual.mean)), f"{where}: image_mean"),
        std=triple(settings.take("image_std", list(usual.std)), f"{where}: image_std"),
    )
    return preprocess, settings.finish(_IGNORED_PIXELS), ()


def _resize_mode(settings: Settings, size: int, *, crop: bool) -> Literal["shortest", "squash"]:
    """How `size` and `crop_size` bring an image to `size` pixels."""
    goal = settings.take("size", None) or {"shortest_edge": size}
    if isinstance(goal, int):  # files of old: the short side where a crop follows
        goal = {"shortest_edge": goal} if crop else {"height": goal, "width": goal}
    cut = settings.take("crop_size", None)
    cut = cut if isinstance(cut, dict) else {"height": cut, "width": cut}
    if crop and None not in cut.values() and cut != {"height": size, "width": size}:
        raise UserError(f"{settings.where}: crop_size = {cut}, but the tower's images have {size}")
    if goal == {"shortest_edge": size} and crop:
        return "shortest"
    if goal == {"height": size, "width": size}:
        return "squash"
    raise UserError(
        f"{settings.where}: size = {goal} with do_center_crop = {crop}; known are the short side "
        f"of {size} pixels with a crop of as many, and {size} x {size}"
    )


def _common(settings: Settings, activation: str, epsilon: float) -> dict[str, Any]:
    """Fields that both towers have."""
    for key in ("is_decoder", "add_cross_attention"):
        settings.require(key, False)
    settings.require("pruned_heads", {})
    width = settings.whole("hidden_size", 0)
    return {
        "width": width,
        "depth": settings.whole("num_hidden_layers", 12),
        "mlp_ratio": settings.whole("intermediate_size", 0) / width,
        "activation": settings.choose("hidden_act", activation, _ACTIVATIONS),
        "epsilon": settings.number("layer_norm_eps", epsilon),
    }


_DEFAULTS: dict[Family, tuple[str, float]] = {
    "clip": ("quick_gelu", 1e-5),
    "siglip": ("gelu_pytorch_tanh", 1e-6),
}


def _vision(
    settings: Settings, family: Family, joint: int | None, preprocess: Preprocess
) -> tuple[ViT, tuple[str, ...]]:
    """`CLIPVisionConfig` or `SiglipVisionConfig`."""
    settings = settings.with_defaults(
        hidden_size=768, intermediate_size=3072, patch_size=32 if family == "clip" else 16
    )
    settings.require("num_channels", 3)
    settings.require("vision_use_head", True)
    clip = family == "clip"
    patch = side(settings.take("patch_size", None), f"{settings.where}: patch_size")
    image = ViT(
        patch_size=patch,
        uneven="crop" if preprocess.size % patch else "error",
        heads=settings.whole("num_attention_heads", 12),
        embed_dim=joint,
        pool="class" if clip else "map",
        pre_norm=clip,
        patch_bias=not clip,
        # How transformers carries positions to another size: sampled, without antialiasing.
        position_resize="bicubic_aliased",
        pixel_mean=preprocess.mean,
        pixel_std=preprocess.std,
        **_common(settings, *_DEFAULTS[family]),
    )
    return image, settings.finish((*_HARMLESS, "image_size", "projection_dim"))


def _text(
    settings: Settings, family: Family, joint: int | None
) -> tuple[TextTransformer, int, tuple[str, ...]]:
    """`CLIPTextConfig` or `SiglipTextConfig`."""
    clip = family == "clip"
    width = 512 if clip else 768
    settings = settings.with_defaults(hidden_size=width, intermediate_size=4 * width)
    end: int | None = settings.take("eos_token_id", 49407) if clip else None
    legacy = end == 2  # files of old say 2 and mean the largest id
    if joint is None:
        joint = settings.take("projection_size", None) or settings.whole("hidden_size", width)
    text = TextTransformer(
        vocab_size=settings.whole("vocab_size", 49408 if clip else 32000),
        heads=settings.whole("num_attention_heads", 8 if clip else 12),
        embed_dim=joint,
        causal=clip,
        pool=("largest" if legacy else "eot_id") if clip else "last",
        eot_id=None if legacy else end,
        mask_padding=False,
        pad_id=0 if clip else settings.take("pad_token_id", 1),
        bias=not clip,
        **_common(settings, *_DEFAULTS[family]),
    )
    length = settings.whole("max_position_embeddings", 77 if clip else 64)
    return text, length, settings.finish((*_HARMLESS, "projection_dim", "eos_token_id"))


def family_of(image: ViT) -> Family:
    """Which of the two a model can be written as."""
    return "siglip" if image.pool == "map" else "clip"


def compose(
    image: ViT, text: TextTransformer, preprocess: Preprocess, length: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The two files of towers; whether they say all of them, `parse` of them tells."""
    family = family_of(image)
    clip = family == "clip"
    vision = _common_back(image) | {
        "model_type": f"{family}_vision_model",
        "image_size": preprocess.size,
        "patch_size": image.patch_size,
        "num_channels": 3,
    }
    words = _common_back(text) | {
        "model_type": f"{family}_text_model",
        "vocab_size": text.vocab_size,
        "max_position_embeddings": length,
        "pad_token_id": text.pad_id,
    }
    config: dict[str, Any] = {
        "architectures": ["CLIPModel" if clip else "SiglipModel"],
        "model_type": family,
        "vision_config": vision,
        "text_config": words,
    }
    if clip:
        vision["projection_dim"] = words["projection_dim"] = image.embed_dim
        config["projection_dim"] = image.embed_dim
        words["eos_token_id"] = 2 if text.eot_id is None else text.eot_id
        words["bos_token_id"] = min(49406, text.vocab_size - 2)
    else:
        words["projection_size"] = text.embed_dim
    return config, _pixels_back(preprocess, family)


def _common_back(tower: ViT | TextTransformer) -> dict[str, Any]:
    theirs = {ours: word for word, ours in _ACTIVATIONS.items()}
    return {
        "hidden_size": tower.width,
        "intermediate_size": round(tower.width * tower.mlp_ratio),
        "num_hidden_layers": tower.depth,
        "num_attention_heads": tower.heads,
        "hidden_act": theirs.get(tower.activation, tower.activation),
        "layer_norm_eps": tower.epsilon,
    }


def _pixels_back(preprocess: Preprocess, family: Family) -> dict[str, Any]:
    size = preprocess.size
    square = {"height": size, "width": size}
    squash = preprocess.resize_mode == "squash"
    numbers: dict[str, int] = {name: number for number, name in _FILTERS.items()}
    found: dict[str, Any] = {
        "image_processor_type": "CLIPImageProcessor"
        if family == "clip"
        else "SiglipImageProcessor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "rescale_factor": 1 / 255,
        "size": square if squash else {"shortest_edge": size},
        "resample": numbers.get(preprocess.interpolation, preprocess.interpolation),
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }
    if family == "clip":
        found |= {"do_center_crop": not squash, "crop_size": square}
    return found
