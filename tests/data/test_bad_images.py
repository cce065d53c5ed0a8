"""Hostile and odd bytes: every way to pixels gives a picture or a BadRecord of the right kind."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlalign.data.crops import RandomResizedCrop
from vlalign.data.images import ImageView
from vlalign.data.multicrop import MultiCrop
from vlalign.data.preprocess import Preprocess, big_vision, clip, siglip
from vlalign.data.record import BadRecord, Record

SIZE = 16


def _crop(image: bytes) -> np.ndarray:
    return RandomResizedCrop(size=SIZE)(Record(key="a", image=image), np.random.default_rng(0))


def _crops(image: bytes) -> np.ndarray:
    return MultiCrop(size=SIZE, crops=1)(Record(key="a", image=image), np.random.default_rng(0))[0]


WAYS: dict[str, Callable[[bytes], np.ndarray]] = {
    "image": ImageView(size=SIZE, cache_mib=0).evaluate,
    "clip": clip(SIZE).evaluate,
    "upright": Preprocess(size=SIZE, upright=True).evaluate,
    "siglip": siglip(SIZE).evaluate,
    "big_vision": big_vision(SIZE).evaluate,
    "crop": _crop,
    "crops": _crops,
}


def _saved(image: Image.Image, fmt: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, fmt, **options)
    return out.getvalue()


def _noise(height: int = 40, width: int = 56) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def _png_of(width: int, height: int) -> bytes:
    """A header that promises width x height pixels, and next to nothing behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def _jpeg_of(width: int, height: int) -> bytes:
    data = bytearray(_saved(_noise(), "JPEG"))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def _text_bomb() -> bytes:
    """A PNG whose compressed text inflates to 200 MB."""
    body = b"zTXt" + b"k\0\0" + zlib.compress(bytes(200_000_000), 9)
    bomb = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    plain = _saved(_noise(), "PNG")
    return plain[:33] + bomb + plain[33:]


JPEG, PROGRESSIVE = _saved(_noise(), "JPEG"), _saved(_noise(), "JPEG", progressive=True)
PNG, GIF, WEBP = (_saved(_noise(), fmt) for fmt in ("PNG", "GIF", "WEBP"))

BAD = {
    "zero bytes": (b"", "empty image"),
    "html": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "unsupported image"),
    "json": (b'{"error": "not found"}', "unsupported image"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "unsupported image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unsupported image"),
    "zeros": (bytes(1000), "unsupported image"),
    "float": (_saved(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF"), "unsupported image"),
    "half a jpeg": (JPEG[: len(JPEG) // 2], "corrupt image"),
    "a jpeg without its end": (JPEG[:-2], "corrupt image"),
    "half a progressive jpeg": (PROGRESSIVE[: len(PROGRESSIVE) // 2], "corrupt image"),
    "a jpeg's header": (JPEG[:300], "corrupt image"),
    "half a png": (PNG[: len(PNG) // 2], "corrupt image"),
    "a png's header": (PNG[:20], "corrupt image"),
    "half a gif": (GIF[: len(GIF) // 2], "corrupt image"),
    "half a webp": (WEBP[: len(WEBP) // 2], "corrupt image"),
    "png bomb": (_png_of(60_000, 60_000), "image too large"),
    "png of 80 million": (_png_of(10_000, 8_000), "image too large"),
    "png of too little": (_png_of(2000, 2000), "corrupt image"),
    "jpeg bomb": (_jpeg_of(65_000, 65_000), "image too large"),
    "text bomb": (_text_bomb(), "corrupt image"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("default::PIL.Image.DecompressionBombWarning")
def test_bad_images_are_refused_by_kind(name: str, way: str) -> None:
    data, kind = BAD[name]
    kinds = []
    for _ in range(2):
        with pytest.raises(BadRecord) as caught:
            WAYS[way](bytes(bytearray(data)))
        kinds.append(caught.value.kind)
    assert kinds == [kind, kind]


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 8
    return exif


def _frames() -> list[Image.Image]:
    return [Image.new("RGB", (20, 30), colour) for colour in ("red", "lime")]


ODD = {
    "cmyk jpeg": _saved(_noise().convert("CMYK"), "JPEG"),
    "cmyk tiff": _saved(_noise().convert("CMYK"), "TIFF"),
    "grey jpeg": _saved(_noise().convert("L"), "JPEG"),
    "sixteen bits": _saved(Image.fromarray(np.full((30, 30), 40_000, np.uint16)), "PNG"),
    "rotated jpeg": _saved(_noise(), "JPEG", exif=_exif()),
    "rotated png": _saved(_noise(), "PNG", exif=_exif()),
    "palette": _saved(_noise().quantize(8), "PNG", transparency=0),
    "palette alphas": _saved(_noise().quantize(8), "PNG", transparency=bytes(range(0, 256, 36))),
    "grey and alpha": _saved(_noise().convert("LA"), "PNG"),
    "alpha": _saved(_noise().convert("RGBA"), "WEBP"),
    "bits": _saved(_noise().convert("1"), "PNG"),
    "one pixel": _saved(_noise(1, 1), "JPEG"),
    "progressive": PROGRESSIVE,
    "trailing bytes": JPEG + b"<html>" * 50,
    "interlaced": _saved(_noise(), "PNG", interlace=1),
    "bmp": _saved(_noise(), "BMP"),
    "pixel map": _saved(_noise(), "PPM"),
    "stereo": _saved(_noise(), "MPO", save_all=True, append_images=[_noise()]),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ODD)
def test_odd_images_are_pictures(name: str, way: str) -> None:
    if name == "sixteen bits":
        assert (WAYS[way](ODD[name]) == 40_000 >> 8).all()
    first, again = WAYS[way](ODD[name]), WAYS[way](bytes(bytearray(ODD[name])))
    assert (first.shape, first.dtype) == ((SIZE, SIZE, 3), np.uint8)
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fmt", ["GIF", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(fmt: str, way: str) -> None:
    first, *rest = _frames()
    out = WAYS[way](_saved(first, fmt, save_all=True, append_images=rest))
    assert (out[..., 0] > 240).all()  # red, or the white of padding


KINDS = ("empty image", "unsupported image", "corrupt image", "image too large")


def _outcome(way: str, data: bytes) -> str | bytes:
    try:
        out = WAYS[way](data)
    except BadRecord as problem:
        return problem.kind
    assert (out.shape, out.dtype) == ((SIZE, SIZE, 3), np.uint8)
    return out.tobytes()


@given(
    data=st.one_of(
        st.binary(max_size=300),
        st.sampled_from(
            (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\0\0WEBP")
        ).flatmap(lambda magic: st.binary(max_size=200).map(lambda rest: magic + rest)),
    )
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_random_bytes(data: bytes) -> None:
    for way in WAYS:
        outcome = _outcome(way, data)
        assert isinstance(outcome, bytes) or outcome in KINDS


@given(
    base=st.sampled_from([JPEG, PROGRESSIVE, PNG, GIF, WEBP, *ODD.values()]),
    cut=st.floats(0.0, 1.0),
    flips=st.lists(st.tuples(st.floats(0.0, 1.0), st.integers(1, 255)), max_size=6),
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_images(base: bytes, cut: float, flips: list[tuple[float, int]]) -> None:
    data = bytearray(base)
    for place, mask in flips:
        data[int(place * (len(data) - 1))] ^= mask
    image = bytes(data[: max(1, int(len(data) * (0.5 + cut)))])
    for way in WAYS:
        outcome = _outcome(way, image)
        assert isinstance(outcome, bytes) or outcome in KINDS
        assert outcome == _outcome(way, bytes(bytearray(image)))
