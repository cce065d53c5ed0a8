"""Any kind of model in, any kind out: which format it is, and whether it comes back the same."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from vlalign.errors import UserError
from vlalign.interop import bundle as portable
from vlalign.interop import hub
from vlalign.interop.bundle import Bundle, whole_directory
from vlalign.interop.dtypes import Dtype
from vlalign.interop.formats import big_vision, hugging_face, open_clip
from vlalign.interop.numerics import Target, check_numerics
from vlalign.interop.read.weights import read_weights
from vlalign.interop.vocabulary import Given

Kind = Literal["vlalign", "open_clip", "hf"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_WRITERS: Mapping[Kind, Callable[[Path, Bundle, Dtype], tuple[str, ...]]] = {
    "open_clip": open_clip.write,
    "hf": hugging_face.write,
}


def load(
    source: str, *, config: Path | None = None, tokenizer: Given = None, trust: tuple[str, ...] = ()
) -> Bundle:
    """The model in a directory, in a file, or at `hf://org/name`.

    config: of a lone file of weights in open_clip's names.   tokenizer: its file; "none": leave it
    out; None: what lies beside the weights.   trust: see `tree.loads`, for vlalign's own form.
    Raises UserError that says what was looked for, and everything that does not fit.
    """
    path = hub.resolve(source) if source.startswith(hub.SCHEME) else Path(source)
    if path.is_file():
        return _load_file(path, config, tokenizer)
    if not path.is_dir():
        raise UserError(f"no such file or directory: {source}")
    if config is not None:
        raise UserError(f"--config belongs to a lone file of weights; {path} is a directory")
    if (path / portable.MODEL).is_file():
        return _own(path, tokenizer, trust)
    both = (path / hugging_face.CONFIG).is_file()
    if (path / open_clip.CONFIG).is_file() and (open_clip.has_weights(path) or not both):
        return open_clip.read_directory(path, tokenizer)
    if both:
        return hugging_face.read_directory(path, tokenizer)
    arrays = sorted(path.glob("*.npz"))
    if len(arrays) == 1:
        return big_vision.read_file(arrays[0], tokenizer)
    raise UserError(
        f"{path} is no model: it has neither {portable.MODEL} (vlalign), {open_clip.CONFIG} "
        f"(open_clip), {hugging_face.CONFIG} (Hugging Face) nor one .npz (big_vision)"
    )


def _own(path: Path, tokenizer: Given, trust: tuple[str, ...]) -> Bundle:
    bundle = portable.load_bundle(path, allow_modules=trust)
    if tokenizer == "none":
        return dataclasses.replace(bundle, tokenizer=None)
    if tokenizer is not None:
        raise UserError(f"{path} has its own tokenizer: leave --tokenizer out, or say `none`")
    return bundle


def load_over(source: str, target: Target, *, tokenizer: Given = None) -> Bundle:
    """`load`, for towers that are there already; UserError where they would give other numbers."""
    bundle = load(source, tokenizer=tokenizer)
    check_numerics(bundle, target)
    return bundle


def _load_file(path: Path, config: Path | None, tokenizer: Given) -> Bundle:
    if path.suffix == ".npz" or big_vision.is_two_towers(read_weights(path).tensors):
        return big_vision.read_file(path, tokenizer)
    return open_clip.read_file(path, config, tokenizer)


def save(path: Path, bundle: Bundle, kind: Kind, *, dtype: Dtype = "float32") -> tuple[str, ...]:
    """Writes a directory of a kind, whole or not at all; returns notes for people.

    dtype: of the parameters in the file; less than float32 rounds them.
    Raises UserError if there is something at `path`, or if this kind cannot hold the model.
    """
    if kind == "vlalign":
        portable.save_bundle(path, bundle, dtype=dtype)
        return ()
    with whole_directory(path) as draft:
        return _WRITERS[kind](draft, bundle, dtype)


def check_same(path: Path, bundle: Bundle, *, trust: tuple[str, ...] = ()) -> int:
    """Reads a written directory again; the number of parameters, every one equal bit by bit.

    Raises UserError naming those that are not, or what else came back otherwise.
    """
    tokenizer: Given = "none" if bundle.tokenizer is None else None
    again = load(str(path), tokenizer=tokenizer, trust=trust)
    ours, theirs = bundle.flat(), again.flat()
    wrong = [name for name in sorted(ours.keys() ^ theirs.keys())]
    wrong += [n for n in ours.keys() & theirs.keys() if not _same_bits(ours[n], theirs[n])]
    if wrong:
        raise UserError(f"{path}: {len(wrong)} parameters came back otherwise: {wrong[:10]}")
    for name in ("preprocess", "context_length"):
        if getattr(bundle, name) != getattr(again, name):
            raise UserError(f"{path}: {name} came back as {getattr(again, name)}")
    tokenizers = [made.fingerprint() for made in (bundle.tokenizer, again.tokenizer) if made]
    if len(set(tokenizers)) > 1:
        raise UserError(f"{path}: the tokenizer came back as another one")
    return sum(array.size for array in ours.values())


def _same_bits(x: np.ndarray, y: np.ndarray) -> bool:
    return x.shape == y.shape and x.dtype == y.dtype and x.tobytes() == y.tobytes()
