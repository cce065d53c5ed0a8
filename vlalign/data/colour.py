"""Random changes of an image's colours and sharpness, as contrastive learning uses them."""

import dataclasses
import math

import cv2
import numpy as np
from numpy.typing import NDArray

from vlalign.data import augment
from vlalign.errors import UserError

Pixels = NDArray[np.uint8]
_DRAWS = 10  # at fixed places: switching one change on leaves the draws of the others alone


@dataclasses.dataclass(frozen=True, kw_only=True)
class Colour:
    """Colour jitter, grey, blur and solarisation; every one is off at its default.

    Jitter is one linear map (SimCLR's four factors without clipping between them), so its order
    does not matter. SimCLR (Chen et al. 2020, arXiv 2002.05709, appendix A) at strength 1:
    `Colour(jitter=0.8, brightness=0.8, contrast=0.8, saturation=0.8, hue=72, grayscale=0.2,
    blur=0.5)`.

    jitter: probability of the four changes that follow.
    brightness, contrast (about mid-grey), saturation: largest change of the factor, 0..1.
    hue: largest turn of the hue either way, degrees.
    grayscale: probability that colour is removed.
    blur: probability of a Gaussian blur. sigma: its smallest and largest standard deviation,
        pixels at an output of 224; in proportion at others.
    solarize: probability that values from 128 on are inverted.
    """

    jitter: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grayscale: float = 0.0
    blur: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0

    def __post_init__(self) -> None:
        for name in ("jitter", "grayscale", "blur", "solarize"):
            _within("Colour", name, getattr(self, name), 1.0)
        for name in ("brightness", "contrast", "saturation"):
            _within("Colour", name, getattr(self, name), 1.0)
        _within("Colour", "hue", self.hue, 180.0)
        if not 0.0 < self.sigma[0] <= self.sigma[1] <= 100.0:
            raise UserError(f"Colour.sigma={self.sigma}: smallest, largest of 0..100 pixels")

    def __call__(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        """A changed copy of uint8 (h, w, 3), or the image itself; takes a fixed number of draws."""
        u = rng.random(_DRAWS).tolist()
        image = self._coloured(image, u)
        if u[6] < self.blur:
            low, high = self.sigma
            sigma = (low + u[7] * (high - low)) * image.shape[0] / 224
            image = cv2.GaussianBlur(image, (0, 0), sigma)  # type: ignore[assignment]
        if u[8] < self.solarize:
            values = np.arange(256)
            image = cv2.LUT(image, np.where(values < 128, values, 255 - values).astype(np.uint8))  # type: ignore[assignment]
        return image

    def _coloured(self, image: Pixels, u: list[float]) -> Pixels:
        grey = u[5] < self.grayscale
        strengths = (self.brightness, self.contrast, self.saturation, self.hue)
        strong = u[0] < self.jitter and any(strengths)
        if not (grey or strong):
            return image
        brightness, contrast, saturation, hue = (
            augment.signed(draw, strength) if strong else 0.0
            for draw, strength in zip(u[1:5], strengths, strict=True)
        )
        matrix = augment.colour_matrix(
            brightness=1.0 + brightness,
            contrast=1.0 + contrast,
            saturation=0.0 if grey else 1.0 + saturation,
            hue=math.radians(hue),
        )
        matrix[:, 3] *= 255  # the offset, here of an opaque image
        return cv2.transform(image, matrix)  # type: ignore[return-value]


def _within(owner: str, name: str, value: float, high: float) -> None:
    if not 0.0 <= value <= high:
        raise UserError(f"{owner}.{name}={value}: in 0..{high:g}")
