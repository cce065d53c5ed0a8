"""Random crops of a record's image, resized in one step from what had to be decoded."""

import dataclasses
import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vlalign.data import augment, decode, resample
from vlalign.data.colour import Colour
from vlalign.data.frame import Frame, frame
from vlalign.data.preprocess import Preprocess
from vlalign.data.randaugment import RandAugment
from vlalign.data.record import Record
from vlalign.errors import UserError

Pixels = NDArray[np.uint8]
# (top, left, height, width) in pixels of the whole image.
Box = tuple[int, int, int, int]

_TRIES = 10  # torchvision's number


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropView:
    """What views that show parts of an image have in common; each kind of crop extends it.

    A JPEG is decoded at 1/2, 1/4 or 1/8 where the part has enough pixels left; its box is then
    moved to whole pixels of that, by less than one output pixel. Views of one record share what is
    decoded.

    size: side of the output, pixels.
    flip: probability of a left-right flip.
    colour: changes of colour and sharpness.
    randaugment: random operations of one strength, after all else.
    background: RGB 0..255 behind transparent pixels.
    evaluation: how evaluation prepares an image; None: CLIP's way at this size, upright.
    max_pixels: an image of more is refused by its header, undecoded.
    """

    size: int = 224
    flip: float = 0.0
    colour: Colour = Colour()
    randaugment: RandAugment = RandAugment()
    background: tuple[int, int, int] = (255, 255, 255)
    evaluation: Preprocess | None = None
    max_pixels: int = 64_000_000

    def __post_init__(self) -> None:
        owner, background = type(self).__name__, list(self.background)
        if not 1 <= self.size <= 4096:
            raise UserError(f"{owner}.size={self.size}: a side is in 1..4096 pixels")
        if not 0.0 <= self.flip <= 1.0:
            raise UserError(f"{owner}.flip={self.flip}: a probability is in 0..1")
        if len(background) != 3 or not all(0 <= value <= 255 for value in background):
            raise UserError(f"{owner}.background={self.background}: three numbers in 0..255")
        if self.evaluation is not None and self.evaluation.size != self.size:
            raise UserError(
                f"{owner}.evaluation.size={self.evaluation.size}: must be {owner}.size={self.size}"
            )
        limit = decode.PIL_LIMIT
        if not 1 <= self.max_pixels <= limit:
            raise UserError(f"{owner}.max_pixels={self.max_pixels}: in 1..{limit}, PIL's own limit")

    def evaluate(self, image: bytes) -> Pixels:
        """The deterministic (size, size, 3) of encoded bytes, by `evaluation`; BadRecord as it."""
        return self._evaluation().evaluate(image)

    def spec(self) -> dict[str, Any]:
        """The evaluation preprocessing as plain data: `Preprocess(**spec)` evaluates alike."""
        return self._evaluation().spec()

    def _evaluation(self) -> Preprocess:
        default = Preprocess(size=self.size, upright=True, max_pixels=self.max_pixels)
        return self.evaluation or default

    def _open(self, image: bytes) -> Frame:
        return frame(image, self.max_pixels, self.background)

    def _crop(self, opened: Frame, box: Box, rng: np.random.Generator) -> Pixels:
        """The part inside a box as (size, size, 3), with its random changes."""
        image = cut(opened, box, self.size)
        if rng.random() < self.flip:
            image = cv2.flip(image, 1)  # type: ignore[assignment]
        return self.randaugment(self.colour(image, rng), rng)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomResizedCrop(CropView):
    """A random part of the image as uint8 (size, size, 3) RGB.

    The box follows torchvision's RandomResizedCrop. It depends on the draws and the image's size
    only, so that a schedule of resolutions, which is one `Data` per resolution with views of the
    same names, shows the same boxes at each.

    area: smallest and largest share of the image's area (open_clip trains with 0.9..1).
    ratio: smallest and largest width to height, log-uniform.
    """

    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = type(self).__name__
        if not 0.0 < self.area[0] <= self.area[1] <= 1.0:
            raise UserError(f"{owner}.area={self.area}: smallest, largest share in 0..1")
        if not 0.01 <= self.ratio[0] <= self.ratio[1] <= 100.0:
            raise UserError(f"{owner}.ratio={self.ratio}: smallest, largest ratio in 0.01..100")

    def __call__(self, record: Record, rng: np.random.Generator) -> Pixels:
        """A random crop, uint8 (size, size, 3); BadRecord as `decode.decode` does."""
        return self._random(self._open(record.image), rng)

    def example(self) -> Pixels:
        """Zeros of a view's shape and dtype."""
        return np.zeros((self.size, self.size, 3), np.uint8)

    def _random(self, opened: Frame, rng: np.random.Generator) -> Pixels:
        box = random_box(opened.height, opened.width, self.area, self.ratio, rng)
        return self._crop(opened, box, rng)


def random_box(
    height: int,
    width: int,
    area: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> Box:
    """torchvision's RandomResizedCrop.get_params: area uniform, ratio log-uniform, place uniform.

    After ten boxes that do not fit, the largest central one of a valid ratio. Draws 40 numbers.
    """
    draws = rng.random((_TRIES, 4)).tolist()
    for share, shape, down, across in draws:
        pixels = height * width * (area[0] + share * (area[1] - area[0]))
        aspect = augment.log_uniform(shape, *ratio)
        w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(down * (height - h + 1)), int(across * (width - w + 1)), h, w
    h = min(height, max(1, round(width / ratio[0])))
    w = min(width, max(1, round(height * ratio[1])))
    return (height - h) // 2, (width - w) // 2, h, w


def cut(opened: Frame, box: Box, size: int) -> Pixels:
    """The part of an image inside a box as (size, size, 3), from the least decoding that serves."""
    reduction = reduction_for(opened, box, size)
    top, left, height, width = box
    # The last pixel of a reduced decoding may stand for a part of a block only: not for us.
    bottom = min(round((top + height) / reduction), opened.height // reduction)
    right = min(round((left + width) / reduction), opened.width // reduction)
    top, left = round(top / reduction), round(left / reduction)
    return resample.resize(opened.pixels(reduction)[top:bottom, left:right], size, size)


def reduction_for(opened: Frame, box: Box, size: int) -> int:
    """The largest divisor of the decoding at which a box keeps `size` pixels along both sides."""
    return next((r for r in opened.reductions if min(box[2:]) // r >= size), 1)
