"""SentencePiece models as SigLIP uses them; needs the package sentencepiece."""

import base64
import dataclasses
import importlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from vlalign.data.text_clean import CLEAN
from vlalign.data.tokenizers.base import CHARACTERS_A_TOKEN, Flags, Row, Rows, marked
from vlalign.data.tokenizers.files import find_file, read_bytes
from vlalign.errors import UserError, nearest

_NAMES = ("spiece.model", "tokenizer.model", "sentencepiece.model")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentencePiece:
    """Configuration of a SentencePiece model (Kudo and Richardson 2018, 1808.06226).

    The defaults are SigLIP's on c4_en (Zhai et al. 2023, 2303.15343; big_vision `tokenize` with
    eos="sticky", pad_value=1): every row ends in the end token, also a cut one, and the end token
    fills it up. SigLIP 2 on Gemma's model: clean="lower", fill="pad".

    path: the model file, a directory with one, or a model's directory in the hub's cache.
    length: tokens of a row, the end token included.
    clean: what is done to a text first: "canonical" drops case and ASCII punctuation, "lower" case,
      "space" collapses white space, "none" nothing.
    fill: what fills a row behind the end token: "end", that token again, or "pad", the model's own.
    """

    train_records: ClassVar[int] = 0

    path: str
    length: int = 64
    clean: Literal["canonical", "lower", "space", "none"] = "canonical"
    fill: Literal["end", "pad"] = "end"

    def __post_init__(self) -> None:
        if self.length < 2:
            raise UserError(f"SentencePiece.length={self.length}: at least 2, a token and the end")
        for name, valid in (("clean", tuple(CLEAN)), ("fill", ("end", "pad"))):
            value = getattr(self, name)
            if value not in valid:
                raise UserError(f"SentencePiece.{name}={value!r}{nearest(value, valid)}")

    def train(self, texts: Iterable[str] = ()) -> "PieceRows":
        """The tokenizer of the model file; learns nothing from texts.

        Raises UserError if the file is missing or is no model, or sentencepiece is not installed.
        """
        path = find_file(self.path, _NAMES)
        model = read_bytes(path)
        processor = _processor(model, str(path))
        if processor.eos_id() < 0:
            raise UserError(f"{path} has no end token; train the model with one")
        if self.fill == "pad" and processor.pad_id() < 0:
            raise UserError(f"SentencePiece.fill='pad': {path} has no padding token; use 'end'")
        state = {
            "vlalign": "pieces",
            "length": self.length,
            "clean": self.clean,
            "pad_id": processor.eos_id() if self.fill == "end" else processor.pad_id(),
            "model": base64.b64encode(model).decode("ascii"),
        }
        return PieceRows(json.dumps(state, separators=(",", ":")))


def _processor(model: bytes, name: str) -> Any:
    try:
        library = importlib.import_module("sentencepiece")
    except ImportError as error:
        raise UserError(
            "SentencePiece needs the package sentencepiece: pip install sentencepiece"
        ) from error
    try:
        return library.SentencePieceProcessor(model_proto=model)
    except Exception as error:  # the library raises RuntimeError and its own
        raise UserError(f"{name} is not a SentencePiece model: {error}") from error


class PieceRows(Rows):
    """Rows [tokens..., end, fill...] of a SentencePiece model, made by `SentencePiece`."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        state = json.loads(text)
        self._clean = CLEAN[state["clean"]]
        self._library = _processor(base64.b64decode(state["model"]), "the saved tokenizer")
        self.length: int = state["length"]
        self.pad_id: int = state["pad_id"]
        self.eos_id: int = self._library.eos_id()

    @property
    def vocab_size(self) -> int:
        return int(self._library.vocab_size())

    @property
    def special_ids(self) -> tuple[int, ...]:
        library = self._library
        named = {self.pad_id, library.pad_id(), library.bos_id(), library.eos_id()}
        return tuple(sorted(index for index in named if index >= 0))

    def _encode(self, texts: list[str]) -> list[Row]:
        limit = max(1 << 14, self.length * CHARACTERS_A_TOKEN)
        clean = [self._clean(text[:limit]) for text in texts]
        rows = []
        for text, tokens in zip(texts, self._library.encode(clean, num_threads=1), strict=True):
            row = np.full(self.length, self.pad_id, np.int32)
            kept = tokens[: self.length - 1]
            row[: len(kept)] = kept
            row[len(kept)] = self.eos_id
            rows.append((row, len(tokens) > len(kept) or len(text) > limit))
        return rows

    def decode(self, ids: Sequence[int]) -> str:
        special = self.special_ids
        return str(self._library.decode([int(i) for i in ids if int(i) not in special]))

    def _marks(self) -> tuple[Flags, None]:
        pieces = [self._library.id_to_piece(index) for index in range(self.vocab_size)]
        return marked(pieces, "\u2581"), None
