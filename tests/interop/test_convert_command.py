"""`vlalign convert`: what it writes, reports and refuses."""

from pathlib import Path

import pytest
from safetensors.numpy import load_file

from vlalign import cli
from vlalign.interop.convert import load

GOLDEN = Path(__file__).parent / "golden"


def test_it_converts_reports_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = str(GOLDEN / "hf_clip"), tmp_path / "model"
    assert cli.main(["convert", source, str(out), "--check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"read {source}"
    assert lines[1].startswith("  image: ViT, 2 layers of width 32; ")
    assert lines[2].startswith("  text: TextTransformer, 2 layers of width 32; ")
    assert lines[3:6] == [
        "  images: 16 pixels, shortest, bicubic",
        "  texts: 8 tokens; tokenizer: 600 tokens",
        "  logits: scale 9.025",
    ]
    assert lines[6].startswith("  note: settings without a say in the numbers: architectures, ")
    assert lines[7:] == [
        f"wrote {out} (vlalign, float32)",
        f"checked: {count():,} numbers came back bit by bit",
    ]


def count() -> int:
    """Numbers of the model: those in the file, but a token and its position are one vector here."""
    tensors = load_file(GOLDEN / "hf_clip" / "model.safetensors")
    return sum(array.size for array in tensors.values()) - 32


@pytest.mark.parametrize("kind", ["open_clip", "hf"])
def test_it_goes_on_to_other_kinds(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / kind
    arguments = ["convert", str(GOLDEN / "hf_clip"), str(out), "--to", kind, "--check"]
    assert cli.main(arguments) == 0
    assert f"{count():,} numbers came back bit by bit" in capsys.readouterr().out
    there, here = load(str(out)), load(str(GOLDEN / "hf_clip"))
    assert there.tokenizer == here.tokenizer


def test_a_smaller_dtype(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = str(GOLDEN / "hf_clip"), tmp_path / "half"
    arguments = ["convert", source, str(out), "--to", "hf", "--dtype", "bfloat16"]
    assert cli.main([*arguments, "--check"]) == 2
    assert "--check compares bits, which --dtype bfloat16 rounds" in capsys.readouterr().err
    assert cli.main(arguments) == 0
    size = (out / "model.safetensors").stat().st_size
    assert size < 0.6 * (GOLDEN / "hf_clip" / "model.safetensors").stat().st_size


def test_wrong_input_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    siglip = str(GOLDEN / "hf_siglip")
    assert cli.main(["convert", siglip, str(tmp_path / "o"), "--tokenizer", "none"]) == 0
    for arguments, said in (
        ([siglip, str(tmp_path / "x")], "name its file with --tokenizer FILE"),
        ([siglip, str(tmp_path / "o"), "--tokenizer", "none"], "exists: name a new directory"),
        (["nowhere", str(tmp_path / "x")], "no such file or directory: nowhere"),
        ([siglip, str(tmp_path / "x"), "--config", "c.json"], "--config belongs to a lone file"),
    ):
        capsys.readouterr()
        assert cli.main(["convert", *arguments]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "x").exists()
