"""Tables that name image files: CSV and TSV (open_clip's layout), and JSON lines.

An index of the rows' first bytes, 8 a row and mapped from a file, gives random access at any length
of the table. It is kept in `storage.cache_folder()`.
"""

import array
import csv
import dataclasses
import functools
import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vlalign.data import storage
from vlalign.data.formats import index_file
from vlalign.data.formats.fields import Columns, read_json, text
from vlalign.data.formats.parquet import read_below
from vlalign.data.record import BadRecord, Record
from vlalign.errors import UserError, nearest

_KIND = "table rows 1"
_LONGEST_ROW = 4 << 20  # bytes
_CHUNK = 1 << 16  # rows held while the index is written
_SEPARATORS = {".csv": ",", ".tsv": "\t", ".jsonl": "", ".ndjson": ""}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableSource(Columns):
    """Rows of a table, each with the path of its image.

    file: path or URL of a .csv, .tsv or .jsonl file, UTF-8; a CSV's first row names the columns.
    separator: between columns; "": JSON lines; None: by the file's ending.
    image: column of the path. root: the folder it is below, its own if None; an absolute path is
        fine if it begins with the root.
    captions: column -> kind of caption.
    """

    file: str
    separator: str | None = None
    image: str = "filepath"
    root: str | None = None
    captions: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"title": "alt"})

    def __len__(self) -> int:
        return len(_opened(self.file, self._separator()).starts)

    def __getitem__(self, index: int) -> Record:
        rows = _opened(self.file, self._separator())
        if not 0 <= index < len(rows.starts):
            raise IndexError(f"record {index} of a source of {len(rows.starts)}")
        if not self.converted:
            self._check(tuple(rows.names))
        place = f"row {index}"
        values = rows.row(index)
        name = values.get(self.image)
        if not isinstance(name, str) or not name:
            raise BadRecord("missing image", f"{place} has no {self.image!r}")
        record = self.record(place, b"", values)
        root = storage.normal(self.root or rows.path.rpartition("/")[0] or ".")
        return dataclasses.replace(record, image=read_below(root, text(name, place)))

    def fingerprint(self) -> str:
        """sha256 over the table; the images are not looked at."""
        return _opened(self.file, self._separator()).digest

    def _separator(self) -> str:
        if self.separator is not None:
            return self.separator
        for ending, separator in _SEPARATORS.items():
            if self.file.endswith(ending):
                return separator
        raise UserError(f"{self.file}: set separator, for it ends in none of {list(_SEPARATORS)}")

    def _check(self, names: tuple[str, ...]) -> None:
        for column in (self.image, *self.columns()) if names else ():
            if column not in names:
                raise UserError(f"{self.file} has no column {column!r}{nearest(column, names)}")


@dataclasses.dataclass(frozen=True)
class _Rows:
    """A table's rows. names: a CSV's columns; starts: first byte of each row; end: of the last."""

    path: str
    separator: str
    names: list[str]
    starts: NDArray[np.uint64]
    end: int
    digest: str

    def row(self, index: int) -> dict[str, Any]:
        """Column -> value; BadRecord if the row is no row."""
        first = int(self.starts[index])
        last = int(self.starts[index + 1]) if index + 1 < len(self.starts) else self.end
        place = f"row {index} at byte {first:,}"
        if last - first > _LONGEST_ROW:
            raise BadRecord("invalid text", f"{place}: {last - first:,} bytes")
        try:
            line = storage.read(self.path, first, last - first).decode("utf-8")
        except UnicodeError as error:
            raise BadRecord("invalid text", f"{place}: {error}") from error
        if not self.separator:
            found = read_json(line.removeprefix("\ufeff"), place)
            if not isinstance(found, dict):
                raise BadRecord("unreadable record", f"{place} is no JSON object")
            return found
        try:
            # All of them: a lone carriage return would end the row in the middle.
            reader = csv.reader(io.StringIO(line, newline=""), delimiter=self.separator)
            found = [cells for cells in reader if cells]  # blank lines belong to the row before
        except csv.Error as error:
            raise BadRecord("unreadable record", f"{place}: {error}") from error
        counts = [len(cells) for cells in found]
        if counts != [len(self.names)]:
            detail = f"{place} has {sum(counts)} columns of {len(self.names)}"
            raise BadRecord("unreadable record", detail)
        return {name: cell or None for name, cell in zip(self.names, found[0], strict=True)}


