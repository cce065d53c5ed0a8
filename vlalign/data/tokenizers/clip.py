"""CLIP's tokenizer: byte-level BPE with `</w>`, from OpenAI's file of merges."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

import numpy as np
from tokenizers import Regex, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Library

from vlalign.data.text_clean import clip_clean, clip_clean_ftfy
from vlalign.data.tokenizers.base import (
    CHARACTERS_A_TOKEN,
    Flags,
    Ids,
    Row,
    Rows,
    marked,
    row_length,
    token_list,
)
from vlalign.data.tokenizers.files import find_file, package_folder, read_bytes
from vlalign.errors import UserError

_NAMES = ("bpe_simple_vocab_16e6.txt.gz", "merges.txt")
_MERGES = 49_152 - 256 - 2
_SPECIALS = ("<|startoftext|>", "<|endoftext|>")
_WORDS = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_CLEAN = {"builtin": clip_clean, "ftfy": clip_clean_ftfy}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipBpe:
    """Configuration of CLIP's tokenizer (Radford et al. 2021, 2103.00020, section 2.4).

    vocab: OpenAI's bpe_simple_vocab_16e6.txt.gz, or merges.txt of a model on the Hugging Face hub;
      or a directory with one of them, or the model's directory in the hub's cache. Empty: the file
      of the installed open_clip.
    length: tokens of a row, begin and end included.
    repair: "builtin" cleans as the original does, but leaves mojibake alone; "ftfy" is the original
      to the letter and needs the package ftfy.
    merges: merges that are read from the file; the ids of CLIP's weights have all 48894.
    """

    train_records: ClassVar[int] = 0

    vocab: str = ""
    length: int = 77
    repair: Literal["builtin", "ftfy"] = "builtin"
    merges: int = _MERGES

    def __post_init__(self) -> None:
        if self.length < 3:
            raise UserError(f"ClipBpe.length={self.length}: at least 3, begin, end and one token")
        if self.repair not in _CLEAN:
            raise UserError(f"ClipBpe.repair={self.repair!r}: one of {', '.join(_CLEAN)}")
        if not 0 <= self.merges <= _MERGES:
            raise UserError(f"ClipBpe.merges={self.merges}: 0 to {_MERGES}")

    def train(self, texts: Iterable[str] = ()) -> "ClipTokenizer":
        """The tokenizer of the file; learns nothing from texts.

        Raises UserError if the file is missing or is no list of merges.
        """
        place = self.vocab or package_folder("open_clip")
        if place is None:
            raise UserError(
                "ClipBpe.vocab is empty and open_clip is not installed: give the path of "
                f"{_NAMES[0]}, which github.com/openai/CLIP has in clip/"
            )
        path = find_file(place, _NAMES)
        try:
            lines = read_bytes(path).decode("utf-8").split("\n")[1 : self.merges + 1]
            pairs = [_pair(line, number) for number, line in enumerate(lines, 2)]
        except ValueError as error:
            raise UserError(f"{path} is not a list of merges: {error}") from error
        if len(pairs) < self.merges:
            raise UserError(f"{path} has {len(pairs)} merges, expected {self.merges}: cut short?")
        try:
            library = _library(pairs, self.length)
        except Exception as error:  # the library raises bare Exception for a merge of no tokens
            raise UserError(f"{path} is not a list of merges: {error}") from error
        state = {"vlalign": "clip", "repair": self.repair, "tokenizer": json.loads(library)}
        return ClipTokenizer(json.dumps(state, ensure_ascii=False, separators=(",", ":")))


def _pair(line: str, number: int) -> tuple[str, str]:
    parts = line.split()
    if len(parts) != 2:
        raise ValueError(f"line {number} is {line[:40]!r}, not two tokens")
    return parts[0], parts[1]


def _bytes_in_order() -> dict[int, str]:
    """Byte -> the visible character that stands for it, in the order of CLIP's ids."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {b: chr(256 + i) for i, b in enumerate(hidden)}


_BYTE = {character: byte for byte, character in _bytes_in_order().items()}


def _library(pairs: list[tuple[str, str]], length: int) -> str:
    tokens = [*_BYTE, *(f"{c}</w>" for c in _BYTE), *map("".join, pairs), *_SPECIALS]
    vocab = {token: index for index, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        raise ValueError("two merges give the same token")
    library = Library(models.BPE(vocab=vocab, merges=pairs, end_of_word_suffix="</w>"))
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    begin, end = _SPECIALS
    library.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(s, vocab[s]) for s in _SPECIALS]
    )
    library.enable_truncation(length)
    library.enable_padding(length=length, pad_id=0, pad_token=tokens[0])
    return library.to_str()


class ClipTokenizer(Rows):
    """CLIP's rows [begin, tokens..., end, 0...] of a fixed length, made by `ClipBpe`.

    A text that spells a special token is a text like any other: in the originals it becomes the
    token itself, and a caption could so end its own row. (They disagree on the spelling.)
    """

    pad_id = 0

    def __init__(self, text: str) -> None:
        super().__init__(text)
        state = json.loads(text)
        self._clean = _CLEAN[state["repair"]]
        self._library = Library.from_str(json.dumps(state["tokenizer"]))
        self.length = row_length(self._library)
        self._tokens = token_list(self._library)
        self.bos_id, self.eos_id = (self._tokens.index(token) for token in _SPECIALS)
        longest = max(len(token or "") for token in self._tokens)
        self._limit = self.length * (longest + 1)  # a space before each token

    @property
    def vocab_size(self) -> int:
        return len(self._tokens)

    @property
    def special_ids(self) -> tuple[int, ...]:
        return (self.bos_id, self.eos_id)

    def _encode(self, texts: list[str]) -> list[Row]:
        most = max(1 << 14, self.length * CHARACTERS_A_TOKEN)
        clean = [self._clean(text[:most]) for text in texts]
        encodings = self._library.encode_batch_fast([text[: self._limit] for text in clean])
        return [
            (
                np.array(e.ids, np.int32),
                bool(e.overflowing) or len(c) > self._limit or len(t) > most,
            )
            for t, c, e in zip(texts, clean, encodings, strict=True)
        ]

    def text_places(self, ids_nl: Ids) -> Flags:
        """As in `Rows`; here padding has the id of the token `!`, so the end token tells."""
        ended = np.cumsum(ids_nl == self.eos_id, axis=1) > 0
        return super().text_places(ids_nl) & ~ended

    def decode(self, ids: Sequence[int]) -> str:
        """The cleaned text of one row up to its end token, its words apart."""
        out = []
        for index in ids:
            if index == self.eos_id:
                break
            if index != self.bos_id:
                out.append(self._tokens[int(index)] or "")
        words = "".join(out).split("</w>")
        data = [bytes(_BYTE[character] for character in word) for word in words]
        return b" ".join(data).decode("utf-8", "replace").rstrip(" ")

    def _marks(self) -> tuple[None, Flags]:
        return None, marked(self._tokens, "</w>", end=True)
