"""What all tokenizers share: rows of a fixed length, remembered; a file; where words begin."""

import abc
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vlalign.data.text_clean import joined_surrogates
from vlalign.errors import UserError

Ids = NDArray[np.int32]
Flags = NDArray[np.bool_]
Row = tuple[Ids, bool]

_CACHE_ROWS = 65_536
_CACHE_CHARACTERS = 1024  # longer texts are rare, and their rows not worth their bytes
# Longer texts are cut, and counted as truncated, before they cost time: no row could hold them.
CHARACTERS_A_TOKEN = 64


@runtime_checkable
class TextTokenizer(Protocol):
    """Texts to rows of token ids.

    length: tokens of a row. vocab_size: one more than the largest id. pad_id: of the places after
    the text. special_ids: ids that no word has: begin, end, padding.
    """

    length: int
    pad_id: int

    @property
    def vocab_size(self) -> int: ...

    @property
    def special_ids(self) -> tuple[int, ...]: ...

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Flags]:
        """Ids (n, length) int32, and whether each text was cut (n,) bool. Takes any text."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of one row, special tokens left out."""

    def text_places(self, ids_nl: Ids) -> Flags:
        """Which tokens are of the text, (n, l): not special, and not padding behind the end."""

    def word_starts(self, ids_nl: Ids) -> Flags:
        """Whether a word begins at each token, (n, l); UserError if the tokens do not tell."""

    def fingerprint(self) -> str:
        """sha256 over all that decides the ids."""

    def save(self, path: Path | str) -> None:
        """Write everything into one file that `load_tokenizer` reads."""


@runtime_checkable
class TokenizerConfig(Protocol):
    """How a run comes by its tokenizer.

    train_records: most records whose captions it wants to see; 0 if it has its vocabulary.
    """

    @property
    def train_records(self) -> int: ...

    def train(self, texts: Iterable[str], /) -> TextTokenizer:
        """The tokenizer, learned from these texts if it learns at all."""


class Rows(abc.ABC):
    """A tokenizer that is made from one text, its file; equal texts are equal tokenizers."""

    length: int
    pad_id: int

    def __init__(self, text: str) -> None:
        self._json = text
        self._rows: dict[str, Row] = {}

    def __reduce__(self) -> tuple[type["Rows"], tuple[str]]:
        return type(self), (self._json,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self._json == other._json

    def __hash__(self) -> int:
        return hash(self._json)

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """The number of tokens, special ones included."""

    @property
    @abc.abstractmethod
    def special_ids(self) -> tuple[int, ...]:
        """Ids that no word has: begin, end, padding."""

    @abc.abstractmethod
    def _encode(self, texts: list[str]) -> list[Row]:
        """A row for each text, and whether it was cut."""

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The normalised text of one row, special tokens left out."""

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Flags]:
        """Ids (n, length) int32, and whether each text was cut (n,) bool; the last token of a cut
        row is the end token still, if there is one. Rows of recent texts are remembered.
        """
        rows = self._rows
        found = [rows.get(text) for text in texts]
        missing = list(dict.fromkeys(t for t, row in zip(texts, found, strict=True) if row is None))
        if missing:
            safe = [joined_surrogates(text) for text in missing]
            fresh = dict(zip(missing, self._encode(safe), strict=True))
            if len(rows) + len(fresh) > _CACHE_ROWS:
                self._rows = rows = {}
            rows.update((text, row) for text, row in fresh.items() if len(text) < _CACHE_CHARACTERS)
            pairs = zip(texts, found, strict=True)
            found = [fresh[text] if row is None else row for text, row in pairs]
        ids = np.empty((len(texts), self.length), np.int32)
        cut = np.empty(len(texts), np.bool_)
        for index, row in enumerate(found):
            assert row is not None  # every missing text was encoded above
            ids[index], cut[index] = row
        return ids, cut

    def text_places(self, ids_nl: Ids) -> Flags:
        """Which tokens are of the text, (n, l): not special, and not padding behind the end."""
        return ~np.isin(ids_nl, self.special_ids)

    def word_starts(self, ids_nl: Ids) -> Flags:
        """Whether a word begins at each token, (n, l); a special token is a word of its own.

        Raises UserError if the tokens do not tell.
        """
        begins, ends = self._marks()
        starts = np.ones(ids_nl.shape, np.bool_)
        if begins is not None:
            starts &= begins[ids_nl]
        if ends is not None:
            starts[:, 1:] &= ends[ids_nl[:, :-1]]
        special = np.isin(ids_nl, self.special_ids)
        starts |= special
        starts[:, 1:] |= special[:, :-1]
        return starts

    def _marks(self) -> tuple[Flags | None, Flags | None]:
        """Tables (vocab_size,): whether a token begins a word, whether it ends one."""
        raise UserError(f"the tokens of {type(self).__name__} do not tell where words begin")

    def fingerprint(self) -> str:
        """sha256 of the tokenizer's file."""
        return hashlib.sha256(self._json.encode()).hexdigest()

    def save(self, path: Path | str) -> None:
        """Write the tokenizer's file; it appears under its name only when complete."""
        partial = Path(f"{path}.partial")
        partial.write_text(self._json, encoding="utf-8")
        partial.replace(path)


def marked(tokens: Sequence[str | None], mark: str, *, end: bool = False) -> Flags:
    """A table: which tokens start (or end) with a mark."""
    test = str.endswith if end else str.startswith
    return np.array([token is not None and test(token, mark) for token in tokens], np.bool_)


def token_list(library: Any) -> list[str | None]:
    """Id -> token of a `tokenizers` library object; None where an id has none."""
    by_token = library.get_vocab(with_added_tokens=True)
    tokens: list[str | None] = [None] * (max(by_token.values(), default=-1) + 1)
    for token, index in by_token.items():
        tokens[index] = token
    return tokens


def row_length(library: Any) -> int:
    """Tokens of a row of a `tokenizers` library object; ValueError if it has no such length."""
    if library.truncation is None or library.padding is None:
        raise ValueError("truncation and padding to a row's length must be part of it")
    return int(library.truncation["max_length"])
