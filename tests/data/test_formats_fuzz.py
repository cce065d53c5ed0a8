"""Whatever the bytes are: records, BadRecord or UserError, in bounded time, and nothing outside."""

import io
import os
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vlalign.data import storage
from vlalign.data.formats import index_file, tar_index, webdataset
from vlalign.data.formats.fields import Columns
from vlalign.data.formats.tar_headers import BLOCK, BadTar, members
from vlalign.data.formats.webdataset import WebDatasetSource
from vlalign.data.record import BadRecord, Record, decode_record, encode_record
from vlalign.data.sources import Source

FORMATS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
STEPS = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=30)
ENDINGS = st.sampled_from([".jpg", ".txt", ".json", ".PNG", "", ".seg.png", ".cls"])
NAMES = st.builds(
    lambda steps, end: "/".join(steps) + end, st.lists(STEPS, min_size=1, max_size=6), ENDINGS
)
WILD = st.sampled_from(
    ["../a.jpg", "/etc/a.jpg", "a/../../b.txt", "..", "a.jpg", "a.txt", "a\\b.jpg"]
)
ITEMS = st.lists(st.tuples(NAMES | WILD, st.binary(max_size=1500)), max_size=8)


def tar(items: list[tuple[str, bytes]], dialect: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=dialect) as archive:
        for name, content in items:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            try:
                archive.addfile(info, io.BytesIO(content))
            except ValueError:  # ustar cannot hold the name
                continue
    return out.getvalue()


def check_sum(header: bytes) -> bytes:
    """The header with its checksum put right: damage that only parsing can find."""
    total = 256 + sum(header[:148]) + sum(header[156:])
    return header[:148] + b"%06o\0 " % total + header[156:]


