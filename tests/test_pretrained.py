"""`vlalign.load`: a pre-trained model in five lines."""

import dataclasses
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vlalign
from vlalign.errors import UserError
from vlalign.interop.bundle import save_bundle
from vlalign.interop.convert import load as load_bundle
from vlalign.parallel.mesh import MeshSpec
from vlalign.pretrained import Pretrained

GOLDEN = Path(__file__).parent / "interop" / "golden"
TEXTS = ["red", "", "two"]


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled programs of these tests go into a folder of theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLALIGN_CACHE", str(tmp_path_factory.mktemp("cache")))
        before = {
            name: getattr(jax.config, name)
            for name in (
                "jax_compilation_cache_dir",
                "jax_persistent_cache_min_compile_time_secs",
            )
        }
        yield
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.fixture(scope="module")
def model() -> Pretrained:
    return vlalign.load(GOLDEN / "hf_clip", batch_size=16)


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (20 + i, 40 - i, 3), np.uint8) for i in range(19)]


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def unit(x: jax.Array) -> np.ndarray:
    return np.asarray(x / jnp.linalg.norm(x, axis=-1, keepdims=True))


def expected(model: Pretrained, pictures: list[np.ndarray]) -> np.ndarray:
    bundle = model.bundle
    pixels = np.stack([bundle.preprocess.evaluate(png(picture)) for picture in pictures])
    towers: dict[str, Any] = dict(bundle.model)
    return unit(towers["image"].apply({"params": bundle.params["image"]}, pixels).pooled)


def test_every_kind_of_image_gives_the_vectors_of_the_tower(
    model: Pretrained, pictures: list[np.ndarray], tmp_path: Path
) -> None:
    wanted = expected(model, pictures)
    (tmp_path / "0.png").write_bytes(png(pictures[0]))
    kinds: list[Any] = [tmp_path / "0.png", png(pictures[1]), Image.fromarray(pictures[2])]
    kinds += pictures[3:]
    found = model.encode_image(kinds)
    assert found.dtype == np.float32
    assert found.shape == (19, model.bundle.model["image"].embed_dim)
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(model.encode_image(iter(kinds)), wanted, atol=2e-6)
    for one in (str(tmp_path / "0.png"), png(pictures[0]), pictures[0]):
        np.testing.assert_allclose(model.encode_image(one), wanted[:1], atol=2e-6)
    held = np.empty(19, object)
    held[:] = kinds
    np.testing.assert_allclose(model.encode_image(held), wanted, atol=2e-6)
    many = np.stack([picture[:20, :20] for picture in pictures[:3]])
    np.testing.assert_array_equal(model.encode_image(many), model.encode_image(list(many)))


def test_texts(model: Pretrained) -> None:
    bundle = model.bundle
    assert bundle.tokenizer is not None
    ids, _ = bundle.tokenizer.encode(TEXTS)
    towers: dict[str, Any] = dict(bundle.model)
    wanted = unit(towers["text"].apply({"params": bundle.params["text"]}, ids).pooled)
    np.testing.assert_allclose(model.encode_text(TEXTS), wanted, atol=2e-6)
    np.testing.assert_allclose(model.encode_text(TEXTS[0]), wanted[:1], atol=2e-6)
    # Of another batch, on another number of devices: the same vectors.
    one = vlalign.load(GOLDEN / "hf_clip", mesh=MeshSpec(devices=1).build(), batch_size=2)
    np.testing.assert_allclose(one.encode_text(text for text in TEXTS), wanted, atol=2e-6)
    with pytest.warns(UserWarning, match=r"1 of 2 texts have more than the 8 tokens"):
        model.encode_text(["many words " * 20, "a"])


def test_nothing_gives_no_vectors(model: Pretrained) -> None:
    width = model.encode_text("a").shape[1]
    assert model.encode_image([]).shape == (0, width)
    assert model.encode_text([]).shape == (0, width)
    assert model.similarity([], ["a"]).shape == (0, 1)


