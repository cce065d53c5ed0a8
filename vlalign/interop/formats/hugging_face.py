"""Hugging Face directories: `config.json` and weights of `CLIPModel` and `SiglipModel`."""

import json
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from vlalign.data.tokenizers.base import TextTokenizer
from vlalign.encoders.text import TextTransformer
from vlalign.encoders.vit import ViT
from vlalign.errors import UserError
from vlalign.interop import vocabulary
from vlalign.interop.bundle import Bundle
from vlalign.interop.dtypes import Dtype, as_dtype
from vlalign.interop.formats.common import build, check_says, weights_file
from vlalign.interop.formats.hugging_face_config import Config, compose, family_of, parse
from vlalign.interop.names.hugging_face import clip_table, siglip_table
from vlalign.interop.read.weights import read_weights
from vlalign.interop.rows import export_params
from vlalign.interop.settings import read_json

CONFIG, _PIXELS, _PROCESSOR = "config.json", "preprocessor_config.json", "processor_config.json"
_SAFE = "model.safetensors"
_TABLES = {"clip": clip_table, "siglip": siglip_table}
# SigLIP 2 has Gemma's tokens.
_GEMMA = ("GemmaTokenizer", "GemmaTokenizerFast", "Siglip2Tokenizer")


def read_directory(path: Path, given: vocabulary.Given = None) -> Bundle:
    """The model in a directory as `save_pretrained` writes it."""
    config = parse(read_json(path / CONFIG), _pixels(path), str(path))
    tokenizer, text = _tokenizer(config, path, given), config.text
    if tokenizer is not None and config.family == "siglip":
        text = text.clone(pad_id=tokenizer.pad_id)  # their configurations say 1 of Gemma's too
    return build(
        {"image": config.image, "text": text},
        _TABLES[config.family](),
        read_weights(weights_file(path, (_SAFE, "pytorch_model.bin"))),
        preprocess=config.preprocess,
        tokenizer=tokenizer,
        context_length=config.context_length,
        origin=str(path),
        aside=config.aside,
        notes=config.notes,
    )


def _pixels(path: Path) -> dict[str, Any] | None:
    """The image processor's settings, from its own file or from the processor's."""
    if (path / _PIXELS).is_file():
        return read_json(path / _PIXELS)
    if (path / _PROCESSOR).is_file():
        found = read_json(path / _PROCESSOR).get("image_processor")
        return found if isinstance(found, dict) else None
    return None


def _tokenizer(config: Config, path: Path, given: vocabulary.Given) -> TextTokenizer | None:
    length, vocab = config.context_length, config.text.vocab_size
    if config.family == "clip":
        return vocabulary.clip_tokenizer(given, path, length, vocab)
    named = path / "tokenizer_config.json"
    kind = read_json(named).get("tokenizer_class") if named.is_file() else None
    gemma = None if kind is None else kind in _GEMMA
    return vocabulary.siglip_tokenizer(given, path, length, gemma=gemma)


def write(path: Path, bundle: Bundle, dtype: Dtype) -> tuple[str, ...]:
    """Writes the files that `from_pretrained(PATH)` loads; returns notes for people.

    Raises UserError for a model that neither `CLIPModel` nor `SiglipModel` can be.
    """
    image, text = bundle.model["image"], bundle.model["text"]
    if not isinstance(image, ViT) or not isinstance(text, TextTransformer):
        raise UserError("Hugging Face models are written from a ViT and a TextTransformer alone")
    config, pixels = compose(image, text, bundle.preprocess, bundle.context_length)
    config["dtype"] = dtype
    check_says(bundle, lambda: parse(config, pixels, "its configuration"), "transformers")
    tensors = export_params(_TABLES[family_of(image)](), bundle.flat())
    arrays = {name: as_dtype(array, dtype) for name, array in tensors.items()}
    save_file(arrays, path / _SAFE, metadata={"format": "pt"})
    for name, value in ((CONFIG, config), (_PIXELS, pixels)):
        text_of = json.dumps(value, indent=2, sort_keys=True)
        (path / name).write_text(text_of + "\n", encoding="utf-8")
    if bundle.tokenizer is None:
        return ()
    return vocabulary.write_tokenizer(path, bundle.tokenizer)
