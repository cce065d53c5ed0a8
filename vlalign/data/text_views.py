"""Views that give several texts of a record, or a varied one.

A view of k texts returns a tuple of k; the pipeline makes them a field (b, k, length), and, as an
empty text stands for one that is missing, the field `NAME_present`, bool (b, k).
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from vlalign.data.captions import CaptionView
from vlalign.data.record import Record
from vlalign.data.text_augment import TextStep, sentences
from vlalign.data.text_negatives import RULES, negative
from vlalign.errors import UserError, nearest


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariedText:
    """A caption that steps vary, one after the other.

    view: what gives the caption. steps: such as `WordNoise`, `SomeSentences`.
    """

    view: CaptionView = CaptionView()
    steps: tuple[TextStep, ...] = ()

    def __call__(self, record: Record, rng: np.random.Generator) -> str:
        text = self.view(record, rng)
        for step in self.steps:
            text = step(text, rng)
        return text

    def texts(self, record: Record) -> Iterator[str]:
        """The view's texts, for training a tokenizer."""
        return self.view.texts(record)

    def example(self) -> str:
        """An empty text, in the place of a view's output."""
        return ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AllTexts:
    """All texts of a record as positives of its image, k of them.

    Of more than k a random choice, in random order; of fewer, all in random order, then none.

    view: what counts as a text: see `CaptionView.choices`. count: k.
    repeat: whether texts come again, instead of none, where there are fewer than k.
    """

    view: CaptionView = CaptionView()
    count: int = 5
    repeat: bool = False

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"AllTexts.count={self.count}: at least 1")

    def __call__(self, record: Record, rng: np.random.Generator) -> tuple[str, ...]:
        """Up to k texts; BadRecord("empty caption") if there is none."""
        every = self.view.choices(record)
        order = rng.permutation(len(every)).tolist()
        texts = [every[index] for index in order[: self.count]]
        if self.repeat:
            texts = [texts[index % len(texts)] for index in range(self.count)]
        return _filled(texts, self.count)

    def texts(self, record: Record) -> Iterator[str]:
        """The view's texts, for training a tokenizer."""
        return self.view.texts(record)

    def example(self) -> tuple[str, ...]:
        """Empty texts, in the place of a view's output."""
        return ("",) * self.count


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubCaptions:
    """A long caption in parts, k texts (Zheng et al. 2024, DreamLIP, 2403.17007, section 3.2).

    Each part is a run of sentences that begins at another sentence; where a caption has fewer
    sentences than parts are asked, the rest is missing.

    view: what gives the caption. count: parts. length: smallest and largest number of a part's
    sentences. whole: whether the whole caption comes first, as one text more.
    """

    view: CaptionView = CaptionView()
    count: int = 3
    length: tuple[int, int] = (1, 1)
    whole: bool = False

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"SubCaptions.count={self.count}: at least 1")
        if not 1 <= self.length[0] <= self.length[1]:
            raise UserError(f"SubCaptions.length={self.length}: 1 <= low <= high")

    def __call__(self, record: Record, rng: np.random.Generator) -> tuple[str, ...]:
        text = self.view(record, rng)
        every = sentences(text) or [text]
        low, high = self.length
        starts = rng.permutation(len(every))[: self.count].tolist()
        lengths = rng.integers(low, high + 1, self.count).tolist()
        parts = [
            " ".join(every[start : start + length])
            for start, length in zip(starts, lengths, strict=False)
        ]
        return ((text,) if self.whole else ()) + _filled(parts, self.count)

    def texts(self, record: Record) -> Iterator[str]:
        """The view's texts, for training a tokenizer."""
        return self.view.texts(record)

    def example(self) -> tuple[str, ...]:
        """Empty texts, in the place of a view's output."""
        return ("",) * (self.count + self.whole)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongShort:
    """A caption and its first sentence (Zhang et al. 2024, Long-CLIP, 2403.15378, section 3.2).

    view: what gives the long caption.
    """

    view: CaptionView = CaptionView()

    def __call__(self, record: Record, rng: np.random.Generator) -> tuple[str, str]:
        text = self.view(record, rng)
        return text, next(iter(sentences(text)), text)

    def texts(self, record: Record) -> Iterator[str]:
        """The view's texts, for training a tokenizer."""
        return self.view.texts(record)

    def example(self) -> tuple[str, str]:
        """Empty texts, in the place of a view's output."""
        return "", ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HardNegatives:
    """A caption, then k texts close to it that say something else.

    The texts differ from each other; where too few rules fit a caption, the rest is missing.

    view: what gives the caption. count: k. rules: names in `text_negatives.RULES`, each tried
    equally often.
    """

    view: CaptionView = CaptionView()
    count: int = 1
    rules: tuple[str, ...] = tuple(RULES)

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"HardNegatives.count={self.count}: at least 1")
        if not self.rules:
            raise UserError(f"HardNegatives.rules is empty; valid: {', '.join(RULES)}")
        for rule in self.rules:
            if rule not in RULES:
                raise UserError(f"HardNegatives.rules: no rule {rule!r}{nearest(rule, RULES)}")

    def __call__(self, record: Record, rng: np.random.Generator) -> tuple[str, ...]:
        text = self.view(record, rng)
        found: list[str] = []
        tries = [rule for _ in range(self.count) for rule in _shuffled(self.rules, rng)]
        for rule in tries:
            new = negative(text, rule, rng)
            if new is not None and new not in found:
                found.append(new)
            if len(found) == self.count:
                break
        return (text, *_filled(found, self.count))

    def texts(self, record: Record) -> Iterator[str]:
        """The view's texts, for training a tokenizer."""
        return self.view.texts(record)

    def example(self) -> tuple[str, ...]:
        """Empty texts, in the place of a view's output."""
        return ("",) * (1 + self.count)


def _filled(texts: list[str], count: int) -> tuple[str, ...]:
    return (*texts, *[""] * (count - len(texts)))


def _shuffled(rules: tuple[str, ...], rng: np.random.Generator) -> list[str]:
    return [rules[index] for index in rng.permutation(len(rules)).tolist()]
