"""Evaluation preprocessing: equal to PIL, open_clip and TensorFlow, pixel by pixel."""

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlalign import tree
from vlalign.data.preprocess import Preprocess, big_vision, clip, siglip
from vlalign.data.record import BadRecord, Record
from vlalign.data.tf_resize import tf_bilinear
from vlalign.errors import UserError

Png = Callable[..., bytes]

GOLDEN = dict(np.load(Path(__file__).parent / "golden" / "preprocess.npz", allow_pickle=False))
SIZE = 16


def _cases(peer: str) -> list[str]:
    return [key for key in GOLDEN if key.startswith(f"{peer}/")]


def _noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("case", _cases("open_clip"))
def test_equal_to_open_clip(case: str) -> None:
    _, kind, name = case.split("/")
    mode, interpolation = kind.split("-")
    fields: dict[str, Any] = {"resize_mode": mode, "interpolation": interpolation}
    ours = Preprocess(size=SIZE, **fields).evaluate(GOLDEN[f"image/{name}"].tobytes())
    np.testing.assert_array_equal(ours, GOLDEN[case])


@pytest.mark.parametrize("case", _cases("tensorflow"))
def test_equal_to_big_vision_in_tensorflow(case: str) -> None:
    _, kind, name = case.split("/")
    view = big_vision(SIZE, antialias=kind == "antialias")
    ours = view.evaluate(GOLDEN[f"image/{name}"].tobytes())
    np.testing.assert_array_equal(ours, GOLDEN[case])


@pytest.mark.parametrize("case", _cases("fast_jpeg"))
def test_close_to_big_vision_where_tensorflow_decodes_jpeg_fast(case: str) -> None:
    # decode(precise=False), its default, takes a DCT that no decoder here has.
    view = big_vision(SIZE, antialias="antialias" in case)
    ours = view.evaluate(GOLDEN["image/jpeg"].tobytes()).astype(int)
    difference = np.abs(ours - GOLDEN[case])
    assert difference.max() <= 3
    assert difference.mean() < 1.2


@pytest.mark.parametrize("shape", [(50, 80), (80, 51), (33, 33), (20, 31), (32, 32), (7, 200)])
def test_clip_is_pils_bicubic_and_a_centre_crop(shape: tuple[int, int], png: Png) -> None:
    height, width = shape
    image = Image.fromarray(_noise(*shape))
    short = min(shape)
    goal = (int(32 * width / short), int(32 * height / short))
    resized = np.asarray(image.resize(goal, Image.Resampling.BICUBIC))
    top, left = round((goal[1] - 32) / 2), round((goal[0] - 32) / 2)
    expected = resized[top : top + 32, left : left + 32]
    np.testing.assert_array_equal(clip(32).evaluate(png(_noise(*shape))), expected)


def test_siglip_is_pils_bicubic_squashed(png: Png) -> None:
    pixels = _noise(40, 90)
    expected = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(siglip(32).evaluate(png(pixels)), np.asarray(expected))


def _by_hand(pixels: np.ndarray, size: int, antialias: bool) -> np.ndarray:
    """Bilinear with half-pixel centres in float64, one output pixel after the other."""
    for axis in (0, 1):
        count = pixels.shape[axis]
        radius = max(1.0, count / size) if antialias else 1.0
        rows = []
        for i in range(size):
            centre = (i + 0.5) * count / size
            if not antialias:  # beyond the outermost centres there is nothing to mix
                centre = min(max(centre, 0.5), count - 0.5)
            weights = [max(0.0, 1 - abs(j + 0.5 - centre) / radius) for j in range(count)]
            rows.append(np.average(pixels, axis=axis, weights=weights))
        pixels = np.stack(rows, axis=axis)
    return pixels


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("shape", [(50, 80), (16, 9), (5, 64), (1, 1)])
def test_big_vision_is_half_pixel_bilinear(shape: tuple[int, int], antialias: bool) -> None:
    pixels = _noise(*shape)
    # What follows compares where a rounding in float32 cannot decide which integer is below.
    exact = _by_hand(pixels.astype(float), 16, antialias)
    ours = tf_bilinear(pixels, 16, 16, antialias=antialias).astype(float)
    safe = np.abs(exact - np.rint(exact)) > 1e-3
    np.testing.assert_array_equal(ours[safe], np.floor(exact[safe]))
    assert np.abs(ours - exact).max() < 1.001


def test_orientation_is_left_alone_unless_asked_for(png: Png) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    pixels = _noise(40, 60)
    Image.fromarray(pixels).save(out, "PNG", exif=exif)
    for upright, expected in ((False, pixels), (True, np.rot90(pixels, -1))):
        view = Preprocess(size=32, upright=upright)
        wanted = clip(32).evaluate(png(np.ascontiguousarray(expected)))
        np.testing.assert_array_equal(view.evaluate(out.getvalue()), wanted)


def test_sixteen_bits_keep_their_upper_eight(png: Png) -> None:
    image = png(np.full((8, 8), 200 << 8, np.uint16))
    assert (clip(8).evaluate(image) == 200).all()


def test_an_image_that_would_grow_beyond_the_limit_is_refused(png: Png) -> None:
    line = png(np.zeros((1, 20_000, 3), np.uint8))
    assert siglip(64).evaluate(line).shape == (64, 64, 3)
    with pytest.raises(BadRecord, match="resized is 1280000 x 64 pixels"):
        clip(64).evaluate(line)


def test_specification() -> None:
    for view in (clip(32), siglip(32), big_vision(32), big_vision(32, antialias=True)):
        spec = view.spec()
        again = Preprocess(**{k: tuple(v) if isinstance(v, list) else v for k, v in spec.items()})
        assert again == view == tree.loads(tree.dumps(view))
        assert again.fingerprint() == view.fingerprint()
    assert len({view.fingerprint() for view in (clip(), siglip(), big_vision(), clip(32))}) == 4
    assert clip().mean[0] == pytest.approx(0.48145466)
    assert siglip().std == (0.5, 0.5, 0.5)
    assert math.isclose(clip().std[2], 0.27577711)


def test_it_is_a_view(png: Png) -> None:
    image = png(_noise(20, 20))
    view = clip(16)
    out = view(Record(key="a", image=image), np.random.default_rng(0))
    np.testing.assert_array_equal(out, view.evaluate(image))
    assert (view.example().shape, view.example().dtype) == (out.shape, out.dtype)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 0}, r"Preprocess\.size=0"),
        ({"resize_mode": "pad"}, "valid: shortest, squash, longest"),
        ({"interpolation": "lanczos"}, "valid: bicubic, bilinear, tf_bilinear"),
        ({"interpolation": "tf_bilinear"}, "for squash"),
        ({"std": (1.0, 0.0, 1.0)}, "std above 0"),
        ({"mean": (0.5,)}, "three each"),
        ({"max_pixels": 10**9}, "PIL's limit"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Preprocess(**fields)
