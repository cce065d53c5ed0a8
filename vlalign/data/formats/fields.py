"""From named values (a row, a JSON object, members of a sample) to a record, and what can be wrong.

A column is named as the format names it; a slash goes into nested values: `json/meta/caption`.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vlalign.data import plain
from vlalign.data.record import KINDS, BadRecord, Caption, Record, Region, Stored
from vlalign.errors import UserError, nearest

LONGEST_TEXT = 1 << 16  # bytes; a longer caption is a page scraped by mistake
_OPTIONAL = ("key", "label", "group", "weight", "language", "duplicate", "regions")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column gives which field of a record; None: no column does.

    captions: column -> kind of its captions, one of `record.KINDS`. A column holds a text, or a
        list of texts or of {text, kind, language, source}, which say these for themselves.
        A record that has none of these columns is a "missing caption".
    key: unique name; None: by the place in the source.
    label: its one class, a text or a number. class_names: names of the numbers 0, 1, ...
    labels: columns of further classes, by taxonomy.
    group: concept; records of one are positives of each other. weight: in the loss.
    language: of the captions, BCP 47; where it is empty, default_language.
    duplicate: a hash; records of an equal one are not each other's negatives.
    regions: column of lists of {box, phrase}, boxes (x0, y0, x1, y1) in 0..1.
    teacher: columns of stored embeddings, lists of numbers; kept as float32 under their name.
    converted: the columns are those that `vlalign data convert` writes: take them all, as they are.
    """

    captions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    key: str | None = None
    label: str | None = None
    class_names: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    group: str | None = None
    weight: str | None = None
    language: str | None = None
    default_language: str = "en"
    duplicate: str | None = None
    regions: str | None = None
    teacher: tuple[str, ...] = ()
    converted: bool = False

    def __post_init__(self) -> None:
        name = f"{type(self).__name__}.captions"
        for column, kind in self.captions.items():
            if kind not in KINDS:
                raise UserError(f"{name}: {column!r} is of kind {kind!r}{nearest(kind, KINDS)}")
            if "." in column:  # a configuration's paths are parted by dots
                raise UserError(f"{name}: {column!r} has a dot; nested values are a/b, not a.b")

    def columns(self) -> tuple[str, ...]:
        """All columns that are asked for, sorted."""
        named = (getattr(self, name) for name in _OPTIONAL)
        several = (*self.captions, *self.labels, *self.teacher)
        return tuple(sorted({*several, *filter(None, named)}))

    def record(self, place: str, image: bytes, values: Mapping[str, Any]) -> Record:
        """The record of one row; values: column -> value, nested or flat.

        place: key if no column gives one. Raises BadRecord for texts and numbers that are none.
        """
        if self.converted:
            return _restored(values, image, place)

        def optional(column: str | None) -> str | None:
            found = None if column is None else lookup(values, column)
            return None if found is None else text(found, f"{place}, {column}").strip() or None

        label = optional(self.label)
        if label is not None and self.class_names and label.isdecimal() and len(label) < 10:
            if int(label) >= len(self.class_names):
                detail = f"{place}: class {label} of {len(self.class_names)}"
                raise BadRecord("unreadable record", detail)
            label = self.class_names[int(label)]
        named = {column: optional(column) for column in self.labels}
        return Record(
            key=optional(self.key) or place,
            image=image,
            captions=self._captions(place, values, optional(self.language)),
            label=label,
            labels={column: value for column, value in named.items() if value is not None},
            group=optional(self.group),
            weight=_weight(None if self.weight is None else lookup(values, self.weight), place),
            duplicate=optional(self.duplicate),
            regions=_regions(None if self.regions is None else lookup(values, self.regions)),
            teacher=self._teacher(place, values),
        )

    def _teacher(self, place: str, values: Mapping[str, Any]) -> dict[str, Stored]:
        found = {column: lookup(values, column) for column in self.teacher}
        stored = {}
        for column, value in found.items():
            if value is None:
                continue
            try:
                with np.errstate(over="ignore"):
                    array = np.asarray(value, np.float32)
                if not np.isfinite(array).all():
                    raise ValueError("not all of it is finite")
            except (TypeError, ValueError, OverflowError) as error:
                raise BadRecord("unreadable record", f"{place}, {column}: {error}") from error
            stored[column] = Stored.of(array)
        return stored

    def _captions(
        self, place: str, values: Mapping[str, Any], language: str | None
    ) -> tuple[Caption, ...]:
        found, captions = not self.captions, list[Caption]()
        # Sorted: a configuration read back from text has its mappings in that order.
        for column, kind in sorted(self.captions.items()):
            value = lookup(values, column)
            if value is None:
                continue
            found = True
            for item in _items(value):
                caption = self._caption(item, kind, language, column, place)
                captions += [caption] if caption.text else []
        if not found:
            wanted = ", ".join(sorted(self.captions))
            raise BadRecord("missing caption", f"{place} has none of {wanted}")
        return tuple(captions)

    def _caption(
        self, item: Any, kind: str, language: str | None, column: str, place: str
    ) -> Caption:
        given = item if isinstance(item, Mapping) else {"text": item}

        def part(name: str, otherwise: str) -> str:
            return text(given.get(name) or otherwise, f"{place}, {column}").strip()

        own = part("kind", kind)
        if own not in KINDS:
            raise BadRecord("unreadable record", f"{place}, {column}: caption of kind {own!r:.80}")
        language = part("language", language or self.default_language)
        return Caption(part("text", ""), own, language, part("source", column))


