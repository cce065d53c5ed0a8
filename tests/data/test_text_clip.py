"""CLIP's tokenizer: equal to open_clip's on golden texts, whole on any text, honest about cuts."""

import gzip
import html
import itertools
import json
import os
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlalign.data.text_clean import clip_clean, clip_clean_ftfy
from vlalign.data.tokenizers import clip as clip_module
from vlalign.data.tokenizers.clip import ClipBpe, ClipTokenizer
from vlalign.data.tokenizers.files import package_folder
from vlalign.data.tokenizers.load import load_tokenizer
from vlalign.errors import UserError
from vlalign.tree import dumps, loads

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden/tokens.json").read_text())
HEADER = '"bpe_simple_vocab_16e6.txt#version: 0.2'
COUNT = 48_894
# open_clip's copy, or any file named in the environment; not part of this repository.
FULL = os.environ.get("CLIP_VOCAB") or package_folder("open_clip")


def _unreachable() -> Iterator[str]:
    """Merges of bytes that no UTF-8 text has, each of a token before it and one byte."""
    alphabet = [clip_module._bytes_in_order()[byte] for byte in (0xC0, 0xC1, *range(0xF5, 0x100))]
    for length in itertools.count(2):
        for letters in itertools.product(alphabet, repeat=length):
            yield f"{''.join(letters[:-1])} {letters[-1]}"


def reduced_merges() -> bytes:
    """A file of OpenAI's form whose merges are those that the golden texts need, in their place."""
    others = _unreachable()
    lines = [GOLDEN["merges"].get(str(index)) or next(others) for index in range(COUNT)]
    return gzip.compress("\n".join([HEADER, *lines, "more lines", ""]).encode(), 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip")
    (path / "bpe_simple_vocab_16e6.txt.gz").write_bytes(reduced_merges())
    return path


@pytest.fixture(scope="module")
def clip(folder: Path) -> ClipTokenizer:
    return ClipBpe(vocab=str(folder)).train()


def _small(tmp_path: Path, *lines: str, **fields: Any) -> ClipTokenizer:
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]))
    return ClipBpe(vocab=str(tmp_path / "merges.txt"), merges=len(lines), **fields).train()


def _check(tokenizer: ClipTokenizer, texts: list[str], rows: list[list[int]]) -> None:
    ids, _ = tokenizer.encode(texts)
    for text, row, expected in zip(texts, ids.tolist(), rows, strict=True):
        assert row == expected + [0] * (77 - len(expected)), ascii(text)


def test_equal_to_open_clip(clip: ClipTokenizer) -> None:
    assert clip.vocab_size == 49_408
    assert (clip.bos_id, clip.eos_id, clip.pad_id, clip.length) == (49_406, 49_407, 0, 77)
    assert len(GOLDEN["texts"]) > 500
    _check(clip, GOLDEN["texts"], GOLDEN["ids"])


@pytest.mark.skipif(FULL is None, reason="needs open_clip's vocabulary file, or CLIP_VOCAB=PATH")
def test_equal_to_open_clip_with_the_whole_file() -> None:
    tokenizer = ClipBpe(vocab=str(FULL)).train()
    _check(tokenizer, GOLDEN["texts"], GOLDEN["ids"])


def test_mojibake_is_left_alone_or_left_to_ftfy(folder: Path, clip: ClipTokenizer) -> None:
    text = "caf\u00c3\u00a9"
    assert clip_clean(text) == text.lower()
    pytest.importorskip("ftfy")
    assert clip_clean_ftfy(text) == "caf\u00e9"
    tokenizer = ClipBpe(vocab=str(folder), repair="ftfy").train()
    _check(tokenizer, GOLDEN["mojibake"], GOLDEN["mojibake_ids"])
    _check(tokenizer, GOLDEN["texts"], GOLDEN["ids"])
    assert tokenizer.fingerprint() != clip.fingerprint()


def test_ftfy_is_asked_for_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ftfy", None)
    tokenizer = ClipBpe(vocab=str(folder), repair="ftfy").train()
    with pytest.raises(UserError, match="pip install ftfy"):
        tokenizer.encode(["na\u00efve"])


