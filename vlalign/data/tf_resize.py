"""TensorFlow's bilinear `tf.image.resize` in numpy, with big_vision's cast back to uint8.

After the kernels ResizeBilinear (half-pixel centres) and ScaleAndTranslate (triangle): the same
float32 operations in the same order for the first, the same weights for the second.
"""

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

_HALF = np.float32(0.5)


def tf_bilinear(pixels: Pixels, height: int, width: int, *, antialias: bool) -> Pixels:
    """uint8 (h, w, c) -> (height, width, c); fractions are cut off, not rounded, as `tf.cast` does.

    antialias: whether the triangle grows with the factor of shrinking.
    """
    if pixels.shape[:2] == (height, width):
        return pixels.copy()
    out = (_antialiased if antialias else _lerp)(pixels, height, width)
    return np.clip(out, 0, 255).astype(np.uint8)


def _lerp(pixels: Pixels, height: int, width: int) -> Floats:
    top, bottom, down = _neighbours(pixels.shape[0], height)
    left, right, across = _neighbours(pixels.shape[1], width)
    down, across = down[:, None, None], across[None, :, None]

    def between(rows: Pixels) -> Floats:
        start, end = rows[:, left].astype(np.float32), rows[:, right].astype(np.float32)
        return start + (end - start) * across

    upper, lower = between(pixels[top]), between(pixels[bottom])
    return upper + (lower - upper) * down


def _neighbours(count: int, goal: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """Per output pixel: the input pixels before and after it, and the share of the second."""
    scale = np.float32(count) / np.float32(goal)
    place = (np.arange(goal, dtype=np.float32) + _HALF) * scale - _HALF
    floor = np.floor(place)
    before = np.maximum(floor.astype(np.intp), 0)
    after = np.minimum(np.ceil(place).astype(np.intp), count - 1)
    return before, after, place - floor


def _antialiased(pixels: Pixels, height: int, width: int) -> Floats:
    rows = _gather(pixels.astype(np.float32), height)
    return _gather(rows.swapaxes(0, 1), width).swapaxes(0, 1)


def _gather(rows: Floats, goal: int) -> Floats:
    """(n, m, c) -> (goal, m, c): each row a weighted sum of neighbours, added one by one."""
    first, weights = _triangle(len(rows), goal)
    out = np.zeros((goal, *rows.shape[1:]), np.float32)
    for place, share in enumerate(weights.T):
        # Past the last row the share is 0.
        out += rows[np.minimum(first + place, len(rows) - 1)] * share[:, None, None]
    return out


def _triangle(count: int, goal: int) -> tuple[NDArray[np.intp], Floats]:
    """Per output pixel: the first input pixel of the triangle, and the shares from there on."""
    scale = np.float32(1) / (np.float32(goal) / np.float32(count))
    radius = np.maximum(scale, np.float32(1))
    centre = (np.arange(goal, dtype=np.float32) + _HALF) * scale
    first = np.clip(np.ceil(centre - radius - _HALF), 0, count - 1).astype(np.intp)
    last = np.clip(np.floor(centre + radius - _HALF), 0, count - 1).astype(np.intp)
    places = first[:, None] + np.arange(int((last - first).max()) + 1)
    distance = np.abs(places.astype(np.float32) + _HALF - centre[:, None]) * (1 / radius)
    weights = np.where(places <= last[:, None], np.maximum(1 - distance, np.float32(0)), 0)
    total = np.zeros(goal, np.float32)
    for share in weights.T:
        total += share
    return first, weights * (np.float32(1) / total)[:, None]