def _regions(value: Any) -> tuple[Region, ...]:
    return plain.restore({"key": "", "regions": value}, b"").regions if value else ()


def _items(value: Any) -> Sequence[Any]:
    """The captions of a column: a list's, those of lists side by side (as TFDS has it), or one."""
    if isinstance(value, Mapping) and all(isinstance(part, list) for part in value.values()):
        rows = zip(*value.values(), strict=False)
        return [dict(zip(value, row, strict=True)) for row in rows]
    return value if isinstance(value, list | tuple) else (value,)


_CONVERTED = frozenset(field.name for field in dataclasses.fields(Record))


def looks_converted(names: Iterable[str]) -> bool:
    """Whether these are columns that `vlalign data convert` writes, and no others."""
    return "key" in names and _CONVERTED.issuperset(names)


def _restored(values: Mapping[str, Any], image: bytes, place: str) -> Record:
    record = plain.restore(values, image)
    for words in (record.key, record.label, record.group, *(c.text for c in record.captions)):
        text(words or "", place)
    return record


def lookup(values: Mapping[str, Any], column: str) -> Any:
    """The value of a column, None if there is none; its steps are parted by slashes.

    A step into a list goes into each of its items.
    """
    if column in values:
        return values[column]
    step, slash, rest = column.partition("/")
    inner = values.get(step) if slash else None
    if isinstance(inner, Mapping):
        return lookup(inner, rest)
    if isinstance(inner, list | tuple):
        below = [lookup(item, rest) for item in inner if isinstance(item, Mapping)]
        return [item for item in below if item is not None]
    return None


def read_json(data: bytes | str, place: str) -> Any:
    """The JSON value of some bytes; BadRecord("unreadable record") if they hold none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadRecord("unreadable record", f"{place}: no JSON: {error}") from error


def text(value: Any, place: str) -> str:
    """A text (bytes are UTF-8, numbers are written out); BadRecord("invalid text") for others."""
    if isinstance(value, bool | int | float):
        return str(value)
    size = len(value) if isinstance(value, bytes | str) else 0
    if size > LONGEST_TEXT:
        detail = f"{place}: {size:,} bytes; at most {LONGEST_TEXT:,}"
        raise BadRecord("invalid text", detail)
    try:
        words = value if isinstance(value, str) else value.decode()
        words.encode()  # a lone surrogate, as JSON can hold, is no text
    except (UnicodeError, AttributeError) as error:
        raise BadRecord("invalid text", f"{place}: {error}") from error
    if "\0" in words:
        raise BadRecord("invalid text", f"{place}: holds NUL")
    return words


def picture(value: Any, place: str) -> bytes:
    """The bytes of an encoded image; BadRecord if there are none."""
    if value is None:
        raise BadRecord("missing image", place)
    if not isinstance(value, bytes):
        raise BadRecord("unreadable record", f"{place}: an image is bytes, not {type(value)}")
    if not value:
        raise BadRecord("empty image", place)
    return value


def _weight(value: Any, place: str) -> float:
    if value is None or value == "":
        return 1.0
    try:
        weight = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadRecord("unreadable record", f"{place}: weight {value!r:.80}") from error
    if not 0.0 <= weight < math.inf:
        raise BadRecord("unreadable record", f"{place}: weight {weight} is not a number >= 0")
    return weight
