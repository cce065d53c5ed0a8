"""Text to token ids: byte-level BPE, trained on the run's own captions and saved with the run.

The file is a standard `tokenizer.json` of the `tokenizers` library: it holds the normaliser, the
row's length, the special tokens and the padding, so any reader of that format agrees with us.
"""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import (
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers import Tokenizer as Library

from vlalign.data.tokenizers.base import (
    CHARACTERS_A_TOKEN,
    Flags,
    Row,
    Rows,
    marked,
    row_length,
    token_list,
)
from vlalign.errors import UserError

SPECIALS = ("<pad>", "<s>", "</s>")
_ALPHABET = 256  # of bytes: no text is unknown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bpe:
    """Configuration of a tokenizer trained on the run's captions.

    vocab_size: most tokens, the 3 special ones and 256 bytes included.
    length: tokens of a row, <s> and </s> included.
    lowercase: whether case is dropped.
    train_records: most records whose captions train it, spread evenly over the source.
    """

    vocab_size: int = 4096
    length: int = 32
    lowercase: bool = True
    train_records: int = 100_000

    def __post_init__(self) -> None:
        least = _ALPHABET + len(SPECIALS)
        if self.vocab_size < least:
            raise UserError(f"Bpe.vocab_size={self.vocab_size}: at least {least}, the bytes alone")
        if self.length < 3:
            raise UserError(f"Bpe.length={self.length}: at least 3, <s> and </s> and one token")
        if self.train_records < 1:
            raise UserError(f"Bpe.train_records={self.train_records}: at least 1")

    def train(self, texts: Iterable[str]) -> "Tokenizer":
        """A tokenizer for these texts; the same texts, in any order, give the same tokenizer.

        Raises UserError if there is no text at all.
        """
        texts = [text for text in texts if text.strip()]
        if not texts:
            raise UserError("no captions to train a tokenizer on: the data set or view has none")
        library = Library(models.BPE())
        steps = [normalizers.NFKC(), *([normalizers.Lowercase()] if self.lowercase else [])]
        steps += [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
        library.normalizer = normalizers.Sequence(steps)
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        library.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            special_tokens=list(SPECIALS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        library.train_from_iterator(texts, trainer)
        pad, bos, eos = SPECIALS
        library.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A {eos}", special_tokens=[(bos, 1), (eos, 2)]
        )
        library.enable_truncation(self.length)
        library.enable_padding(length=self.length, pad_id=0, pad_token=pad)
        return Tokenizer(library.to_str())


class Tokenizer(Rows):
    """A trained tokenizer: rows [<s>, tokens..., </s>, <pad>...] of a fixed length.

    json: the text of a `tokenizer.json` with truncation and padding to the row's length.
    `Tokenizer.load(path)` reads a file; pickling carries the json.
    """

    pad_id, bos_id, eos_id = 0, 1, 2

    def __init__(self, json: str) -> None:
        super().__init__(json)
        self._library = Library.from_str(json)
        # A caption with "</s>" in it is a text like any other.
        self._library.encode_special_tokens = True
        for index, token in enumerate(SPECIALS):
            if self._library.token_to_id(token) != index:
                raise ValueError(f"the token {token!r} must have id {index}")
        self.length = row_length(self._library)

    @property
    def vocab_size(self) -> int:
        """The number of tokens, special ones included."""
        return self._library.get_vocab_size()

    @property
    def special_ids(self) -> tuple[int, ...]:
        return (self.pad_id, self.bos_id, self.eos_id)

    def _encode(self, texts: list[str]) -> list[Row]:
        limit = self.length * CHARACTERS_A_TOKEN
        encodings = self._library.encode_batch_fast([text[:limit] for text in texts])
        return [
            (np.array(encoding.ids, np.int32), bool(encoding.overflowing) or len(text) > limit)
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """The normalised text of one row, special tokens left out."""
        text = self._library.decode([int(i) for i in ids], skip_special_tokens=True)
        return text.removeprefix(" ")  # that the pre-tokeniser adds, so that all words are alike

    def _marks(self) -> tuple[Flags, None]:
        return marked(token_list(self._library), "\u0120"), None

    @staticmethod
    def load(path: Path | str) -> "Tokenizer":
        """Read a saved tokenizer; UserError naming the file if it is missing or damaged."""
        try:
            text = Path(path).read_text(encoding="utf-8")
            json.loads(text)
            return Tokenizer(text)
        except OSError as error:
            raise UserError(f"cannot read the tokenizer {path}: {error.strerror}") from error
        except Exception as error:  # the library raises bare Exception for a wrong structure
            raise UserError(f"{path} is not a tokenizer of vlalign: {error}") from error
