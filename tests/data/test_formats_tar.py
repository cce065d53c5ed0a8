"""Tar shards: the index agrees with Python's tarfile, reads are exact, bad input is counted."""

import dataclasses
import io
import os
import pickle
import re
import tarfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from vlalign import tree
from vlalign.data import storage
from vlalign.data.formats import index_file, tar_index, webdataset
from vlalign.data.formats.tar_headers import BadTar, members
from vlalign.data.formats.webdataset import WebDatasetSource
from vlalign.data.record import BadRecord, Caption
from vlalign.data.sources import Source
from vlalign.errors import UserError

Members = Iterable[tuple[str, bytes]]
DIALECTS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLALIGN_CACHE", str(tmp_path / "cache"))
    webdataset._opened.cache_clear()
    storage.forget("")


def tar(items: Members, dialect: int = tarfile.USTAR_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=dialect) as archive:
        for name, content in items:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def sample(key: str, number: int = 0) -> Members:
    return [
        (f"{key}.jpg", b"\xff\xd8" + bytes([number % 256]) * (400 + 37 * number)),
        (f"{key}.txt", f"caption {number} é".encode()),
        (
            f"{key}.json",
            b'{"caption": "of json", "sha": "%d", "w": 0.5, "deep": {"a": "b"}}' % number,
        ),
    ]


def samples(count: int, prefix: str = "") -> Members:
    return [item for i in range(count) for item in sample(f"{prefix}{i:06d}", i)]


def listed(data: bytes) -> list[tuple[str, int, int, int]]:
    found = members(lambda at, count: data[at : at + count], len(data))
    return [(member.name, member.start, member.data, member.size) for member in found]


def of_tarfile(data: bytes) -> list[tuple[str, int, int, int]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return [(m.name, m.offset, m.offset_data, m.size) for m in archive if m.isreg()]


def source_of(path: Path, data: bytes, **fields: Any) -> WebDatasetSource:
    path.write_bytes(data)
    return WebDatasetSource(shards=(str(path),), **fields)


def outcomes(source: Source) -> list[str]:
    return [outcome(source, index) for index in range(len(source))]


def outcome(source: Source, index: int) -> str:
    try:
        return source[index].key
    except BadRecord as problem:
        return problem.kind


@pytest.mark.parametrize("dialect", DIALECTS)
def test_headers_agree_with_tarfile(dialect: int, tmp_path: Path) -> None:
    names = ["a.jpg", "x/" + "d" * 90 + "/b.txt", "é" * 40 + ".jpg", "k" * 99 + ".txt"]
    if dialect != tarfile.USTAR_FORMAT:
        names += ["long/" * 60 + "c.jpg", "n" * 254 + ".txt"]
    else:
        names = [name for name in names if len(name.encode()) <= 100 or "/" in name]
    data = tar([(name, bytes(200 * i)) for i, name in enumerate(names)], dialect)
    assert listed(data) == of_tarfile(data)
    assert [name for name, *_ in listed(data)] == names


def test_folders_links_global_headers_and_large_numbers() -> None:
    out = io.BytesIO()
    options: dict[str, Any] = {"format": tarfile.PAX_FORMAT, "pax_headers": {"comment": "c"}}
    with tarfile.open(fileobj=out, mode="w", **options) as archive:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"special{kind!r}")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        info = tarfile.TarInfo("a.jpg")
        info.size, info.mtime = 3, 1.5  # a pax record of the member
        archive.addfile(info, io.BytesIO(b"abc"))
    assert listed(out.getvalue()) == of_tarfile(out.getvalue())
    # Base 256 sizes: 9 GiB are beyond octal digits; the archive is cut, and that is said.
    info = tarfile.TarInfo("big.jpg")
    info.size = 9 << 30
    with pytest.raises(BadTar, match=r"cut off in 'big.jpg' .*9,663,676,416"):
        listed(info.tobuf(tarfile.GNU_FORMAT))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_records(dialect: int, tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "captions": {"txt": "alt", "json/caption": "synthetic"},
        "label": "json/deep/a",
        "group": "json/sha",
        "weight": "json/w",
    }
    prefix = "deep/" * (1 if dialect == tarfile.USTAR_FORMAT else 30)
    source = source_of(tmp_path / "s.tar", tar(samples(20, prefix), dialect), **fields)
    assert isinstance(source, Source)
    assert len(source) == 20
    assert source.problems() == {}
    record = source[13]
    assert record.key == f"s/{prefix}000013"
    assert record.image == dict(sample("", 13))[".jpg"]
    assert record.captions == (
        Caption("of json", "synthetic", "en", "json/caption"),
        Caption("caption 13 é", "alt", "en", "txt"),
    )
    assert (record.label, record.group, record.weight) == ("b", "13", 0.5)
    for index in (-1, 20):
        with pytest.raises(IndexError, match="of a source of 20"):
            source[index]
    again = tree.loads(tree.dumps(source))
    assert again == source == pickle.loads(pickle.dumps(source))
    assert again[13] == record


