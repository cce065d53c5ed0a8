"""A record's image for its views: RGB at the resolution that they need, decoded once for all."""

import threading

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vlalign.data import decode
from vlalign.data.record import BadRecord

Pixels = NDArray[np.uint8]

# A JPEG's blocks of 8 x 8 can be decoded to 8, 4, 2 or 1 pixels a side: cv2's flag for each.
_FLAGS = {
    1: cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_SCAN, _END = b"\xff\xda", b"\xff\xd9"
_ORIENTATION = 0x0112  # the EXIF tag

_LAST = threading.local()


def frame(image: bytes, max_pixels: int, background: tuple[int, int, int]) -> "Frame":
    """The frame of encoded bytes: this thread's last one, if it was of the same bytes object.

    So the views of one record share what is decoded. max_pixels: an image of more is refused by its
    header. background: RGB behind transparency. BadRecord as `decode.opened`.
    """
    last: Frame | None = getattr(_LAST, "frame", None)
    if last is None or last.image is not image or last.limits != (max_pixels, background):
        last = _LAST.frame = Frame(image, max_pixels, background)
    return last


class Frame:
    """An image whose header is read; pixels are decoded when asked for, and then kept.

    image, limits: what it was made of. height, width: upright by the EXIF tag, pixels.
    reductions: the divisors that `pixels` takes, largest first; 1 only if it is not a plain JPEG,
        which then is decoded at once.
    """

    def __init__(self, image: bytes, max_pixels: int, background: tuple[int, int, int]) -> None:
        self.image, self.limits = image, (max_pixels, background)
        self._decoded: dict[int, Pixels] = {}
        with decode.opened(image, max_pixels) as file:
            self.width, self.height = file.size
            plain = file.format in ("JPEG", "MPO") and file.mode in ("L", "RGB")
            # Truncated, without its end marker, cv2 would fill it with grey: PIL refuses it.
            plain = plain and image.find(_END, image.rfind(_SCAN)) >= 0
            self._orientation = file.getexif().get(_ORIENTATION, 1) if plain else 1
        self.reductions = tuple(sorted(_FLAGS, reverse=True)) if plain else (1,)
        if not plain:
            self.height, self.width = self.pixels().shape[:2]
        elif self._orientation in (5, 6, 7, 8):
            self.width, self.height = self.height, self.width

    def pixels(self, reduction: int = 1) -> Pixels:
        """Read-only uint8 (ceil(height / reduction), ceil(width / reduction), 3) RGB, upright.

        BadRecord if the image cannot be decoded.
        """
        if reduction not in self._decoded:
            pixels = self._jpeg(reduction) if len(self.reductions) > 1 else self._any()
            pixels.flags.writeable = False
            self._decoded[reduction] = pixels
        return self._decoded[reduction]

    def _any(self) -> Pixels:
        max_pixels, background = self.limits
        rgba = decode.decode(self.image, max_pixels)
        colour: Pixels = cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB)  # type: ignore[assignment]
        alpha = rgba[..., 3]
        if alpha.min() == 255:
            return colour
        cover = cv2.cvtColor(alpha, cv2.COLOR_GRAY2RGB)
        back = np.full_like(colour, background)
        shown = cv2.multiply(colour, cover, scale=1 / 255)
        hidden = cv2.multiply(back, cv2.bitwise_not(cover), scale=1 / 255)
        return cv2.add(shown, hidden)  # type: ignore[return-value]

    def _jpeg(self, reduction: int) -> Pixels:
        flags = _FLAGS[reduction] | cv2.IMREAD_IGNORE_ORIENTATION
        try:
            pixels = cv2.imdecode(np.frombuffer(self.image, np.uint8), flags)
        except cv2.error as error:
            raise BadRecord("corrupt image", str(error)) from error
        if pixels is None:
            raise BadRecord("corrupt image", f"a JPEG of {len(self.image)} bytes, not decodable")
        if reduction > 1:  # cv2 has no reduced RGB
            cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)
        upright = self._turned(pixels.astype(np.uint8, copy=False))
        wanted = -(-self.height // reduction), -(-self.width // reduction)
        if upright.shape[:2] != wanted:
            detail = f"{upright.shape[:2]} pixels decoded where the header promises {wanted}"
            raise BadRecord("corrupt image", detail)
        return upright

    def _turned(self, pixels: Pixels) -> Pixels:
        if self._orientation not in range(2, 9):
            return pixels
        tag = Image.Exif()
        tag[_ORIENTATION] = self._orientation
        image = Image.fromarray(pixels)
        image.info["exif"] = tag.tobytes()
        return np.array(ImageOps.exif_transpose(image))
