"""The random parts of an image view: numpy in, numpy out, every number drawn from one vector.

Images are uint8; `u` are uniform draws in 0..1. Angles are in degrees where configured and in
radians in here. All of it takes tens of microseconds at 64 pixels.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

_TO_YIQ = np.array(
    [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]], np.float32
)
_FROM_YIQ = np.linalg.inv(_TO_YIQ)


def signed(u: float, limit: float) -> float:
    """A uniform draw in -limit..limit."""
    return (2.0 * u - 1.0) * limit


def log_uniform(u: float, low: float, high: float) -> float:
    """A draw in low..high, uniform in its logarithm: 1/2 is as likely as 2."""
    return math.exp(math.log(low) + u * (math.log(high) - math.log(low)))


def affine(
    source: tuple[int, int],
    target: tuple[int, int],
    size: int,
    *,
    angle: float,
    scale: float,
    shear: float,
    shift: tuple[float, float],
    flip: bool,
) -> NDArray[np.float64]:
    """The (2, 3) map from source to output pixels: resize, flip, shear, turn, scale, shift.

    source, target: (height, width) of the image and of its unaugmented copy, centred in the
    (size, size) output. angle, shear in radians; scale a factor; shift (x, y) in output pixels.
    """
    (height, width), (goal_height, goal_width) = source, target
    scale_x = scale * goal_width / width * (-1.0 if flip else 1.0)
    scale_y = scale * goal_height / height
    cos, sin, lean = math.cos(angle), math.sin(angle), math.tan(shear)
    a, b = cos * scale_x, (cos * lean - sin) * scale_y
    c, d = sin * scale_x, (sin * lean + cos) * scale_y
    # Pixel centres are at half-integers: about the centre, then back to indices.
    x, y = (width - 1) / 2, (height - 1) / 2
    centre = (size - 1) / 2
    return np.array(
        [
            [a, b, centre + shift[0] - a * x - b * y],
            [c, d, centre + shift[1] - c * x - d * y],
        ]
    )


def warp(pixels: Pixels, matrix: NDArray[np.float64], size: int) -> Pixels:
    """One bilinear resample by a forward (2, 3) map; nothing (alpha 0) outside the image."""
    return cv2.warpAffine(pixels, matrix, (size, size), flags=cv2.INTER_LINEAR)  # type: ignore[return-value]


def elastic(pixels: Pixels, amplitude: float, rng: np.random.Generator) -> Pixels:
    """Bend an image by a smooth random field of at most `amplitude` pixels at its 4x4 knots."""
    size = pixels.shape[0]
    field = rng.random((4, 4, 2), np.float32) * np.float32(2 * amplitude) - np.float32(amplitude)
    smooth = cv2.resize(field, (size, size), interpolation=cv2.INTER_CUBIC)
    steps = np.arange(size, dtype=np.float32)
    across, down = smooth[..., 0] + steps[None, :], smooth[..., 1] + steps[:, None]
    return cv2.remap(pixels, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)  # type: ignore[return-value]


def colour_matrix(*, brightness: float, contrast: float, saturation: float, hue: float) -> Floats:
    """The (3, 4) map of premultiplied RGBA to RGB; 1, 1, 1 and 0 change nothing.

    brightness, contrast (about mid-grey), saturation: factors; hue: radians, turned in YIQ at
    constant luma. The last column works on alpha, so the offset covers the shape only.
    """
    cos, sin = saturation * math.cos(hue), saturation * math.sin(hue)
    turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]], np.float32)
    colour = _FROM_YIQ @ turn @ _TO_YIQ * np.float32(brightness * contrast)
    offset = np.full((3, 1), 0.5 * (1.0 - contrast), np.float32)
    return np.concatenate([colour, offset], axis=1)


def flat(colour: tuple[int, int, int], size: int) -> Pixels:
    """One RGB colour as a read-only image (size, size, 3)."""
    # numpy fills a last axis of 3 ten times slower than Python repeats bytes.
    return np.frombuffer(bytes(colour) * (size * size), np.uint8).reshape(size, size, 3)


def backdrop(kind: str, size: int, u: list[float], rng: np.random.Generator) -> Pixels:
    """A random background (size, size, 3): "flat", "gradient" or "noise".

    gradient: bilinear between four random corner colours; noise: smooth random blobs.
    u: three draws, the flat colour.
    """
    if kind == "flat":
        red, green, blue = (int(256 * x) for x in u)
        return flat((red, green, blue), size)
    knots = 2 if kind == "gradient" else 3 + int(6 * u[0])
    coarse = rng.integers(0, 256, (knots, knots, 3), np.uint8)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR)  # type: ignore[return-value]


def composite(colour: Pixels, alpha: Pixels, back: Pixels) -> Pixels:
    """Premultiplied colour (h, w, 3) with alpha (h, w) over a background (h, w, 3)."""
    gaps = cv2.cvtColor(cv2.bitwise_not(alpha), cv2.COLOR_GRAY2RGB)
    return cv2.add(colour, cv2.multiply(back, gaps, scale=1 / 255))  # type: ignore[return-value]


def posterize(image: Pixels, levels: int) -> Pixels:
    """Each channel to `levels` values: shading becomes flat areas, as in another artist's hand."""
    values = np.arange(256, dtype=np.float32) * np.float32((levels - 1) / 255)
    table = np.rint(np.rint(values) * np.float32(255 / (levels - 1))).astype(np.uint8)
    return cv2.LUT(image, table)  # type: ignore[return-value]


def erase(image: Pixels, area: float, u: list[float], fill: Pixels) -> Pixels:
    """A copy with a rectangle of `area` (share of the image) replaced by the same part of `fill`.

    u: three draws: aspect (1/2..2), left, top.
    """
    size = image.shape[0]
    aspect = log_uniform(u[0], 0.5, 2.0)
    height = min(size, max(1, round(size * math.sqrt(area * aspect))))
    width = min(size, max(1, round(size * math.sqrt(area / aspect))))
    top, left = int(u[1] * (size - height + 1)), int(u[2] * (size - width + 1))
    image = image.copy()
    image[top : top + height, left : left + width] = fill[top : top + height, left : left + width]
    return image