def test_labels_without_captions(tmp_path: Path) -> None:
    data = tar([("a.png", b"1"), ("a.cls", b"1\n"), ("b.png", b"2"), ("b.cls", b"7")])
    fields: dict[str, Any] = {"captions": {}, "label": "cls", "class_names": ("cat", "dog")}
    source = source_of(tmp_path / "s.tar", data, **fields)
    assert source[0].label == "dog"
    with pytest.raises(BadRecord, match="class 7 of 2"):
        source[1]
    assert outcome(WebDatasetSource(shards=source.shards), 0) == "missing caption"


def test_bad_input_is_counted_and_every_record_says_what(tmp_path: Path) -> None:
    items = [
        *sample("good"),
        *sample("../up"),
        *sample("/etc/absolute"),
        ("only.jpg", b"1"),
        ("alone.txt", b"text"),
        *sample("good"),
        ("same.jpg", b"1"),
        ("same.txt", b"1"),
        ("same.jpg", b"1"),
        ("same.txt", b"1"),
        ("README", b"no part of a sample"),
        (".hidden.jpg", b""),
        ("empty.jpg", b""),
        ("empty.txt", b"x"),
        *[("latin.jpg", b"1"), ("latin.txt", b"caf\xe9")],
        *[("nul.jpg", b"1"), ("nul.txt", b"a\0b")],
        *[("mega.jpg", b"1"), ("mega.txt", b"w " * 500_000)],
        *[("blank.jpg", b"1"), ("blank.txt", b" \n")],
        ("./last.jpg", b"1"),
        ("./last.txt", b"1"),
    ]
    source = source_of(tmp_path / "s.tar", tar(items))
    assert [outcome(source, i) for i in range(len(source))] == [
        "s/good",
        "unsafe name",
        "unsafe name",
        "missing caption",
        "missing image",
        "duplicate key",
        "s/same",
        "duplicate key",
        "empty image",
        "invalid text",
        "invalid text",
        "invalid text",
        "s/blank",
        "s/last",
    ]
    assert source.problems() == {
        "duplicate key": 2,
        "missing caption": 1,
        "missing image": 1,
        "unsafe name": 2,
    }
    assert source[12].captions == ()
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".index") == ["s.tar"]
    report = "\n".join(source.opened().report())
    assert "unsafe name: '../up'" in report
    assert "only has only jpg" in report


def _damaged(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data, third: data[: third + 700], r"cut off in '000002.jpg'"),
        (lambda data, third: data[: third + 100], r"cut off in a header \(100 of 512 bytes\)"),
        (lambda data, third: _damaged(data, third + 10), "damaged header"),
        (lambda data, third: data[:third] + b"<html>" * 1000, "damaged header"),
    ],
)
def test_a_damaged_shard_is_good_up_to_the_damage(
    change: Callable[[bytes, int], bytes], message: str, tmp_path: Path
) -> None:
    data = tar(samples(5))
    third = listed(data)[6][1]
    source = source_of(tmp_path / "s.tar", change(data, third))
    assert [outcome(source, i) for i in range(len(source))] == ["s/000000", "s/000001"]
    assert source.problems() == {"unreadable shard": 1}
    (line,) = source.opened().report()
    assert line.startswith("s.tar: unreadable shard: byte ")
    assert "2 samples before it" in line
    assert re.search(message, line)


