"""Parquet, tables and folders: records as written, any place, and what is wrong with them."""

import csv
import io
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlalign import tree
from vlalign.data import storage, writers
from vlalign.data.captions import CaptionView
from vlalign.data.formats import folder as folder_module
from vlalign.data.formats import open_source, parquet, table, webdataset
from vlalign.data.formats.fields import Columns
from vlalign.data.formats.folder import FolderSource
from vlalign.data.formats.parquet import ParquetSource
from vlalign.data.formats.table import TableSource
from vlalign.data.formats.webdataset import WebDatasetSource
from vlalign.data.images import ImageView
from vlalign.data.pipeline import Data
from vlalign.data.record import BadRecord, Caption, Record, Region, Stored, encode_record
from vlalign.data.sources import ArrayRecordSource, Source, write_array_record
from vlalign.data.tokenizer import Bpe
from vlalign.errors import UserError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("VLALIGN_CACHE", str(tmp_path / "cache"))
    fsspec.filesystem("memory").store.clear()
    yield
    forget()


def forget() -> None:
    for cached in (
        parquet._opened,
        parquet._metadata,
        parquet._row_group,
        table._opened,
        folder_module._opened,
        webdataset._opened,
    ):
        cached.cache_clear()
    storage.forget("")


def copy_to_memory(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            fsspec.filesystem("memory").pipe_file(f"/box/{name}", path.read_bytes())


def outcomes(source: Source) -> list[str]:
    found = []
    for index in range(len(source)):
        try:
            found.append(source[index].key)
        except BadRecord as problem:
            found.append(problem.kind)
    return found


def same_after_text_and_pickle(source: Any) -> None:
    assert isinstance(source, Source)
    assert tree.loads(tree.dumps(source)) == source == pickle.loads(pickle.dumps(source))
    for index in (-1, len(source)):
        with pytest.raises(IndexError, match=f"of a source of {len(source)}"):
            source[index]


# Parquet


def write_parquet(path: Path, rows: list[dict[str, Any]], group: int = 3, **kwargs: Any) -> None:
    data = pa.Table.from_pylist(rows, **kwargs)
    pq.write_table(data, path, row_group_size=group)


def rows_of(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "image": {"bytes": b"image %d" % i, "path": f"{i}.jpg"},
            "caption": f"caption {i}",
            "more": [f"first {i}", f"second {i}"],
            "label": i % 2,
            "group": f"g{i // 2}",
            "weight": i / 4,
            "id": f"id{i}",
            "meta": {"lang": "de"},
            "parts": [{"box": [0.0, 0.0, 0.5, i / 20], "phrase": "part"}],
            "clip": [i / 2, 1.0],
        }
        for i in range(start, start + count)
    ]


ALL = {
    "captions": {"caption": "alt", "more": "long"},
    "key": "id",
    "label": "label",
    "group": "group",
    "weight": "weight",
    "language": "meta/lang",
    "regions": "parts",
    "teacher": ("clip",),
}


def test_parquet_as_hugging_face_writes_it(tmp_path: Path) -> None:
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    info = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pa.Table.from_pylist(rows_of(1)).schema.with_metadata(info)
    write_parquet(tmp_path / "a.parquet", rows_of(10), schema=schema)
    write_parquet(tmp_path / "b.parquet", rows_of(5, 10), schema=schema)
    source = ParquetSource(files=(f"{tmp_path}/*.parquet",), **ALL)
    same_after_text_and_pickle(source)
    assert [source[i].image for i in range(15)] == [b"image %d" % i for i in range(15)]
    record = source[13]
    assert (record.key, record.label, record.group, record.weight) == ("id13", "dog", "g6", 3.25)
    assert record.captions == (
        Caption("caption 13", "alt", "de", "caption"),
        Caption("first 13", "long", "de", "more"),
        Caption("second 13", "long", "de", "more"),
    )
    assert record.regions == (Region((0.0, 0.0, 0.5, 0.65), "part"),)
    assert record.teacher["clip"].array().tolist() == [6.5, 1.0]
    assert ParquetSource(files=source.files)[13].key == "b.parquet:3"
    for path in ("a", "b"):
        data = (tmp_path / f"{path}.parquet").read_bytes()
        fsspec.filesystem("memory").pipe_file(f"/box/{path}.parquet", data)
    remote = ParquetSource(files=("memory://box/{a,b}.parquet",), **ALL)
    assert remote[13] == record
    assert remote.fingerprint() == source.fingerprint()


