"""Counting: histograms, duplicates with bounded memory, headers, scripts, any number of workers."""

import io
import itertools
import math
import operator
import os
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlalign.data import stats
from vlalign.data.jobs import pieces, run_jobs
from vlalign.data.record import BadRecord, Caption, Record
from vlalign.data.scripts import script_of
from vlalign.data.sources import MemorySource, Source
from vlalign.errors import UserError


def encoded(width: int, height: int, form: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(out, form, **options)
    return out.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(40, 10, "JPEG", exif=exif)


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=200))
def test_histogram_quantiles_are_within_their_bins(values: list[int]) -> None:
    histogram = stats.Histogram()
    for value in values:
        histogram.add(value)
    found = histogram.summary()
    assert (found["count"], found["min"], found["max"]) == (len(values), min(values), max(values))
    assert math.isclose(found["mean"], sum(values) / len(values))
    for share in (0.05, 0.5, 0.95):
        exact = sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
        assert abs(histogram.quantile(share) - exact) <= exact / 16
    assert sum(count for *_, count in histogram.bars()) == len(values)
    edges = [(low, high) for low, high, _ in histogram.bars()]
    assert all(before[1] == after[0] for before, after in itertools.pairwise(edges))


@given(st.lists(st.integers(0, 10**6)), st.lists(st.integers(0, 10**6)))
def test_histograms_merge(first: list[int], second: list[int]) -> None:
    parts = [stats.Histogram(), stats.Histogram(), stats.Histogram()]
    for histogram, values in zip(parts, (first, second, first + second), strict=True):
        for value in values:
            histogram.add(value)
    parts[0].merge(parts[1])
    assert parts[0].summary() == parts[2].summary()


def distinct(values: list[int], most: int) -> stats.Distinct:
    found = stats.Distinct(most)
    for value in values:
        found.add(str(value).encode())
    return found


@given(st.lists(st.integers(0, 30), max_size=80), st.integers(0, 80))
def test_copies_are_exact_and_merge(values: list[int], cut: int) -> None:
    found = distinct(values[:cut], 1000)
    found.merge(distinct(values[cut:], 1000))
    most = max((values.count(value) for value in values), default=0)
    copies = len(values) - len(set(values))
    assert found.summary() == {
        "values": len(values),
        "distinct": len(set(values)),
        "copies": copies,
        "most_of_one": most,
        "exact": True,
    }


def test_copies_beyond_the_bound_are_estimated_in_flat_memory() -> None:
    values = [index // 2 for index in range(20_000)]  # each value twice
    whole = distinct(values, 500)
    parts = [distinct(values[at : at + 3000], 500) for at in range(0, 20_000, 3000)]
    merged = stats.Distinct(500)
    for part in reversed(parts):
        merged.merge(part)
    assert merged.summary() == whole.summary()
    found = whole.summary()
    assert not found["exact"]
    assert found["values"] == 20_000
    assert found["distinct"] == 10_000  # a value is kept with all its copies
    assert len(whole._hashes) <= 500


def test_header_of_formats() -> None:
    assert stats.image_header(encoded(30, 20)) == stats.ImageHeader("PNG", "RGB", 30, 20)
    assert stats.image_header(encoded(30, 20, "WEBP")).format == "WEBP"
    assert stats.image_header(turned()) == stats.ImageHeader("JPEG", "RGB", 10, 40)


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (b"", "empty image"),
        (b"<html>404</html>", "unsupported image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unsupported image"),
        (b"\x89PNG\r\n\x1a\nxxxx", "corrupt image"),
        (encoded(9000, 8000), "image too large"),
    ],
)
def test_header_of_what_is_no_image(image: bytes, kind: str) -> None:
    with pytest.raises(BadRecord) as problem:
        stats.image_header(image)
    assert problem.value.kind == kind


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("a red house", "Latin"),
        ("Größe", "Latin"),
        ("12:30, 100 %", "none"),
        ("", "none"),
        ("❤ ☂", "none"),
        ("красный дом", "Cyrillic"),
        ("σπίτι", "Greek"),
        ("红房子", "Han"),
        ("赤い家", "Japanese"),
        ("빨간 집", "Hangul"),
        ("बड़ा घर", "Devanagari"),
        ("منزل أحمر", "Arabic"),
        ("בית אדום", "Hebrew"),
        ("บ้านสีแดง", "Thai"),
        ("ქართული", "Georgian"),
        ("дом in red", "Latin"),
    ],
)
def test_script_of(text: str, script: str) -> None:
    assert script_of(text) == script


