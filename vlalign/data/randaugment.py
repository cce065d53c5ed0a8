"""RandAugment: a few random operations of one strength (Cubuk et al. 2019, arXiv 1909.13719)."""

import dataclasses
import math
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from vlalign.errors import UserError

Pixels = NDArray[np.uint8]
# (image, strength 0..1, sign -1 or 1) -> image
Operation = Callable[[Pixels, float, int], Pixels]

_MOST = 8  # operations
_VALUES = np.arange(256.0)
_LUMA = np.array([[0.299, 0.587, 0.114]], np.float32)
_GREY = (128, 128, 128)  # where a geometric operation leaves nothing
_SHARPEN = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / np.float32(13)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandAugment:
    """`count` operations of the paper's list, each drawn equally likely, at one strength.

    The list is section 3's: identity, autocontrast, equalize, rotate, solarize, colour, posterize,
    contrast, brightness, sharpness, shear and translate in x and y. Largest values are
    torchvision's: 30 degrees, shear 0.3, shift 0.45 of the side, colour factors 1 +- 0.9, 4 of 8
    bits, all values inverted; signs are drawn.

    count: operations, one after the other; 0: off. magnitude: 0..30, the paper's M.
    """

    count: int = 0
    magnitude: float = 9.0

    def __post_init__(self) -> None:
        if not 0 <= self.count <= _MOST:
            raise UserError(f"RandAugment.count={self.count}: operations, 0..{_MOST}")
        if not 0.0 <= self.magnitude <= 30.0:
            raise UserError(f"RandAugment.magnitude={self.magnitude}: in 0..30")

    def __call__(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        """A changed copy of uint8 (h, w, 3), or the image itself; takes a fixed number of draws."""
        operations = tuple(OPERATIONS.values())
        for which, side in rng.random((_MOST, 2))[: self.count].tolist():
            operation = operations[int(which * len(operations))]
            image = operation(image, self.magnitude / 30.0, 1 if side < 0.5 else -1)
        return image


def _table(image: Pixels, values: NDArray[np.float64]) -> Pixels:
    """Every value v becomes values[v], or, for (256, 3), that of its channel."""
    table = np.clip(values, 0, 255).astype(np.uint8)
    return cv2.LUT(image, table[:, None, :] if table.ndim == 2 else table)  # type: ignore[return-value]


def autocontrast(image: Pixels, strength: float, sign: int) -> Pixels:
    """Each channel stretched to 0..255; has no strength."""
    del strength, sign
    low, high = (edge((0, 1)).astype(float) for edge in (image.min, image.max))
    scale = np.divide(255.0, high - low, out=np.ones(3), where=high > low)
    offset = np.where(high > low, -low * scale, 0.0)
    return _table(image, _VALUES[:, None] * scale + offset)


def equalize(image: Pixels, strength: float, sign: int) -> Pixels:
    """Each channel's histogram made flat, as PIL does it; has no strength."""
    del strength, sign
    table = np.stack([_equal(image[..., channel]) for channel in range(3)], axis=1)
    return _table(image, table)


def _equal(channel: Pixels) -> NDArray[np.float64]:
    counts = np.bincount(channel.ravel(), minlength=256)
    used = counts[counts > 0]
    step = (int(used.sum()) - int(used[-1])) // 255
    if step == 0:
        return _VALUES
    before = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return ((before + step // 2) // step).astype(float)


def solarize(image: Pixels, strength: float, sign: int) -> Pixels:
    """Values from 255 * (1 - strength) on inverted."""
    del sign
    threshold = 255 * (1 - strength)
    return _table(image, np.where(threshold > _VALUES, _VALUES, 255 - _VALUES))


def posterize(image: Pixels, strength: float, sign: int) -> Pixels:
    """Each value cut to its first 8 to 4 bits."""
    del sign
    return cv2.bitwise_and(image, np.full_like(image, 256 - (1 << round(4 * strength))))  # type: ignore[return-value]


def brightness(image: Pixels, strength: float, sign: int) -> Pixels:
    """Towards or away from black."""
    return _table(image, _VALUES * (1 + 0.9 * sign * strength))


def contrast(image: Pixels, strength: float, sign: int) -> Pixels:
    """Towards or away from the mean grey."""
    mean = int(cv2.transform(image, _LUMA).mean() + 0.5)
    return _table(image, mean + (_VALUES - mean) * (1 + 0.9 * sign * strength))


def colour(image: Pixels, strength: float, sign: int) -> Pixels:
    """Towards or away from grey."""
    factor = np.float32(1 + 0.9 * sign * strength)
    matrix = factor * np.eye(3, dtype=np.float32) + (1 - factor) * np.repeat(_LUMA, 3, axis=0)
    return cv2.transform(image, matrix)  # type: ignore[return-value]


def sharpness(image: Pixels, strength: float, sign: int) -> Pixels:
    """Towards or away from a smoothed copy; the outermost pixels stay."""
    smooth = image.copy()
    smooth[1:-1, 1:-1] = cv2.filter2D(image, -1, _SHARPEN)[1:-1, 1:-1]
    factor = 1 + 0.9 * sign * strength
    return cv2.addWeighted(image, factor, smooth, 1 - factor, 0)  # type: ignore[return-value]


def _warp(image: Pixels, linear: tuple[float, float, float, float], x: float, y: float) -> Pixels:
    """By the map from output to input about the centre, shifted by x, y pixels."""
    a, b, c, d = linear
    height, width = image.shape[:2]
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    matrix = np.array(
        [
            [a, b, middle_x - a * middle_x - b * middle_y + x],
            [c, d, middle_y - c * middle_x - d * middle_y + y],
        ]
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, (width, height), flags=flags, borderValue=_GREY)  # type: ignore[return-value]


def rotate(image: Pixels, strength: float, sign: int) -> Pixels:
    """A turn about the centre; sign 1: anticlockwise."""
    angle = math.radians(30 * sign * strength)
    cos, sin = math.cos(angle), math.sin(angle)
    return _warp(image, (cos, -sin, sin, cos), 0, 0)


def shear_x(image: Pixels, strength: float, sign: int) -> Pixels:
    """Rows shifted in proportion to their distance from the middle."""
    return _warp(image, (1, 0.3 * sign * strength, 0, 1), 0, 0)


def shear_y(image: Pixels, strength: float, sign: int) -> Pixels:
    """Columns shifted in proportion to their distance from the middle."""
    return _warp(image, (1, 0, 0.3 * sign * strength, 1), 0, 0)


def translate_x(image: Pixels, strength: float, sign: int) -> Pixels:
    """A shift along the rows."""
    return _warp(image, (1, 0, 0, 1), 0.45 * sign * strength * image.shape[1], 0)


def translate_y(image: Pixels, strength: float, sign: int) -> Pixels:
    """A shift along the columns."""
    return _warp(image, (1, 0, 0, 1), 0, 0.45 * sign * strength * image.shape[0])


def _identity(image: Pixels, strength: float, sign: int) -> Pixels:
    del strength, sign
    return image


OPERATIONS: dict[str, Operation] = {
    "identity": _identity,
    "autocontrast": autocontrast,
    "equalize": equalize,
    "rotate": rotate,
    "solarize": solarize,
    "colour": colour,
    "posterize": posterize,
    "contrast": contrast,
    "brightness": brightness,
    "sharpness": sharpness,
    "shear_x": shear_x,
    "shear_y": shear_y,
    "translate_x": translate_x,
    "translate_y": translate_y,
}