def test_no_tar_at_all(tmp_path: Path) -> None:
    import gzip

    (tmp_path / "a.tar").write_bytes(b"")
    (tmp_path / "b.tar").write_bytes(gzip.compress(tar(samples(3))))
    (tmp_path / "c.tar").write_bytes(tar(samples(3)))
    source = WebDatasetSource(shards=(f"{tmp_path}/{{a,b,c}}.tar",))
    assert len(source) == 3
    assert source[0].key == "c/000000"
    assert source.problems() == {"unreadable shard": 2}
    first, second = source.opened().report()
    assert "an empty file" in first
    assert "unpack it" in second
    with pytest.raises(UserError, match=r"1 of 1 files do not exist"):
        len(WebDatasetSource(shards=(f"{tmp_path}/d.tar",)))
    with pytest.raises(UserError, match="named twice"):
        len(WebDatasetSource(shards=(f"{tmp_path}/c.tar",) * 2))
    with pytest.raises(UserError, match="no tar shards"):
        len(WebDatasetSource(shards=()))


def test_stopped_writers_folders_and_removed_shards(tmp_path: Path) -> None:
    data = tar(samples(2))
    source = source_of(tmp_path / "s.tar", data[: listed(data)[-1][2] + 512])
    assert len(source) == 2
    assert source.problems() == {}
    assert source.opened().report() == ["s.tar: no end mark: its writer may have been stopped"]
    (tmp_path / "d.tar").mkdir()
    with pytest.raises(UserError, match=r"shard .*d\.tar is no file"):
        len(WebDatasetSource(shards=(str(tmp_path / "d.tar"),)))
    (tmp_path / "s.tar").unlink()
    storage.forget("")
    with pytest.raises(BadRecord, match=r"unreadable shard: s\.tar is gone"):
        source[0]


def test_an_archive_in_another_order_is_told_apart(tmp_path: Path) -> None:
    items = sorted(samples(4), key=lambda item: item[0].rpartition(".")[2])
    source = source_of(tmp_path / "s.tar", tar(items))
    assert "tar --sort=name" in source.opened().report()[0]
    assert set(outcomes(source)) == {"missing caption", "duplicate key"}


def test_a_store_that_fails_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/box/s.tar", tar(samples(2)))
    source = WebDatasetSource(shards=("memory://box/s.tar",))
    first = source[0]
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    left, cat_file = [3], type(memory).cat_file

    def failing(self: Any, *args: Any, **kwargs: Any) -> bytes:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError("503 of the store")
        return cat_file(self, *args, **kwargs)

    monkeypatch.setattr(type(memory), "cat_file", failing)
    assert source[0] == first
    left[0] = 1000
    with pytest.raises(UserError, match=r"cannot read memory://box/s.tar \(6 attempts\): 503"):
        source[0]


def _shards(folder: Path, count: int = 4) -> tuple[str, ...]:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"{number:03d}.tar").write_bytes(tar(samples(3 + number)))
    return tuple(f"{folder}/{number:03d}.tar" for number in range(count))


def test_the_index_is_built_once_and_again_for_changed_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = _shards(tmp_path / "data")
    scanned: list[str] = []
    scan = tar_index.scan
    monkeypatch.setattr(
        tar_index, "scan", lambda *job: (scanned.append(Path(job[0]).name), scan(*job))[1]
    )
    calls: list[tuple[int, int]] = []
    first = tar_index.open_index(shards, progress=lambda *call: calls.append(call))
    assert sorted(scanned) == ["000.tar", "001.tar", "002.tar", "003.tar"]
    total = sum(map(os.path.getsize, shards))
    assert len(calls) == 4
    assert calls[-1] == (total, total)
    assert (len(first), first.entries.itemsize) == (18, 16)
    assert not first.entries.flags.owndata  # mapped, not resident
    scanned.clear()
    same = tar_index.open_index(shards)
    assert scanned == []
    assert same.fingerprint() == first.fingerprint()
    Path(shards[2]).write_bytes(tar(samples(50)))
    changed = tar_index.open_index(shards)
    assert scanned == ["002.tar"]
    assert len(changed) == 18 - 5 + 50
    assert changed.fingerprint() != first.fingerprint()
    (path,) = (tmp_path / "data").glob(".vlalign-*")  # and no parts are left
    path.write_bytes(path.read_bytes()[:-1])
    assert len(tar_index.open_index(shards)) == len(changed)
    assert len(scanned) == 5


