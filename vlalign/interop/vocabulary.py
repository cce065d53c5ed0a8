"""Tokenizers beside other people's weights, found by the files that they are kept in."""

import base64
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from vlalign.data.tokenizer import Tokenizer
from vlalign.data.tokenizers.base import TextTokenizer
from vlalign.data.tokenizers.clip import ClipBpe, ClipTokenizer
from vlalign.data.tokenizers.files import package_folder
from vlalign.data.tokenizers.hub import HubRows, HubTokenizer
from vlalign.data.tokenizers.pieces import PieceRows, SentencePiece
from vlalign.errors import UserError
from vlalign.interop.settings import read_json

# CLIP's ids are 256 bytes, 256 that end a word, the merges, begin and end.
_BEFORE_MERGES = 514
_MERGES = ("bpe_simple_vocab_16e6.txt.gz", "merges.txt")
_PIECES = ("spiece.model", "tokenizer.model", "sentencepiece.model")
_JSON = "tokenizer.json"

Place = Path | None
Given = Path | Literal["none"] | None
"""--tokenizer: a file or a directory; "none" for a model without one; None to look beside it."""


def find_tokenizer(
    given: Given, beside: Place, make: Callable[[Path], TextTokenizer], names: Sequence[str]
) -> TextTokenizer | None:
    """What `make` makes of the first of `names` in `given`, or beside the weights.

    Raises UserError if there is none and the model was not asked for without.
    """
    if given == "none":
        return None
    place = beside if given is None else given
    if place is not None and place.is_file():
        return make(place)
    for name in names if place is not None else ():
        if (place / name).is_file():  # type: ignore[operator]
            return make(place / name)  # type: ignore[operator]
    raise UserError(
        f"no tokenizer: {place or 'nothing beside the weights'} holds none of {', '.join(names)}; "
        "name its file with --tokenizer FILE, or leave it out with --tokenizer none"
    )


def clip_tokenizer(given: Given, beside: Place, length: int, vocab: int) -> TextTokenizer | None:
    """CLIP's own, from the files of merges beside the weights or of an installed open_clip.

    length: tokens of a row.   vocab: rows of the model's token table.
    """
    package = package_folder("open_clip")
    names = (*_MERGES, _JSON)
    found = beside is not None and any((beside / name).is_file() for name in names)
    if given is None and not found and package is not None:
        beside = Path(package)
    merges = min(48_894, vocab - _BEFORE_MERGES)

    def make(path: Path) -> TextTokenizer:
        if path.name != _JSON:
            return ClipBpe(vocab=str(path), length=length, merges=merges).train()
        return _clip_of_json(path, length)

    return find_tokenizer(given, beside, make, names)


def _clip_of_json(path: Path, length: int) -> TextTokenizer:
    """CLIP's from a tokenizer.json, whose merges and ids must be in CLIP's order."""
    model = read_json(path).get("model", {})
    try:
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        ids = {str(token): int(index) for token, index in model["vocab"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is no byte-pair tokenizer: {error!r}") from error
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "merges.txt"
        file.write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
        made = ClipBpe(vocab=str(file), length=length, merges=len(merges)).train()
    own = _state(made)["tokenizer"]["model"]["vocab"]
    if ids != {token: own.get(token) for token in ids}:
        raise UserError(f"{path} gives other ids than CLIP's tokenizer: it is not CLIP's")
    return made


def siglip_tokenizer(
    given: Given, beside: Place, length: int, *, gemma: bool | None
) -> TextTokenizer | None:
    """SigLIP's SentencePiece model, or Gemma's for SigLIP 2.

    gemma: which; None: by the file's name, `tokenizer.*` being Gemma's.
    """

    def make(path: Path) -> TextTokenizer:
        second = path.name.startswith("tokenizer.") if gemma is None else gemma
        if path.name == _JSON:
            clean: Any = "lower" if second else "canonical"
            return HubTokenizer(path=str(path), length=length, clean=clean).train()
        if second:
            return SentencePiece(path=str(path), length=length, clean="lower", fill="pad").train()
        return SentencePiece(path=str(path), length=length).train()

    return find_tokenizer(given, beside, make, (*_PIECES, _JSON))


def hub_tokenizer(given: Given, beside: Place, length: int, clean: Any) -> TextTokenizer | None:
    """Any tokenizer in the hub's format."""

    def make(path: Path) -> TextTokenizer:
        return HubTokenizer(path=str(path), length=length, clean=clean).train()

    return find_tokenizer(given, beside, make, (_JSON,))


def _state(tokenizer: Any) -> dict[str, Any]:
    """The JSON of a tokenizer's own file."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder) / _JSON)
        return read_json(Path(folder) / _JSON)


def write_tokenizer(folder: Path, tokenizer: TextTokenizer) -> tuple[str, ...]:
    """Writes the files that other libraries read a tokenizer from; what stays with us, as notes."""
    state = _state(tokenizer)
    if isinstance(tokenizer, ClipTokenizer):
        model = state["tokenizer"]["model"]
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        _write(folder / "vocab.json", model["vocab"])
        lines = ["#version: 0.2", *merges, ""]
        (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
        special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
        special |= {"unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
        kind: dict[str, Any] = {"tokenizer_class": "CLIPTokenizer", "do_lower_case": True}
        kind |= {"model_max_length": tokenizer.length, **special}
        _write(folder / "tokenizer_config.json", kind)
        return ()
    if isinstance(tokenizer, PieceRows):
        return _write_pieces(folder, tokenizer, state)
    if isinstance(tokenizer, HubRows):
        _write(folder / _JSON, state["tokenizer"])
        clean = state["clean"]
        return (
            (f"texts must be cleaned ({clean}) before tokenizer.json",) if clean != "none" else ()
        )
    if isinstance(tokenizer, Tokenizer):
        _write(folder / _JSON, state)
        return ()
    raise UserError(f"{type(tokenizer).__name__} has no form that other libraries read")


def _write_pieces(folder: Path, tokenizer: PieceRows, state: dict[str, Any]) -> tuple[str, ...]:
    """SigLIP's or Gemma's file, by what is done to texts and how rows are filled."""
    sticky = tokenizer.pad_id == tokenizer.eos_id
    kinds = {("canonical", True): 0, ("lower", False): 1}
    if (state["clean"], sticky) not in kinds:
        fill = "end" if sticky else "pad"
        raise UserError(
            f"a tokenizer with clean={state['clean']!r} and fill={fill!r} is neither SigLIP's nor "
            "SigLIP 2's, and has no form that other libraries read"
        )
    second = kinds[state["clean"], sticky] == 1
    name, kind = (_PIECES[1], "GemmaTokenizer") if second else (_PIECES[0], "SiglipTokenizer")
    (folder / name).write_bytes(base64.b64decode(state["model"]))
    _write(
        folder / "tokenizer_config.json",
        {"tokenizer_class": kind, "model_max_length": tokenizer.length},
    )
    return (f"texts must be put in lower case before {name}",) if second else ()


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
