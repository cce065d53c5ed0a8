"""One resample of a part of an image: close to an antialiased bicubic, at a third of its time."""

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

# Bilinear interpolation reads 2 pixels a side. Where an image shrinks, a filter (a, 1 - 2a, a) goes
# ahead of it; a by the factor of shrinking was fitted on photographs to PIL's antialiased bicubic
# (negative: it sharpens), and serves up to the last factor here.
_FACTORS = (1.0, 1.75, 2.0, 2.75)
_SIDES = (-0.07, 0.11, 0.13, 0.32)


def resize(pixels: Pixels, height: int, width: int) -> Pixels:
    """Resize uint8 (h, w, c), a view of a larger array or not, to (height, width, c).

    Cubic where no side shrinks, filtered bilinear where one does, area means where one shrinks by
    more than 2.75. On photographs 44 dB from PIL's BICUBIC, where PIL's own BILINEAR is at 43.
    """
    down, across = pixels.shape[0] / height, pixels.shape[1] / width
    if max(down, across) > _FACTORS[-1]:
        method = cv2.INTER_AREA if min(down, across) >= 1 else cv2.INTER_LINEAR
        if method == cv2.INTER_LINEAR:  # cv2 has area means for shrinking both sides only
            pixels = _area_of_the_shrinking_side(pixels, height, width)
    elif max(down, across) > 1:
        method = cv2.INTER_LINEAR
        pixels = cv2.sepFilter2D(pixels, -1, _filter(across), _filter(down))  # type: ignore[assignment]
    else:
        method = cv2.INTER_CUBIC
    return cv2.resize(pixels, (width, height), interpolation=method)  # type: ignore[return-value]


def _filter(factor: float) -> NDArray[np.float32]:
    side = float(np.interp(factor, _FACTORS, _SIDES)) if factor > 1 else 0.0
    return np.array([side, 1 - 2 * side, side], np.float32)


def _area_of_the_shrinking_side(pixels: Pixels, height: int, width: int) -> Pixels:
    sides = min(width, pixels.shape[1]), min(height, pixels.shape[0])
    return cv2.resize(pixels, sides, interpolation=cv2.INTER_AREA)  # type: ignore[return-value]
