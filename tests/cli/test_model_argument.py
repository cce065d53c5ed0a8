"""`--model`: a pre-trained model where a command wants a run."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import vlalign
from vlalign import cli
from vlalign.data.emoji import Emoji
from vlalign.interop.bundle import save_bundle
from vlalign.interop.convert import load as load_bundle

MODEL = Path(__file__).parents[1] / "interop" / "golden" / "hf_clip"
CONFIG = """
import dataclasses
from vlalign.cli._configs import find_config
from vlalign.data.emoji import Emoji
from vlalign.data.sources import MemorySource
from vlalign.experiment import load_config


def config():
    whole = load_config(find_config("emoji_clip"))
    emoji = Emoji()
    few = MemorySource(records=tuple(emoji[place] for place in range(0, 1900, 100)))
    retrieval = dataclasses.replace(whole.evals["retrieval_seen"], source=few)
    return dataclasses.replace(whole, evals={"few": retrieval})
"""
COUNT = 19
HALF = (0.5, 0.5, 0.5)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("VLALIGN_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "few_emoji.py"
    path.write_text(CONFIG)
    monkeypatch.delitem(sys.modules, "few_emoji", raising=False)
    return str(path)


def vectors() -> tuple[np.ndarray, np.ndarray]:
    """Of the images and the names, by the Python API."""
    records = [Emoji()[place] for place in range(0, 1900, 100)]
    names = [record.captions[0].text for record in records]
    model = vlalign.load(MODEL, batch_size=8)
    with pytest.warns(UserWarning, match="their ends were cut off"):
        ztxt = model.encode_text(names)
    return model.encode_image([record.image for record in records]), ztxt


def test_eval(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", config, "--model", str(MODEL), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["model"] == str(MODEL)
    zimg, ztxt = vectors()
    scores = ztxt @ zimg.T
    places = (scores > np.diagonal(scores)[:, None]).sum(axis=1)
    found = printed["evaluators"]["few"]["t2i_recall@5"]
    assert found["value"] == pytest.approx(np.mean(places < 5), abs=1e-6)
    assert found["count"] == COUNT
    assert cli.main(["eval", config, "--model", str(MODEL)]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{MODEL}, evaluators of {config}\n")
    assert "t2i_recall@5" in text
    assert not list(tmp_path.rglob("evals.json"))


def test_embed(config: str, tmp_path: Path) -> None:
    out = tmp_path / "z.parquet"
    assert cli.main(["embed", config, "--model", str(MODEL), "--out", str(out)]) == 0
    table = pq.read_table(out)
    rows = [row for row in table.to_pylist() if row["kind"] == "image"]
    zimg, _ = vectors()
    np.testing.assert_allclose([row["embedding"] for row in rows], zimg, atol=2e-6)
    said = {key.decode(): value.decode() for key, value in pq.read_metadata(out).metadata.items()}
    bundle = load_bundle(str(MODEL))
    assert bundle.tokenizer is not None
    assert said["tokenizer"] == bundle.tokenizer.fingerprint()


def test_search_remembers_by_the_numbers_of_the_model(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def kept(model: Path) -> int:
        command = ["search", config, "red", "--model", str(model), "--top", "3"]
        assert cli.main(command) == 0
        shown = capsys.readouterr().out
        assert [line.split()[0] for line in shown.splitlines() if line.strip()[:1] in "123"]
        assert "drawn in" in shown
        return len(list((tmp_path / "cache" / "models").rglob("search/*.npz")))

    assert kept(MODEL) == 1
    assert kept(MODEL) == 1
    bundle = load_bundle(str(MODEL))
    save_bundle(tmp_path / "same", bundle)
    assert kept(tmp_path / "same") == 1
    other = dataclasses.replace(bundle, preprocess=dataclasses.replace(bundle.preprocess, std=HALF))
    save_bundle(tmp_path / "other", other)
    assert kept(tmp_path / "other") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--step", "3"], "a pre-trained model has no steps"),
        (["--tokenizer", "none"], "has no tokenizer"),
        (["--only", "fwe"], "nearest: few"),
    ],
)
def test_refusals(
    arguments: list[str], message: str, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["eval", config, "--model", str(MODEL), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_tokenizer_without_a_model(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", "run", "--tokenizer", "none"]) == 2
    assert "--tokenizer belongs to --model" in capsys.readouterr().err
    assert cli.main(["eval", "emoji_clipp", "--model", str(MODEL)]) == 2
    assert "no configuration 'emoji_clipp'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["eval", "embed", "search"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    shown = capsys.readouterr().out
    assert "--model SOURCE" in shown
    assert "CONFIG --model hf://org/name" in shown or 'CONFIG "a cat" --model' in shown
