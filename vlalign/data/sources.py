"""Sources: random access to records. A source is a frozen dataclass, so it is configuration too."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from vlalign.data.record import Record, decode_record, encode_record
from vlalign.errors import UserError

# One record a chunk: random access reads exactly one record.
_WRITER_OPTIONS = "group_size:1"


@runtime_checkable
class Source(Protocol):
    """Random access to records; `source[i]` raises BadRecord when that one record is broken."""

    def __len__(self) -> int:
        """The number of records, broken ones included."""

    def __getitem__(self, index: int, /) -> Record:
        """Record `index` of 0..len-1; BadRecord if it is broken, IndexError outside the range."""

    def fingerprint(self) -> str:
        """A hash that changes when the content does."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemorySource:
    """Records held in memory.

    records: the records, in order.
    """

    records: tuple[Record, ...]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[_checked(index, len(self.records))]

    def fingerprint(self) -> str:
        """sha256 over the records' bytes."""
        digest = hashlib.sha256()
        for record in self.records:
            data = encode_record(record)
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayRecordSource:
    """Records in ArrayRecord files written by `write_array_record`.

    paths: the files, read as one sequence in this order.
    """

    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(_reader(self.paths)) if self.paths else 0

    def __getitem__(self, index: int) -> Record:
        reader = _reader(self.paths)
        return decode_record(reader[_checked(index, len(reader))])

    def fingerprint(self) -> str:
        """sha256 over the files' bytes, in order."""
        return hashlib.sha256("".join(map(file_digest, self.paths)).encode()).hexdigest()


def write_array_record(path: Path, records: Iterable[bytes], *, options: str = "") -> int:
    """Write encoded records to one ArrayRecord file, one a chunk; returns their number.

    The same records give the same file bytes. A file appears under its name only when complete.
    """
    partial = path.with_name(path.name + ".partial")
    writer = ArrayRecordWriter(str(partial), ",".join(filter(None, (_WRITER_OPTIONS, options))))
    count = 0
    try:
        for record in records:
            writer.write(record)
            count += 1
    finally:
        writer.close()
    partial.replace(path)
    return count


@functools.lru_cache(maxsize=64)
def file_digest(path: str) -> str:
    """sha256 of a file, computed once a process; UserError if the file cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


# Readers are kept per process, outside the source, so that a source stays plain data and pickles.
@functools.lru_cache(maxsize=16)
def _reader(paths: tuple[str, ...]) -> Any:
    for path in paths:
        if not Path(path).is_file():
            raise UserError(f"no such ArrayRecord file: {path}")
    try:
        reader = ArrayRecordDataSource(list(paths))
        len(reader)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"not a complete ArrayRecord file among {list(paths)}: {error}") from error
    return reader


def _checked(index: int, length: int) -> int:
    if not 0 <= index < length:
        raise IndexError(f"record {index} of a source of {length}")
    return index
