"""open_clip: `open_clip_config.json` beside its weights, single files, and OpenAI's archives."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from vlalign.data.tokenizers.base import TextTokenizer
from vlalign.data.tokenizers.clip import ClipTokenizer
from vlalign.encoders.resnet import ResNet
from vlalign.encoders.text import TextTransformer
from vlalign.encoders.vit import ViT
from vlalign.errors import UserError
from vlalign.interop import vocabulary
from vlalign.interop.bundle import Bundle
from vlalign.interop.dtypes import Dtype, as_dtype
from vlalign.interop.formats.common import build, check_says, weights_file
from vlalign.interop.formats.open_clip_config import compose, parse
from vlalign.interop.formats.openai import openai_config
from vlalign.interop.hows import Array
from vlalign.interop.names.open_clip import image_rows, table
from vlalign.interop.names.resnet import image_rows as resnet_rows
from vlalign.interop.read.weights import Weights, read_weights
from vlalign.interop.rows import export_params
from vlalign.interop.settings import Settings, read_json

CONFIG = "open_clip_config.json"
_SAFE = "open_clip_model.safetensors"
_WEIGHTS = (_SAFE, "open_clip_pytorch_model.bin")
_CLEAN = {"canonicalize": "canonical", "lower": "lower", "whitespace": "space"}


def has_weights(path: Path) -> bool:
    """Whether a directory has weights under open_clip's names; it may have others beside them."""
    return any(
        (path / f"{name}{end}").is_file() for name in _WEIGHTS for end in ("", ".index.json")
    )


def read_directory(path: Path, given: vocabulary.Given = None) -> Bundle:
    """The model in a directory as open_clip pushes it to the hub."""
    weights = read_weights(weights_file(path, _WEIGHTS))
    return _read(read_json(path / CONFIG), weights, str(path), path, given)


def read_file(path: Path, config: Path | None, given: vocabulary.Given = None) -> Bundle:
    """The model in a lone file of weights.

    config: an `open_clip_config.json`, or a model's JSON of open_clip; an archive of OpenAI's needs
    none.
    """
    weights = read_weights(path)
    if config is None:
        found: dict[str, Any] = {"model_cfg": openai_config(weights.tensors, str(path))}
    else:
        found = read_json(config)
        found = found if "model_cfg" in found else {"model_cfg": found}
    return _read(found, weights, str(path), path.parent, given)


def _read(
    config: Mapping[str, Any],
    weights: Weights,
    where: str,
    beside: Path,
    given: vocabulary.Given,
) -> Bundle:
    read = parse(config, where)
    rows = resnet_rows(read.image) if isinstance(read.image, ResNet) else image_rows(read.image)
    names = table(rows, read.text, bias=read.logit_bias, prefix=_prefix(weights.tensors))
    return build(
        {"image": read.image, "text": read.text},
        names,
        weights,
        preprocess=read.preprocess,
        tokenizer=_tokenizer(config, beside, given),
        context_length=read.context_length,
        origin=where,
        aside=read.aside,
    )


def _tokenizer(
    config: Mapping[str, Any], beside: Path, given: vocabulary.Given
) -> TextTokenizer | None:
    text = Settings(config["model_cfg"], "model_cfg").part("text_cfg")
    length = text.whole("context_length", 77)
    if not text.take("hf_tokenizer_name", ""):
        vocab = text.whole("vocab_size", 49408)
        return vocabulary.clip_tokenizer(given, beside, length, vocab)
    clean = text.part("tokenizer_kwargs").choose("clean", "whitespace", _CLEAN)
    return vocabulary.hub_tokenizer(given, beside, length, clean)


def _prefix(tensors: Mapping[str, Array]) -> str:
    """`text.` where the text tower stands apart, as in open_clip's CustomTextCLIP."""
    apart = any(name.removeprefix("module.").startswith("text.") for name in tensors)
    return "text." if apart else ""


def write(path: Path, bundle: Bundle, dtype: Dtype) -> tuple[str, ...]:
    """Writes the files that open_clip loads by `local-dir:PATH`; returns notes for people.

    Raises UserError for a model that open_clip's own towers cannot be.
    """
    image, text, length = bundle.model["image"], bundle.model["text"], bundle.context_length
    if not isinstance(image, ViT) or not isinstance(text, TextTransformer):
        raise UserError("open_clip is written from a ViT and a TextTransformer alone")
    tokenizer = bundle.tokenizer
    if tokenizer is not None and not isinstance(tokenizer, ClipTokenizer):
        raise UserError(
            f"open_clip's own tokenizer is CLIP's, this model has a {type(tokenizer).__name__}: "
            "leave it out with --tokenizer none"
        )
    bias = bundle.logit_bias is not None
    config = compose(image, text, bundle.preprocess, length, bias=bias)
    check_says(bundle, lambda: parse(config, "its configuration"), "open_clip")
    tensors = export_params(table(image_rows(image), text, bias=bias), bundle.flat())
    save_file({name: as_dtype(x, dtype) for name, x in tensors.items()}, path / _SAFE)
    (path / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return () if tokenizer is None else vocabulary.write_tokenizer(path, tokenizer)