def test_parquet_with_paths_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"x")
    names = ["x.jpg", "none.jpg", "../up.jpg", "/etc/passwd", None, f"{tmp_path}/x.jpg"]
    write_parquet(tmp_path / "p.parquet", [{"image": n, "caption": "c"} for n in names])
    kinds = ["missing image", "unsafe name", "unsafe name", "missing image"]
    source = ParquetSource(files=(f"{tmp_path}/p.parquet",))
    assert outcomes(source) == ["p.parquet:0", *kinds, "p.parquet:5"]
    write_parquet(
        tmp_path / "q.parquet",
        [{"jpg": b"1", "c": "x"}, {"jpg": None, "c": "x"}, {"jpg": b"", "c": "x"}, {"jpg": b"1"}],
    )
    source = ParquetSource(files=(f"{tmp_path}/q.parquet",), image="jpg", captions={"c": "alt"})
    assert outcomes(source) == ["q.parquet:0", "missing image", "empty image", "missing caption"]
    with pytest.raises(UserError, match="no column 'caption'"):
        ParquetSource(files=source.files, image="jpg")[0]


def test_damaged_parquet(tmp_path: Path) -> None:
    (tmp_path / "no.parquet").write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"no.parquet is no Parquet file"):
        len(ParquetSource(files=(f"{tmp_path}/no.parquet",)))
    with pytest.raises(UserError, match="do not exist"):
        len(ParquetSource(files=(f"{tmp_path}/none.parquet",)))
    write_parquet(tmp_path / "a.parquet", rows_of(6))
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[:4] + bytes(300) + data[304:])
    source = ParquetSource(files=(f"{tmp_path}/a.parquet",))
    assert outcomes(source) == ["unreadable shard"] * 3 + [
        "a.parquet:3",
        "a.parquet:4",
        "a.parquet:5",
    ]
    text = pa.array([b"\xff\xfe"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"image": [b"1"], "caption": text}), tmp_path / "t.parquet")
    assert outcomes(ParquetSource(files=(f"{tmp_path}/t.parquet",))) == ["invalid text"]


# Tables


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    (root / "in").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg", "in/c.jpg"):
        (root / name).write_bytes(name.encode())
    (tmp_path / "outside.jpg").write_bytes(b"secret")
    return root


NAMES = [
    "a.jpg",
    "in/c.jpg",
    "../outside.jpg",
    "/etc/passwd",
    "none.jpg",
    "",
    "b.jpg",
    "in",
    "a.jpg/x",
]
KINDS = [
    *("row 0", "row 1", "unsafe name", "unsafe name", "missing image", "missing image", "row 6"),
    *("missing image", "missing image"),
]


@pytest.mark.parametrize("separator", [",", "\t", ""])
def test_tables(images: Path, separator: str) -> None:
    out = io.StringIO(newline="")
    if separator:
        writer = csv.writer(out, delimiter=separator)
        writer.writerows([("filepath", "title"), *((n, f'with "quotes",\n{n}') for n in NAMES)])
    else:
        rows = ({"filepath": name, "title": f'with "quotes",\n{name}'} for name in NAMES)
        out.write("\n".join(json.dumps(row) for row in rows))
    path = images / {",": "t.csv", "\t": "t.tsv", "": "t.jsonl"}[separator]
    path.write_text(out.getvalue(), newline="")
    source = TableSource(file=str(path))
    same_after_text_and_pickle(source)
    assert outcomes(source) == KINDS
    record = source[1]
    assert record.image == b"in/c.jpg"
    assert record.captions == (Caption('with "quotes",\nin/c.jpg', "alt", "en", "title"),)
    copy_to_memory(images)
    remote = TableSource(file=f"memory://box/{path.name}")
    assert [remote[0], remote[1]] == [source[0], record]
    assert remote.fingerprint() == source.fingerprint()
    elsewhere = path.rename(images.parent / path.name)
    far = TableSource(file=str(elsewhere), root=str(images))
    assert far[0].image == b"a.jpg"
    with pytest.raises(UserError, match="no such table"):
        len(TableSource(file=str(images / "none.csv")))
    with pytest.raises(UserError, match="set separator"):
        len(TableSource(file=str(images / "a.jpg")))


def test_absolute_paths_below_the_root(images: Path) -> None:
    rows = f"path;text\n{images}/a.jpg;one\n{images.parent}/outside.jpg;two\n"
    (images / "t.csv").write_text(rows)
    options: dict[str, Any] = {"image": "path", "captions": {"text": "alt"}, "separator": ";"}
    source = TableSource(file=str(images / "t.csv"), root=str(images), **options)
    assert outcomes(source) == ["row 0", "unsafe name"]
    with pytest.raises(UserError, match="no column 'txt'; nearest: text"):
        TableSource(file=str(images / "t.csv"), **{**options, "captions": {"txt": "alt"}})[0]


