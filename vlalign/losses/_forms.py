"""What a tile of scores adds to its rows and columns, and what gradient it gets back.

A form is a static object of pure functions on one tile; the kernel (`_pairs.py`) does the loops,
the devices and the bookkeeping of gradients. A new loss is a new form, never a new kernel.
"""

import dataclasses
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from vlalign.losses import _masks as m
from vlalign.losses._tiles import Side

Positives = Literal["diagonal", "group"]
# Arrays by name, with the rows or the columns as leading axis: while tiles are seen, and after.
State = dict[str, jax.Array]
Stats = dict[str, jax.Array]


class Form(Protocol):
    """A reduction of scores to statistics per row and per column; must be hashable."""

    def directions(self, *, extra: bool) -> tuple[bool, bool]:
        """Whether rows, and columns (those of the batch, or extra ones), want statistics."""
        ...

    def start(self, n: int, dtype: jnp.dtype) -> State:
        """The state of n rows or columns that have seen nothing."""
        ...

    def forward(
        self,
        scores: jax.Array,
        soft: jax.Array | None,
        row: Side,
        column: Side,
        state: State,
        axis: int,
    ) -> State:
        """Folds a tile, and the teacher's, into the state of its rows (axis=1) or columns (0)."""
        ...

    def finish(self, state: State) -> Stats:
        """Statistics from a state that has seen everything."""
        ...

    def merge(self, state: State, axes: tuple[str, ...]) -> State:
        """Joins the devices' states (B,) over mesh axes; each device keeps its own part (b,)."""
        ...

    def backward(
        self,
        scores: jax.Array,
        soft: jax.Array | None,
        row: Side,
        column: Side,
        *,
        extra: bool,
    ) -> jax.Array:
        """Gradient of the scores (r, c), from the sides' statistics and their cotangents."""
        ...


