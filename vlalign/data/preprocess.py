"""Preprocessing for evaluation, equal pixel by pixel to what published models were trained with.

`clip`, `siglip` and `big_vision` name the three families; others are `Preprocess` with other fields
(MobileCLIP: bilinear and shortest; CLIPA: bilinear and squash, with ImageNet's mean and std).
"""

import dataclasses
import hashlib
import json
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vlalign.data import decode
from vlalign.data.record import BadRecord, Record
from vlalign.data.tf_resize import tf_bilinear
from vlalign.errors import UserError

Pixels = NDArray[np.uint8]
Triple = tuple[float, float, float]

_PIL = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_MODES = ("shortest", "squash", "longest")
_FILTERS = (*_PIL, "tf_bilinear", "tf_bilinear_antialias")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocess:
    """An image as uint8 (size, size, 3) RGB without randomness: a view, and an evaluation of bytes.

    The order is the originals': resize, cut or pad, then convert to RGB, so that a palette image is
    resized by its nearest pixels and what lies behind transparent pixels shows. 16-bit grey, which
    the originals clip to white, keeps its upper 8 bits.

    size: side of the output, pixels.
    resize_mode: "shortest" fits the short side and cuts the long one's ends, "squash" stretches,
        "longest" fits the long side and pads, with black.
    interpolation: PIL's "bicubic" or "bilinear", both antialiased, or TensorFlow's "tf_bilinear"
        (half-pixel centres, no antialias) or "tf_bilinear_antialias", which only squash.
    mean, std: per channel, of pixels in 0..1; what the image tower's pixel_mean and pixel_std must
        be, since uint8 is normalised there.
    upright: whether the EXIF orientation is applied; the originals ignore it.
    max_pixels: an image of more, as it is or resized, is refused.
    """

    size: int = 224
    resize_mode: Literal["shortest", "squash", "longest"] = "shortest"
    interpolation: Literal["bicubic", "bilinear", "tf_bilinear", "tf_bilinear_antialias"] = (
        "bicubic"
    )
    mean: Triple = (0.48145466, 0.4578275, 0.40821073)
    std: Triple = (0.26862954, 0.26130258, 0.27577711)
    upright: bool = False
    max_pixels: int = 64_000_000

    def __post_init__(self) -> None:
        if not 1 <= self.size <= 4096:
            raise UserError(f"Preprocess.size={self.size}: a side is in 1..4096 pixels")
        for name, valid in (("resize_mode", _MODES), ("interpolation", _FILTERS)):
            if (value := getattr(self, name)) not in valid:
                raise UserError(f"Preprocess.{name}={value!r}; valid: {', '.join(valid)}")
        if self.interpolation not in _PIL and self.resize_mode != "squash":
            raise UserError(
                f"Preprocess.interpolation={self.interpolation!r} with resize_mode="
                f"{self.resize_mode!r}: TensorFlow's filters are for squash"
            )
        mean, std = list(self.mean), list(self.std)
        if not len(mean) == len(std) == 3 or min(std) <= 0:
            raise UserError(f"Preprocess.mean={self.mean}, std={self.std}: three each, std above 0")
        limit = decode.PIL_LIMIT
        if not 1 <= self.max_pixels <= limit:
            raise UserError(f"Preprocess.max_pixels={self.max_pixels}: in 1..{limit}, PIL's limit")

    def __call__(self, record: Record, rng: np.random.Generator) -> Pixels:
        """`evaluate` of the record's image; draws nothing."""
        del rng
        return self.evaluate(record.image)

    def evaluate(self, image: bytes) -> Pixels:
        """Encoded bytes to uint8 (size, size, 3); BadRecord as `decode.opened`."""
        with decode.opened(image, self.max_pixels) as file:
            return self.of_picture(file)

    def of_picture(self, picture: Image.Image) -> Pixels:
        """As `evaluate`, of an image of PIL's; BadRecord for pixels of no agreed range."""
        if self.upright:
            picture = ImageOps.exif_transpose(picture)
        picture = decode.eight_bit(picture)
        if self.interpolation not in _PIL:
            pixels = np.asarray(_rgb(picture))
            antialias = self.interpolation == "tf_bilinear_antialias"
            return tf_bilinear(pixels, self.size, self.size, antialias=antialias)
        return np.array(_rgb(self._placed(picture)))

    def example(self) -> Pixels:
        """Zeros of a view's shape and dtype."""
        return np.zeros((self.size, self.size, 3), np.uint8)

    def spec(self) -> dict[str, Any]:
        """The preprocessing as plain data, mean and std included; `Preprocess(**spec)` is equal."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    def fingerprint(self) -> str:
        """sha256 of the specification: kept with weights and compared at evaluation."""
        return hashlib.sha256(json.dumps(self.spec(), sort_keys=True).encode()).hexdigest()

    def _placed(self, picture: Image.Image) -> Image.Image:
        """Resized, then cut or padded, at the rounding of torchvision and open_clip."""
        size, (width, height) = self.size, picture.size
        if self.resize_mode == "squash":
            goal = size, size
        elif self.resize_mode == "shortest":
            long = int(size * max(width, height) / min(width, height))
            goal = (size, long) if width <= height else (long, size)
        else:
            ratio = max(width, height) / size
            goal = max(1, round(width / ratio)), max(1, round(height / ratio))
        if goal[0] * goal[1] > self.max_pixels:
            detail = f"{width} x {height} resized is {goal[0]} x {goal[1]} pixels"
            raise BadRecord("image too large", f"{detail}, more than {self.max_pixels:,}")
        if goal != picture.size:
            picture = picture.resize(goal, _PIL[self.interpolation])
        # A margin that PIL cuts beyond the image is 0, as torchvision pads.
        left, top = (_margin(side, size) for side in goal)
        return picture.crop((left, top, left + size, top + size))


def _rgb(picture: Image.Image) -> Image.Image:
    if "transparency" in picture.info:  # of a palette; PIL would only warn that it is lost
        picture = picture.copy()  # it may be the caller's
        del picture.info["transparency"]
    return picture.convert("RGB")


def _margin(side: int, size: int) -> int:
    """Where the centre of `size` pixels begins on a side; below 0 if the side is shorter."""
    return round((side - size) / 2) if side >= size else -((size - side) // 2)


def clip(size: int = 224) -> Preprocess:
    """OpenAI's CLIP and open_clip's default: PIL bicubic, short side fitted, centre cut out."""
    return Preprocess(size=size)


def siglip(size: int = 224) -> Preprocess:
    """SigLIP in open_clip and Hugging Face: PIL bicubic, squashed; mean and std 0.5."""
    return Preprocess(size=size, resize_mode="squash", mean=(0.5,) * 3, std=(0.5,) * 3)


def big_vision(size: int = 224, *, antialias: bool = False) -> Preprocess:
    """SigLIP in big_vision: `decode(precise=True)|resize(size)|value_range(-1, 1)`.

    big_vision's default decoder reads JPEGs by a faster DCT, a level away on average.
    """
    return Preprocess(
        size=size,
        resize_mode="squash",
        interpolation="tf_bilinear_antialias" if antialias else "tf_bilinear",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
