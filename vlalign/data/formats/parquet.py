"""Parquet with images in it, as Hugging Face data sets have them, or with paths to images."""

import bisect
import concurrent.futures
import dataclasses
import functools
import hashlib
import io
import itertools
import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlalign.data import storage
from vlalign.data.formats.fields import Columns, picture, text
from vlalign.data.formats.tar_scan import LARGEST
from vlalign.data.record import BadRecord, Record
from vlalign.errors import UserError, nearest

_ROW_GROUPS = 4  # kept decoded, a process
_LARGEST_GROUP = 4 << 30  # bytes, decompressed
_THREADS = 16  # footers read at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParquetSource(Columns):
    """Rows of Parquet files in order, read at random by row group.

    A row group is read whole and few are kept: a global shuffle over large row groups reads each of
    them again and again. Write files with row groups of some 100 rows, or convert them.

    files: paths or URLs; `{000..010}` stands for numbers, `*` for any name.
    image: column of encoded bytes, of struct{bytes, path}, or of paths.
    root: folder that paths of images are below; None: each file's own.
    captions: column -> kind of caption; a column may hold lists of texts.
    """

    files: tuple[str, ...]
    image: str = "image"
    root: str | None = None
    captions: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"caption": "alt"})

    def __len__(self) -> int:
        return _opened(self.files).starts[-1]

    def __getitem__(self, index: int) -> Record:
        opened = _opened(self.files)
        if not 0 <= index < opened.starts[-1]:
            raise IndexError(f"record {index} of a source of {opened.starts[-1]}")
        number = bisect.bisect_right(opened.starts, index) - 1
        path, group = opened.groups[number]
        row = index - opened.starts[number]
        place = f"{path[len(opened.folder) :].lstrip('/')}:{index - opened.first_row(number)}"
        columns = () if self.converted else (self.image, *self.columns())
        table = _row_group(path, group, columns)
        try:
            values = {name: table.column(name)[row].as_py() for name in table.column_names}
        except (pa.ArrowException, UnicodeError, ValueError, OverflowError) as error:
            raise BadRecord("invalid text", f"{place}: {error}") from error
        image = values.pop(self.image, None)
        root = self.root or path.rpartition("/")[0]
        record = self.record(place, b"", self._named(values, opened))
        return dataclasses.replace(record, image=_image(image, root, place))

    def fingerprint(self) -> str:
        """sha256 over the files' names, sizes and footers, which place and measure all columns."""
        return _opened(self.files).digest

    def _named(self, values: dict[str, Any], opened: "_Files") -> dict[str, Any]:
        """Class numbers as the names that Hugging Face keeps in the file's metadata."""
        for column in () if self.class_names else (self.label, *self.labels):
            names, number = opened.class_names.get(column or "", ()), values.get(column or "")
            if column and isinstance(number, int) and 0 <= number < len(names):
                values[column] = names[number]
        return values


@dataclasses.dataclass(frozen=True)
class _Files:
    """The row groups of some files.

    groups: (file, row group); starts: first row of each group, and the number of all rows.
    class_names: column -> names of the numbers 0, 1, ...
    """

    folder: str
    groups: list[tuple[str, int]]
    starts: list[int]
    digest: str
    class_names: dict[str, list[str]]

    def first_row(self, number: int) -> int:
        """Row, in the source, of the first row of a group's file."""
        path, group = self.groups[number]
        del path
        return self.starts[number - group]


class _Reads(io.RawIOBase):
    """A file to read from at random, for pyarrow, with the retries of `storage`."""

    def __init__(self, path: str) -> None:
        self._path, self._size, self._at = path, storage.size(path), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, count: int | None = -1) -> bytes:
        left = max(self._size - self._at, 0)
        wanted = left if count is None or count < 0 else min(count, left)
        data = storage.read(self._path, self._at, wanted)
        self._at += len(data)
        return data

    def readall(self) -> bytes:
        return self.read()


def _parquet(path: str, metadata: Any = None) -> Any:
    try:
        place = path if storage.is_local(path) else _Reads(path)
        return pq.ParquetFile(place, metadata=metadata)
    except FileNotFoundError as error:
        raise UserError(f"no such Parquet file: {path}") from error
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} is no Parquet file: {error}") from error


@functools.lru_cache(maxsize=64)
def _metadata(path: str) -> Any:
    return _parquet(path).metadata


@functools.lru_cache(maxsize=8)
def _opened(patterns: tuple[str, ...]) -> _Files:
    files = storage.expand(patterns)
    if not files:
        raise UserError("no Parquet files: name some, such as data/*.parquet")
    sizes = storage.sizes(files)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        footers = list(pool.map(_footer, files, sizes))
    folder = storage.common_folder(files)
    digest = hashlib.sha256()
    groups: list[tuple[str, int]] = []
    rows: list[int] = []
    for path, size, (counts, tail, _) in zip(files, sizes, footers, strict=True):
        name = path[len(folder) :].lstrip("/")
        digest.update(f"{name}\0{size}\0{tail}\n".encode("utf-8", "surrogateescape"))
        groups.extend((path, group) for group in range(len(counts)))
        rows.extend(counts)
    starts = list(itertools.accumulate(rows, initial=0))
    return _Files(folder, groups, starts, digest.hexdigest(), footers[0][2])


def _footer(path: str, size: int) -> tuple[list[int], str, dict[str, list[str]]]:
    """Rows of each row group, sha256 of the footer, names of classes."""
    meta = _parquet(path).metadata
    length = int.from_bytes(storage.read(path, max(size - 8, 0), 4), "little")
    tail = storage.read(path, max(size - 8 - length, 0), min(length + 8, size))
    counts = [meta.row_group(group).num_rows for group in range(meta.num_row_groups)]
    return counts, hashlib.sha256(tail).hexdigest(), _class_names(meta.metadata or {})


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {
            name: [str(item) for item in feature["names"]]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}


@functools.lru_cache(maxsize=_ROW_GROUPS)
def _row_group(path: str, group: int, columns: tuple[str, ...]) -> Any:
    file = _parquet(path, _metadata(path))  # one for each read: threads share none
    names = file.schema_arrow.names
    for column in columns:
        if column not in names and column.partition("/")[0] not in names:
            raise UserError(f"{path} has no column {column!r}{nearest(column, names)}")
    wanted = sorted({c if c in names else c.partition("/")[0] for c in columns or names})
    size = file.metadata.row_group(group).total_byte_size
    if size > _LARGEST_GROUP:
        detail = f"{path}: row group {group} of {size:,} bytes; at most {_LARGEST_GROUP:,}"
        raise BadRecord("unreadable shard", detail)
    try:
        return file.read_row_group(group, columns=wanted, use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        detail = f"{path}, row group {group}: {error}"
        raise BadRecord("unreadable shard", detail) from error


def _image(value: Any, root: str, place: str) -> bytes:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        return read_below(root, text(value, place))
    return picture(value, place)


def read_below(root: str, name: str) -> bytes:
    """The bytes of the image file `name` below a folder.

    Raises BadRecord("unsafe name"), ("missing image"), ("empty image"), ("image too large").
    """
    path = storage.below(root, name)
    try:
        size = storage.size(path)
        if size > LARGEST:
            raise BadRecord("image too large", f"{path}: {size:,} bytes; at most {LARGEST:,}")
        return picture(storage.read(path, 0, size), path)
    except storage.NOT_A_FILE as error:
        raise BadRecord("missing image", f"no file {path}") from error


def column_names(files: tuple[str, ...]) -> list[str]:
    """The columns of the first file."""
    return [str(name) for name in _parquet(_opened(files).groups[0][0]).schema_arrow.names]