@contextmanager
def watched_opens(monkeypatch: pytest.MonkeyPatch, allowed: Path) -> Iterator[None]:
    """Fails for a file opened elsewhere."""
    real = os.open

    def guarded(path: Any, *args: Any, **kwargs: Any) -> int:
        inside = isinstance(path, int) or Path(os.fsdecode(path)).resolve().is_relative_to(allowed)
        assert inside, f"opened {path!r}"
        return real(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", guarded)
        yield


def read_all(source: Source) -> list[Record | BadRecord]:
    found: list[Record | BadRecord] = []
    for index in range(len(source)):
        try:
            found.append(source[index])
        except BadRecord as problem:
            found.append(problem)
    return found


def everything(data: bytes, monkeypatch: pytest.MonkeyPatch) -> list[Record | BadRecord]:
    """All records of one shard; nothing else than its folder is touched and nothing is left."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name).resolve()
        (folder / "in").mkdir()
        (folder / "in" / "s.tar").write_bytes(data)
        patch.setenv("VLALIGN_CACHE", str(folder / "cache"))
        columns: dict[str, Any] = {"captions": {"txt": "alt", "json/a": "long"}, "weight": "json/w"}
        source = WebDatasetSource(shards=(str(folder / "in" / "s.tar"),), **columns)
        with watched_opens(monkeypatch, folder):
            found = read_all(source)
            source.problems()
        webdataset._opened.cache_clear()
        storage.forget("")
        assert {path.name for path in folder.iterdir()} == {"in"}
        left = {path.suffix for path in (folder / "in").iterdir()}
        assert left == {".tar", ".index"}
    for item in found:
        assert isinstance(item, BadRecord) or ".." not in item.key.split("/")
    return found


@settings(max_examples=60)
@given(ITEMS, FORMATS)
def test_valid_archives_as_tarfile_reads_them(items: list[tuple[str, bytes]], dialect: int) -> None:
    data = tar(items, dialect)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        expected = [(m.name, m.offset, m.offset_data, m.size) for m in archive if m.isreg()]
    found = members(lambda at, count: data[at : at + count], len(data))
    assert [(m.name, m.start, m.data, m.size) for m in found] == expected


@settings(max_examples=60)
@given(data=ITEMS, dialect=FORMATS)
@example(data=[("a.jpg", b"x"), ("a.json", b"[" * 1400)], dialect=tarfile.GNU_FORMAT)
@example(data=[("a.jpg", b"x"), ("a.json", b'{"a": "\\ud800"}')], dialect=tarfile.GNU_FORMAT)
@example(data=[("a.jpg", b"x"), ("a.json", b'{"a": 1, "w": NaN}')], dialect=tarfile.GNU_FORMAT)
@example(data=[("a.jpg", b"x"), ("a.json", b'{"a": {}, "w": "x"}')], dialect=tarfile.GNU_FORMAT)
def test_any_members(data: list[tuple[str, bytes]], dialect: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        everything(tar(data, dialect), patch)


@settings(max_examples=60)
@given(st.binary(max_size=4096))
def test_random_bytes(data: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        assert everything(data, patch) == []


@settings(max_examples=150)
@given(st.data(), ITEMS.filter(bool), FORMATS, st.booleans())
def test_mutated_archives(
    draw: st.DataObject, items: list[tuple[str, bytes]], dialect: int, mend: bool
) -> None:
    data = bytearray(tar(items, dialect))
    for _ in range(draw.draw(st.integers(1, 4))):
        # Mostly in the fields that steer: size, checksum, kind, magic, prefix.
        block = BLOCK * draw.draw(st.integers(0, len(data) // BLOCK - 1))
        place = block + draw.draw(st.integers(124, 160) | st.integers(0, BLOCK - 1))
        data[place] = draw.draw(st.integers(0, 255) | st.sampled_from(b"01257LKxgSV\x80\xff"))
        if mend:
            data[block : block + BLOCK] = check_sum(bytes(data[block : block + BLOCK]))
    cut = draw.draw(st.none() | st.integers(0, len(data)))
    with pytest.MonkeyPatch.context() as patch:
        everything(bytes(data[:cut]), patch)


@settings(max_examples=150)
@given(
    st.binary(min_size=BLOCK, max_size=BLOCK), st.sampled_from(b"0Lxg\x007S5"), st.integers(0, 9)
)
def test_headers_of_random_bytes_with_a_right_checksum(header: bytes, kind: int, size: int) -> None:
    header = header[:124] + b"%011o\0" % size + header[136:156] + bytes([kind]) + header[157:]
    data = check_sum(header) * 3
    count = where = 0
    try:
        for member in members(lambda at, count: data[at : at + count], len(data)):
            count += 1
            assert 0 <= member.start < member.data <= member.end <= len(data)
    except BadTar as error:
        where = error.offset
    assert 0 <= where <= len(data)
    assert count <= 3


@pytest.mark.parametrize(
    "records",
    [
        b"6 a=b\n" * 4,
        b"0 a=b\n",
        b"99999999 path=x\n",
        b"x",
        b"9 path=\n",
        b"-1 a=b\n",
        b"30 size=99999999999999999999\n",
        b"10 size=-1\n",
        b"17 path=../../b\n",
        b" a=b\n",
        b"\0" * 9,
    ],
)
def test_pax_records_that_are_none(records: bytes) -> None:
    info = tarfile.TarInfo("pax")
    info.size, info.type = len(records), tarfile.XHDTYPE
    head = info.tobuf(tarfile.USTAR_FORMAT) + records.ljust(BLOCK, b"\0")
    with pytest.MonkeyPatch.context() as patch:
        found = everything(head + tar([("a.jpg", b"1"), ("a.txt", b"1")], 0), patch)
    assert all(isinstance(item, BadRecord) or item.key in ("s/a", "s/b") for item in found)


@settings(max_examples=100)
@given(st.binary(max_size=300))
def test_index_files_of_random_bytes(data: bytes) -> None:
    whole = index_file.header_bytes({"kind": tar_index._KIND, "count": 1, "shards": []})
    for content in (data, whole + data, whole[: len(data)] + data, whole[:14] + data):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "index"
            path.write_bytes(content)
            with pytest.raises(index_file.BadIndex):
                tar_index._read(str(path))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcw"), inner),
    max_leaves=9,
)


@settings(max_examples=150)
@given(st.dictionaries(st.sampled_from("abcw"), JSON | st.binary(max_size=9)))
def test_values_of_any_type(values: dict[str, Any]) -> None:
    captions = {"a": "alt", "b/c": "long", "c/a/b": "short"}
    others = {"regions": "b/a", "teacher": ("a",), "duplicate": "c"}
    columns = Columns(captions=captions, label="b", weight="w", labels=("a/b",), **others)
    try:
        record = columns.record("here", b"image", values)
    except BadRecord:
        return
    # What a source gives can be written down, which asks for texts and finite numbers.
    assert decode_record(encode_record(record)) == record


@settings(max_examples=100)
@given(st.binary(max_size=200), st.integers(0, 200))
def test_record_bytes(data: bytes, cut: int) -> None:
    good = encode_record(Record(key="a", image=b"123", label="x"))
    for content in (
        data,
        b"VLR1" + data,
        good[:cut] + data,
        good[: len(good) - 3 - cut % 20] + data,
    ):
        with suppress(BadRecord):
            assert isinstance(decode_record(content), Record)