def test_bad_rows(images: Path) -> None:
    good = b'{"filepath": "a.jpg", "title": "x"}\n'
    (images / "t.jsonl").write_bytes(
        b"\xef\xbb\xbf"
        + good
        + b"\n  \nnonsense\n[1]\n"
        + b"[" * 100_000
        + b"\n"
        + good.replace(b"x", b"\xff")
        + good.replace(b"x", b"a" * 5_000_000)
        + good.replace(b"x", b"a" * 1_000_000)
        + b'{"filepath": 3}\n'
        + good.strip()
    )
    assert outcomes(TableSource(file=str(images / "t.jsonl"))) == [
        "row 0",
        "unreadable record",
        "unreadable record",
        "unreadable record",
        "invalid text",
        "invalid text",
        "invalid text",
        "missing image",
        "row 8",
    ]
    (images / "t.csv").write_bytes(
        b"\xef\xbb\xbffilepath,title\na.jpg,x\n\na.jpg\na.jpg,x,y\na.jpg,\xff\na.jpg,\na.jpg,"
        + b"w" * 1_000_000
        + b"\na.jpg,a\0b\na.jpg,a\rb\nb.jpg,last"
    )
    assert outcomes(TableSource(file=str(images / "t.csv"))) == [
        "row 0",
        "unreadable record",
        "unreadable record",
        "invalid text",
        "missing caption",
        "unreadable record",
        "invalid text",
        "unreadable record",
        "row 8",
    ]
    (images / "empty.csv").write_bytes(b"")
    assert len(TableSource(file=str(images / "empty.csv"))) == 0


