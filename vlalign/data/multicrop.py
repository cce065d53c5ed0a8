"""Several crops of one image in one field: SimCLR's pairs, SwAV's multi-crop, pyramids, regions.

Crops of different sizes or kinds are fields of their own, each a view by name; all of them share
the record's decoded pixels, and each draws from the stream of its own name. SwAV's 2 x 224 + 6 x 96
(Caron et al. 2020, arXiv 2006.09882, section 3.3) is

    views={"image": MultiCrop(crops=2, area=(0.14, 1.0)),
           "local": MultiCrop(crops=6, size=96, area=(0.05, 0.14)), ...}

and views of three levels in the manner of PyramidCLIP (Gao et al. 2022, arXiv 2204.14095)

    views={"image": RandomResizedCrop(area=(0.9, 1.0)),
           "local": RandomResizedCrop(area=(0.4, 0.9)),
           "regions": RegionCrops(count=8), "boxes": BoxesView(count=8), ...}
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from vlalign.data.crops import Box, CropView, RandomResizedCrop
from vlalign.data.record import Record
from vlalign.errors import UserError

Pixels = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiCrop(RandomResizedCrop):
    """Random crops of one image as uint8 (crops, size, size, 3), each drawn and changed alone.

    crops: how many.
    """

    crops: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.crops <= 64:
            raise UserError(f"MultiCrop.crops={self.crops}: in 1..64")

    def __call__(self, record: Record, rng: np.random.Generator) -> Pixels:
        """The crops, uint8 (crops, size, size, 3); BadRecord as `decode.decode` does."""
        opened = self._open(record.image)
        return np.stack([self._random(opened, rng) for _ in range(self.crops)])

    def example(self) -> Pixels:
        """Zeros of a view's shape and dtype."""
        return np.zeros((self.crops, self.size, self.size, 3), np.uint8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegionCrops(CropView):
    """A record's first regions as uint8 (count, size, size, 3), black where it has fewer.

    count: how many. margin: share of a box's sides that is added all around it. jitter: largest
    shift of each side of the box either way, share of the box's sides.
    """

    count: int = 4
    margin: float = 0.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.count <= 256:
            raise UserError(f"RegionCrops.count={self.count}: in 1..256")
        if not 0.0 <= self.margin <= 4.0:
            raise UserError(f"RegionCrops.margin={self.margin}: a share of the box in 0..4")
        if not 0.0 <= self.jitter < 0.5:
            raise UserError(f"RegionCrops.jitter={self.jitter}: a share of the box below 0.5")

    def __call__(self, record: Record, rng: np.random.Generator) -> Pixels:
        """The regions, uint8 (count, size, size, 3); BadRecord as `decode.decode` does."""
        opened = self._open(record.image)
        out = self.example()
        for place, region in enumerate(record.regions[: self.count]):
            shifts = self.jitter * (2.0 * rng.random(4) - 1.0)
            box = self._box(region.box, shifts, opened.height, opened.width)
            out[place] = self._crop(opened, box, rng)
        return out

    def example(self) -> Pixels:
        """Zeros of a view's shape and dtype."""
        return np.zeros((self.count, self.size, self.size, 3), np.uint8)

    def _box(
        self,
        region: tuple[float, float, float, float],
        shifts: NDArray[np.float64],
        height: int,
        width: int,
    ) -> Box:
        """In pixels, inside the image and at least one pixel large."""
        x0, y0, x1, y1 = np.clip(np.nan_to_num(np.array(region)), 0.0, 1.0)
        wide, high = x1 - x0, y1 - y0
        outward = np.array([-1.0, -1.0, 1.0, 1.0]) * self.margin
        moves = (outward + shifts) * [wide, high, wide, high]
        x0, y0, x1, y1 = np.clip(np.array([x0, y0, x1, y1]) + moves, 0.0, 1.0)
        left, top = min(int(x0 * width), width - 1), min(int(y0 * height), height - 1)
        right, bottom = max(left + 1, round(x1 * width)), max(top + 1, round(y1 * height))
        return top, left, bottom - top, right - left
