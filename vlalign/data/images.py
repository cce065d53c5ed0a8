"""The view of a record's image: random in training, fixed in evaluation."""

import dataclasses
import math
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from vlalign.data import augment, decode
from vlalign.data.record import Record
from vlalign.errors import UserError

Pixels = NDArray[np.uint8]
_DRAWS = 32  # at fixed places: switching one augmentation on leaves the draws of the others alone


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageView:
    """An image as uint8 (size, size, 3) RGB; every augmentation is off at its default.

    size: side of the output, pixels.
    resize_mode: "pad" keeps the aspect and pads, "squash" stretches, "crop" fills and cuts the
        long side's ends.
    background: RGB 0..255 behind transparent pixels and in padding.
    random_background: probability that training draws a background instead, and behind what.
    background_kinds: what is drawn, equally likely: "flat" colour, "gradient", smooth "noise".
    rotation: largest turn either way, degrees.
    scale: smallest and largest zoom factor, log-uniform; None: no zoom.
    translation: largest shift either way along each axis, share of the size.
    shear: largest shear either way, degrees.
    elastic: largest displacement of a smooth random bend, share of the size.
    flip: probability of a left-right flip; harms text, flags and "facing right".
    brightness: largest change of the factor on all channels, 0..1 (0.2: 0.8..1.2).
    contrast: largest change of the factor about mid-grey, 0..1.
    saturation: largest change of the colourfulness factor, 0..1.
    hue: largest turn of the hue either way, degrees; colour words lose their sense beyond 30.
    grayscale: probability that colour is removed.
    posterize: probability that each channel is cut to 3..8 levels, which flattens shading.
    blur: largest standard deviation of a Gaussian blur, uniform from 0, pixels.
    erase: probability that a rectangle is replaced by the background.
    erase_area: smallest and largest share of the image that is erased.
    max_pixels: an image of more is refused by its header, undecoded.
    cache_mib: decoded images kept a process, MiB; changes no output.
    """

    size: int = 64
    resize_mode: Literal["pad", "squash", "crop"] = "pad"
    background: tuple[int, int, int] = (255, 255, 255)
    random_background: float = 0.0
    background_kinds: tuple[Literal["flat", "gradient", "noise"], ...] = (
        "flat",
        "gradient",
        "noise",
    )
    rotation: float = 0.0
    scale: tuple[float, float] | None = None
    translation: float = 0.0
    shear: float = 0.0
    elastic: float = 0.0
    flip: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grayscale: float = 0.0
    posterize: float = 0.0
    blur: float = 0.0
    erase: float = 0.0
    erase_area: tuple[float, float] = (0.02, 0.2)
    max_pixels: int = 64_000_000
    cache_mib: int = dataclasses.field(default=128, repr=False)

    def __post_init__(self) -> None:
        _check(self)

    def __call__(self, record: Record, rng: np.random.Generator) -> Pixels:
        """A random view (size, size, 3) uint8; without augmentations equal to `evaluate`.

        Raises BadRecord as `decode.decode` does.
        """
        pixels = self._cached(record.image)
        u = rng.random(_DRAWS).tolist()
        pixels = self._place(pixels, u, rng)
        back = self._back(u, rng)
        image = augment.composite(self._coloured(pixels, u), pixels[..., 3], back)
        return self._finish(image, back, u)

    def evaluate(self, image: bytes) -> Pixels:
        """The deterministic view (size, size, 3) uint8 of encoded bytes; BadRecord as `decode`."""
        pixels = self._fitted(self._cached(image))
        colour = cv2.cvtColor(pixels, cv2.COLOR_RGBA2RGB)
        back = augment.flat(self.background, self.size)
        return augment.composite(colour, pixels[..., 3], back)  # type: ignore[arg-type]

    def example(self) -> Pixels:
        """Zeros of a view's shape and dtype."""
        return np.zeros((self.size, self.size, 3), np.uint8)

    def spec(self) -> dict[str, Any]:
        """The evaluation preprocessing as plain data; `ImageView(**spec)` evaluates alike."""
        names = ("size", "resize_mode", "background", "max_pixels")
        return {
            name: list(value) if isinstance(value := getattr(self, name), tuple) else value
            for name in names
        }

    def _cached(self, image: bytes) -> Pixels:
        store = decode.cache(self.cache_mib, self.size, self.resize_mode, self.max_pixels)
        return store.get(image)

    def _fitted(self, pixels: Pixels) -> Pixels:
        """Resized and centred in (size, size, 4), transparent around."""
        height, width = self._target(pixels)
        resized = decode.resize(pixels, height, width)
        if (height, width) == (self.size, self.size):
            return resized
        canvas = np.zeros((self.size, self.size, 4), np.uint8)
        top, left = (self.size - height) // 2, (self.size - width) // 2
        inner = resized[max(0, -top) :, max(0, -left) :][: self.size, : self.size]
        top, left = max(0, top), max(0, left)
        canvas[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
        return canvas

    def _target(self, pixels: Pixels) -> tuple[int, int]:
        height, width = pixels.shape[:2]
        return decode.target_size(height, width, self.size, self.resize_mode)

    def _place(self, pixels: Pixels, u: list[float], rng: np.random.Generator) -> Pixels:
        """The geometry; one resample, and a second where the image is bent."""
        moves = (self.rotation, self.translation, self.shear, self.flip)
        if not any(moves) and self.scale is None:
            placed = self._fitted(pixels)
        else:
            matrix = augment.affine(
                (pixels.shape[0], pixels.shape[1]),
                self._target(pixels),
                self.size,
                angle=math.radians(augment.signed(u[0], self.rotation)),
                scale=augment.log_uniform(u[1], *self.scale) if self.scale else 1.0,
                shear=math.radians(augment.signed(u[2], self.shear)),
                shift=(
                    augment.signed(u[3], self.translation * self.size),
                    augment.signed(u[4], self.translation * self.size),
                ),
                flip=u[5] < self.flip,
            )
            placed = augment.warp(pixels, matrix, self.size)
        return augment.elastic(placed, self.elastic * self.size, rng) if self.elastic else placed

    def _back(self, u: list[float], rng: np.random.Generator) -> Pixels:
        if u[6] < self.random_background:
            kind = self.background_kinds[int(u[7] * len(self.background_kinds))]
            return augment.backdrop(kind, self.size, u[8:11], rng)
        return augment.flat(self.background, self.size)

    def _coloured(self, pixels: Pixels, u: list[float]) -> Pixels:
        """Premultiplied RGB (size, size, 3) with its colours changed."""
        if not any((self.brightness, self.contrast, self.saturation, self.hue, self.grayscale)):
            return cv2.cvtColor(pixels, cv2.COLOR_RGBA2RGB)  # type: ignore[return-value]
        saturation = 1.0 + augment.signed(u[13], self.saturation)
        matrix = augment.colour_matrix(
            brightness=1.0 + augment.signed(u[11], self.brightness),
            contrast=1.0 + augment.signed(u[12], self.contrast),
            saturation=0.0 if u[15] < self.grayscale else saturation,
            hue=math.radians(augment.signed(u[14], self.hue)),
        )
        return cv2.transform(pixels, matrix)  # type: ignore[return-value]

    def _finish(self, image: Pixels, back: Pixels, u: list[float]) -> Pixels:
        if u[16] < self.posterize:
            image = augment.posterize(image, 3 + int(6 * u[17]))
        if (sigma := self.blur * u[18]) > 0.05:  # below, the blur changes no 8-bit pixel
            image = cv2.GaussianBlur(image, (0, 0), sigma)  # type: ignore[assignment]
        if u[19] < self.erase:
            low, high = self.erase_area
            image = augment.erase(image, low + u[20] * (high - low), u[21:24], back)
        return image


_LIMITS = {
    "probability": (
        ("random_background", "flip", "grayscale", "posterize", "erase"),
        0.0,
        1.0,
    ),
    "factor": (("brightness", "contrast", "saturation", "translation", "elastic"), 0.0, 1.0),
    "angle in degrees": (("rotation", "hue"), 0.0, 180.0),
    "shear in degrees": (("shear",), 0.0, 60.0),
    "standard deviation in pixels": (("blur",), 0.0, 100.0),
}


def _check(view: ImageView) -> None:
    for what, (names, low, high) in _LIMITS.items():
        for name in names:
            if not low <= getattr(view, name) <= high:
                value = getattr(view, name)
                raise UserError(f"ImageView.{name}={value}: a {what} is in {low:g}..{high:g}")
    if not 1 <= view.size <= 4096:
        raise UserError(f"ImageView.size={view.size}: a side is in 1..4096 pixels")
    if view.resize_mode not in ("pad", "squash", "crop"):
        raise UserError(f"ImageView.resize_mode={view.resize_mode!r}; valid: pad, squash, crop")
    background = list(view.background)
    if len(background) != 3 or not all(0 <= value <= 255 for value in background):
        raise UserError(f"ImageView.background={view.background}: three numbers in 0..255")
    kinds = view.background_kinds
    if not kinds or not set(kinds) <= {"flat", "gradient", "noise"}:
        raise UserError(f"ImageView.background_kinds={kinds}: one or more of flat, gradient, noise")
    _check_ranges(view)


def _check_ranges(view: ImageView) -> None:
    if view.scale is not None and not 0.01 <= view.scale[0] <= view.scale[1] <= 100:
        raise UserError(f"ImageView.scale={view.scale}: smallest, largest factor in 0.01..100")
    if not 0 < view.erase_area[0] <= view.erase_area[1] < 1:
        raise UserError(f"ImageView.erase_area={view.erase_area}: smallest, largest share in 0..1")
    limit = decode.PIL_LIMIT
    if not 1 <= view.max_pixels <= limit:
        raise UserError(f"ImageView.max_pixels={view.max_pixels}: in 1..{limit}, PIL's own limit")
    if view.cache_mib < 0:
        raise UserError(f"ImageView.cache_mib={view.cache_mib}: MiB, 0 or more")
