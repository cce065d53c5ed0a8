"""`vlalign data inspect` and `stats` as a user meets them, on data that means harm."""

import html.parser
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlalign import cli
from vlalign.cli._data_source import megabytes, shown
from vlalign.data.record import Caption, Record, encode_record
from vlalign.data.sources import write_array_record

EVIL = "<script>alert(1)</script>\"'><img src=http://x/y onerror=alert(1)>&amp;"
HIDDEN = "back\u202ewards \x1b[31mred\x00 \u200b"


def picture(index: int, form: str = "PNG") -> bytes:
    pixels = np.random.default_rng(index).integers(0, 256, (20, 30 + index, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form, **({"comment": EVIL} if form == "JPEG" else {}))
    return out.getvalue()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """40 records: duplicates, harmful texts, bad images; and one that is no record."""
    records = []
    for index in range(40):
        image = picture(index % 30, ("PNG", "JPEG", "WEBP")[index % 3])
        image = {7: b"", 8: b"<html>" + EVIL.encode(), 9: image[:60]}.get(index, image)
        captions = (Caption(EVIL, EVIL, EVIL), Caption(HIDDEN, "alt", "ru"), Caption("дом"))
        records.append(Record(f"{EVIL}{index}", image, captions[index % 3 :]))
    path = tmp_path / "odd.array_record"
    write_array_record(path, [*map(encode_record, records), b"junk"])
    return path


class Elements(html.parser.HTMLParser):
    """All elements of a page and their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_inspect_shows_the_sample_and_nothing_of_it_runs(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    assert cli.main(["data", "inspect", str(data), "--out", str(out)]) == 0
    page = out.read_text(encoding="utf-8")
    elements = Elements(page).found
    tags = {tag for tag, _ in elements}
    assert not tags & {"script", "iframe", "object", "embed", "link", "base", "form"}
    for tag, attributes in elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/webp;base64,")), tag
    assert sum(tag == "img" for tag, _ in elements) == 37
    assert not set(page) & set("\u202e\x1b\x00\u200b")
    assert "&lt;script&gt;" in page
    assert page.count("<rect") > 8
    shown_text = capsys.readouterr().out
    assert not set(shown_text) & set("\u202e\x1b\x00\u200b")
    for text in (page, shown_text):
        for problem in ("empty image", "unsupported image", "corrupt image", "unreadable record"):
            assert problem in text
        assert "41 of 41 records" in text
        assert "ru: Latin" in text  # tagged Russian, written in Latin letters


def test_inspect_draws_the_same_records_again(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pages = []
    for number, seed in enumerate("001"):
        out = tmp_path / f"{number}.html"
        arguments = ["--rows", "10", "--seed", seed, "--out", str(out)]
        assert cli.main(["data", "inspect", str(data), *arguments]) == 0
        assert "10 of 41 records" in capsys.readouterr().out
        pages.append(out.read_bytes())
    assert pages[0] == pages[1] != pages[2]


def test_stats_in_words_and_as_json(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "stats.json"
    assert cli.main(["data", "stats", str(data), "--json", str(path), "--workers", "0"]) == 0
    words = capsys.readouterr().out
    found = json.loads(path.read_text())
    assert found["records"] == 41
    assert found["problems"]["unreadable record"] == 1
    assert found["duplicates"]["images"]["copies"] == 7  # 30, 31, ... of 0..9 but for the bad ones
    assert "copies of images   7, one image 2 times" in words
    assert "41" in words.splitlines()[0]
    assert "alert(1)" in words  # brackets of a caption's kind are no markup of the terminal
    assert cli.main(["data", "stats", str(data), "--decode", "--workers", "0"]) == 0
    assert "corrupt image" in capsys.readouterr().out


def test_stats_of_the_embedded_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "stats", "emoji:twemoji", "--workers", "0"]) == 0
    words = capsys.readouterr().out
    assert "1,911" in words
    assert "hi: Devanagari" in words


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["inspect", "DATA", "--rows", "0"], "--rows 0: at least 1"),
        (["inspect", "DATA", "--out", "FOLDER"], "is a folder"),
        (["inspect", "EMPTY"], "has no records"),
        (["inspect", "missing.array_record"], "missing.array_record"),
        (["inspect", "emoji:windows"], "unknown emoji style"),
        (["stats", "DATA", "--workers", "-1"], "--workers -1: at least 0"),
        (["stats", "FOLDER/notes.txt"], "known format"),
        (["stats"], "required: PATH"),
        (["count", "DATA"], "invalid choice: 'count'"),
    ],
)
def test_wrong_input_is_named(
    arguments: list[str],
    said: str,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    empty = tmp_path / "empty.array_record"
    write_array_record(empty, [])
    (tmp_path / "notes.txt").touch()
    names = {"DATA": str(data), "EMPTY": str(empty), "FOLDER": str(tmp_path)}
    words = [names.get(word, word.replace("FOLDER", str(tmp_path))) for word in arguments]
    assert cli.main(["data", *words]) == 2
    assert said in capsys.readouterr().err


def test_texts_are_shown_without_tricks() -> None:
    assert shown("a\n\tb  c") == "a b c"
    assert shown(HIDDEN) == "back\ufffdwards \ufffd[31mred\ufffd \ufffd"
    assert shown("\ud800x") == "\ufffdx"
    assert shown("word " * 100, 10) == "word word…"
    assert shown("é 红 ❤") == "é 红 ❤"


def test_sizes_in_words() -> None:
    sizes = [megabytes(n) for n in (0, 999, 1500, 20_100_000, 3.2e9, 5e12)]
    assert sizes == ["0 bytes", "999 bytes", "1.5 kB", "20.1 MB", "3.2 GB", "5,000.0 GB"]
