"""A model in use: towers, parameters, preprocessing, tokenizer; and its own portable directory.

model.txt            towers, preprocessing and scalars as text (vlalign/tree.py)
params.safetensors   parameters by their paths, `image/transformer/blocks/attn/qkv/kernel`
tokenizer.json       the tokenizer, where there is one
SHA256SUMS           of the files above, as `sha256sum --check` reads them
"""

import contextlib
import dataclasses
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from flax.core import meta
from safetensors.numpy import save_file

from vlalign import tree
from vlalign.data.preprocess import Preprocess
from vlalign.data.tokenizers.base import TextTokenizer
from vlalign.data.tokenizers.load import load_tokenizer
from vlalign.errors import UserError
from vlalign.interop.dtypes import Dtype, as_dtype
from vlalign.interop.hows import Array, Shape
from vlalign.interop.read.weights import read_weights
from vlalign.interop.rows import Row, Table, import_params

MODEL, PARAMS, TOKENIZER, SUMS = "model.txt", "params.safetensors", "tokenizer.json", "SHA256SUMS"


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A model with everything that turns images and texts into its embeddings.

    model: tower name ("image", "text") -> encoder.   params: tower name -> parameters, float32.
    preprocess: of images.   tokenizer: of texts; None where it was left out.
    context_length: tokens of a text.   logit_scale: logarithm of the scale of cosines; None where
    the model has none.   logit_bias: added to scaled cosines (SigLIP).
    origin: where it comes from.   notes: what was left aside or assumed on the way, for people.
    """

    model: Mapping[str, nn.Module]
    params: Mapping[str, Any]
    preprocess: Preprocess
    tokenizer: TextTokenizer | None
    context_length: int
    logit_scale: float | None
    logit_bias: float | None
    origin: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.tokenizer is not None:
            _check_tokenizer(self.tokenizer, self.model["text"], self.context_length)

    def flat(self) -> dict[str, Array]:
        """All numbers by path: the towers' parameters, `logit_scale` and `logit_bias`."""
        found = traverse_util.flatten_dict(dict(self.params), sep="/")
        for name in ("logit_scale", "logit_bias"):
            if (value := getattr(self, name)) is not None:
                found[name] = np.float32(value)
        return {path: np.asarray(value) for path, value in found.items()}


def _check_tokenizer(tokenizer: TextTokenizer, text: Any, length: int) -> None:
    if tokenizer.length != length:
        raise UserError(
            f"the tokenizer makes rows of {tokenizer.length} tokens, the text tower has {length} "
            "positions: make one of this length"
        )
    if tokenizer.vocab_size > text.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the text tower {text.vocab_size}: "
            "it is not the one that this model was trained with"
        )


def shapes_of(model: Mapping[str, nn.Module], size: int, length: int) -> dict[str, Shape]:
    """Path -> shape of the towers' parameters; no parameter is made.

    size: of the images, pixels.   length: of the texts, tokens.
    """
    examples = {
        "image": jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8),
        "text": jax.ShapeDtypeStruct((1, length), jnp.int32),
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    found: dict[str, Shape] = {}
    for name, module in model.items():
        boxed = jax.eval_shape(module.init, key, examples[name])["params"]
        flat = traverse_util.flatten_dict(meta.unbox(boxed), sep="/")
        found |= {f"{name}/{path}": tuple(leaf.shape) for path, leaf in flat.items()}
    return found


def from_flat(params: Mapping[str, Array], model: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Tower name -> nested parameters, of arrays by path."""
    towers = {p: array for p, array in params.items() if p.split("/")[0] in model}
    nested: dict[str, Any] = traverse_util.unflatten_dict(towers, sep="/")
    return nested


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """What `model.txt` says: a `Bundle` without its arrays."""

    model: Mapping[str, nn.Module]
    preprocess: Preprocess
    context_length: int
    tokenizer: str | None
    logit_scale: float | None
    logit_bias: float | None
    origin: str


def save_bundle(path: Path, bundle: Bundle, *, dtype: Dtype = "float32") -> None:
    """Writes a portable directory, whole or not at all.

    dtype: of the parameters in the file; less than float32 rounds them.
    Raises UserError if there is something at `path` already.
    """
    tokenizer = bundle.tokenizer
    description = Description(
        model=bundle.model,
        preprocess=bundle.preprocess,
        context_length=bundle.context_length,
        tokenizer=None if tokenizer is None else tokenizer.fingerprint(),
        logit_scale=bundle.logit_scale,
        logit_bias=bundle.logit_bias,
        origin=bundle.origin,
    )
    params = traverse_util.flatten_dict(dict(bundle.params), sep="/")
    with whole_directory(path) as draft:
        (draft / MODEL).write_text(tree.dumps(description), encoding="utf-8")
        save_file({name: as_dtype(x, dtype) for name, x in params.items()}, draft / PARAMS)
        if tokenizer is not None:
            tokenizer.save(draft / TOKENIZER)
        names = sorted(file.name for file in draft.iterdir())
        sums = "".join(f"{_sha256(draft / name)}  {name}\n" for name in names)
        (draft / SUMS).write_text(sums, encoding="ascii")


def load_bundle(path: Path, *, allow_modules: tuple[str, ...] = ()) -> Bundle:
    """The model in a portable directory; nothing in it is executed.

    allow_modules: see `tree.loads`. Raises UserError if a file is missing or is not what was
    written, or if the parameters do not fit the towers.
    """
    _check_sums(path)
    text = (path / MODEL).read_text(encoding="utf-8")
    found = tree.loads(text, allow_modules=allow_modules)
    if not isinstance(found, Description):
        raise UserError(f"{path / MODEL} describes a {type(found).__name__}, not a model")
    tokenizer = None
    if found.tokenizer is not None:
        tokenizer = load_tokenizer(path / TOKENIZER)
        if tokenizer.fingerprint() != found.tokenizer:
            raise UserError(f"{path / TOKENIZER} is not the tokenizer that {MODEL} names")
    shapes = shapes_of(found.model, found.preprocess.size, found.context_length)
    table = Table(tuple(Row(name, name) for name in shapes), wrappers=())
    params = import_params(table, read_weights(path / PARAMS).tensors, shapes)
    return Bundle(
        model=found.model,
        params=from_flat(params, found.model),
        preprocess=found.preprocess,
        tokenizer=tokenizer,
        context_length=found.context_length,
        logit_scale=found.logit_scale,
        logit_bias=found.logit_bias,
        origin=found.origin,
    )


def _check_sums(path: Path) -> None:
    if not (path / SUMS).is_file():
        raise UserError(f"{path} is no portable model: it has no {SUMS}")
    lines = (path / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    named = {}
    for line in lines:
        digest, separator, name = line.partition("  ")
        if not separator or Path(name).name != name:
            raise UserError(f"{path / SUMS}: `{line[:80]}` is not a line of sha256sum")
        named[name] = digest
    absent = [name for name in {MODEL, PARAMS, *named} if not (path / name).is_file()]
    if absent:
        raise UserError(f"{path} is not whole: {', '.join(sorted(absent))} is missing")
    changed = [name for name, digest in named.items() if _sha256(path / name) != digest]
    unsigned = [file.name for file in path.iterdir() if file.name not in {SUMS, *named}]
    if changed or unsigned:
        raise UserError(
            f"{path}: {', '.join(changed + unsigned)} changed since it was written; convert again"
        )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """A directory to write into, that appears under its name only when all is there.

    Raises UserError if `path` exists and is not an empty directory.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists: name a new directory")
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    draft.mkdir(parents=True)
    try:
        yield draft
        draft.rename(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