def test_fingerprints_know_content_not_place_or_time(tmp_path: Path) -> None:
    one, two = _shards(tmp_path / "one"), _shards(tmp_path / "two")
    os.utime(two[0], (1, 1))
    prints = [tar_index.open_index(shards).fingerprint() for shards in (one, two, two[:-1])]
    assert prints[0] == prints[1] != prints[2]


def test_an_interrupted_build_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = _shards(tmp_path / "data")
    scan, scanned = tar_index.scan, list[str]()

    def watched(path: str, size: int, name: str) -> Any:
        if name == "003.tar" and len(scanned) == 3:
            scanned.append("interrupted")
            raise KeyboardInterrupt
        scanned.append(name)
        return scan(path, size, name)

    monkeypatch.setattr(tar_index, "scan", watched)
    with pytest.raises(KeyboardInterrupt):
        tar_index.open_index(shards, workers=1)
    assert len(tar_index.open_index(shards, workers=1)) == 18
    assert scanned == ["000.tar", "001.tar", "002.tar", "interrupted", "003.tar"]


def test_processes_and_threads_give_equal_indexes(tmp_path: Path) -> None:
    shards = _shards(tmp_path / "data")
    threads = tar_index.open_index(shards, str(tmp_path / "a"), workers=2)
    processes = tar_index.open_index(shards, str(tmp_path / "b"), workers=2, processes=True)
    assert threads.shards == processes.shards
    assert np.array_equal(threads.entries, processes.entries)


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = _shards(tmp_path / "data")
    monkeypatch.setattr(tar_index.os, "access", lambda path, mode: False)
    assert len(tar_index.open_index(shards)) == 18
    assert not list((tmp_path / "data").glob(".vlalign-*"))
    assert list((tmp_path / "cache" / "indexes").glob(".vlalign-*.index"))


def test_remote_shards(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    local = _shards(tmp_path / "data")
    for path in local:
        memory.pipe_file(f"/box/{Path(path).name}", Path(path).read_bytes())
    here = WebDatasetSource(shards=local)
    for index in (None, "memory://box/index", str(tmp_path / "index")):
        there = WebDatasetSource(shards=("memory://box/{000..003}.tar",), index=index)
        assert there.fingerprint() == here.fingerprint()
        assert [there[i] for i in range(18)] == [here[i] for i in range(18)]
    assert len(memory.ls("/box/index")) == 1


def test_a_shard_replaced_under_its_index(tmp_path: Path) -> None:
    source = source_of(tmp_path / "s.tar", tar(samples(3)))
    assert len(source) == 3
    data = (tmp_path / "s.tar").read_bytes()
    (tmp_path / "s.tar").write_bytes(_damaged(data, 5))
    with pytest.raises(BadRecord, match=r"unreadable record: s\.tar at byte 0 is not as it was"):
        source[0]
    assert source[1].key == "s/000001"


def test_a_hundred_million_samples_start_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    count, each = 10_000, 10_000
    content = tar(sample("last", 3))
    (tmp_path / "data").mkdir()
    shards = tuple(f"{tmp_path}/data/{number:05d}.tar" for number in range(count))
    Path(shards[0]).write_bytes(content)
    for path in shards[1:]:
        os.link(shards[0], path)
    infos = tuple(
        tar_index.Shard(
            name=Path(path).name,
            size=len(content),
            samples=each,
            members=3 * each,
            digest=f"{number:064x}",
            problems={},
        )
        for number, path in enumerate(shards)
    )
    index = tar_index.index_path(shards)
    shards_as_text = [dataclasses.asdict(info) for info in infos]
    head = index_file.header_bytes(
        {"kind": tar_index._KIND, "count": count * each, "shards": shards_as_text}
    )
    wanted = (0, 12_345_678, count * each - 1)
    entry = np.array([(0, len(content), 0)], tar_index.ENTRY).tobytes()
    with open(index, "wb") as file:
        file.write(head)
        for position in wanted:
            file.seek(len(head) + 16 * position)
            file.write(entry)
    source = WebDatasetSource(shards=(f"{tmp_path}/data/{{00000..09999}}.tar",))
    started = time.process_time()
    assert len(source) == 100_000_000
    keys = [source[position].key for position in reversed(wanted)]
    fingerprint = source.fingerprint()
    seconds = time.process_time() - started
    assert keys == ["09999/last", "01234/last", "00000/last"]
    assert len(fingerprint) == 64
    assert seconds < 10, f"{seconds:.2f} s"
