"""Captions varied: words dropped, swapped, repeated, replaced; sentences chosen from long texts.

Every step maps (text, rng) to a text that is not empty, in time linear in the text.
"""

import dataclasses
import re
from typing import Protocol, runtime_checkable

import numpy as np

from vlalign.errors import UserError

_END = re.compile(r"""(?<![.!?])[.!?]++["'\u2019\u201d)\]]*+(?=\s)|[\u3002\uff01\uff1f]+|\n+""")
_LAST_WORD = re.compile(r"[\w.]*\Z")
# Words whose full stop ends no sentence; so does that of a lone letter (`J. Smith`).
_SHORT = "mr mrs ms dr prof st jr sr vs etc e.g i.e no nr vol fig al ca approx dept inc ltd co"
_SHORT_WORDS = frozenset(_SHORT.split())


@runtime_checkable
class TextStep(Protocol):
    """One variation of a text."""

    def __call__(self, text: str, rng: np.random.Generator, /) -> str:
        """The varied text; never an empty one for a text with a word in it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordNoise:
    """Easy data augmentation (Wei and Zou 2019, 1901.11196, section 2), word by word.

    replace: share of words replaced by a synonym, of those in the table.
    insert: words inserted, as a share of the words: copies at random places, for want of meaning.
    swap: exchanges of two random words, as a share of the words.
    delete: probability that a word is dropped; one word always stays.
    synonyms: (word, its synonyms) pairs; words in lower case.
    """

    replace: float = 0.0
    insert: float = 0.0
    swap: float = 0.1
    delete: float = 0.1
    synonyms: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def __post_init__(self) -> None:
        for name in ("replace", "insert", "swap", "delete"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"WordNoise.{name}={getattr(self, name)}: in 0..1")
        if self.replace and not any(others for _, others in self.synonyms):
            raise UserError("WordNoise.replace needs WordNoise.synonyms: (word, synonyms) pairs")

    def __call__(self, text: str, rng: np.random.Generator) -> str:
        """The text with its words varied, single spaces between them."""
        words = text.split()
        if not words:
            return text
        count = len(words)
        if self.replace:
            table = {word: others for word, others in self.synonyms if others}
            u, pick = rng.random((2, count))
            words = [
                others[int(v * len(others))]
                if x < self.replace and (others := table.get(word.lower(), ()))
                else word
                for word, x, v in zip(words, u.tolist(), pick.tolist(), strict=True)
            ]
        if times := _times(self.insert * count, rng):
            copies = rng.integers(count, size=times)
            # A place is among the words of before: where copies meet, they keep their order.
            places = rng.integers(count + 1, size=times)
            order = np.argsort(np.concatenate([np.arange(count) + 0.5, places]), kind="stable")
            every = [*words, *(words[index] for index in copies.tolist())]
            words = [every[index] for index in order.tolist()]
        for one, other in rng.integers(len(words), size=(_times(self.swap * count, rng), 2)):
            words[one], words[other] = words[other], words[one]
        if self.delete:
            keep = rng.random(len(words)) >= self.delete
            keep[rng.integers(len(words))] |= not keep.any()
            words = [word for word, kept in zip(words, keep.tolist(), strict=True) if kept]
        return " ".join(words)


def _times(mean: float, rng: np.random.Generator) -> int:
    """A whole number with this mean, next to it."""
    return int(mean + rng.random()) if mean else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SomeSentences:
    """Some sentences of a text, in their order (as in Zheng et al. 2024, DreamLIP, 2403.17007).

    count: smallest and largest number of sentences kept.
    """

    count: tuple[int, int] = (1, 3)

    def __post_init__(self) -> None:
        if not 1 <= self.count[0] <= self.count[1]:
            raise UserError(f"SomeSentences.count={self.count}: 1 <= low <= high")

    def __call__(self, text: str, rng: np.random.Generator) -> str:
        """The chosen sentences, a space between them; a text of one sentence stays."""
        every = sentences(text)
        count = int(rng.integers(self.count[0], self.count[1] + 1))
        if len(every) < 2:
            return text
        chosen = np.sort(rng.permutation(len(every))[:count])
        return " ".join(every[index] for index in chosen.tolist())


def sentences(text: str) -> list[str]:
    """The sentences of a text, stripped; none for a blank text.

    A sentence ends at . ! ? before white space, unless a small letter follows or the word is a
    known abbreviation or a lone letter; at the full stops of Chinese and Japanese; at a line's end.
    """
    out, start = [], 0
    for end in _END.finditer(text):
        if end[0][0] in ".!?" and not _ends(text, start, end):
            continue
        out.append(text[start : end.end()].strip())
        start = end.end()
    out.append(text[start:].strip())
    return [sentence for sentence in out if sentence]


def _ends(text: str, start: int, end: re.Match[str]) -> bool:
    following = text[end.end() : end.end() + 64].lstrip()[:1]
    if following.islower():
        return False
    if end[0] != ".":
        return True
    # Words are looked at only as far back as an abbreviation can be long.
    word = _LAST_WORD.search(text[max(start, end.start() - 8) : end.start()])
    last = word[0].lower() if word else ""
    return not (last in _SHORT_WORDS or (len(last) == 1 and last.isalpha() and last != "i"))
