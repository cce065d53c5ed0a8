"""Encoded image bytes to pixels, safely: limits are checked before anything is decoded."""

import contextlib
import functools
import io
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vlalign.data.record import BadRecord

ResizeMode = Literal["pad", "squash", "crop"]
Pixels = NDArray[np.uint8]

# Formats whose decoders only decode: no PostScript, no remote references.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")

# What files of these formats start with: tells a damaged header from another format.
_MAGICS = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"P5", b"P6")

# cv2 keeps its source at least this much larger than the target when it shrinks ahead of a warp:
# bilinear interpolation then still sees every pixel.
OVERSAMPLE = 2
_MAX_ASPECT = 4

# Beyond it PIL warns, or refuses, at opening a file: a view's own limit must not be above.
PIL_LIMIT = 89_478_485

# Batches are prepared beside a training step that needs the cores; images are too small to share.
cv2.setNumThreads(0)


def decode(image: bytes, max_pixels: int) -> Pixels:
    """Encoded bytes to uint8 (h, w, 4), RGBA with straight alpha, upright by its EXIF tag.

    Grey, palette, CMYK and 16-bit images are converted; of an animation the first frame is taken.
    Raises BadRecord as `opened` does.
    """
    with opened(image, max_pixels) as file:
        return np.array(_rgba(ImageOps.exif_transpose(file)))


@contextlib.contextmanager
def opened(image: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """The file behind encoded bytes: its header is checked, its pixels are not yet decoded.

    Raises BadRecord: "empty image", "unsupported image" (not one of `FORMATS`), "image too large"
    (more than `max_pixels`, by its header), or "corrupt image", also for what PIL raises inside.
    """
    if not image:
        raise BadRecord("empty image", "no bytes")
    try:
        with Image.open(io.BytesIO(image), formats=FORMATS) as file:
            width, height = file.size
            if width * height > max_pixels:
                detail = f"{width} x {height} pixels, more than {max_pixels:,}"
                raise BadRecord("image too large", detail)
            yield file
    except BadRecord:
        raise
    except Image.UnidentifiedImageError as error:
        if image.startswith(_MAGICS):
            raise BadRecord("corrupt image", f"{len(image)} bytes, damaged header") from error
        raise BadRecord("unsupported image", f"none of {', '.join(FORMATS)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadRecord("image too large", str(error)) from error
    except MemoryError:
        raise
    except Exception as error:  # PIL's decoders raise almost any class on damaged input
        raise BadRecord("corrupt image", f"{type(error).__name__}: {error}") from error


def _rgba(image: Image.Image) -> Image.Image:
    image = eight_bit(image)
    if image.mode == "CMYK":
        image = image.convert("RGB")  # PIL has no direct way from CMYK to RGBA
    return image.convert("RGBA")


def eight_bit(image: Image.Image) -> Image.Image:
    """The image itself, or grey of 8 bits from 16; BadRecord for floating-point pixels."""
    if image.mode == "F":
        raise BadRecord("unsupported image", "floating-point pixels have no agreed range")
    if not image.mode.startswith("I"):
        return image
    # PIL would clip 16-bit grey at 255; a 32-bit integer image holds 16-bit grey as well.
    grey = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
    return Image.fromarray(grey)


def target_size(height: int, width: int, size: int, mode: ResizeMode) -> tuple[int, int]:
    """Height and width, at least 1, to which a view of `size` resizes an image before it is placed.

    "pad": the long side becomes `size`; "crop": the short side; "squash": both.
    """
    if mode == "squash":
        return size, size
    side = max(height, width) if mode == "pad" else min(height, width)
    return max(1, round(height * size / side)), max(1, round(width * size / side))


def resize(pixels: Pixels, height: int, width: int) -> Pixels:
    """Resize with antialiasing: area where both sides shrink, else bilinear; any channels."""
    if pixels.shape[:2] == (height, width):
        return pixels
    shrink = height <= pixels.shape[0] and width <= pixels.shape[1]
    flag = cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
    return cv2.resize(pixels, (width, height), interpolation=flag)  # type: ignore[return-value]


def prepare(image: bytes, size: int, mode: ResizeMode, max_pixels: int) -> Pixels:
    """Decode, shrink to at most twice the target size, premultiply: uint8 (h, w, 4).

    Premultiplied, interpolation cannot bleed the invisible colour of transparent pixels.
    """
    pixels = decode(image, max_pixels)
    if mode == "crop":
        pixels = _central(pixels)
    height, width = pixels.shape[:2]
    goal = target_size(height, width, size, mode)
    alpha = cv2.cvtColor(pixels[..., 3], cv2.COLOR_GRAY2BGRA)
    alpha[..., 3] = 255
    pixels = cv2.multiply(pixels, alpha, scale=1 / 255)  # type: ignore[assignment]
    return resize(pixels, min(height, OVERSAMPLE * goal[0]), min(width, OVERSAMPLE * goal[1]))


def _central(pixels: Pixels) -> Pixels:
    """Cut to an aspect of at most 4: a crop shows no more, and cv2 warps at most 32,767 a side."""
    height, width = pixels.shape[:2]
    limit = _MAX_ASPECT * min(height, width)
    top, left = max(0, height - limit) // 2, max(0, width - limit) // 2
    return pixels[top : top + limit, left : left + limit]


class Cache:
    """Prepared images by their encoded bytes, the least used dropped beyond a limit in bytes.

    Python keeps the hash of a bytes object, so a lookup costs nothing for records held in memory.
    """

    def __init__(self, limit: int, size: int, mode: ResizeMode, max_pixels: int) -> None:
        self._limit, self._size, self._mode, self._max_pixels = limit, size, mode, max_pixels
        self._entries: OrderedDict[bytes, Pixels] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, image: bytes) -> Pixels:
        """`prepare(image)`, read-only, from the cache if it is there; BadRecord as `decode`."""
        with self._lock:
            found = self._entries.get(image)
            if found is not None:
                self._entries.move_to_end(image)
                return found
        pixels = prepare(image, self._size, self._mode, self._max_pixels)
        pixels.flags.writeable = False
        with self._lock:
            if image not in self._entries:
                self._entries[image] = pixels
                self._bytes += len(image) + pixels.nbytes
            while self._bytes > self._limit:
                key, dropped = self._entries.popitem(last=False)
                self._bytes -= len(key) + dropped.nbytes
        return pixels


@functools.lru_cache(maxsize=8)
def cache(mebibytes: int, size: int, mode: ResizeMode, max_pixels: int) -> Cache:
    """The process's cache for one preparation; views that prepare alike share it."""
    return Cache(mebibytes << 20, size, mode, max_pixels)
