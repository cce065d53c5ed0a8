"""Images of any shape as rows of patches: NaFlex (SigLIP 2, Tschannen et al. 2025, section 2.4)."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vlalign.data import decode
from vlalign.data.record import BadRecord, Record
from vlalign.errors import UserError

Pixels = NDArray[np.uint8]
Patches = dict[str, NDArray[Any]]

# The scale is searched for up to this factor, to this precision, as in the original: 100 times.
_LARGEST, _PRECISION = 100.0, 1e-5


def grid_for(height: int, width: int, patch_size: int, budget: int) -> tuple[int, int]:
    """Rows and columns of patches for an image, at most `budget` of them.

    The largest grid of the image's aspect, each side rounded up to whole patches. It is found by
    the bisection of transformers' image processor, and is its grid for every size.

    height, width, patch_size: pixels.
    Raises UserError for a budget below 1, BadRecord for an image so long that no grid of it fits.
    """
    if budget < 1:
        raise UserError(f"a budget of {budget} patches: an image has 1 at least")

    def grid(scale: float) -> tuple[int, int]:
        down, across = (math.ceil(side * scale / patch_size) for side in (height, width))
        return max(1, down), max(1, across)

    low, high = _PRECISION / 10, _LARGEST
    while high - low >= _PRECISION:
        middle = (low + high) / 2
        if math.prod(grid(middle)) <= budget:
            low = middle
        else:
            high = middle
    found = grid(low)
    if math.prod(found) > budget:
        raise BadRecord("image too large", f"{width} x {height} pixels do not fit {budget} patches")
    return found


def to_patches(image: Pixels, patch_size: int) -> Pixels:
    """(h, w, c) cut into (rows * columns, patch_size**2 * c), row by row; within one too.

    Raises ValueError if the sides are no multiples of `patch_size`.
    """
    (h, w, c), p = image.shape, patch_size
    if h % p or w % p:
        raise ValueError(f"an image of {h}x{w} does not divide into patches of {p}")
    cut = image.reshape(h // p, p, w // p, p, c).transpose(0, 2, 1, 3, 4)
    return cut.reshape(-1, p * p * c)


def pack(images: Sequence[Mapping[str, NDArray[Any]]], budget: int, most: int) -> list[Patches]:
    """Images in fewer rows: each row `patches` (budget, p), `shapes` (most, 2), and `which`.

    Each image goes into the first row that has room for it, the largest first (first-fit
    decreasing). `which` (most,) int32 says which of `images` stand there, -1 where none does.

    images: `patches` (n, p), of which the first rows * columns of `shapes` (1, 2) count.
    most: images of a row.   Raises UserError if an image has more patches than `budget`.
    """
    counts = [int(np.prod(image["shapes"])) for image in images]
    if max(counts, default=0) > budget:
        raise UserError(f"an image of {max(counts)} patches in rows of {budget}: raise the budget")
    rows: list[list[int]] = []
    for index in sorted(range(len(images)), key=lambda i: (-counts[i], i)):
        for row in rows:
            if len(row) < most and sum(counts[i] for i in row) + counts[index] <= budget:
                row.append(index)
                break
        else:
            rows.append([index])
    return [_row([images[i] for i in row], row, budget, most) for row in rows]


def _row(
    images: Sequence[Mapping[str, NDArray[Any]]], which: Sequence[int], budget: int, most: int
) -> Patches:
    shapes = np.zeros((most, 2), np.int32)
    places = np.full(most, -1, np.int32)
    shapes[: len(images)] = [image["shapes"][0] for image in images]
    places[: len(images)] = which
    cut = [x["patches"][:n] for x, n in zip(images, shapes.prod(axis=1), strict=False)]
    return {"patches": _filled(np.concatenate(cut), budget), "shapes": shapes, "which": places}


def _filled(patches: Pixels, budget: int) -> Pixels:
    """Patches with zeros behind them: (n, p) -> (budget, p)."""
    return np.pad(patches, ((0, budget - len(patches)), (0, 0)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class NaflexView:
    """An image as `patches` (budget, patch_size**2 * 3) uint8 and `shapes` (1, 2), rows, columns.

    Resized by PIL's antialiased bilinear, which keeps its aspect up to whole patches; behind the
    grid's patches there are zeros. Nothing is random.

    budget: most patches of an image.   patch_size: side of a patch, pixels.
    upright: whether the EXIF orientation is applied; the original ignores it.
    max_pixels: an image of more is refused.
    """

    budget: int = 256
    patch_size: int = 16
    upright: bool = False
    max_pixels: int = 64_000_000

    def __post_init__(self) -> None:
        for name in ("budget", "patch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"NaflexView.{name}={getattr(self, name)}: 1 or more")
        if not 1 <= self.max_pixels <= decode.PIL_LIMIT:
            limit = decode.PIL_LIMIT
            raise UserError(f"NaflexView.max_pixels={self.max_pixels}: in 1..{limit}, PIL's limit")

    def __call__(self, record: Record, rng: np.random.Generator) -> Patches:
        """`evaluate` of the record's image; draws nothing."""
        del rng
        return self.evaluate(record.image)

    def evaluate(self, image: bytes) -> Patches:
        """Encoded bytes to patches and their grid; BadRecord as `decode.opened` and `grid_for`."""
        p = self.patch_size
        with decode.opened(image, self.max_pixels) as file:
            picture: Image.Image = ImageOps.exif_transpose(file) if self.upright else file
            colour = decode.eight_bit(picture).convert("RGB")
            rows, columns = grid_for(colour.height, colour.width, p, self.budget)
            goal = columns * p, rows * p
            pixels = np.asarray(colour.resize(goal, Image.Resampling.BILINEAR))
        shapes = np.array([[rows, columns]], np.int32)
        return {"patches": _filled(to_patches(pixels, p), self.budget), "shapes": shapes}

    def example(self) -> Patches:
        """Zeros of a view's shapes and dtypes."""
        patches = np.zeros((self.budget, self.patch_size**2 * 3), np.uint8)
        return {"patches": patches, "shapes": np.zeros((1, 2), np.int32)}