def test_made_merges(tmp_path: Path) -> None:
    tokenizer = _small(tmp_path, "c a", "ca t</w>", "a t</w>", length=8)
    byte = {
        character: index for index, character in enumerate(clip_module._bytes_in_order().values())
    }
    assert tokenizer.vocab_size == 512 + 3 + 2
    ids, cut = tokenizer.encode(["Cat  at CA", "cats", ""])
    ca, cat, at, bos, eos = range(512, 517)
    a, s, t = byte["a"] + 256, byte["s"] + 256, byte["t"]
    assert ids.dtype == np.int32
    assert ids.tolist() == [
        # `ca` at a word's end is `c` and `a</w>`: no merge makes it.
        [bos, cat, at, byte["c"], a, eos, 0, 0],
        [bos, ca, t, s, eos, 0, 0, 0],
        [bos, eos, 0, 0, 0, 0, 0, 0],
    ]
    assert not cut.any()
    assert [tokenizer.decode(row) for row in ids] == ["cat at ca", "cats", ""]


def test_the_limit_is_exact_and_the_end_stays(clip: ClipTokenizer) -> None:
    ids, cut = clip.encode(["word " * 75, "word " * 76, "1" * 75, "1" * 76])
    assert cut.tolist() == [False, True, False, True]
    assert (ids[:, -1] == clip.eos_id).all()
    assert (ids[0] == ids[1]).all()


def test_special_tokens_in_a_text_are_text(clip: ClipTokenizer) -> None:
    for text in ("a<|endoftext|>b", "<|startoftext|>", "<end_of_text>", "<start_of_text> x"):
        ids = clip.encode([text])[0][0]
        assert (ids == clip.eos_id).sum() == 1
        assert (ids == clip.bos_id).sum() == 1


def test_words_and_places(clip: ClipTokenizer) -> None:
    ids, _ = clip.encode(["a photo !zzqx"])
    tokens = [clip._tokens[index] for index in ids[0]]
    starts, places = clip.word_starts(ids)[0], clip.text_places(ids)[0]
    end = tokens.index("<|endoftext|>")
    assert places.tolist() == [0 < index < end for index in range(77)]
    expected = [not index or tokens[index - 1].endswith(("</w>", "|>")) for index in range(end + 1)]
    assert starts[: end + 1].tolist() == expected
    assert 0 < starts[places].sum() < places.sum()  # `zzqx` has several tokens


def test_save_load_pickle_and_configuration(tmp_path: Path, clip: ClipTokenizer) -> None:
    clip.save(tmp_path / "tokenizer.json")
    for other in (load_tokenizer(tmp_path / "tokenizer.json"), pickle.loads(pickle.dumps(clip))):
        assert other == clip
        assert other.fingerprint() == clip.fingerprint()
        assert (other.encode(["a photo"])[0] == clip.encode(["a photo"])[0]).all()
    config = ClipBpe(vocab="x", length=16)
    assert loads(dumps(config)) == config
    assert config.train_records == 0


MEGABYTE = {
    "one word": "x" * 1_000_000,
    "words": "a cat " * 170_000,
    "spaces": " " * 1_000_000,
    "entities": "&" + "amp;" * 250_000,
    "escapes": "\x1b[" * 500_000,
    "accents": "e" + "\u0301" * 1_000_000,
    "quotes": "'" * 1_000_000,
    "surrogates": "\ud800" * 1_000_000,
    "lines": "<\n" * 500_000,
    "zeros": "\x00" * 1_000_000,
}


@pytest.mark.parametrize("name", MEGABYTE)
def test_a_megabyte_is_a_counted_cut_in_no_time(name: str, clip: ClipTokenizer) -> None:
    start = time.process_time()
    ids, cut = clip.encode([MEGABYTE[name]])
    assert time.process_time() - start < 10.0
    assert cut.tolist() == [True]
    assert ids[0, 0] == clip.bos_id
    assert not clip._rows.get(MEGABYTE[name])  # too long to be worth remembering