def test_probabilities_are_a_softmax_over_texts(
    model: Pretrained, pictures: list[np.ndarray]
) -> None:
    scale = model.bundle.logit_scale
    assert scale is not None
    logits = np.exp(scale) * model.encode_image(pictures) @ model.encode_text(TEXTS).T
    wanted = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = model.similarity(pictures, TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_probabilities_with_a_bias_are_of_each_pair(
    model: Pretrained, pictures: list[np.ndarray], tmp_path: Path
) -> None:
    bundle = dataclasses.replace(model.bundle, logit_scale=2.0, logit_bias=-3.0)
    save_bundle(tmp_path / "biased", bundle)
    biased = vlalign.load(tmp_path / "biased", batch_size=16)
    cosines = model.encode_image(pictures) @ model.encode_text(TEXTS).T
    wanted = 1 / (1 + np.exp(3 - np.exp(2) * cosines))
    np.testing.assert_allclose(biased.similarity(pictures, TEXTS), wanted, rtol=1e-5)


def test_bfloat16_is_near_and_other(model: Pretrained, pictures: list[np.ndarray]) -> None:
    coarse = vlalign.load(GOLDEN / "hf_clip", dtype="bfloat16", batch_size=16)
    found, wanted = coarse.encode_image(pictures), model.encode_image(pictures)
    assert found.dtype == np.float32
    assert not np.array_equal(found, wanted)
    assert np.sum(found * wanted, axis=1).min() > 0.995


def test_mistakes_are_named(model: Pretrained, pictures: list[np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"image 1 \(nowhere\.png\) cannot be read: No such file"):
        model.encode_image([pictures[0], "nowhere.png"])
    with pytest.raises(UserError, match=r"image 17 cannot be used: corrupt image"):
        model.encode_image([*pictures[:17], png(pictures[0])[:60]])
    with pytest.raises(UserError, match=r"image 0 is float32 \(4, 4, 3\): arrays are uint8"):
        model.encode_image(np.zeros((4, 4, 3), np.float32))
    with pytest.raises(UserError, match="image 0 is a int"):
        model.encode_image([3])  # type: ignore[list-item]
    with pytest.raises(UserError, match="text 1 is a bytes, not a str"):
        model.encode_text(["a", b"b"])  # type: ignore[list-item]
    with pytest.raises(UserError, match=r"dtype='bfloat61'; valid: .*nearest: bfloat16"):
        vlalign.load(GOLDEN / "hf_clip", dtype="bfloat61")
    with pytest.raises(UserError, match="batch_size=0"):
        vlalign.load(GOLDEN / "hf_clip", batch_size=0)
    bundle = dataclasses.replace(model.bundle, tokenizer=None, logit_scale=None)
    save_bundle(tmp_path / "bare", bundle)
    bare = vlalign.load(tmp_path / "bare")
    with pytest.raises(UserError, match="has no tokenizer: load it with tokenizer=FILE"):
        bare.encode_text("a")
    with pytest.raises(UserError, match="has no logit_scale"):
        bare.similarity(pictures[0], "a")


def test_each_tower_is_compiled_for_one_batch(pictures: list[np.ndarray]) -> None:
    model = vlalign.load(GOLDEN / "hf_clip", batch_size=8)
    model.encode_image(pictures)
    with jax.log_compiles(False), jax.check_tracer_leaks(False):
        count = 0

        def counted(name: str, *args: Any, **kwargs: Any) -> None:
            nonlocal count
            count += name.endswith("backend_compile_duration")

        jax.monitoring.register_event_duration_secs_listener(counted)
        try:
            model.encode_image(pictures * 2)  # 19 and 38 end in a part of a batch
            model.encode_image(pictures[:5])
        finally:
            jax.monitoring.unregister_event_duration_listener(counted)
    assert count == 0


def test_progress(
    model: Pretrained, pictures: list[np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    model.encode_image(pictures, progress=True)
    assert "encoding images" in capsys.readouterr().err
    model.encode_text(["a"] * 300)  # no terminal
    model.encode_image(pictures, progress=False)
    assert capsys.readouterr() == ("", "")


def test_a_second_process_finds_its_programs(tmp_path: Path) -> None:
    code = (
        "import sys, vlalign; assert 'jax' not in sys.modules; "
        f"vlalign.load({str(GOLDEN / 'hf_clip')!r}, batch_size=4).encode_text('a')"
    )
    environment = {"VLALIGN_CACHE": str(tmp_path), "JAX_PLATFORMS": "cpu", "PATH": ""}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[1])}

    def kept() -> set[str]:
        command = [sys.executable, "-c", code]
        subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True)
        return {file.name for file in (tmp_path / "programs").glob("*-cache")}

    first = kept()
    assert any("encode" in name for name in first)
    assert kept() == first


def test_the_bundle_is_that_of_convert(model: Pretrained) -> None:
    wanted = load_bundle(str(GOLDEN / "hf_clip"))
    assert model.bundle.flat().keys() == wanted.flat().keys()
    assert model.bundle.origin == wanted.origin
