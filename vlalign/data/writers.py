"""Shards of records in the formats that other tools read: ArrayRecord, tar, Parquet, JSONL.

A format is two functions: `encode` makes a record its item (BadRecord if it cannot be one), `write`
makes items a file. Equal records give equal bytes, and a file appears under its name only when
complete. Nothing of a record is lost: `plain.restore` makes it again from the fields.

- tar: as img2dataset writes it, for WebDataset: `000000007.jpg`, `.txt` (the first caption) and
  `.json` (all but the image), numbered by place in the source; `key` in the JSON is the record's.
- Parquet: `image` is struct<bytes, path>, as Hugging Face has it; `captions` a list of structs.
- JSONL: a line a record, `image` is the path of its file below the folder of the JSONL file; the
  shards are folders of images, their lines become one file.
"""

import dataclasses
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from vlalign.data.plain import plain
from vlalign.data.record import BadRecord, Record, encode_record
from vlalign.data.sources import write_array_record

_ROWS = 128  # of a Parquet row group: what a reader has to read for one record


def extension(image: bytes) -> str:
    """The file extension of encoded bytes, by what they start with: "jpg", "png", ...

    Raises BadRecord("empty image") and BadRecord("unsupported image"): a file without the right
    extension is no image to the readers of these formats.
    """
    if not image:
        raise BadRecord("empty image", "no bytes")
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "webp"
    for start, name in _STARTS:
        if image.startswith(start):
            return name
    raise BadRecord("unsupported image", f"starts with {image[:8]!r}; no known image does")


_STARTS = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"P5", "ppm"),
    (b"P6", "ppm"),
)


def _line(fields: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        raise BadRecord("unreadable record", str(error)) from error
    return text.encode()


def _array_record(index: int, record: Record) -> bytes:
    del index
    return encode_record(record)


def _write_array_record(path: Path, items: Iterable[bytes]) -> int:
    return write_array_record(path, items)


Members = list[tuple[str, bytes]]


def _tar(index: int, record: Record) -> Members:
    name = f"{index:09d}"
    members = [
        (f"{name}.{extension(record.image)}", record.image),
        (f"{name}.json", _line(plain(record))),
    ]
    if record.captions:
        members.append((f"{name}.txt", record.captions[0].text.encode()))
    return members


def _write_tar(path: Path, items: Iterable[Members]) -> int:
    count = 0
    partial = partial_of(path)
    with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
        for members in items:
            for name, data in members:
                header = tarfile.TarInfo(name)  # mtime, uid and gid 0, no names
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
            count += 1
    partial.replace(path)
    return count


def _row(index: int, record: Record) -> dict[str, Any]:
    del index
    _line(plain(record))  # raises for a text that is no Unicode, which arrow words worse
    row = {"path": None, **plain(record), "weight": record.weight}
    row["image"] = {"bytes": record.image, "path": row.pop("path")}
    row["labels"] = list(record.labels.items())
    row["teacher"] = [
        (name, {"dtype": stored.dtype, "shape": list(stored.shape), "data": stored.data})
        for name, stored in sorted(record.teacher.items())
    ]
    return row


def _schema() -> Any:
    import pyarrow as pa

    text = pa.string()
    caption = [(name, text) for name in ("text", "kind", "language", "source")]
    region = [("box", pa.list_(pa.float64())), ("phrase", text)]
    stored = [("dtype", text), ("shape", pa.list_(pa.int64())), ("data", pa.binary())]
    return pa.schema(
        [
            ("key", text),
            ("image", pa.struct([("bytes", pa.binary()), ("path", text)])),
            ("captions", pa.list_(pa.struct(caption))),
            ("label", text),
            ("labels", pa.map_(text, text)),
            ("group", text),
            ("duplicate", text),
            ("weight", pa.float64()),
            ("regions", pa.list_(pa.struct(region))),
            ("teacher", pa.map_(text, pa.struct(stored))),
        ]
    )


def _write_parquet(path: Path, items: Iterable[dict[str, Any]]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema()
    count = 0
    partial = partial_of(path)
    # Images are compressed already; zstd does no harm to them and helps the texts.
    with pq.ParquetWriter(
        partial, schema, compression="zstd", use_dictionary=False, write_statistics=False
    ) as writer:
        for rows in _batches(items, _ROWS):
            writer.write_table(pa.Table.from_pylist(rows, schema))
            count += len(rows)
    partial.replace(path)
    return count


@dataclasses.dataclass(frozen=True)
class _Line:
    name: str
    image: bytes
    fields: dict[str, Any]


def _json_line(index: int, record: Record) -> _Line:
    fields = plain(record)
    _line(fields)
    return _Line(f"{index:09d}.{extension(record.image)}", record.image, fields)


def _write_jsonl(path: Path, items: Iterable[_Line]) -> int:
    """The lines, and the images in a folder of the file's stem beside it."""
    count = 0
    folder = path.with_suffix("")
    partial, partial_folder = partial_of(path), partial_of(folder)
    partial_folder.mkdir()
    with partial.open("wb") as lines:
        for item in items:
            (partial_folder / item.name).write_bytes(item.image)
            lines.write(_line({"image": f"{folder.name}/{item.name}", **item.fields}) + b"\n")
            count += 1
    remove(folder)  # of a conversion that was killed between these lines
    partial_folder.replace(folder)
    partial.replace(path)
    return count


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def partial_of(path: Path) -> Path:
    """The name under which a file is written until it is complete."""
    return path.with_name(path.name + ".partial")


def remove(path: Path) -> None:
    """Remove a file or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class Format:
    """How shards are written.

    suffix: of their files. joined: the one file that they become in the end, if they do.
    encode: (index in the source, record) -> item; BadRecord if the format cannot hold it.
    write: (path, items) -> number of them; the file is there only when complete.
    """

    suffix: str
    encode: Callable[[int, Record], Any]
    write: Callable[[Path, Iterable[Any]], int]
    joined: str | None = None


FORMATS = {
    "arrayrecord": Format(".array_record", _array_record, _write_array_record),
    "tar": Format(".tar", _tar, _write_tar),
    "parquet": Format(".parquet", _row, _write_parquet),
    "jsonl": Format(".jsonl", _json_line, _write_jsonl, "records.jsonl"),
}
