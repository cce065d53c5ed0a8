"""Which statistics a loss wants of rows and of columns."""

import dataclasses

import jax
import jax.numpy as jnp

from vlalign.losses.kernel.statistics import Gradients, State, Statistic, Stats
from vlalign.losses.kernel.sweep import Side
from vlalign.losses.kernel.tile import Positives, Tile

# By the statistic's name.
States = dict[str, State]
AllStats = dict[str, Stats]
Named = tuple[tuple[str, Statistic], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """The statistics of a loss by name, of rows and of columns, and what its positives are.

    Extra columns serve the rows only: they are nobody's column direction.
    positives, same_items: as in `Tile`.
    """

    positives: Positives = "diagonal"
    same_items: bool = False
    rows: Named = ()
    columns: Named = ()

    def wanted(self, axis: int, *, extra: bool) -> Named:
        """Statistics of rows (axis=1) or of columns (axis=0)."""
        if axis == 1:
            return self.rows
        return () if extra else self.columns

    def tile(
        self, scores: dict[str, jax.Array], row: Side, column: Side, share: jax.Array | None
    ) -> Tile:
        """The view of a tile that the statistics take."""
        positives, same = self.positives, self.same_items
        return Tile(scores, row, column, positives=positives, same_items=same, share=share)


def start(named: Named, n: int, dtype: jnp.dtype) -> States | None:
    """States of n rows or columns that have seen nothing; None if nothing is wanted."""
    return {name: statistic.start(n, dtype) for name, statistic in named} or None


def fold(named: Named, tile: Tile, states: States | None, axis: int) -> States | None:
    """The states after the tile."""
    if states is None:
        return None
    return {name: statistic.fold(tile, states[name], axis) for name, statistic in named}


def merge(named: Named, states: States, axes: tuple[str, ...]) -> States:
    """Joins the devices' states over mesh axes."""
    return {name: statistic.merge(states[name], axes) for name, statistic in named}


def finish(named: Named, states: States | None) -> AllStats | None:
    """Statistics from states that have seen everything."""
    if states is None:
        return None
    return {name: statistic.finish(states[name]) for name, statistic in named}


def gradient(form: Form, tile: Tile, *, extra: bool) -> Gradients:
    """Gradients of the tile's scores, from the sides' statistics and their cotangents."""
    total: Gradients = {}
    for axis in (1, 0):
        side = tile.side(axis)
        for name, statistic in form.wanted(axis, extra=extra):
            grads = statistic.gradient(tile, side.stats[name], side.cotangent[name], axis)
            for key, grad in grads.items():
                total[key] = total[key] + grad if key in total else grad
    return total
