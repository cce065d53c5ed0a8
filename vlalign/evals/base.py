"""What an evaluator gets and gives: tools and an embedding function in, estimates out."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from vlalign.errors import UserError

if TYPE_CHECKING:
    from vlalign.evals.pictures import Sheet

IMAGE = "image"
TEXT = "text"

Embed = Callable[[str, np.ndarray], np.ndarray]
"""(tower, inputs (n, ...)) -> unit-norm float32 (n, d) on the host, for any n >= 0.

It pads and shards inside; a row's embedding depends on that row alone.
"""


@dataclasses.dataclass(frozen=True)
class Tools:
    """What turns raw things into encoder inputs, on the host: built once from a run.

    image: encoded bytes -> uint8 (h, w, 3), the run's evaluation preprocessing; raises `BadRecord`
    tokens: n texts -> int32 (n, l), the run's tokenizer
    cache: what `decode` has already read, so that evaluators of one source share one array
    """

    image: Callable[[bytes], np.ndarray]
    tokens: Callable[[Sequence[str]], np.ndarray]
    cache: dict[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its 95 % bootstrap interval.

    value: the number on the whole set
    low, high: the interval's ends; equal to `value` where nothing was sampled (a plain count)
    count: how many queries (or records) the number is taken over
    """

    value: float
    low: float
    high: float
    count: int

    @classmethod
    def exact(cls, value: float, count: int) -> "Estimate":
        """A number without sampling error, such as how many records were left out of `count`."""
        return cls(float(value), float(value), float(value), count)

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"an interval from {self.low} to {self.high} is upside down")


@runtime_checkable
class Evaluator(Protocol):
    """Data + function + schedule, as one frozen dataclass.

    `every`: steps between evaluations during training; 0 is only at the end (the end always is).
    """

    @property
    def every(self) -> int:
        """Steps between evaluations; 0: only at the end."""

    def prepare(self, tools: Tools) -> Any:
        """Host arrays, made once a process. Raises `UserError` if the source cannot serve it."""

    def evaluate(self, prepared: Any, embed: Embed) -> dict[str, Estimate]:
        """Named estimates, such as `t2i_recall@5`; equal for every batch size and mesh."""


@runtime_checkable
class Pictured(Protocol):
    """An evaluator that can also show what it measured, for the report."""

    def pictures(self, prepared: Any, embed: Embed) -> "tuple[Sheet, ...]":
        """Contact sheets: queries, their top hits, and which of them are right."""


def check_every(every: int) -> None:
    """Raises `ValueError` unless `every` is a possible number of steps."""
    if every < 0:
        raise UserError(f"every={every}: steps between evaluations must be >= 0 (0: at the end)")


def remember(embed: Embed) -> Embed:
    """`embed` that computes each (tower, array object) once: make a new one for each parameters.

    Evaluators of one source share one array of images (`decode`), so a round of several
    evaluators encodes it once.
    """
    # The inputs are kept beside the results: an id is unique only while its object lives.
    known: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}

    def remembered(tower: str, inputs: np.ndarray) -> np.ndarray:
        key = (tower, id(inputs))
        if key not in known:
            known[key] = (inputs, checked(embed(tower, inputs), tower, len(inputs)))
        return known[key][1]

    return remembered


def checked(z_nd: np.ndarray, tower: str, count: int) -> np.ndarray:
    """`z_nd` if it is what `Embed` promises; else raises `ValueError` (shape, dtype, values)."""
    if z_nd.ndim != 2 or len(z_nd) != count or z_nd.dtype != np.float32:
        raise ValueError(
            f"embeddings of tower {tower!r} are {z_nd.dtype} {z_nd.shape}, not float32 ({count}, d)"
        )
    bad = int(np.count_nonzero(~np.isfinite(z_nd).all(axis=1)))
    if bad:
        raise ValueError(f"{bad} of {count} embeddings of tower {tower!r} are not finite")
    length = float(np.abs(np.linalg.norm(z_nd, axis=1) - 1).max(initial=0.0))
    if not math.isclose(length, 0.0, abs_tol=1e-2):
        raise ValueError(f"embeddings of tower {tower!r} are not of unit length (off by {length})")
    return z_nd