@given(st.text(st.characters(), max_size=40))
def test_any_text_is_a_row(text: str) -> None:
    tokenizer = _TINY
    ids, cut = tokenizer.encode([text])
    end = np.flatnonzero(ids[0] == tokenizer.eos_id)
    assert len(end) == 1
    assert (ids[0, end[0] + 1 :] == 0).all()
    assert ((ids >= 0) & (ids < tokenizer.vocab_size)).all()
    assert not cut[0] or end[0] == tokenizer.length - 1
    assert cut[0] or tokenizer.decode(ids[0]).replace(" ", "") == _bare(text)


def _bare(text: str) -> str:
    """What a text looks like after cleaning, white space apart."""
    out = clip_clean(text).encode("utf-8", "replace").decode()
    return out.replace(" ", "")


_TINY = ClipTokenizer(
    json.dumps(
        {
            "vlalign": "clip",
            "repair": "builtin",
            "tokenizer": json.loads(clip_module._library([("c", "a"), ("ca", "t</w>")], 200)),
        }
    )
)


@pytest.mark.parametrize("repair", ["builtin", "ftfy"])
@given(text=st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Z", "Cc"])))
def test_cleaning_equals_ftfys(repair: str, text: str) -> None:
    ftfy = pytest.importorskip("ftfy")
    fixed = ftfy.fix_text(text, fix_encoding=repair == "ftfy")
    expected = " ".join(html.unescape(html.unescape(fixed)).split()).lower()
    assert {"builtin": clip_clean, "ftfy": clip_clean_ftfy}[repair](text) == expected


def test_hub_cache_and_folders(tmp_path: Path) -> None:
    model = tmp_path / "models--openai--clip-vit-base-patch32"
    for name in ("aaa", "bbb"):
        (model / "snapshots" / name).mkdir(parents=True)
        lines = ["#version: 0.2", "c a" if name == "aaa" else "a t"]
        (model / "snapshots" / name / "merges.txt").write_text("\n".join(lines))
    config = ClipBpe(vocab=str(model), merges=1)
    with pytest.raises(UserError, match=r"which snapshot is meant.*aaa, bbb"):
        config.train()
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("bbb\n")
    assert config.train()._tokens[512] == "at"
    (model / "refs" / "main").write_text("../../..")  # leads nowhere
    with pytest.raises(UserError, match="which snapshot"):
        config.train()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("c a\nca", r"line 3 is 'ca', not two tokens"),
        ("c a", "has 1 merges, expected 2: cut short"),
        ("c a\nc a", "two merges give the same token"),
        ("c a\nzz y", "not a list of merges"),
        ("c a\n\udcff y", "not a list of merges"),
        ("<html> <body>\nNot Found", "not a list of merges"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, lines: str, message: str) -> None:
    path = tmp_path / "merges.txt"
    path.write_bytes(f"#version\n{lines}".encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message):
        ClipBpe(vocab=str(path), merges=2).train()
    path.write_bytes(gzip.compress(path.read_bytes())[:-9])
    with pytest.raises(UserError, match="cannot read"):
        ClipBpe(vocab=str(path), merges=2).train()


def test_wrong_configurations_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no such file or directory: /nowhere"):
        ClipBpe(vocab="/nowhere").train()
    with pytest.raises(UserError, match="holds none of bpe_simple_vocab"):
        ClipBpe(vocab=str(tmp_path)).train()
    monkeypatch.setattr(clip_module, "package_folder", lambda name: None)
    with pytest.raises(UserError, match=r"open_clip is not installed: give the path"):
        ClipBpe().train()
    with pytest.raises(UserError, match="length=2"):
        ClipBpe(length=2)
    with pytest.raises(UserError, match="repair='x'"):
        ClipBpe(repair="x")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="merges=-1"):
        ClipBpe(merges=-1)
    (tmp_path / "t.json").write_text('{"vlalign": "clip"}')
    with pytest.raises(UserError, match=r"t\.json is not a tokenizer of vlalign"):
        load_tokenizer(tmp_path / "t.json")
    (tmp_path / "t.json").write_text('{"vlalign": "other"}')
    with pytest.raises(UserError, match=r"t\.json is not a tokenizer of vlalign"):
        load_tokenizer(tmp_path / "t.json")
    with pytest.raises(UserError, match="cannot read the tokenizer"):
        load_tokenizer(tmp_path / "none.json")