@functools.lru_cache(maxsize=16)
def _opened(file: str, separator: str) -> _Rows:
    path = storage.normal(file)
    try:
        total = storage.size(path)
    except storage.NOT_A_FILE as error:
        raise UserError(f"no such table: {file}") from error
    local = storage.local_copy(path)
    # A time tells only whether the index is stale; the fingerprint knows content alone.
    state = f"{os.path.abspath(local)}\0{total}\0{os.stat(local).st_mtime_ns}\0{separator}"
    tag = hashlib.sha256(state.encode("utf-8", "surrogateescape")).hexdigest()[:24]
    index = str(storage.cache_folder() / "tables" / f"{tag}.index")
    try:
        header, starts = index_file.read(index, _KIND, np.dtype("<u8"))
    except (FileNotFoundError, index_file.BadIndex):
        _write_index(index, local, separator)
        header, starts = index_file.read(index, _KIND, np.dtype("<u8"))
    names = [str(name) for name in header["names"]]
    return _Rows(path, separator, names, starts, total, str(header["digest"]))


def _write_index(index: str, local: str, separator: str) -> None:
    """Two passes over the table, the first to count: memory stays flat."""
    with open(local, "rb") as table:
        names, count = list[str](), sum(len(part) for part in _starts(table, separator))
        if separator:
            table.seek(0)
            names = _header(table, separator, local)
        table.seek(0)
        digest = hashlib.file_digest(table, "sha256").hexdigest()
        table.seek(0)
        header = {"kind": _KIND, "count": count, "names": names, "digest": digest}
        index_file.write(index, header, _starts(table, separator))


def _header(table: IO[bytes], separator: str, path: str) -> list[str]:
    try:
        first = table.readline(_LONGEST_ROW).decode("utf-8-sig")
        return next(csv.reader([first], delimiter=separator), [])
    except (UnicodeError, csv.Error) as error:
        raise UserError(f"{path}: its first row does not name columns: {error}") from error


def _starts(table: IO[bytes], separator: str) -> Iterator[NDArray[np.uint64]]:
    """First byte of each row, in chunks; a CSV's first row and blank lines are none."""
    found = array.array("Q")
    for start, blank in _csv_rows(table, separator) if separator else _lines(table):
        if not blank:
            found.append(start)
        if len(found) >= _CHUNK:
            yield np.array(found, "<u8")
            del found[:]
    yield np.array(found, "<u8")


def _lines(table: IO[bytes]) -> Iterator[tuple[int, bool]]:
    at = 0
    for line, length in _pieces(table):
        yield at, line.isspace()
        at += length


def _pieces(table: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Lines and their lengths; of a line that is too long to be a row only the beginning."""
    while line := table.readline(_LONGEST_ROW):
        length, rest = len(line), line
        while not rest.endswith(b"\n") and (rest := table.readline(_LONGEST_ROW)):
            length += len(rest)
        yield line, length


def _csv_rows(table: IO[bytes], separator: str) -> Iterator[tuple[int, bool]]:
    """(first byte, whether blank) of each row after the first, as Python's csv reads them."""
    at = 0

    def lines() -> Iterator[str]:
        nonlocal at
        for line, length in _pieces(table):
            at += length
            yield line.decode("latin-1")  # a byte a sign: quotes and separators are ASCII

    reader, first = csv.reader(lines(), delimiter=separator), True
    while True:
        start = at
        try:
            blank = not next(reader)
        except StopIteration:
            return
        except csv.Error:  # too long a field: a bad row, and the next line starts a new one
            blank = False
        if not first:
            yield start, blank
        first = False


def column_names(file: str) -> list[str]:
    """The columns of a table; of JSON lines, the first one's. UserError if it has none."""
    source = TableSource(file=file)
    rows = _opened(file, source._separator())
    try:
        return rows.names or (list(rows.row(0)) if len(rows.starts) else [])
    except BadRecord as problem:
        raise UserError(f"{file}: {problem}") from problem
