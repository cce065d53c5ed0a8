"""Positions that are computed, not learned: rotary tables and fixed sines and cosines."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from vlalign.errors import UserError

Layout = Literal["pairs", "halves"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rotary:
    """Rotary positions of one axis (text) or of two (patches: row and column).

    Each axis turns its share of a head's channel pairs; pair i of n turns by
    coordinate * base^(-i / n) (Su et al. 2021, arXiv:2104.09864, section 3.2).
    base: of the frequencies.
    coordinates: "index" (EVA-02), or "centred": 2 pi times the middle of each patch on a scale from
      -1 to 1 (DINOv3).
    first: with "index", that of the first place (Perception Encoder: 1).
    reference: with "index", the side of the grid in training: indexes of another grid are scaled
      to it. None: they are not.
    order: which axis turns a head's first pairs, "rows" or "columns" (Perception Encoder).
    layout: which channels make a pair: neighbours ("pairs") or those of the two halves of a head
      ("halves").
    """

    base: float = 10000.0
    coordinates: Literal["index", "centred"] = "index"
    first: int = 0
    reference: int | None = None
    order: Literal["rows", "columns"] = "rows"
    layout: Layout = "pairs"

    def __post_init__(self) -> None:
        if self.coordinates == "centred" and (self.first or self.reference is not None):
            raise UserError('Rotary first and reference are of coordinates="index"; leave them out')

    def angles(self, grid: tuple[int, ...], head_dim: int) -> np.ndarray:
        """Angle of each pair at each place, row by row: (product of grid, head_dim / 2) float32.

        Raises UserError if the head does not divide into pairs for each axis.
        """
        if head_dim % (2 * len(grid)):
            raise UserError(
                f"rotary positions over {len(grid)} axes need heads of a width that is a multiple "
                f"of {2 * len(grid)}; width / heads is {head_dim}"
            )
        count = head_dim // (2 * len(grid))
        bands = self.base ** -(np.arange(count) / count)
        places = np.meshgrid(*(self._coordinates(size) for size in grid), indexing="ij")
        turns = [place.reshape(-1, 1) * bands for place in places]
        turns = turns if self.order == "rows" else turns[::-1]
        return np.concatenate(turns, axis=1).astype(np.float32)

    def _coordinates(self, size: int) -> np.ndarray:
        if self.coordinates == "centred":
            return 2 * math.pi * (2 * (np.arange(size) + 0.5) / size - 1)
        scale = 1.0 if self.reference is None else self.reference / size
        return (np.arange(size) + self.first) * scale

    def tables(
        self, grid: tuple[int, ...], head_dim: int, prefix: int = 0
    ) -> tuple[jax.Array, jax.Array]:
        """cos and sin for `rotate`, (1, prefix + places, head_dim / 2) float32.

        prefix: tokens in front (class token, registers) that are not turned.
        """
        angles = np.pad(self.angles(grid, head_dim), ((prefix, 0), (0, 0)))[None]
        return jnp.asarray(np.cos(angles)), jnp.asarray(np.sin(angles))


def rotate(x: jax.Array, turns: tuple[jax.Array, jax.Array], layout: Layout) -> jax.Array:
    """Each pair of channels turned by its angle, in float32.

    x: (b, l, h, k); turns: cos and sin, (b or 1, l, k / 2) -> (b, l, h, k) in the dtype of x.
    """
    cos, sin = (table[:, :, None, :] for table in turns)
    wide = x.astype(jnp.float32)
    if layout == "halves":
        first, second = jnp.split(wide, 2, axis=-1)
        turned = jnp.concatenate(_turn(first, second, cos, sin), axis=-1)
    else:
        pairs = wide.reshape(*x.shape[:-1], -1, 2)
        turned = jnp.stack(_turn(pairs[..., 0], pairs[..., 1], cos, sin), axis=-1).reshape(x.shape)
    return turned.astype(x.dtype)


def _turn(
    first: jax.Array, second: jax.Array, cos: jax.Array, sin: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return first * cos - second * sin, second * cos + first * sin


def sincos_grid(grid: tuple[int, int], width: int) -> np.ndarray:
    """Fixed positions of a grid of patches (MAE; CLIPA): (rows * columns, width) float32.

    Half of the channels encode the column, half the row, each half by sines and then cosines of
    place * 10000^(-i / n), i = 0 .. n - 1, n = width / 4.
    Raises UserError if width is no multiple of 4.
    """
    if width % 4:
        raise UserError(f"sines and cosines of two axes need a width in fours, not {width}")
    bands = 10000.0 ** -(np.arange(width // 4) / (width // 4))
    row, column = np.meshgrid(*(np.arange(size) for size in grid), indexing="ij")
    turns = [place.reshape(-1, 1) * bands for place in (column, row)]
    waves = [wave(turn) for turn in turns for wave in (np.sin, np.cos)]
    return np.concatenate(waves, axis=1).astype(np.float32)
