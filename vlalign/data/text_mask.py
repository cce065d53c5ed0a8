"""Masked language modelling on rows of token ids."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlalign.data.captions import CaptionView
from vlalign.data.record import Record
from vlalign.data.tokenizers.base import Flags, Ids, TextTokenizer
from vlalign.errors import UserError


class Masked(NamedTuple):
    """A row with some tokens hidden: the model sees ids_l and predicts targets_l where mask_l.

    ids_l: int32 (l,). targets_l: int32 (l,), the row as it was. mask_l: bool (l,).
    """

    ids_l: Ids
    targets_l: Ids
    mask_l: Flags


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskTokens:
    """Which tokens are hidden, and how (Devlin et al. 2019, 1810.04805, section 3.1, task 1).

    Special tokens and padding are never chosen. Of a row with any text at least one token is.

    share: of the row's tokens that are chosen.
    mask: of the chosen ones, the share that becomes the mask token.
    random: of the chosen ones, the share that becomes a random word token; the rest stays.
    whole_words: whether all tokens of a word are chosen together.
    mask_id: of the mask token; None: one past the tokenizer's last, for which the text tower's
      vocab_size must have room.
    """

    share: float = 0.15
    mask: float = 0.8
    random: float = 0.1
    whole_words: bool = False
    mask_id: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise UserError(f"MaskTokens.share={self.share}: above 0, at most 1")
        if not (self.mask >= 0.0 and self.random >= 0.0 and self.mask + self.random <= 1.0):
            raise UserError(
                f"MaskTokens.mask={self.mask}, random={self.random}: shares of one whole"
            )
        if self.mask_id is not None and self.mask_id < 0:
            raise UserError(f"MaskTokens.mask_id={self.mask_id}: 0 or more")

    def vocab_size(self, tokenizer: TextTokenizer) -> int:
        """The rows that an embedding of masked ids needs."""
        return max(tokenizer.vocab_size, self._mask_id(tokenizer) + 1)

    def __call__(self, ids_l: Ids, tokenizer: TextTokenizer, rng: np.random.Generator) -> Masked:
        """One row (l,) masked; UserError if whole words are asked of tokens that tell of none."""
        chosen = self._choose(ids_l, tokenizer, rng)
        u = rng.random(len(chosen))
        ids = ids_l.copy()
        ids[chosen[u < self.mask]] = self._mask_id(tokenizer)
        changed = chosen[(u >= self.mask) & (u < self.mask + self.random)]
        ids[changed] = _random_words(len(changed), tokenizer, rng)
        mask = np.zeros(ids.shape, np.bool_)
        mask[chosen] = True
        return Masked(ids, ids_l, mask)

    def _mask_id(self, tokenizer: TextTokenizer) -> int:
        return tokenizer.vocab_size if self.mask_id is None else self.mask_id

    def _choose(
        self, ids_l: Ids, tokenizer: TextTokenizer, rng: np.random.Generator
    ) -> NDArray[np.intp]:
        places = np.flatnonzero(tokenizer.text_places(ids_l[None])[0])
        if not len(places):
            return places
        unit = np.arange(len(places))
        if self.whole_words:
            unit = np.cumsum(tokenizer.word_starts(ids_l[None])[0][places])
            unit -= unit[0]
        count = max(1, round(self.share * len(places)))
        rank = rng.permutation(int(unit[-1]) + 1)[unit]  # of the token's word in a random order
        order = np.argsort(rank, kind="stable")
        last = rank[order[count - 1]]
        return places[rank <= last]


def _random_words(count: int, tokenizer: TextTokenizer, rng: np.random.Generator) -> Ids:
    """Ids of random tokens that are not special."""
    special = [index for index in tokenizer.special_ids if index < tokenizer.vocab_size]
    ids = rng.integers(0, max(1, tokenizer.vocab_size - len(special)), count, np.int32)
    for index in sorted(special):
        ids += ids >= index
    return ids


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedText:
    """A caption whose tokens the pipeline masks by `masking` once it has made them.

    view: what gives the caption. masking: which tokens are hidden, and how.
    """

    view: CaptionView = CaptionView()
    masking: MaskTokens = MaskTokens()

    def __call__(self, record: Record, rng: np.random.Generator) -> str:
        return self.view(record, rng)

    def texts(self, record: Record) -> Iterator[str]:
        """The view's texts, for training a tokenizer."""
        return self.view.texts(record)

    def example(self) -> str:
        """An empty text, in the place of a view's output."""
        return ""
