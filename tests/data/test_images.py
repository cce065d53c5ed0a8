"""Image views: exact where nothing is random, bounded where the input is hostile."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlalign.data import augment, decode
from vlalign.data.emoji import Emoji
from vlalign.data.images import ImageView
from vlalign.data.record import BadRecord, Record
from vlalign.errors import UserError

Png = Callable[..., bytes]

AUGMENTATIONS: dict[str, Any] = {
    "random_background": 1.0,
    "rotation": 30.0,
    "scale": (0.6, 1.4),
    "translation": 0.2,
    "shear": 20.0,
    "elastic": 0.1,
    "flip": 1.0,
    "brightness": 0.5,
    "contrast": 0.5,
    "saturation": 0.8,
    "hue": 60.0,
    "grayscale": 1.0,
    "posterize": 1.0,
    "blur": 2.0,
    "erase": 1.0,
}


def _view(image: bytes, seed: int = 0, **fields: Any) -> np.ndarray:
    return ImageView(**fields)(Record(key="a", image=image), np.random.default_rng(seed))


def test_without_augmentation_a_view_is_the_evaluation() -> None:
    for mode in ("pad", "squash", "crop"):
        view = ImageView(size=40, resize_mode=mode)  # type: ignore[arg-type]
        record = Emoji()[5]
        np.testing.assert_array_equal(
            view(record, np.random.default_rng(0)), view.evaluate(record.image)
        )


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_each_augmentation_works_and_is_deterministic(name: str) -> None:
    image = Emoji()[900].image
    fields = {name: AUGMENTATIONS[name]}
    plain = _view(image, size=48)
    views = [_view(image, seed, size=48, **fields) for seed in (1, 1, 2)]
    assert views[0].shape == (48, 48, 3)
    assert views[0].dtype == np.uint8
    np.testing.assert_array_equal(views[0], views[1])
    assert not np.array_equal(views[0], plain)
    if name not in ("flip", "grayscale"):  # these have one outcome
        assert not np.array_equal(views[0], views[2])


def test_flip_and_grayscale_do_what_they_say(png: Png) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    flipped = _view(png(pixels), size=16, flip=1.0)
    np.testing.assert_array_equal(flipped, pixels[:, ::-1])
    grey = _view(png(pixels), size=16, grayscale=1.0).astype(int)
    assert np.ptp(grey, axis=-1).max() <= 1
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(grey[..., 0], luma, atol=1.5)


def test_the_neutral_colour_matrix_changes_nothing() -> None:
    neutral = augment.colour_matrix(brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0)
    np.testing.assert_allclose(neutral, np.eye(3, 4), atol=1e-3)


def test_the_affine_map_keeps_the_centre_and_turns_clockwise_as_drawn() -> None:
    matrix = augment.affine(
        (11, 21), (11, 21), 33, angle=np.pi / 2, scale=1.0, shear=0.0, shift=(0, 0), flip=False
    )
    np.testing.assert_allclose(matrix @ [10, 5, 1], [16, 16], atol=1e-9)
    np.testing.assert_allclose(matrix @ [15, 5, 1], [16, 21], atol=1e-9)  # right goes down


def test_backgrounds(png: Png) -> None:
    clear = png(np.zeros((8, 8, 4), np.uint8))
    assert (ImageView(size=8).evaluate(clear) == 255).all()
    assert (ImageView(size=8, background=(1, 2, 3)).evaluate(clear) == [1, 2, 3]).all()
    for kind in ("flat", "gradient", "noise"):
        fields: dict[str, Any] = {"random_background": 1.0, "background_kinds": (kind,)}
        image = _view(clear, 3, size=32, **fields)
        colours = len(np.unique(image.reshape(-1, 3), axis=0))
        assert colours == 1 if kind == "flat" else colours > 20
    solid = png(np.full((8, 8, 3), 77, np.uint8))  # nothing shows behind an opaque image
    assert (_view(solid, size=8, random_background=1.0) == 77).all()


def test_hidden_colours_do_not_bleed(png: Png) -> None:
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[..., 0] = 255  # transparent red
    pixels[:, 32:] = (0, 0, 255, 255)
    image = ImageView(size=9).evaluate(png(pixels)).astype(int)
    blue, white = np.array([0, 0, 255]), np.array([255, 255, 255])
    share = image[:, 4, 0:1] / 255
    np.testing.assert_allclose(image[:, 4], share * white + (1 - share) * blue, atol=2)


def test_resize_modes(png: Png) -> None:
    pixels = np.zeros((10, 40, 3), np.uint8)
    pixels[:, 15:25] = 200
    image = png(pixels)
    pad = ImageView(size=20, resize_mode="pad").evaluate(image)
    assert (pad[:7] == 255).all()
    assert (pad[13:] == 255).all()
    assert (pad[8:12, 9:11] == 200).all()
    assert (pad[8:12, :7] == 0).all()
    squash = ImageView(size=20, resize_mode="squash").evaluate(image)
    assert (squash[:, 9:11] == 200).all()
    assert (squash[:, :7] == 0).all()
    crop = ImageView(size=20, resize_mode="crop").evaluate(image)
    assert (crop[:, 2:18] == 200).all()


def test_an_image_of_the_right_size_is_untouched(png: Png) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    np.testing.assert_array_equal(ImageView(size=24).evaluate(png(pixels)), pixels)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I"])
def test_colour_modes(mode: str) -> None:
    base = Image.new("RGB", (8, 8), (200, 200, 200))
    if mode == "I;16":
        source = Image.fromarray(np.full((8, 8), 200 << 8, np.uint16))
    elif mode == "I":
        source = Image.fromarray(np.full((8, 8), 200 << 8, np.int32))
    else:
        source = base.convert("L").convert(mode) if mode == "LA" else base.convert(mode)
        source = base.quantize(2) if mode == "P" else source
    out = io.BytesIO()
    source.save(out, "TIFF" if mode in ("CMYK", "I") else "PNG")
    image = ImageView(size=8).evaluate(out.getvalue())
    expected = 255 if mode == "1" else 200
    if mode == "1":  # dithered: black or white
        assert set(np.unique(image)) <= {0, 255}
    else:
        np.testing.assert_allclose(image, expected, atol=6)


def test_palette_transparency_and_exif_orientation() -> None:
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    out = io.BytesIO()
    palette.save(out, "PNG", transparency=0)
    assert (ImageView(size=4).evaluate(out.getvalue()) == 255).all()
    upright = np.zeros((8, 8, 3), np.uint8)
    upright[:4] = 250
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right to see it upright
    turned = io.BytesIO()
    Image.fromarray(np.rot90(upright)).save(turned, "JPEG", exif=exif, quality=100)
    image = ImageView(size=8).evaluate(turned.getvalue())
    np.testing.assert_allclose(image, upright, atol=8)


def _png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    header = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 100) + b"IDAT" + b"nothing"


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (b"", "empty image"),
        (b"not an image", "unsupported image"),
        (b"\xff\xd8\xff", "corrupt image"),
        (b"RIFF\0\0\0\0WEBP", "corrupt image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unsupported image"),
        (_png_header(8, 8), "corrupt image"),
        (_png_header(9000, 9000), "image too large"),
        (_png_header(10_500, 10_500), "image too large"),  # where PIL would only warn
        (_png_header(60_000, 60_000), "image too large"),  # where PIL refuses
    ],
)
def test_hostile_images_are_named(image: bytes, kind: str) -> None:
    for call in (ImageView().evaluate, lambda image: _view(image, rotation=5.0)):
        with pytest.raises(BadRecord) as caught:
            call(image)
        assert caught.value.kind == kind


@given(st.integers(0, 10_000), st.integers(0, 255), st.integers(1, 100))
def test_damaged_bytes_never_crash(place: int, value: int, percent: int) -> None:
    data = bytearray(Emoji()[3].image)
    data[place % len(data)] = value
    for damaged in (bytes(data), bytes(data[: len(data) * percent // 100])):
        assert _problem(damaged) in (
            None,
            "empty image",
            "corrupt image",
            "unsupported image",
            "image too large",
        )


def _problem(image: bytes) -> str | None:
    try:
        assert ImageView(size=16).evaluate(image).shape == (16, 16, 3)
    except BadRecord as problem:
        return problem.kind
    return None


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1), (20_000, 30), (3, 5)])
@pytest.mark.parametrize("mode", ["pad", "squash", "crop"])
def test_extreme_shapes(size: tuple[int, int], mode: str, png: Png) -> None:
    image = png(np.full((*size, 3), 90, np.uint8))
    fields: dict[str, Any] = {"size": 32, "resize_mode": mode}
    plain = ImageView(**fields).evaluate(image)
    warped = _view(image, 1, rotation=10.0, scale=(0.9, 1.1), **fields)
    assert plain.shape == warped.shape == (32, 32, 3)
    if mode != "pad":
        assert (plain == 90).all()


def test_a_large_image_is_averaged_not_sampled(png: Png) -> None:
    pixels = np.zeros((1000, 1000, 3), np.uint8)
    pixels[::2] = 200  # lines that sampling would alias to black or to 200
    for image in (
        _view(png(pixels), size=32, rotation=1e-6),
        ImageView(size=32).evaluate(png(pixels)),
    ):
        np.testing.assert_allclose(image[4:-4, 4:-4], 100, atol=4)


def test_the_cache_is_bounded_and_invisible() -> None:
    small = decode.Cache(100_000, 64, "pad", 10**6)
    images = [Emoji()[i].image for i in range(20)]
    first = [small.get(image).copy() for image in images]
    again = [small.get(image) for image in images]
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert small._bytes <= 100_000
    assert small._bytes == sum(len(k) + v.nbytes for k, v in small._entries.items())
    assert 0 < len(small._entries) < 20
    with pytest.raises(ValueError, match="read-only"):
        again[-1][:] = 0
    view = ImageView(cache_mib=0)
    np.testing.assert_array_equal(view.evaluate(images[0]), ImageView().evaluate(images[0]))


def test_spec_rebuilds_the_evaluation() -> None:
    view = ImageView(size=20, background=(9, 9, 9), resize_mode="squash", **AUGMENTATIONS)
    spec = view.spec()
    spec["background"] = tuple(spec["background"])
    image = Emoji()[9].image
    np.testing.assert_array_equal(ImageView(**spec).evaluate(image), view.evaluate(image))
    assert view.example().shape == (20, 20, 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 0}, r"ImageView\.size=0"),
        ({"flip": 1.5}, r"ImageView\.flip=1\.5: a probability is in 0\.\.1"),
        ({"rotation": -1.0}, "rotation"),
        ({"rotation": float("nan")}, "rotation"),
        ({"scale": (2.0, 1.0)}, "scale"),
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"erase_area": (0.0, 0.5)}, "erase_area"),
        ({"background": (0, 0, 256)}, "background"),
        ({"background": (0, 0)}, "background"),
        ({"background_kinds": ()}, "background_kinds"),
        ({"resize_mode": "fit"}, "valid: pad, squash, crop"),
        ({"max_pixels": 10**9}, "PIL's own limit"),
        ({"cache_mib": -1}, "cache_mib"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ImageView(**fields)