class Broken(MemorySource):
    """Every seventh record cannot be read."""

    def __getitem__(self, index: int) -> Record:
        if index % 7 == 3:
            raise BadRecord("unreadable record", f"number {index}")
        return super().__getitem__(index)


def mixed() -> Source:
    images = [encoded(20, 10), turned(), encoded(64, 64, "WEBP"), b"<html>", b""]
    records = [
        Record(
            key=f"k{index % 50}",
            image=images[index % 5],
            captions=(Caption("a house"), Caption("дом", "name", "ru"))[: index % 3],
        )
        for index in range(60)
    ]
    return Broken(records=tuple(records))


def test_all_is_counted() -> None:
    found = stats.stats(mixed()).as_json()
    unread = [i for i in range(60) if i % 7 == 3]
    good = [i for i in range(60) if i not in unread and i % 5 < 3]
    assert found["records"] == 60
    assert found["bad"] == 60 - len(good)
    assert found["problems"]["unreadable record"] == len(unread)
    assert set(found["problems"]) == {"unreadable record", "unsupported image", "empty image"}
    assert sum(found["formats"].values()) == len(good)
    assert found["without_caption"] == sum(i % 3 == 0 for i in good)
    assert found["languages"] == {
        "en": sum(i % 3 > 0 for i in good),
        "ru": sum(i % 3 == 2 for i in good),
    }
    assert found["scripts"]["ru"] == {"Cyrillic": found["languages"]["ru"]}
    assert found["duplicates"]["images"]["distinct"] == 3
    assert found["duplicates"]["keys"]["copies"] == len(good) - len({i % 50 for i in good})
    assert found["duplicates"]["texts"]["most_of_one"] == found["languages"]["en"]
    assert found["width"]["max"] == 64
    assert found["height"]["min"] == 10
    assert found["examples"]["unreadable record"][0] == {
        "index": 3,
        "key": "",
        "detail": "number 3",
    }
    assert all(len(shown) <= stats.EXAMPLES for shown in found["examples"].values())


def test_decoding_finds_damage_behind_the_header() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG")
    whole = out.getvalue()
    source = MemorySource(records=(Record("cut", whole[: len(whole) // 2]), Record("good", whole)))
    assert stats.stats(source).bad == 0
    assert stats.stats(source, whole=True).counters["problems"] == {"corrupt image": 1}


def test_workers_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "_PIECE", 7)
    told: list[int] = []
    records = tuple(Record(f"k{i}", encoded(8 + i % 5, 8), (Caption("x"),)) for i in range(30))
    source = MemorySource(records=records)
    alone = stats.stats(source, progress=told.append).as_json()
    assert told == [7, 7, 7, 7, 2]
    assert stats.stats(source, workers=2).as_json() == alone


def test_jobs_come_in_order_and_raise_what_the_work_raises() -> None:
    # Functions of the library: a spawned process need not find this module.
    assert list(run_jobs(operator.sub, 9, range(9), workers=0)) == [9 - i for i in range(9)]
    results = run_jobs(operator.floordiv, 60, [1, 2, 3, 0, 5], workers=1)
    assert [next(results) for _ in range(3)] == [60, 30, 20]
    with pytest.raises(ZeroDivisionError):
        next(results)
    with pytest.raises(UserError, match="fewer workers"):
        list(run_jobs(operator.call, os._exit, [9, 9], workers=1))
    with pytest.raises(UserError, match="workers=-1"):
        list(run_jobs(operator.sub, 9, [], workers=-1))


def test_pieces_cover_everything_once() -> None:
    assert [list(piece) for piece in pieces(5, 2)] == [[0, 1], [2, 3], [4]]


@given(st.integers(0, 5000), st.integers(1, 300), st.integers(0, 9))
def test_sample_is_spread_evenly(count: int, rows: int, seed: int) -> None:
    found = list(stats.sample(count, rows, seed=seed))
    assert found == list(stats.sample(count, rows, seed=seed))
    assert len(set(found)) == len(found) == min(rows, count)
    assert found == sorted(found)
    for row, index in enumerate(found):
        assert row * count // len(found) <= index < (row + 1) * count // len(found)


def test_a_summary_of_parts_is_that_of_the_whole(source: Callable[[int], MemorySource]) -> None:
    records = source(20)
    parts = [stats.summarize(records, np.arange(at, at + 5).tolist()) for at in (0, 5, 10, 15)]
    for part in parts[1:]:
        parts[0].merge(part)
    assert parts[0].as_json() == stats.summarize(records, range(20)).as_json()