@dataclasses.dataclass(frozen=True)
class Softmax:
    """Log-sum-exps of the scores over the columns of a row, and over the rows of a column.

    positives: "diagonal" leaves the positive out of the log-sum-exp, for the caller to add exactly
    (softplus(lse - positive) keeps small losses exact where lse - positive cancels); "group" keeps
    positives in and also sums them. rows, columns: the directions wanted. soft: also the mean score
    under the teacher's softmax.
    Statistics: "lse" and "top" (maximum) of what counts; for groups "positive_sum",
    "positive_count", "positive_top", "negative_top"; for a teacher "soft_mean" and "soft_lse".
    Gradients flow from "lse", "positive_sum" and "soft_mean".
    """

    positives: Positives
    soft: bool = False
    rows: bool = True
    columns: bool = True

    def directions(self, *, extra: bool) -> tuple[bool, bool]:
        """Extra columns serve the rows only: they are nobody's column direction."""
        return self.rows, self.columns and not extra

    def start(self, n: int, dtype: jnp.dtype) -> State:
        """Maxima at "minus infinity", sums zero."""
        low, zero = jnp.full((n,), m.EXCLUDED, dtype), jnp.zeros((n,), dtype)
        state = {"top": low, "sum": zero}
        if self.soft:
            state |= {"soft_top": low, "soft_sum": zero, "soft_dot": zero}
        return state | _start_positives(self.positives, n, dtype)

    def forward(
        self,
        scores: jax.Array,
        soft: jax.Array | None,
        row: Side,
        column: Side,
        state: State,
        axis: int,
    ) -> State:
        """Online log-sum-exp: exact at any scale, as no exponent is above 0."""
        kept = m.keep(scores, self._counted(row, column))
        top = jnp.maximum(state["top"], kept.max(axis))
        total = jnp.exp(kept - m.across(top, axis)).sum(axis)
        new = {"top": top, "sum": state["sum"] * jnp.exp(state["top"] - top) + total}
        if self.positives == "group":
            new |= _fold_positives(scores, row, column, state, axis)
        if soft is None:
            return new
        soft = m.keep(soft, m.present(row, column))
        top = jnp.maximum(state["soft_top"], soft.max(axis))
        old, q = jnp.exp(state["soft_top"] - top), jnp.exp(soft - m.across(top, axis))
        total = state["soft_sum"] * old + q.sum(axis)
        dot = state["soft_dot"] * old + (q * scores).sum(axis)
        return new | {"soft_top": top, "soft_sum": total, "soft_dot": dot}

    def finish(self, state: State) -> Stats:
        """An lse over nothing is "minus infinity", a mean over nothing 0."""
        stats = {"lse": m.log_sum(state["top"], state["sum"]), "top": state["top"]}
        if self.soft:
            total = jnp.where(state["soft_sum"] > 0, state["soft_sum"], 1.0)
            stats["soft_mean"] = state["soft_dot"] / total
            stats["soft_lse"] = m.log_sum(state["soft_top"], state["soft_sum"])
        return stats | {name: state[name] for name in _positive_names(self.positives)}

    def merge(self, state: State, axes: tuple[str, ...]) -> State:
        """Brings the devices' sums to a common maximum, then adds them."""
        sums = {"top": ("sum",), "soft_top": ("soft_sum", "soft_dot")}
        merged: State = _merge_positives(state, axes)
        for top, names in sums.items():
            if top in state:
                common = lax.pmax(state[top], axes)
                factor = jnp.exp(state[top] - common)
                merged[top] = _own_part(common, axes)
                merged |= {name: _scatter(state[name] * factor, axes) for name in names}
        return merged

    def backward(
        self,
        scores: jax.Array,
        soft: jax.Array | None,
        row: Side,
        column: Side,
        *,
        extra: bool,
    ) -> jax.Array:
        """Cotangents of lse, positives' sum and teacher's mean, each times its probability."""
        kept = m.keep(scores, self._counted(row, column))
        present = m.present(row, column)
        grad = jnp.zeros_like(scores)
        wanted = self.directions(extra=extra)
        for side, axis in [
            (s, a) for s, a, w in zip((row, column), (1, 0), wanted, strict=True) if w
        ]:
            g, stats = side.cotangent, side.stats
            lse = m.across(m.subtrahend(stats["lse"]), axis)
            grad += m.across(g["lse"], axis) * jnp.exp(kept - lse)
            same = m.same_group(row, column)
            if self.positives == "group" and same is not None:
                one = m.across(g["positive_sum"], axis)
                grad += jnp.where(m.both(present, same), one, jnp.zeros_like(one))
            if soft is not None:
                lse = m.across(m.subtrahend(stats["soft_lse"]), axis)
                grad += m.across(g["soft_mean"], axis) * jnp.exp(m.keep(soft, present) - lse)
        return grad

    def _counted(self, row: Side, column: Side) -> jax.Array | None:
        """Which pairs enter the log-sum-exp; None: all."""
        present = m.present(row, column)
        return present if self.positives == "group" else m.both(present, ~m.diagonal(row, column))


