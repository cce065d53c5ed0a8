"""Pictures in a true-colour terminal: each character cell shows two pixels, one above the other."""

from collections.abc import Sequence

import numpy as np
from rich.color import Color
from rich.console import Group, RenderableType
from rich.segment import Segment, Segments
from rich.style import Style
from rich.table import Table
from rich.text import Text

from vlalign.evals.pictures import Hit, SheetRow, tile_array


def half_blocks(image: np.ndarray) -> Segments:
    """A uint8 (h, w, 3) picture as w columns and h / 2 lines (an odd last row is doubled).

    Raises `ValueError` for another shape or dtype.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"need uint8 (h, w, 3), got {image.dtype} {image.shape}")
    if image.shape[0] % 2:
        image = np.concatenate([image, image[-1:]])
    segments = []
    for upper_w3, lower_w3 in zip(image[::2].tolist(), image[1::2].tolist(), strict=True):
        for upper, lower in zip(upper_w3, lower_w3, strict=True):
            style = Style(color=Color.from_rgb(*upper), bgcolor=Color.from_rgb(*lower))
            segments.append(Segment("▀", style))
        segments.append(Segment.line())
    return Segments(segments)


def hits_table(row: SheetRow, *, columns: int, size: int = 16) -> RenderableType:
    """A query and its hits as pictures of `size` columns, as many side by side as fit."""
    across = max(1, columns // (size + 2))
    lines: list[RenderableType] = [Text(row.query, style="bold")]
    for start in range(0, len(row.hits), across):
        lines.append(_line(row.hits[start : start + across], start, size))
    return Group(*lines)


def _line(hits: Sequence[Hit], start: int, size: int) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    for _ in hits:
        grid.add_column(width=size, no_wrap=True, overflow="ellipsis")
    grid.add_row(*(half_blocks(tile_array(hit.image, size)) for hit in hits))
    grid.add_row(*(Text(f"{start + place + 1}. {hit.score:.3f}") for place, hit in enumerate(hits)))
    grid.add_row(*(Text(hit.label, style="dim") for hit in hits))
    return grid
