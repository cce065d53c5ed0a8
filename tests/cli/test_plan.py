"""`vlalign plan`: what it prints, writes, and refuses."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlalign import cli

SMALL = (
    "--set=data.batch_size=16",
    *(f"--set=model.{tower}.depth=1" for tower in ("image", "text")),
    *(f"--set=model.{tower}.width=64" for tower in ("image", "text")),
    "--set=model.image.heads=2",
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLALIGN_CACHE", str(tmp_path / "cache"))


def test_a_plan_for_simulated_devices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert cli.main(["plan", "emoji_siglip", *SMALL, "--devices", "8", "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert "8 simulated CPU devices" in shown.out
    assert "Compiled for CPU devices" in shown.out
    assert "all-reduce" in shown.out
    assert "compiling emoji_siglip" in shown.err
    (plan,) = json.loads((out / "plan.json").read_text())["plans"]
    assert plan["batch"] == 16
    assert plan["mfu"] is None
    assert (out / "plan.png").read_bytes().startswith(b"\x89PNG")
    # Again: from the cache, and as JSON.
    assert cli.main(["plan", "emoji_siglip", *SMALL, "--devices", "8", "--json"]) == 0
    again = capsys.readouterr()
    assert json.loads(again.out)["plans"] == [plan]
    assert "compiling" not in again.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--topology", "v5f:2x2"], "no TPU 'v5f' is known"),
        (["--topology", "v5e:2x2", "--devices", "8"], "one of them"),
        (["--slices", "2"], "--slices: of a --topology"),
        (["--price", "1.2"], "--price and --samples: give both"),
        (["--devices", "8", "--batch", "12"], "data.batch_size=12 does not divide"),
        (["--devices", "8", "--batch", "0"], "--batch 0: more than 0"),
        (["--topologie", "v5e:2x2"], "nearest: --topology"),
    ],
)
def test_wrong_input(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "emoji_clip", *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not here")
def test_two_topologies_side_by_side(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vlalign", "plan", "emoji_siglip", *SMALL]
    command += ["--topology", "v5e:2x2", "v5p:2x2x1", "--price", "1.2", "--samples", "1e6"]
    environment = {**os.environ, "VLALIGN_CACHE": str(tmp_path)}
    environment.pop("XLA_FLAGS", None)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    for word in ("v5e:2x2", "v5p:2x2x1", "1,000,000 samples in", "roofline MFU", "estimates"):
        assert word in done.stdout
