"""The arguments that all losses over pairs share."""

import dataclasses
import functools
from typing import Any, Required, TypedDict

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from vlalign.losses.kernel.plan import Route
from vlalign.losses.kernel.sweep import Tree
from vlalign.losses.scores import Cosine, Score


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["x_bd", "y_bd", "logit_scale", "logit_bias", "extra_qd"],
    meta_fields=["score"],
)
@dataclasses.dataclass(frozen=True)
class OtherScores:
    """Scores of the same pairs from other embeddings, tile by tile; no gradient flows into them.

    x_bd, y_bd: embeddings of the rows' and of the columns' samples (B, d'), or what `score` takes.
    logit_scale, logit_bias: () as in the loss. extra_qd: of the extra columns, where there are
    such. score: how they compare.
    """

    x_bd: Tree
    y_bd: Tree
    logit_scale: ArrayLike = 1.0
    _: dataclasses.KW_ONLY
    logit_bias: ArrayLike | None = None
    extra_qd: Tree = None
    score: Score = Cosine()


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["z_qd", "valid_q", "group_q", "duplicate_q", "owner_q"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Extra:
    """Further columns for the rows: a queue, hard or synthetic negatives, a shared target.

    z_qd: (Q, d), dtype of the rows; gradients flow into it (stop them for a queue). On a mesh it is
    cut as the batch is where Q divides, else whole on every device.
    valid_q: bool (Q,), False leaves a column out (a queue that is not yet full).
    group_q: integer (Q,), their groups; without it none of them is a positive.
    duplicate_q: integer (Q,), their keys as `duplicate_b`.
    owner_q: int32 (Q,), index of the one row that does not see the column; -1: all see it.
    """

    z_qd: Tree
    valid_q: jax.Array | None = None
    group_q: jax.Array | None = None
    duplicate_q: jax.Array | None = None
    owner_q: jax.Array | None = None


class Options(TypedDict, total=False):
    """Keyword arguments of every loss over pairs.

    logit_scale: () the factor of the scores itself, not its logarithm; of any size.
    logit_bias: () added to the scores. It is fitted by the sigmoid loss; a softmax does not see it.
    score: how rows and columns compare (`scores.py`). score_params: its parameters, if it has some.
    row_weight_b: (B,) weight of each sample, not negative; 0 leaves the sample out as row and as
    column, whatever it holds.
    group_b: integer (B,), samples of equal group are each other's positives.
    duplicate_b: integer (B,), samples of equal key (a hash of the caption, of the image) are not
    each other's negatives.
    same_items: x and y are the same items, and an item makes no pair with itself (SimCLR).
    extra: columns that only the rows see.
    pair_weight: scores of pairs that weigh negatives; below 0 counts as 0.
    block_size: longest side of a tile, None for the score's own; temporaries are
    O(block_size^2 + B * d) on a device.
    route: "gather", or "ring" (then no array of the whole batch on any device).
    """

    logit_scale: Required[ArrayLike]
    logit_bias: ArrayLike | None
    score: Score
    score_params: Tree
    row_weight_b: jax.Array | None
    group_b: jax.Array | None
    duplicate_b: jax.Array | None
    same_items: bool
    extra: Extra | None
    pair_weight: OtherScores | None
    block_size: int | None
    route: Route


def check_shape(name: str, a: Any, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless the array has the shape, or is None."""
    if a is not None and a.shape != shape:
        raise ValueError(f"{name} {a.shape}: must be {shape}")


def check_integers(name: str, a: jax.Array | None, length: int) -> None:
    """Raises ValueError unless the array is integers (length,), or is None."""
    check_shape(name, a, (length,))
    if a is not None and not jnp.issubdtype(a.dtype, jnp.integer):
        raise ValueError(f"{name} {a.dtype}: must be an integer dtype")
