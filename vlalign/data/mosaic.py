"""Several images as one, and their boxes with them (CLIM, Wu et al. 2023, arXiv 2312.11376)."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vlalign.data import decode, resample
from vlalign.data.captions import CaptionView
from vlalign.data.frame import Frame
from vlalign.data.record import Record
from vlalign.errors import UserError

Pixels = NDArray[np.uint8]
Boxes = NDArray[np.float32]


def mosaic(
    images: Sequence[Pixels],
    boxes: Sequence[Boxes],
    rng: np.random.Generator,
    grid: int,
    *,
    size: int | None = None,
) -> tuple[Pixels, list[Boxes]]:
    """grid x grid images in one square, each stretched to its cell; cells are drawn at random.

    images: grid**2 arrays uint8 (h, w, 3) of any sizes. boxes: for each its (k, 4) boxes
    x0, y0, x1, y1 in 0..1 of it; an image that is a region itself has the box 0, 0, 1, 1. size:
    side of the result; None: the first image's longer one. Returns uint8 (size, size, 3), and for
    each image, in the order given, its boxes in 0..1 of the result.
    """
    if grid < 1 or not len(images) == len(boxes) == grid * grid:
        raise ValueError(
            f"{len(images)} images with {len(boxes)} lists of boxes: {grid} x {grid} want "
            f"{grid * grid} of each"
        )
    side = max(images[0].shape[:2]) if size is None else size
    if side < grid:
        raise ValueError(f"a side of {side} pixels has no room for {grid} cells")
    canvas = np.empty((side, side, 3), np.uint8)
    moved: list[Boxes] = []
    edges = [side * step // grid for step in range(grid + 1)]
    for image, own, cell in zip(images, boxes, rng.permutation(grid * grid), strict=True):
        row, column = divmod(int(cell), grid)
        (top, bottom), (left, right) = edges[row : row + 2], edges[column : column + 2]
        canvas[top:bottom, left:right] = resample.resize(image, bottom - top, right - left)
        # Two corners: scaled to the cell, moved to its place.
        scale = np.array([right - left, bottom - top] * 2, np.float32)
        place = np.array([left, top] * 2, np.float32)
        moved.append((np.asarray(own, np.float32).reshape(-1, 4) * scale + place) / side)
    return canvas, moved


@dataclasses.dataclass(frozen=True, kw_only=True)
class MosaicView:
    """The images of grid x grid records in one, each a region with its caption.

    The field is the image, uint8 (size, size, 3); NAME_boxes float32 (grid**2, 4) are x0, y0, x1,
    y1 in 0..1 of each record's place in it, the sample's own first; NAME_texts its captions.

    grid: images a side. size: side of the output, pixels. text: what gives each caption.
    background: RGB 0..255 behind transparent pixels. max_pixels: an image of more is refused.
    """

    grid: int = 2
    size: int = 224
    text: CaptionView = CaptionView()
    background: tuple[int, int, int] = (255, 255, 255)
    max_pixels: int = 64_000_000

    def __post_init__(self) -> None:
        if not 1 <= self.grid <= self.size <= 4096:
            raise UserError(
                f"MosaicView.grid={self.grid}, size={self.size}: 1 <= grid <= size <= 4096"
            )
        if not 1 <= self.max_pixels <= decode.PIL_LIMIT:
            raise UserError(
                f"MosaicView.max_pixels={self.max_pixels}: in 1..{decode.PIL_LIMIT}, PIL's limit"
            )

    @property
    def partners(self) -> int:
        """Records that the pipeline adds to the sample's own."""
        return self.grid**2 - 1

    def __call__(
        self, records: tuple[Record, ...], rng: np.random.Generator
    ) -> Mapping[str, NDArray[np.generic] | tuple[str, ...]]:
        """Image, boxes and texts; BadRecord if one of the records cannot give its part."""
        frames = (Frame(r.image, self.max_pixels, self.background) for r in records)
        images = [frame.pixels() for frame in frames]
        whole = [np.array([[0.0, 0.0, 1.0, 1.0]], np.float32)] * len(records)
        image, boxes = mosaic(images, whole, rng, self.grid, size=self.size)
        texts = tuple(self.text(record, rng) for record in records)
        return {"": image, "boxes": np.concatenate(boxes), "texts": texts}

    def texts(self, record: Record) -> Iterator[str]:
        """The captions' texts, for training a tokenizer."""
        return self.text.texts(record)

    def example(self) -> Mapping[str, NDArray[np.generic] | tuple[str, ...]]:
        """Zeros of the shapes and dtypes, and empty texts."""
        count = self.grid**2
        image = np.zeros((self.size, self.size, 3), np.uint8)
        return {"": image, "boxes": np.zeros((count, 4), np.float32), "texts": ("",) * count}
