"""A record's fields as JSON values and back: what stands beside an image in foreign formats."""

import base64
import dataclasses
from collections.abc import Mapping
from typing import Any

from vlalign.data.record import BadRecord, Caption, Record, Region, Stored


def plain(record: Record) -> dict[str, Any]:
    """All of a record but its image, as JSON values; empty fields are left out.

    captions: a list of {text, kind, language, source}. regions: of {box, phrase}. teacher: name ->
    {dtype, shape, data: base64 of the little-endian bytes}. The rest as in `Record`.
    """
    fields: dict[str, Any] = {
        "key": record.key,
        "captions": [dataclasses.asdict(caption) for caption in record.captions],
        "label": record.label,
        "labels": dict(sorted(record.labels.items())),
        "group": record.group,
        "duplicate": record.duplicate,
        "regions": [{"box": list(found.box), "phrase": found.phrase} for found in record.regions],
        "teacher": {
            name: {
                "dtype": stored.dtype,
                "shape": list(stored.shape),
                "data": base64.b64encode(stored.data).decode("ascii"),
            }
            for name, stored in sorted(record.teacher.items())
        },
    }
    empty: tuple[Any, ...] = (None, [], {})  # an empty text is not nothing
    fields = {name: value for name, value in fields.items() if value not in empty}
    if record.weight != 1.0:
        fields["weight"] = record.weight
    return fields


def restore(fields: Mapping[str, Any], image: bytes) -> Record:
    """The record of `plain`'s values; other fields are left alone, None is as good as absent.

    A caption needs only its text. Stored data may be bytes, as Parquet has it, or base64; labels
    and teacher a mapping or a list of pairs. Raises BadRecord("unreadable record").
    """
    try:
        weight = fields.get("weight")
        weight = 1.0 if weight is None else float(weight)
        if not 0.0 <= weight < float("inf"):
            raise ValueError(f"weight {weight} is not a finite number >= 0")
        return Record(
            key=_text(fields["key"]),
            image=image,
            captions=tuple(map(_caption, fields.get("captions") or ())),
            label=_optional(fields.get("label")),
            labels={_text(k): _text(v) for k, v in _pairs(fields.get("labels"))},
            group=_optional(fields.get("group")),
            weight=weight,
            regions=tuple(map(_region, fields.get("regions") or ())),
            duplicate=_optional(fields.get("duplicate")),
            teacher={_text(k): _stored(v) for k, v in _pairs(fields.get("teacher"))},
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadRecord("unreadable record", f"{type(error).__name__}: {error}") from error


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    found = value.items() if isinstance(value, Mapping) else value or ()
    return [(name, inner) for name, inner in found]


def _caption(fields: Mapping[str, Any]) -> Caption:
    given = {name: _text(fields[name]) for name in _CAPTION if fields.get(name) is not None}
    return Caption(**given)


_CAPTION = tuple(field.name for field in dataclasses.fields(Caption))


def _region(fields: Mapping[str, Any]) -> Region:
    x0, y0, x1, y1 = map(float, fields["box"])
    return Region((x0, y0, x1, y1), _text(fields["phrase"]))


def _stored(fields: Mapping[str, Any]) -> Stored:
    data = fields["data"]
    if not isinstance(data, bytes):
        data = base64.b64decode(_text(data), validate=True)
    return Stored(_text(fields["dtype"]), tuple(map(int, fields["shape"])), data)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r:.80}")
    return value


def _optional(value: Any) -> str | None:
    return None if value is None else _text(value)
