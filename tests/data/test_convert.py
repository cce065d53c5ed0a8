"""Conversion: nothing of a record is lost, bytes depend on nothing, kills and bad records."""

import io
import json
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlalign.data.convert import BAD, MANIFEST, PROGRESS, convert
from vlalign.data.formats import open_source
from vlalign.data.plain import plain, restore
from vlalign.data.record import BadRecord, Caption, Record, Region, Stored
from vlalign.data.sources import ArrayRecordSource, MemorySource
from vlalign.data.writers import FORMATS, extension
from vlalign.errors import UserError


def image(index: int, form: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (index % 256, index // 256, 7)).save(out, form)
    return out.getvalue()


def rich(index: int) -> Record:
    """A record with everything, in several image formats and scripts."""
    return Record(
        key=f"deep/key.{index} ü",
        image=image(index, ("PNG", "JPEG", "WEBP", "GIF")[index % 4]),
        captions=(
            Caption(f"picture {index}\nof a thing", "alt", "en", "web"),
            Caption("ein Bild\u2028drei", "long", "de", ""),
        )[: index % 3],
        label=None if index % 2 else f"class {index % 5}",
        labels={"b": "2", "a": "1"} if index % 3 else {},
        group=f"g{index // 2}",
        weight=0.5 if index % 4 == 1 else 1.0,
        regions=(Region((0.1, 0.25, 0.5, 1.0), "corner"),) * (index % 2),
        duplicate="abc" if index % 5 == 0 else None,
        teacher={"clip": Stored.of(np.arange(4, dtype=np.float16) + index)} if index % 2 else {},
    )


@pytest.fixture(scope="module")
def records() -> MemorySource:
    return MemorySource(records=tuple(map(rich, range(25))))


def read(folder: Path, name: str) -> Iterator[Record]:
    """Small readers of the formats, by the manifest."""
    for shard in json.loads((folder / MANIFEST).read_text())["shards"]:
        path = folder / shard["name"]
        if name == "arrayrecord":
            source = ArrayRecordSource(paths=(str(path),))
            yield from (source[index] for index in range(len(source)))
        elif name == "tar":
            with tarfile.open(path) as tar:
                members = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
            for key in dict.fromkeys(member.split(".")[0] for member in members):
                fields = json.loads(members.pop(f"{key}.json"))
                text = members.pop(f"{key}.txt", None)
                (data,) = (value for n, value in members.items() if n.startswith(f"{key}."))
                assert text is None or text.decode() == fields["captions"][0]["text"]
                yield restore(fields, data)
        elif name == "parquet":
            for row in pq.read_table(path).to_pylist():
                yield restore(row, row["image"]["bytes"])
    if name == "jsonl":
        for line in (folder / "records.jsonl").read_text().split("\n")[:-1]:
            fields = json.loads(line)
            yield restore(fields, (folder / fields["image"]).read_bytes())


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_of_a_record_is_lost(name: str, records: MemorySource, tmp_path: Path) -> None:
    told: list[tuple[int, bool]] = []
    outcome = convert(
        records,
        tmp_path / "out",
        name,
        shard_size=10,
        progress=lambda count, there: told.append((count, there)),
    )
    assert (outcome.records, outcome.bad, outcome.shards, outcome.resumed) == (25, {}, 3, 0)
    assert told == [(10, False), (10, False), (5, False)]
    assert tuple(read(tmp_path / "out", name)) == records.records
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["source"] == records.fingerprint()
    assert [(s["start"], s["stop"]) for s in manifest["shards"]] == [(0, 10), (10, 20), (20, 25)]
    assert (tmp_path / "out" / BAD).read_text() == ""
    assert not [path for path in contents(tmp_path / "out") if "partial" in path]


@pytest.mark.parametrize("name", FORMATS)
def test_a_way_through_another_format_and_back(
    name: str, records: MemorySource, tmp_path: Path
) -> None:
    convert(records, tmp_path / "there", name, shard_size=7)
    back = MemorySource(records=tuple(read(tmp_path / "there", name)))
    assert back.fingerprint() == records.fingerprint()


@pytest.mark.parametrize("name", FORMATS)
def test_the_sources_read_it_all_back(
    name: str, records: MemorySource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLALIGN_CACHE", str(tmp_path / "cache"))
    convert(records, tmp_path / "out", name, shard_size=10)
    table = tmp_path / "out" / "records.jsonl"
    source = open_source(str(table if name == "jsonl" else tmp_path / "out"))
    assert tuple(source[index] for index in range(len(source))) == records.records


def test_workers_change_no_byte(records: MemorySource, tmp_path: Path) -> None:
    convert(records, tmp_path / "one", "tar", shard_size=4)
    convert(records, tmp_path / "two", "tar", shard_size=4, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_tar_is_as_img2dataset_writes_it(records: MemorySource, tmp_path: Path) -> None:
    convert(records, tmp_path / "out", "tar", shard_size=10)
    with tarfile.open(tmp_path / "out" / "00001.tar") as tar:
        headers = tar.getmembers()
    assert [header.name for header in headers][:4] == [
        "000000010.webp",
        "000000010.json",
        "000000010.txt",
        "000000011.gif",
    ]
    assert {(h.mtime, h.uid, h.gid, h.uname, h.mode) for h in headers} == {(0, 0, 0, "", 0o644)}


class Holes(MemorySource):
    """Some records cannot be read."""

    def fingerprint(self) -> str:
        return "holes"

    def __getitem__(self, index: int) -> Record:
        if index in (2, 10, 11):
            raise BadRecord("unreadable record", f"hole at {index}")
        return super().__getitem__(index)


@pytest.mark.parametrize("name", FORMATS)
def test_bad_records_are_written_down(name: str, records: MemorySource, tmp_path: Path) -> None:
    odd = (
        Record("html", b"<html>", (Caption("x"),)),
        Record("half", image(1), (Caption("\ud800"),)),
    )
    source = Holes(records=(*records.records[:12], *odd))
    outcome = convert(source, tmp_path, name, shard_size=5)
    lines = [json.loads(line) for line in (tmp_path / BAD).read_text().splitlines()]
    wanted = [(2, "unreadable record"), (10, "unreadable record"), (11, "unreadable record")]
    if name in ("tar", "jsonl"):  # which say by a file's ending what an image is
        wanted.append((12, "unsupported image"))
    wanted.append((13, "invalid text"))
    assert [(line["index"], line["kind"]) for line in lines] == wanted
    assert lines[-1]["key"] == "half"
    assert outcome.records == len(list(read(tmp_path, name))) == 14 - len(wanted)
    assert sum(outcome.bad.values()) == len(wanted)


@pytest.mark.parametrize("name", FORMATS)
def test_a_shard_of_bad_records_only(name: str, records: MemorySource, tmp_path: Path) -> None:
    source = Holes(records=records.records[:12])
    outcome = convert(source, tmp_path, name, shard_size=10)
    assert outcome.bad == {"unreadable record": 3}
    assert len(list(read(tmp_path, name))) == 9


@pytest.mark.parametrize("name", FORMATS)
def test_a_finished_conversion_is_left_alone_and_mended(
    name: str, records: MemorySource, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    source = Holes(records=records.records)
    first = convert(source, folder, name, shard_size=10)
    before = contents(folder)
    again = convert(source, folder, name, shard_size=10)
    assert (again.resumed, again.bad, contents(folder)) == (3, first.bad, before)
    victim = folder / ("records.jsonl" if name == "jsonl" else "00001" + FORMATS[name].suffix)
    victim.unlink()
    mended = convert(source, folder, name, shard_size=10)
    assert mended.resumed == (0 if name == "jsonl" else 2)
    assert contents(folder) == before


def test_another_source_or_plan_is_refused(records: MemorySource, tmp_path: Path) -> None:
    convert(records, tmp_path / "out", "tar", shard_size=10)
    other = MemorySource(records=(*records.records[:-1], rich(99)))
    with pytest.raises(UserError, match="another source"):
        convert(other, tmp_path / "out", "tar", shard_size=10)
    with pytest.raises(UserError, match="begun with shard_size=10, not 11"):
        convert(records, tmp_path / "out", "tar", shard_size=11)
    with pytest.raises(UserError, match="begun with format=tar, not parquet"):
        convert(records, tmp_path / "out", "parquet", shard_size=10)


def test_wrong_input_is_an_error_that_says_what_is_right(
    records: MemorySource, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"unknown format 'arrow'; nearest: .*arrayrecord"):
        convert(records, tmp_path / "out", "arrow")
    with pytest.raises(UserError, match="at least 1 record"):
        convert(records, tmp_path / "out", "tar", shard_size=0)
    with pytest.raises(UserError, match="empty"):
        convert(MemorySource(records=()), tmp_path / "out", "tar")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"not empty \(file\)"):
        convert(records, tmp_path, "tar")
    with pytest.raises(UserError, match="is a file"):
        convert(records, tmp_path / "file", "tar")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / MANIFEST).write_text("{}")
    with pytest.raises(UserError, match="not the manifest"):
        convert(records, tmp_path / "odd", "tar")


def test_two_conversions_at_once_are_refused(records: MemorySource, tmp_path: Path) -> None:
    class Nosy(MemorySource):
        def __getitem__(self, index: int) -> Record:
            with pytest.raises(UserError, match="another conversion"):
                convert(records, tmp_path, "tar")
            return super().__getitem__(index)

    convert(Nosy(records=records.records[:2]), tmp_path, "tar")


# Forks a child for each attempt: what is imported is imported once.
KILLED = """
import os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from vlalign.data.convert import convert
from vlalign.data.sources import ArrayRecordSource
import pyarrow.parquet
source_path, name, folder, seed = sys.argv[2:]
source = ArrayRecordSource(paths=(source_path,))

class Slow:
    def __len__(self): return len(source)
    def fingerprint(self): return source.fingerprint()
    def __getitem__(self, index):
        time.sleep(0.001)
        return source[index]

chance, kills = random.Random(int(seed)), 0
while True:
    child = os.fork()
    if not child:
        convert(Slow(), Path(folder), name, shard_size=6)
        os._exit(0)
    deadline = time.monotonic() + chance.uniform(0.002, 0.06) * (1 + kills / 20)
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done: break
        time.sleep(0.0005)
    else:
        os.kill(child, signal.SIGKILL)
        done, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, status
        break
    kills += 1
print(kills)
"""


@pytest.mark.parametrize("name", FORMATS)
def test_killed_at_any_moment_the_bytes_are_the_same(
    name: str, records: MemorySource, tmp_path: Path
) -> None:
    many = MemorySource(records=records.records * 4)
    convert(many, tmp_path / "source", "arrayrecord")
    path = tmp_path / "source" / "00000.array_record"
    source = ArrayRecordSource(paths=(str(path),))
    convert(source, tmp_path / "whole", name, shard_size=6)
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", KILLED, root, path, name, tmp_path / "killed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


PARENT = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from vlalign.data.convert import convert
from vlalign.data.sources import ArrayRecordSource
if __name__ == "__main__":
    source = ArrayRecordSource(paths=(sys.argv[2],))
    tell = lambda records, there: print(records, flush=True)
    convert(source, Path(sys.argv[3]), "tar", shard_size=3, workers=2, progress=tell)
"""


def test_workers_do_not_outlive_a_killed_parent(records: MemorySource, tmp_path: Path) -> None:
    many = MemorySource(records=records.records * 40)
    convert(many, tmp_path / "source", "arrayrecord")
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    path = tmp_path / "source" / "00000.array_record"
    command = [sys.executable, script, Path(__file__).parents[2], path, tmp_path / "out"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        parent.send_signal(signal.SIGKILL)
        parent.stdout.read()  # ends when the last process that could write to it has ended
    assert (tmp_path / "out" / PROGRESS).exists()
    source = ArrayRecordSource(paths=(str(path),))
    convert(source, tmp_path / "out", "tar", shard_size=3)
    convert(source, tmp_path / "whole", "tar", shard_size=3)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_half_a_last_line_of_progress_is_left_out(records: MemorySource, tmp_path: Path) -> None:
    convert(records, tmp_path / "whole", "tar", shard_size=5)

    class Stops(MemorySource):
        def __getitem__(self, index: int) -> Record:
            if index == 12:
                raise UserError("the store is gone")
            return super().__getitem__(index)

    with pytest.raises(UserError, match="the store is gone"):
        convert(Stops(records=records.records), tmp_path / "cut", "tar", shard_size=5)
    log = tmp_path / "cut" / PROGRESS
    log.write_bytes(log.read_bytes()[:-9])
    assert convert(records, tmp_path / "cut", "tar", shard_size=5).resumed == 1
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("form", "ending"),
    {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "GIF": "gif", "TIFF": "tiff"}.items(),
)
def test_extensions_are_sniffed(form: str, ending: str) -> None:
    assert extension(image(3, form)) == ending


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(
    st.builds(
        Record,
        key=texts,
        image=st.just(b"image"),
        captions=st.lists(st.builds(Caption, texts, texts, texts, texts), max_size=2).map(tuple),
        label=st.none() | texts,
        labels=st.dictionaries(texts, texts, max_size=2),
        group=st.none() | texts,
        weight=st.floats(0, 10),
        regions=st.lists(
            st.builds(Region, st.tuples(*[st.floats(0, 1)] * 4), texts), max_size=2
        ).map(tuple),
        duplicate=st.none() | texts,
        teacher=st.dictionaries(texts, st.just(Stored.of(np.ones((2, 3), np.float32))), max_size=2),
    )
)
def test_plain_fields_are_the_whole_record(record: Record) -> None:
    assert restore(json.loads(json.dumps(plain(record))), record.image) == record


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"key": 3},
        {"key": "a", "captions": "text"},
        {"key": "a", "captions": [{"kind": "alt"}]},
        {"key": "a", "captions": 7},
        {"key": "a", "weight": "many"},
        {"key": "a", "weight": -1},
        {"key": "a", "labels": [["a"]]},
        {"key": "a", "regions": [{"box": [0, 1], "phrase": ""}]},
        {"key": "a", "teacher": {"t": {"dtype": "object", "shape": [1], "data": "AA=="}}},
        {"key": "a", "teacher": {"t": {"dtype": "float16", "shape": [2], "data": "AA=="}}},
        {"key": "a", "teacher": {"t": {"dtype": "float16", "shape": [1], "data": "A?"}}},
    ],
)
def test_fields_that_are_no_record(fields: dict[str, object]) -> None:
    with pytest.raises(BadRecord) as problem:
        restore(fields, b"image")
    assert problem.value.kind == "unreadable record"