def test_the_row_index_is_kept_and_follows_the_table(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    write = table._write_index
    monkeypatch.setattr(table, "_write_index", lambda *args: (built.append(1), write(*args)))
    monkeypatch.setattr(table, "_CHUNK", 2)
    path = images / "t.csv"
    path.write_text("filepath,title\n" + "a.jpg,x\n" * 5)
    source = TableSource(file=str(path))
    prints = [source.fingerprint()]
    for rows in (5, 7):
        path.write_text("filepath,title\n" + "a.jpg,x\n" * rows)
        forget()
        assert len(source) == rows
        prints.append(source.fingerprint())
    assert prints[0] == prints[1] != prints[2]
    assert len(built) == 3


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@given(st.lists(st.tuples(CELLS, CELLS), max_size=8), st.sampled_from(["\n", "\r\n"]))
def test_rows_as_python_reads_them(rows: list[tuple[str, str]], newline: str) -> None:
    out = io.StringIO(newline="")
    quoting = csv.QUOTE_ALL if newline == "\n" else csv.QUOTE_MINIMAL  # which "\r" asks for
    writer = csv.writer(out, lineterminator=newline, quoting=quoting)
    writer.writerows([("filepath", "title"), *rows])
    data = out.getvalue().encode()
    starts = [int(at) for part in table._starts(io.BytesIO(data), ",") for at in part]
    ends = [*starts[1:], len(data)][: len(starts)]
    pieces = (data[start:end].decode() for start, end in zip(starts, ends, strict=True))
    found = [tuple(next(csv.reader(io.StringIO(piece, newline="")))) for piece in pieces]
    assert found == rows


@given(st.binary(max_size=300))
def test_tables_of_random_bytes(data: bytes) -> None:
    for separator in (",", "\t", ""):
        starts = [int(at) for part in table._starts(io.BytesIO(data), separator) for at in part]
        assert starts == sorted(set(starts))
        assert all(0 <= start < len(data) for start in starts)


# Folders


def test_folders_by_class_and_with_captions(images: Path) -> None:
    source = FolderSource(directory=str(images))
    same_after_text_and_pickle(source)
    assert outcomes(source) == ["a.jpg", "b.jpg", "in/c.jpg"]
    assert [source[i].label for i in range(3)] == [None, None, "in"]
    before = source.fingerprint()
    (images / "a.txt").write_text("one line\nanother\n")
    (images / "in" / "c.json").write_text('{"caption": "of json", "n": 2}')
    (images / ".hidden.jpg").touch()
    forget()
    assert source.fingerprint() != before
    assert outcomes(source) == ["a.jpg", "missing caption", "missing caption"]
    assert source[0].captions == (Caption("one line\nanother", "alt", "en", "txt"),)
    captions = {"lines": "alt", "json/caption": "long"}
    source = FolderSource(directory=str(images), captions=captions, label="json/n")
    assert [caption.text for caption in source[0].captions] == ["one line", "another"]
    assert (source[2].captions[0].kind, source[2].label) == ("long", "2")
    copy_to_memory(images)
    assert FolderSource(directory="memory://box", captions=captions)[2].image == b"in/c.jpg"
    with pytest.raises(UserError, match="no such folder"):
        len(FolderSource(directory=str(images / "none")))
    (images / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        len(FolderSource(directory=str(images / "empty")))


def test_captions_that_know_their_kind(tmp_path: Path) -> None:
    captions = [{"text": "eins", "kind": "name", "language": "de"}, {"text": "zwei", "source": "s"}]
    row = {"image": b"1", "texts": captions}
    write_parquet(tmp_path / "a.parquet", [row, {"image": b"1", "texts": [{"kind": "odd"}]}])
    source = ParquetSource(files=(f"{tmp_path}/a.parquet",), captions={"texts": "alt"})
    assert source[0].captions == (
        Caption("eins", "name", "de", "texts"),
        Caption("zwei", "alt", "en", "s"),
    )
    assert outcomes(source)[1] == "unreadable record"


@pytest.mark.parametrize("kind", ["arrayrecord", "tar", "parquet", "jsonl"])
def test_converted_records_come_back_whole(kind: str, tmp_path: Path, record: Any) -> None:
    teacher = {"t": Stored.of(np.arange(6, dtype=np.float32).reshape(2, 3))}
    regions = (Region((0.0, 0.25, 0.5, 1.0), "a part"),)
    records = [
        record(0, teacher=teacher, regions=regions, weight=0.5, duplicate="d", group="g"),
        record(1, label="x", captions=(Caption("é", "long", "fr", "s"),)),
        record(2, captions=()),
    ]
    written = writers.FORMATS[kind]
    items = (written.encode(index, item) for index, item in enumerate(records))
    written.write(tmp_path / f"data{written.suffix}", items)
    source = open_source(str(tmp_path / f"data{written.suffix}"))
    assert [source[index] for index in range(len(source))] == records
    assert tree.loads(tree.dumps(source)) == source


def test_equal_content_gives_equal_batches_in_any_format(tmp_path: Path, source: Any) -> None:
    """So runs on them have equal losses."""
    found: list[list[dict[str, Any]]] = []
    for kind, written in writers.FORMATS.items():
        items = (written.encode(i, source(12)[i]) for i in range(12))
        written.write(tmp_path / f"{kind}{written.suffix}", items)
        data = Data(
            source=open_source(str(tmp_path / f"{kind}{written.suffix}")),
            views={"image": ImageView(size=8, flip=0.5), "text": CaptionView()},
            tokenizer=Bpe(vocab_size=270, length=8),
            batch_size=4,
        )
        with data.batches(data.fit_tokenizer(), seed=3, start_step=1) as batches:
            found.append([next(batches) for _ in range(4)])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert one.keys() == two.keys()
            assert all(np.array_equal(one[name], two[name]) for name in one)


def test_a_file_that_is_no_image_is_not_read(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "LARGEST", 7)  # in/c.jpg has 8 bytes
    assert outcomes(FolderSource(directory=str(images)))[1:] == ["b.jpg", "image too large"]


def test_wrong_columns_are_named() -> None:
    with pytest.raises(UserError, match=r"Columns.captions: 'a' is of kind 'alternative'"):
        Columns(captions={"a": "alternative"})
    with pytest.raises(UserError, match=r"'a\.b' has a dot"):
        Columns(captions={"a.b": "alt"})


# Guessing


def test_open_source(images: Path, tmp_path: Path) -> None:
    assert isinstance(open_source("x/{000..010}.tar"), WebDatasetSource)
    assert isinstance(open_source(str(images)), FolderSource)
    write_parquet(tmp_path / "a.parquet", [{"jpg": b"1", "text": "x", "label": 2}])
    source: Any = open_source(f"{tmp_path}/*.parquet")
    assert (source.image, source.captions, source.label) == ("jpg", {"text": "alt"}, "label")
    assert source[0].captions[0].text == "x"
    (images / "t.csv").write_text("filepath,title\na.jpg,x\n")
    assert open_source(str(images / "t.csv"))[0].key == "row 0"
    assert open_source(str(images))[0].image == b"a.jpg"  # the table is what knows of captions
    (images / "t.jsonl").write_text('{"file_name": "b.jpg", "text": "x"}\n')
    assert open_source(f"file://{images}/t.jsonl")[0].image == b"b.jpg"
    path = tmp_path / "r.arrayrecord"
    write_array_record(path, [encode_record(Record(key="k", image=b"1"))])
    assert isinstance(open_source(str(path)), ArrayRecordSource)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "0.tar").touch()
    assert isinstance(open_source(str(tmp_path / "shards")), WebDatasetSource)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "x.csv").write_text("what,ever\n1,2\n")
    for wrong, message in (
        (str(tmp_path / "x.zip"), "in no known format; understood: tar shards"),
        (str(tmp_path / "odd" / "x.csv"), "which column is the image"),
    ):
        with pytest.raises(UserError, match=message):
            open_source(wrong)
    (tmp_path / "odd" / "x.csv").unlink()
    with pytest.raises(UserError, match="holds nothing that is understood"):
        open_source(str(tmp_path / "odd"))
