"""The portable directory: whole, hashed, nothing executed; and the guard of numerics."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlalign import tree
from vlalign.data.tokenizer import Bpe
from vlalign.errors import UserError
from vlalign.interop.bundle import Bundle, load_bundle, save_bundle, whole_directory
from vlalign.interop.convert import load, load_over
from vlalign.interop.numerics import Target, check_numerics, tower_differences

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load(str(GOLDEN / "hf_clip"))


@pytest.fixture
def written(bundle: Bundle, tmp_path: Path) -> Path:
    save_bundle(tmp_path / "model", bundle)
    return tmp_path / "model"


def test_what_is_written_comes_back(bundle: Bundle, written: Path) -> None:
    again = load_bundle(written)
    ours, theirs = bundle.flat(), again.flat()
    assert ours.keys() == theirs.keys()
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)
    assert again.preprocess == bundle.preprocess
    assert again.tokenizer == bundle.tokenizer
    for name in ("context_length", "logit_scale", "logit_bias", "origin"):
        assert getattr(again, name) == getattr(bundle, name)
    assert tree.dumps(again.model) == tree.dumps(bundle.model)


def test_the_sums_are_those_of_sha256sum(written: Path) -> None:
    import subprocess

    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"],
        cwd=written,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count(": OK") == 3


@pytest.mark.parametrize("name", ["model.txt", "params.safetensors", "tokenizer.json"])
def test_a_changed_or_missing_file_is_refused(name: str, written: Path) -> None:
    data = bytearray((written / name).read_bytes())
    data[len(data) // 2] ^= 1
    (written / name).write_bytes(bytes(data))
    with pytest.raises(UserError, match=f"{name} changed since it was written"):
        load_bundle(written)
    (written / name).unlink()
    with pytest.raises(UserError, match=f"not whole: {name} is missing"):
        load_bundle(written)


def test_a_file_that_is_not_in_the_sums_is_refused(written: Path) -> None:
    (written / "more.txt").write_text("x")
    with pytest.raises(UserError, match=r"more\.txt changed"):
        load_bundle(written)


def test_a_class_of_another_module_is_not_built(written: Path, bundle: Bundle) -> None:
    text = (written / "model.txt").read_text()
    (written / "model.txt").write_text(text.replace("vlalign.encoders.vit:ViT", "os:system"))
    _sign(written)
    with pytest.raises(UserError, match="not of vlalign"):
        load_bundle(written)


def test_parameters_must_fit_the_towers(written: Path) -> None:
    text = (written / "model.txt").read_text()
    (written / "model.txt").write_text(
        text.replace("model.image.depth = 2", "model.image.depth = 3")
    )
    _sign(written)
    with pytest.raises(
        UserError, match=r"(?s)12 of another shape.*ln_1/bias: 2x32 in the file, 3x32"
    ):
        load_bundle(written)


def _sign(path: Path) -> None:
    import hashlib

    names = sorted(file.name for file in path.iterdir() if file.name != "SHA256SUMS")
    sums = [f"{hashlib.sha256((path / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    (path / "SHA256SUMS").write_text("".join(sums))


def test_nothing_is_left_of_a_write_that_fails(tmp_path: Path) -> None:
    def write_half() -> None:
        with whole_directory(tmp_path / "out") as draft:
            (draft / "half").write_text("x")
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_directory_is_not_touched(bundle: Bundle, written: Path) -> None:
    before = sorted(written.iterdir())
    with pytest.raises(UserError, match="exists: name a new directory"):
        save_bundle(written, bundle)
    assert sorted(written.iterdir()) == before


@pytest.mark.parametrize(("dtype", "relative"), [("bfloat16", 2**-8), ("float16", 2**-10)])
def test_a_smaller_dtype_rounds(
    dtype: Any, relative: float, bundle: Bundle, tmp_path: Path
) -> None:
    save_bundle(tmp_path / "small", bundle, dtype=dtype)
    size = (tmp_path / "small" / "params.safetensors").stat().st_size
    assert size < 0.6 * sum(x.nbytes for x in bundle.flat().values())
    again = load_bundle(tmp_path / "small").flat()
    for name, array in bundle.flat().items():
        np.testing.assert_allclose(again[name], array, rtol=relative, atol=1e-7)


def test_numbers_beyond_float16_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    params = {"image": bundle.params["image"], "text": dict(bundle.params["text"])}
    params["text"]["token"] = params["text"]["token"] * np.float32(1e6)
    large = dataclasses.replace(bundle, params=params)
    with pytest.raises(UserError, match="beyond the largest float16"):
        save_bundle(tmp_path / "out", large, dtype="float16")
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_of_another_model_is_refused(bundle: Bundle) -> None:
    long = Bpe(length=9, vocab_size=300).train(["a cat"])
    with pytest.raises(UserError, match="rows of 9 tokens, the text tower has 8"):
        dataclasses.replace(bundle, tokenizer=long)
    text = tree.replace(bundle.model["text"], vocab_size=100)
    with pytest.raises(UserError, match="600 tokens, the text tower 100"):
        dataclasses.replace(bundle, model={**bundle.model, "text": text})


def target(bundle: Bundle, **changes: Any) -> Target:
    values = {
        "model": bundle.model,
        "pixels": bundle.preprocess.spec(),
        "context_length": bundle.context_length,
        "logit_scale_max": 100.0,
    }
    return Target(**{**values, **changes})


def test_the_guard_passes_what_gives_the_same_numbers(bundle: Bundle, written: Path) -> None:
    faster = tree.replace(bundle.model["image"], scan=False, remat="dots", dtype="bfloat16")
    check_numerics(bundle, target(bundle, model={"image": faster}))
    assert load_over(str(written), target(bundle)).context_length == 8
    same = tree.replace(bundle.model["image"], mlp_ratio=2.0 + 1e-9, class_token=True)
    assert tower_differences(bundle.model["image"], same) == []


def test_the_guard_lists_each_difference_and_what_to_set(bundle: Bundle) -> None:
    image = tree.replace(bundle.model["image"], activation="quick_gelu", epsilon=1e-6)
    text = tree.replace(bundle.model["text"], pool="eot", eot_id=None)
    pixels = {**bundle.preprocess.spec(), "interpolation": "bilinear", "size": 32}
    learned = dataclasses.replace(bundle, logit_scale=np.log(118.2).item(), origin="there")
    changed = target(bundle, model={"image": image, "text": text}, pixels=pixels, context_length=16)
    with pytest.raises(UserError) as failure:
        check_numerics(learned, changed)
    assert str(failure.value).splitlines() == [
        "the weights of there would give other numbers here:",
        "  model.image.activation is 'quick_gelu': set it to 'gelu'",
        "  model.image.epsilon is 1e-06: set it to 1e-05",
        "  model.text.eot_id is None: set it to 599",
        "  model.text.pool is 'eot': set it to 'eot_id'",
        "  data.views.image.size is 32: set it to 16",
        "  data.views.image.interpolation is bilinear: set it to bicubic",
        "  data.tokenizer.length is 16: set it to 8",
        "  logit_scale_max is 100.0 and would cut the learned scale 118.2: set none",
    ]


def test_the_guard_knows_towers_of_another_class(bundle: Bundle) -> None:
    with pytest.raises(UserError, match=r"model\.image is @vlalign.encoders.text:TextTransformer"):
        check_numerics(bundle, target(bundle, model={"image": bundle.model["text"]}))
