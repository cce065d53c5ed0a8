"""Several images as one, and their boxes with them (CLIM, Wu et al. 2023, arXiv 2312.11376)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlalign.data import resample

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
