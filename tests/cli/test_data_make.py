"""`vlalign data convert`, `index`, `bench` and `build` as a user meets them."""

import json
from pathlib import Path

import pytest

from vlalign import cli
from vlalign.cli import _data_convert
from vlalign.cli._data_source import open_path
from vlalign.cli.data import ACTIONS
from vlalign.data.emoji import LANGUAGES, Emoji
from vlalign.data.record import encode_record
from vlalign.data.sources import MemorySource, write_array_record
from vlalign.data.writers import FORMATS


@pytest.fixture
def data(pairs: MemorySource, tmp_path: Path) -> str:
    path = tmp_path / "pairs.array_record"
    write_array_record(path, [*map(encode_record, pairs.records), b"junk"])
    return str(path)


def test_the_formats_are_those_that_can_be_written() -> None:
    assert set(_data_convert.FORMATS) == set(FORMATS)


@pytest.mark.parametrize("action", ACTIONS)
def test_help_has_an_example(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["data", action, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert shown.count(f"vlalign data {action} ") >= 2  # the usage, and an example
    assert all(len(line) <= 100 for line in shown.splitlines())


@pytest.mark.parametrize("name", ["arrayrecord", "tar", "parquet", "jsonl"])
def test_converted_data_is_read_by_the_sources(
    name: str,
    data: str,
    pairs: MemorySource,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("VLALIGN_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    command = ["data", "convert", data, str(out), "--format", name, "--shard-size", "10"]
    assert cli.main([*command, "--workers", "0"]) == 0
    words = capsys.readouterr().out
    assert "24 records in 3 shards\n" in words
    assert "1 bad: unreadable record (see " in words
    source = open_path(str(out / "records.jsonl" if name == "jsonl" else out))
    assert tuple(source[index] for index in range(len(source))) == pairs.records
    assert cli.main([*command, "--workers", "2"]) == 0
    assert "3 of them were there already" in capsys.readouterr().out


def test_convert_emoji(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["data", "convert", "emoji", str(out), "--format", "arrayrecord", "--workers", "0"]
    assert cli.main(command) == 0
    source, emoji = open_path(str(out)), Emoji(languages=LANGUAGES)
    assert len(source) == 1911
    assert all(source[index] == emoji[index] for index in range(0, 1911, 13))


def test_convert_refuses_what_it_cannot_go_on_with(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    tar = ["--format", "tar", "--workers", "0"]
    assert cli.main(["data", "convert", data, out, *tar]) == 0
    for arguments, said in (
        (["emoji", out, *tar], "holds the conversion of another source"),
        ([data, out, *tar, "--shard-size", "5"], "begun with shard_size=10000, not 5"),
        ([data, str(tmp_path), *tar], "is not empty"),
        ([data, "gs://bucket/out", *tar], "a local folder"),
        ([data, out, "--format", "zip"], "invalid choice: 'zip'"),
        ([data, out, *tar, "--shard-size", "0"], "--shard-size 0: at least 1"),
    ):
        assert cli.main(["data", "convert", *arguments]) == 2
        assert said in capsys.readouterr().err


def test_index_of_shards(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    size = ["--shard-size", "10", "--workers", "0"]
    assert cli.main(["data", "convert", data, str(out), "--format", "tar", *size]) == 0
    capsys.readouterr()
    index = ["--index", str(tmp_path / "index"), "--workers", "0"]
    assert cli.main(["data", "index", str(out), *index]) == 0
    words = capsys.readouterr().out
    assert "24 samples in 3 shards" in words
    assert list((tmp_path / "index").iterdir())
    shard = out / "00001.tar"
    shard.write_bytes(shard.read_bytes()[:4300])
    assert cli.main(["data", "index", f"{out}/0000{{0..2}}.tar", *index]) == 1
    words = capsys.readouterr().out
    assert "1 unreadable shard" in words
    assert "00001.tar: unreadable shard" in words
    (tmp_path / "nothing").mkdir()
    assert cli.main(["data", "index", str(tmp_path / "nothing")]) == 2
    assert "no .tar file" in capsys.readouterr().err


# The embedded data in a model-free hurry: few records, small images.
SMALL = ["--set", "data.batch_size=16", "--set", "data.tokenizer.vocab_size=300"]


def test_bench_tells_the_stages_and_what_to_change(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "bench", "emoji_clip", "--seconds", "0.1", *SMALL]
    assert cli.main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["stages"]["seconds"]) == [
        "read",
        "view image",
        "view text",
        "tokenise",
        "assemble",
    ]
    assert [rate["workers"] for rate in found["rates"]] == [0]
    assert cli.main([*command, "--workers", "0", "1"]) == 0
    words = capsys.readouterr().out
    for said in ("view image", "one thread", "samples/s", "first batch", "waits for data"):
        assert said in words


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["emoji_clip", "--seconds", "0"], "--seconds 0.0: more than 0"),
        (["emoji_clip", "--workers", "0", "-2"], "--workers -2: 0 or more"),
        (["emoji_clp"], "nearest: emoji_clip"),
        (["emoji_clip", "--set", "data.batchsize=3"], "nearest: data.batch_size"),
    ],
)
def test_bench_of_wrong_input(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", "bench", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_build_of_wrong_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    nowhere, file = str(tmp_path / "nowhere"), str(tmp_path / "file")
    assert cli.main(["data", "build", "emoji", "--from", nowhere]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert cli.main(["data", "build", "emoji", "--from", str(tmp_path), "--out", file]) == 2
    assert "not a folder" in capsys.readouterr().err
