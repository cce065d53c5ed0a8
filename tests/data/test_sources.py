"""Sources give back what was written, and name the file when they cannot."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vlalign.data.record import BadRecord, Record, encode_record
from vlalign.data.sources import ArrayRecordSource, MemorySource, Source, write_array_record
from vlalign.errors import UserError

Make = Callable[..., Record]


def _write(path: Path, records: list[Record]) -> str:
    assert write_array_record(path, map(encode_record, records)) == len(records)
    return str(path)


def test_array_record_gives_back_what_was_written(tmp_path: Path, record: Make) -> None:
    records = [record(i) for i in range(7)]
    paths = _write(tmp_path / "a", records[:4]), _write(tmp_path / "b", records[4:])
    source = ArrayRecordSource(paths=paths)
    assert isinstance(source, Source)
    assert [source[i] for i in range(len(source))] == records
    for index in (-1, 7):
        with pytest.raises(IndexError, match="of a source of 7"):
            source[index]


def test_fingerprint_follows_the_content(tmp_path: Path, record: Make) -> None:
    one = ArrayRecordSource(paths=(_write(tmp_path / "a", [record(1)]),))
    same = ArrayRecordSource(paths=(_write(tmp_path / "b", [record(1)]),))
    other = ArrayRecordSource(paths=(_write(tmp_path / "c", [record(1, weight=2.0)]),))
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()
    in_memory = [MemorySource(records=(record(i),)) for i in (1, 1, 2)]
    prints = [source.fingerprint() for source in in_memory]
    assert prints[0] == prints[1] != prints[2]


def test_a_broken_record_is_a_bad_record(tmp_path: Path, record: Make) -> None:
    write_array_record(tmp_path / "a", [encode_record(record(0)), b"", b"nonsense"])
    source = ArrayRecordSource(paths=(str(tmp_path / "a"),))
    assert source[0] == record(0)
    for index in (1, 2):
        with pytest.raises(BadRecord, match="unreadable record"):
            source[index]


def test_missing_and_truncated_files_are_named(tmp_path: Path, record: Make) -> None:
    missing = ArrayRecordSource(paths=(str(tmp_path / "none"),))
    with pytest.raises(UserError, match=r"no such ArrayRecord file: .*none"):
        len(missing)
    with pytest.raises(UserError, match=r"cannot read .*none"):
        missing.fingerprint()
    whole = Path(_write(tmp_path / "whole", [record(i) for i in range(300)]))
    cut = tmp_path / "cut"
    cut.write_bytes(whole.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"not a complete ArrayRecord file among .*cut"):
        len(ArrayRecordSource(paths=(str(cut),)))


def test_no_files_is_an_empty_source() -> None:
    assert len(ArrayRecordSource(paths=())) == 0


def test_an_interrupted_write_leaves_no_file_under_the_name(tmp_path: Path) -> None:
    def records() -> object:
        yield b"x"
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        write_array_record(tmp_path / "a", records())  # type: ignore[arg-type]
    assert not (tmp_path / "a").exists()
