"""A source, read once for evaluation: decoded images, the records beside them, and what was bad."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from vlalign.data.record import BadRecord, Caption, Record
from vlalign.data.sources import Source
from vlalign.errors import UserError
from vlalign.evals.base import Tools


@dataclasses.dataclass(frozen=True)
class Gallery:
    """The good records of a source, in its order.

    images: uint8 (n, h, w, 3), after the run's evaluation preprocessing
    records: n records without their encoded image (`source[index[i]].image` has it)
    index: int64 (n,), place in the source
    problems: how many records were left out, by kind
    """

    images: np.ndarray
    records: tuple[Record, ...]
    index: np.ndarray
    problems: Mapping[str, int]

    @property
    def skipped(self) -> int:
        """How many records of the source were left out because they are broken."""
        return sum(self.problems.values())


@dataclasses.dataclass(frozen=True)
class Chunk:
    """The good ones of some consecutive records; the fields are those of `Gallery`."""

    images: np.ndarray
    records: tuple[Record, ...]
    index: tuple[int, ...]
    problems: Mapping[str, int]


def chunks(source: Source, tools: Tools, size: int) -> Iterator[Chunk]:
    """Reads `source` in order, `size` records at a time; a chunk may have fewer good records."""
    for start in range(0, len(source), size):
        images: list[np.ndarray] = []
        records: list[Record] = []
        index: list[int] = []
        problems: Counter[str] = Counter()
        for place in range(start, min(start + size, len(source))):
            try:
                record = source[place]
                images.append(tools.image(record.image))
            except BadRecord as error:
                problems[error.kind] += 1
                continue
            records.append(dataclasses.replace(record, image=b""))
            index.append(place)
        yield Chunk(_stack(images), tuple(records), tuple(index), problems)


def decode(source: Source, tools: Tools) -> Gallery:
    """The whole source; a second call with the same tools and content gives the same object.

    Raises `UserError` if the source is empty or has no good record.
    """
    key = source.fingerprint()
    if key not in tools.cache:
        tools.cache[key] = _decode(source, tools)
    gallery: Gallery = tools.cache[key]
    return gallery


def _decode(source: Source, tools: Tools) -> Gallery:
    # One chunk: the images are stacked once, not copied from chunks into a whole.
    parts = list(chunks(source, tools, max(1, len(source))))
    if not parts:
        raise UserError(f"{title(source)} is empty: nothing to evaluate")
    (part,) = parts
    if not part.records:
        raise UserError(f"{title(source)} has no good record: {dict(part.problems)}")
    return Gallery(part.images, part.records, np.asarray(part.index, np.int64), part.problems)


def _stack(images: list[np.ndarray]) -> np.ndarray:
    return np.stack(images) if images else np.zeros((0, 1, 1, 3), np.uint8)


def select(record: Record, *, language: str, kind: str) -> tuple[Caption, ...]:
    """The captions of a record that have this language and kind and are not blank."""
    return tuple(
        caption
        for caption in record.captions
        if caption.language == language and caption.kind == kind and caption.text.strip()
    )


def group_of(record: Record) -> str:
    """What a record's positives share: its group, or its own key."""
    return record.key if record.group is None else record.group


def name_of(record: Record) -> str:
    """What to call a record in a list: its English name, else its first caption, else its key."""
    names = select(record, language="en", kind="name") or record.captions
    return names[0].text if names else record.key


def title(source: Source) -> str:
    """A short human name of a source: its class and its plain settings, `Emoji twemoji`."""
    fields: Mapping[str, Any] = getattr(source, "__dict__", {})
    words = [value for value in fields.values() if isinstance(value, str) and len(value) <= 40]
    return " ".join([type(source).__name__, *words])
