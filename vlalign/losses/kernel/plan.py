"""What a loss over pairs computes, and how it is laid out: all that is static."""

import dataclasses
from typing import Literal

from jax.sharding import AbstractMesh

from vlalign.losses.kernel.form import Form
from vlalign.losses.scores import Score

Route = Literal["gather", "ring"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The static part of the kernel's arguments.

    scores: by name, what turns a tile's embeddings into scores; "score" is the loss's own.
    learned: names of the scores that send gradients to their embeddings and parameters.
    form: the statistics. block: longest side of a tile.
    mesh: the mesh in use, None for one device. axes: those of its axes that the batch is cut over.
    route: how columns reach all devices: "gather" holds them all at once (fewest steps), "ring"
    passes them on (no array of the whole batch on any device).
    whole_extra: extra columns are whole on every device, not cut over the mesh as the batch is.
    """

    scores: tuple[tuple[str, Score], ...]
    learned: tuple[str, ...]
    form: Form
    block: int
    mesh: AbstractMesh | None = None
    axes: tuple[str, ...] = ()
    route: Route = "gather"
    whole_extra: bool = True
