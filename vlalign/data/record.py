"""A record: one image with everything known about it, and its plain bytes form.

The bytes form is `VLR1`, a little-endian uint32 header length, a JSON header (UTF-8, sorted keys),
the teachers' vectors in the header's order and the encoded image as it is. Nothing in it can run
code when read.
"""

import dataclasses
import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A problem's code in a batch is its index here; 0 is a good sample. Append only: codes are logged.
PROBLEMS = (
    "ok",
    "unreadable record",
    "empty image",
    "corrupt image",
    "image too large",
    "unsupported image",
    "empty caption",
    "missing image",
    "missing caption",
    "unsafe name",
    "duplicate key",
    "unreadable shard",
    "invalid text",
)

KINDS = (
    "name",
    "keywords",
    "alt",
    "short",
    "long",
    "synthetic",
    "rewrite",
    "negative",
)

_MAGIC = b"VLR1"
_LENGTH = struct.Struct("<I")


class BadRecord(ValueError):
    """A record that cannot become a sample; it turns into a counted zero-weight row.

    kind: one of `PROBLEMS` other than "ok"; detail: what exactly was wrong.
    """

    def __init__(self, kind: str, detail: str = "") -> None:
        if kind not in PROBLEMS[1:]:
            raise ValueError(f"unknown problem {kind!r}; valid: {', '.join(PROBLEMS[1:])}")
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else self.kind

    @property
    def code(self) -> int:
        """The index of the kind in `PROBLEMS`."""
        return PROBLEMS.index(self.kind)


@dataclasses.dataclass(frozen=True)
class Caption:
    """One text about an image.

    text: the text; for kind "keywords" the words are joined by ", ".
    kind: one of `KINDS`. language: BCP 47 tag. source: where the text comes from.
    """

    text: str
    kind: str = "alt"
    language: str = "en"
    source: str = ""


@dataclasses.dataclass(frozen=True)
class Region:
    """A box (x0, y0, x1, y1) in 0..1 of the image's width and height, and the phrase for it."""

    box: tuple[float, float, float, float]
    phrase: str


@dataclasses.dataclass(frozen=True)
class Stored:
    """An array that was computed before and is kept with the record: a teacher's embedding.

    dtype: "float16" or "float32". shape: of the array. data: its bytes, little-endian, C order.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        if self.dtype not in ("float16", "float32"):
            raise ValueError(f"a stored array of {self.dtype!r}: must be float16 or float32")
        expected = math.prod(self.shape) * np.dtype(self.dtype).itemsize
        if min(self.shape, default=1) < 0 or len(self.data) != expected:
            raise ValueError(f"{len(self.data)} bytes for {self.dtype} {self.shape}")

    @staticmethod
    def of(array: NDArray[Any]) -> "Stored":
        """Stores a float16 or float32 array."""
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        return Stored(array.dtype.name, array.shape, little.tobytes())

    def array(self) -> NDArray[Any]:
        """The array, read-only."""
        dtype = np.dtype(self.dtype).newbyteorder("<")
        return np.frombuffer(self.data, dtype).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class Record:
    """One sample before any view of it.

    key: unique name in its source. image: encoded bytes (PNG, JPEG, WebP, ...).
    captions: all texts about it. label: its one class, if any; labels: classes by taxonomy.
    group: records of one concept share it and are positives of each other; None: its own key.
    duplicate: records of equal content share it and are not each other's negatives; None: its key.
    weight: weight of the sample in the loss. regions: boxes with phrases. teacher: stored arrays.
    """

    key: str
    image: bytes = dataclasses.field(repr=False)
    captions: tuple[Caption, ...] = ()
    label: str | None = None
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    group: str | None = None
    weight: float = 1.0
    regions: tuple[Region, ...] = ()
    duplicate: str | None = None
    teacher: Mapping[str, Stored] = dataclasses.field(default_factory=dict)


def encode_record(record: Record) -> bytes:
    """The plain bytes of a record; equal records give equal bytes.

    Empty fields are left out of the header: a small image is not outweighed by it.
    """
    header: dict[str, Any] = {
        "key": record.key,
        "captions": [dataclasses.astuple(caption) for caption in record.captions],
        "label": record.label,
        "labels": dict(record.labels),
        "group": record.group,
        "duplicate": record.duplicate,
        "regions": [[*region.box, region.phrase] for region in record.regions],
        "teacher": [[k, v.dtype, *v.shape] for k, v in sorted(record.teacher.items())],
    }
    header = {name: value for name, value in header.items() if value or name == "key"}
    if record.weight != 1.0:
        header["weight"] = record.weight
    text = json.dumps(header, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    stored = b"".join(record.teacher[name].data for name in sorted(record.teacher))
    return _MAGIC + _LENGTH.pack(len(text)) + text + stored + record.image


def decode_record(data: bytes) -> Record:
    """The record of `encode_record`'s bytes.

    Raises BadRecord("unreadable record") if they are damaged or of another format.
    """
    if data[:4] != _MAGIC:
        raise BadRecord("unreadable record", f"starts with {data[:4]!r}, expected {_MAGIC!r}")
    try:
        (length,) = _LENGTH.unpack_from(data, 4)
        end = 8 + length
        if end > len(data):
            raise ValueError(f"header of {length} bytes in a record of {len(data)}")
        return _from_header(json.loads(data[8:end]), data[end:])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, struct.error) as error:
        raise BadRecord("unreadable record", str(error)) from error


def _from_header(header: dict[str, Any], rest: bytes) -> Record:
    weight = float(header.get("weight", 1.0))
    if not 0.0 <= weight < float("inf"):
        raise ValueError(f"weight {weight} is not a finite number >= 0")
    teacher, image = _teacher(header.get("teacher", ()), rest)
    return Record(
        key=_text(header["key"]),
        image=image,
        captions=tuple(Caption(*map(_text, fields)) for fields in header.get("captions", ())),
        label=_optional(header.get("label")),
        labels={_text(k): _text(v) for k, v in header.get("labels", {}).items()},
        group=_optional(header.get("group")),
        weight=weight,
        regions=tuple(_region(fields) for fields in header.get("regions", ())),
        duplicate=_optional(header.get("duplicate")),
        teacher=teacher,
    )


def _teacher(entries: list[Any], rest: bytes) -> tuple[dict[str, Stored], bytes]:
    """The stored arrays at the start of what follows the header, and the image behind them."""
    teacher = {}
    for name, dtype, *shape in entries:
        if not all(isinstance(n, int) and n >= 0 for n in shape):
            raise ValueError(f"a stored array of shape {shape}")
        size = math.prod(shape) * np.dtype(_text(dtype)).itemsize
        teacher[_text(name)] = Stored(dtype, tuple(shape), rest[:size])
        rest = rest[size:]
    return teacher, rest


def _region(fields: list[Any]) -> Region:
    x0, y0, x1, y1, phrase = fields
    return Region((float(x0), float(y0), float(x1), float(y1)), _text(phrase))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r}")
    return value


def _optional(value: Any) -> str | None:
    return None if value is None else _text(value)
