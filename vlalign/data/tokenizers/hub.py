"""Any tokenizer of the Hugging Face hub, from its `tokenizer.json`."""

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from tokenizers import Tokenizer as Library

from vlalign.data.text_clean import CLEAN
from vlalign.data.tokenizers.base import (
    CHARACTERS_A_TOKEN,
    Flags,
    Row,
    Rows,
    marked,
    row_length,
    token_list,
)
from vlalign.data.tokenizers.files import find_file, read_bytes
from vlalign.errors import UserError, nearest

_NAMES = ("tokenizer.json",)
_PADS = ("<pad>", "[PAD]", "<|pad|>", "<|endoftext|>", "</s>", "<eos>")
# Marks of a token that begins a word (byte-level BPE, Unigram) in the files of the hub.
_SPACES = ("\u0120", "\u2581")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubTokenizer:
    """Configuration of a tokenizer in the Hugging Face format.

    path: a tokenizer.json, a directory with one, or a model's directory in the hub's cache.
    length: tokens of a row; those that the file adds at the ends are included and never cut off.
    pad: token that fills a row on the right; empty: the file's own, else a usual one that it has.
    clean: what is done to a text before the file's own normalisation: "none", "space" collapses
      white space, "lower" drops case too, "canonical" drops ASCII punctuation too.
    """

    train_records: ClassVar[int] = 0

    path: str
    length: int = 77
    pad: str = ""
    clean: Literal["none", "space", "lower", "canonical"] = "none"

    def __post_init__(self) -> None:
        if self.length < 3:
            raise UserError(f"HubTokenizer.length={self.length}: at least 3")
        if self.clean not in CLEAN:
            raise UserError(f"HubTokenizer.clean={self.clean!r}{nearest(self.clean, CLEAN)}")

    def train(self, texts: Iterable[str] = ()) -> "HubRows":
        """The tokenizer of the file; learns nothing from texts.

        Raises UserError if the file is missing, is none, or has no token to fill rows with.
        """
        path = find_file(self.path, _NAMES)
        try:
            library = Library.from_str(read_bytes(path).decode("utf-8"))
        except Exception as error:  # the library raises bare Exception for a wrong structure
            raise UserError(f"{path} is not a tokenizer.json: {error}") from error
        token, index = self._padding(library, str(path))
        library.no_padding()
        library.enable_padding(direction="right", length=self.length, pad_id=index, pad_token=token)
        library.no_truncation()
        if self.length <= library.num_special_tokens_to_add(is_pair=False):
            raise UserError(f"HubTokenizer.length={self.length}: {path} adds as many by itself")
        library.enable_truncation(self.length, direction="right")
        state = {"vlalign": "hub", "clean": self.clean, "tokenizer": json.loads(library.to_str())}
        return HubRows(json.dumps(state, ensure_ascii=False, separators=(",", ":")))

    def _padding(self, library: Any, path: str) -> tuple[str, int]:
        own = [library.padding["pad_token"]] if library.padding else []
        for token in [self.pad] if self.pad else [*own, *_PADS]:
            index = library.token_to_id(token)
            if index is not None:
                return token, index
        if self.pad:
            raise UserError(f"HubTokenizer.pad={self.pad!r}: {path} has no such token")
        raise UserError(
            f"{path} has none of {', '.join(_PADS)}: name the token in HubTokenizer.pad"
        )


def _apart(found: re.Match[str]) -> str:
    return f"{found[0][0]} {found[0][1:]}"


class HubRows(Rows):
    """Rows of a tokenizer.json, padded and cut on the right, made by `HubTokenizer`.

    A text that spells a special token is a text like any other (to a Unigram or word model, which
    knows its special tokens as words, with a space in it).
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._state = json.loads(text)
        self._clean = CLEAN[self._state["clean"]]
        self._library = Library.from_str(json.dumps(self._state["tokenizer"]))
        self._library.encode_special_tokens = True
        self._tokens = token_list(self._library)
        self.length = row_length(self._library)
        self.pad_id: int = self._state["tokenizer"]["padding"]["pad_id"]
        added = self._library.get_added_tokens_decoder().items()
        marks = self._library.encode("").ids  # what stands around every text
        special = {index for index, token in added if token.special} | {self.pad_id, *marks}
        self._special = tuple(sorted(special))
        self._spelled = self._spellings()

    def _spellings(self) -> re.Pattern[str] | None:
        """What finds special tokens in a text, if the model would take them for its own pieces."""
        spelled = [token for index in self._special if (token := self._tokens[index])]
        if self._state["tokenizer"]["model"]["type"] not in ("Unigram", "WordLevel") or not spelled:
            return None
        return re.compile("|".join(re.escape(token) for token in sorted(spelled, key=len)))

    def _as_text(self, text: str) -> str:
        text = self._clean(text)
        return self._spelled.sub(_apart, text) if self._spelled else text

    @property
    def vocab_size(self) -> int:
        return len(self._tokens)

    @property
    def special_ids(self) -> tuple[int, ...]:
        return self._special

    def _encode(self, texts: list[str]) -> list[Row]:
        limit = max(1 << 14, self.length * CHARACTERS_A_TOKEN)
        encodings = self._library.encode_batch_fast([self._as_text(text[:limit]) for text in texts])
        return [
            (np.array(encoding.ids, np.int32), bool(encoding.overflowing) or len(text) > limit)
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._library.decode([int(i) for i in ids], skip_special_tokens=True)
        return text.removeprefix(" ")

    def _marks(self) -> tuple[Flags | None, Flags | None]:
        model = self._state["tokenizer"]["model"]
        if model.get("end_of_word_suffix"):
            return None, marked(self._tokens, model["end_of_word_suffix"], end=True)
        if model["type"] == "WordPiece":
            return ~marked(self._tokens, model["continuing_subword_prefix"]), None
        for mark in _SPACES:
            begins = marked(self._tokens, mark)
            if begins.any():
                return begins, None
        return super()._marks()