@dataclasses.dataclass(frozen=True)
class Sigmoid:
    """Sum over a row's pairs of the logistic loss, label +1 for positives and -1 for all others.

    A pair weighs the mean of its two samples' weights (an extra column: its row's).
    Statistics: "loss" (of rows), "top" (maximum) of the negatives on the diagonal's form, and for
    groups those of `Softmax`. Gradients flow from "loss".
    """

    positives: Positives

    def directions(self, *, extra: bool) -> tuple[bool, bool]:
        """Rows carry the loss, columns only maxima."""
        return True, not extra

    def start(self, n: int, dtype: jnp.dtype) -> State:
        """Maxima at "minus infinity", sums zero."""
        zero, low = jnp.zeros((n,), dtype), jnp.full((n,), m.EXCLUDED, dtype)
        tops = {"top": low} if self.positives == "diagonal" else {}
        return {"loss": zero} | tops | _start_positives(self.positives, n, dtype)

    def forward(
        self,
        scores: jax.Array,
        soft: jax.Array | None,
        row: Side,
        column: Side,
        state: State,
        axis: int,
    ) -> State:
        """Adds softplus(-label * score): no difference of large numbers at any scale."""
        positive = self._positive(row, column)
        new = {"loss": state["loss"]}
        if self.positives == "group":
            new |= _fold_positives(scores, row, column, state, axis)
        else:
            negative = m.both(m.present(row, column), ~m.diagonal(row, column))
            new["top"] = jnp.maximum(state["top"], m.keep(scores, negative).max(axis))
        if axis == 0:
            return new
        loss = jax.nn.softplus(scores if positive is None else jnp.where(positive, -scores, scores))
        weight = m.pair_weight(row, column, scores.dtype)
        return new | {"loss": state["loss"] + (loss if weight is None else loss * weight).sum(axis)}

    def finish(self, state: State) -> Stats:
        """Sums and maxima are their own statistics."""
        return state

    def merge(self, state: State, axes: tuple[str, ...]) -> State:
        """Sums are added, maxima compared."""
        merged = {"loss": _scatter(state["loss"], axes)} | _merge_positives(state, axes)
        if self.positives == "diagonal":
            merged["top"] = _own_part(lax.pmax(state["top"], axes), axes)
        return merged

    def backward(
        self,
        scores: jax.Array,
        soft: jax.Array | None,
        row: Side,
        column: Side,
        *,
        extra: bool,
    ) -> jax.Array:
        """-label * sigmoid(-label * score), weighted."""
        positive = self._positive(row, column)
        grad = jax.nn.sigmoid(scores if positive is None else jnp.where(positive, -scores, scores))
        grad = grad if positive is None else jnp.where(positive, -grad, grad)
        weight = m.pair_weight(row, column, scores.dtype)
        return m.across(row.cotangent["loss"], 1) * (grad if weight is None else grad * weight)

    def _positive(self, row: Side, column: Side) -> jax.Array | None:
        return (
            m.diagonal(row, column) if self.positives == "diagonal" else m.same_group(row, column)
        )


def _positive_names(positives: Positives) -> tuple[str, ...]:
    group = ("positive_sum", "positive_count", "positive_top", "negative_top")
    return group if positives == "group" else ()


def _start_positives(positives: Positives, n: int, dtype: jnp.dtype) -> State:
    zero, low = jnp.zeros((n,), dtype), jnp.full((n,), m.EXCLUDED, dtype)
    values = (zero, zero, low, low)
    return dict(zip(_positive_names(positives), values, strict=False))


def _fold_positives(scores: jax.Array, row: Side, column: Side, state: State, axis: int) -> State:
    """Sum, count and maximum of the scores of a group's pairs, and the maximum of the others."""
    present, same = m.present(row, column), m.same_group(row, column)
    if same is None:
        top = jnp.maximum(state["negative_top"], m.keep(scores, present).max(axis))
        return {name: state[name] for name in _positive_names("group")} | {"negative_top": top}
    negative, same = m.both(present, ~same), m.both(present, same)
    total = jnp.where(same, scores, jnp.zeros_like(scores)).sum(axis)
    return {
        "positive_sum": state["positive_sum"] + total,
        "positive_count": state["positive_count"] + same.sum(axis, dtype=scores.dtype),
        "positive_top": jnp.maximum(state["positive_top"], m.keep(scores, same).max(axis)),
        "negative_top": jnp.maximum(state["negative_top"], m.keep(scores, negative).max(axis)),
    }


def _merge_positives(state: State, axes: tuple[str, ...]) -> State:
    if "positive_sum" not in state:
        return {}
    sums = {name: _scatter(state[name], axes) for name in ("positive_sum", "positive_count")}
    tops = ("positive_top", "negative_top")
    return sums | {name: _own_part(lax.pmax(state[name], axes), axes) for name in tops}


def _scatter(v: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    return lax.psum_scatter(v, axes, tiled=True)


def _own_part(v: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    length = v.shape[0] // lax.axis_size(axes)
    return lax.dynamic_slice_in_dim(v, lax.axis_index(axes) * length, length)
