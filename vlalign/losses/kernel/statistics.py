"""What can be reduced from a tile of scores to its rows and columns, and the gradient of that.

A statistic is a static object of pure functions; a loss names the statistics it needs of rows and
of columns (`form.py`), and is a formula over what comes out. The program does the loops, the
devices and the bookkeeping of gradients. A new loss is a new formula, at most a new statistic,
never a new kernel.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import lax

from vlalign.losses.kernel.tile import EXCLUDED, Over, Tile, across, keep, log_sum, subtrahend

# Arrays by name, with the rows or the columns as leading axis: while tiles are seen, and after.
State = dict[str, jax.Array]
Stats = dict[str, jax.Array]
# Gradients (r, c) of a tile's scores, by the score's name.
Gradients = dict[str, jax.Array]
Axes = tuple[str, ...]


class Statistic(Protocol):
    """A reduction of scores to arrays (n, ...) of rows, or of columns; must be hashable."""

    def start(self, n: int, dtype: jnp.dtype) -> State:
        """The state of n rows or columns that have seen nothing."""
        ...

    def fold(self, tile: Tile, state: State, axis: int) -> State:
        """The state of the tile's rows (axis=1) or columns (axis=0) after the tile."""
        ...

    def merge(self, state: State, axes: Axes) -> State:
        """Joins the devices' states (B,) over mesh axes; each device keeps its own part (b,)."""
        ...

    def finish(self, state: State) -> Stats:
        """Statistics from a state that has seen everything."""
        ...

    def gradient(self, tile: Tile, stats: Stats, cotangent: Stats, axis: int) -> Gradients:
        """What the cotangents of the tile's rows or columns send to its scores."""
        ...


@dataclasses.dataclass(frozen=True)
class LogSum:
    """Log-sum-exp of the scores that count, each exp times its pair's weight.

    Online, hence exact at any scale: no exponent is above 0.
    mean: also the mean score under that softmax (without pair weights).
    Statistics: "lse" and "top" (the maximum; no gradient); with mean "mean".
    """

    over: Over
    mean: bool = False

    def start(self, n: int, dtype: jnp.dtype) -> State:
        low, zero = jnp.full((n,), EXCLUDED, dtype), jnp.zeros((n,), dtype)
        return {"top": low, "sum": zero} | ({"dot": zero} if self.mean else {})

    def fold(self, tile: Tile, state: State, axis: int) -> State:
        kept = self._kept(tile, axis)
        top = jnp.maximum(state["top"], kept.max(axis))
        old, new = jnp.exp(state["top"] - top), jnp.exp(kept - across(top, axis))
        if tile.pair_weight is not None:
            new = new * tile.pair_weight
        folded = {"top": top, "sum": state["sum"] * old + new.sum(axis)}
        if self.mean:
            folded["dot"] = state["dot"] * old + (new * tile.scores).sum(axis)
        return folded

    def merge(self, state: State, axes: Axes) -> State:
        return _merge_at_top(state, axes)

    def finish(self, state: State) -> Stats:
        stats = {"lse": log_sum(state["top"], state["sum"]), "top": state["top"]}
        if self.mean:
            stats["mean"] = state["dot"] / _or_one(state["sum"])
        return stats

    def gradient(self, tile: Tile, stats: Stats, cotangent: Stats, axis: int) -> Gradients:
        kept = self._kept(tile, axis)
        p = jnp.exp(kept - across(subtrahend(stats["lse"]), axis))
        if tile.pair_weight is not None:
            p = p * tile.pair_weight
        grad = across(cotangent["lse"], axis)
        if self.mean:
            away = 1.0 + tile.scores - across(stats["mean"], axis)
            grad = grad + across(cotangent["mean"], axis) * away
        return {"score": grad * p}

    def _kept(self, tile: Tile, axis: int) -> jax.Array:
        kept, weight = keep(tile.scores, tile.counted(self.over, axis)), tile.pair_weight
        return kept if weight is None else keep(kept, weight > 0)


@dataclasses.dataclass(frozen=True)
class Total:
    """Sum of the scores that count, and how many they are: "sum", "count"."""

    over: Over

    def start(self, n: int, dtype: jnp.dtype) -> State:
        return {"sum": jnp.zeros((n,), dtype), "count": jnp.zeros((n,), dtype)}

    def fold(self, tile: Tile, state: State, axis: int) -> State:
        mask = tile.counted(self.over, axis)
        total = keep(tile.scores, mask, 0.0).sum(axis)
        if mask is None:
            count = jnp.full(total.shape, tile.scores.shape[axis], total.dtype)
        else:
            count = mask.sum(axis, dtype=total.dtype)
        return {"sum": state["sum"] + total, "count": state["count"] + count}

    def merge(self, state: State, axes: Axes) -> State:
        return {name: scatter(v, axes) for name, v in state.items()}

    def finish(self, state: State) -> Stats:
        return state

    def gradient(self, tile: Tile, stats: Stats, cotangent: Stats, axis: int) -> Gradients:
        one = jnp.broadcast_to(across(cotangent["sum"], axis), tile.scores.shape)
        return {"score": keep(one, tile.counted(self.over, axis), 0.0)}


@dataclasses.dataclass(frozen=True)
class Maximum:
    """The highest score that counts: "top", without gradient (for metrics and mining)."""

    over: Over

    def start(self, n: int, dtype: jnp.dtype) -> State:
        return {"top": jnp.full((n,), EXCLUDED, dtype)}

    def fold(self, tile: Tile, state: State, axis: int) -> State:
        kept = keep(tile.scores, tile.counted(self.over, axis))
        return {"top": jnp.maximum(state["top"], kept.max(axis))}

    def merge(self, state: State, axes: Axes) -> State:
        return {"top": own_part(lax.pmax(state["top"], axes), axes)}

    def finish(self, state: State) -> Stats:
        return state

    def gradient(self, tile: Tile, stats: Stats, cotangent: Stats, axis: int) -> Gradients:
        return {}


@dataclasses.dataclass(frozen=True)
class Highest:
    """The k highest scores that count, best first: "top" (n, k), and whose they are: "at" (n, k).

    lowest: the k lowest instead, lowest first. Where fewer than k count, "at" is -1 and "top" is
    "minus infinity" (lowest: "plus infinity"). Gradients flow from "top". Of equal scores the one
    seen first is taken.
    """

    over: Over
    k: int = 1
    lowest: bool = False

    def start(self, n: int, dtype: jnp.dtype) -> State:
        top = jnp.full((n, self.k), EXCLUDED, dtype)
        return {"top": top, "at": jnp.full((n, self.k), -1, jnp.int32)}

    def fold(self, tile: Tile, state: State, axis: int) -> State:
        scores = -tile.scores if self.lowest else tile.scores
        mask = tile.counted(self.over, axis)
        kept = keep(scores, mask)
        place = jnp.broadcast_to(tile.places(axis), kept.shape)
        if mask is not None:
            place = jnp.where(mask, place, -1)
        if axis == 0:
            kept, place = kept.T, place.T
        return self._best(
            jnp.concatenate([state["top"], kept], axis=1),
            jnp.concatenate([state["at"], place], axis=1),
        )

    def merge(self, state: State, axes: Axes) -> State:
        devices = lax.axis_size(axes)

        def meet(v: jax.Array) -> jax.Array:
            parts = v.reshape(devices, -1, self.k)
            parts = lax.all_to_all(parts, axes, split_axis=0, concat_axis=0)
            return jnp.moveaxis(parts, 0, 1).reshape(-1, devices * self.k)

        return self._best(meet(state["top"]), meet(state["at"]))

    def finish(self, state: State) -> Stats:
        return {"top": -state["top"] if self.lowest else state["top"], "at": state["at"]}

    def gradient(self, tile: Tile, stats: Stats, cotangent: Stats, axis: int) -> Gradients:
        grad = jnp.zeros_like(tile.scores)
        for i in range(self.k):
            hit = tile.places(axis) == across(stats["at"][:, i], axis)
            one = jnp.broadcast_to(across(cotangent["top"][:, i], axis), grad.shape)
            grad += jnp.where(hit, one, 0.0)
        return {"score": keep(grad, tile.present, 0.0)}

    def _best(self, values: jax.Array, places: jax.Array) -> State:
        top, index = lax.top_k(values, self.k)
        return {"top": top, "at": jnp.take_along_axis(places, index, axis=1)}


@dataclasses.dataclass(frozen=True)
class TeacherMean:
    """Mean of the scores under a distribution that the teacher's scores make over all that count.

    kind: "softmax" of the teacher's scores, or "linear": in proportion to them (below 0: none).
    entropy: also the distribution's entropy (softmax only).
    Statistics: "mean"; "norm" (the teacher's lse, or its sum; no gradient); "entropy".
    Gradients flow to the teacher's scores too, where the program asks for them.
    """

    kind: str = "softmax"
    entropy: bool = False

    def start(self, n: int, dtype: jnp.dtype) -> State:
        zero = jnp.zeros((n,), dtype)
        state = {"sum": zero, "dot": zero} | ({"own": zero} if self.entropy else {})
        return state | ({"top": zero + EXCLUDED} if self.kind == "softmax" else {})

    def fold(self, tile: Tile, state: State, axis: int) -> State:
        kept = self._kept(tile, axis)
        if self.kind == "linear":
            return {
                "sum": state["sum"] + kept.sum(axis),
                "dot": state["dot"] + (kept * tile.scores).sum(axis),
            }
        top = jnp.maximum(state["top"], kept.max(axis))
        old, q = jnp.exp(state["top"] - top), jnp.exp(kept - across(top, axis))
        folded = {
            "top": top,
            "sum": state["sum"] * old + q.sum(axis),
            "dot": state["dot"] * old + (q * tile.scores).sum(axis),
        }
        if self.entropy:
            folded["own"] = state["own"] * old + (q * _teacher(tile)).sum(axis)
        return folded

    def merge(self, state: State, axes: Axes) -> State:
        if self.kind == "linear":
            return {name: scatter(v, axes) for name, v in state.items()}
        return _merge_at_top(state, axes)

    def finish(self, state: State) -> Stats:
        total = _or_one(state["sum"])
        stats = {"mean": state["dot"] / total}
        if self.kind == "linear":
            return stats | {"norm": state["sum"]}
        stats["norm"] = log_sum(state["top"], state["sum"])
        if self.entropy:
            stats["own"] = state["own"] / total
            some = state["sum"] > 0
            stats["entropy"] = jnp.where(some, stats["norm"] - stats["own"], 0.0)
        return stats

    def gradient(self, tile: Tile, stats: Stats, cotangent: Stats, axis: int) -> Gradients:
        kept, share = self._kept(tile, axis), across(cotangent["mean"], axis)
        if self.kind == "linear":
            norm = across(_or_one(stats["norm"]), axis)
            to_teacher = share * (tile.scores - across(stats["mean"], axis)) / norm
            to_teacher = jnp.where(kept > 0, to_teacher, 0.0)
            return {"score": share * kept / norm, "teacher": to_teacher}
        q = jnp.exp(kept - across(subtrahend(stats["norm"]), axis))
        to_teacher = share * (tile.scores - across(stats["mean"], axis))
        if self.entropy:
            away = _teacher(tile) - across(stats["own"], axis)
            to_teacher = to_teacher - across(cotangent["entropy"], axis) * away
        return {"score": share * q, "teacher": q * to_teacher}

    def _kept(self, tile: Tile, axis: int) -> jax.Array:
        mask, teacher = tile.counted("all", axis), _teacher(tile)
        if self.kind == "linear":
            return keep(jnp.maximum(teacher, 0.0), mask, 0.0)
        return keep(teacher, mask)


@dataclasses.dataclass(frozen=True)
class Logistic:
    """Sum over a row's pairs of the logistic loss, for rows only: "loss".

    The label is 1 for positives and 0 for negatives; with a teacher it is
    (1 - share) * that + share * sigmoid(teacher's score), without gradient. A pair weighs the mean
    of its two samples' weights (an extra column: its row's), a negative also its pair weight.
    """

    def start(self, n: int, dtype: jnp.dtype) -> State:
        return {"loss": jnp.zeros((n,), dtype)}

    def fold(self, tile: Tile, state: State, axis: int) -> State:
        label, s = self._label(tile), tile.scores
        if label is None:
            loss = _softplus(s)
        elif label.dtype == jnp.bool_:  # no difference of large numbers at any scale
            loss = _softplus(jnp.where(label, -s, s))
        else:
            loss = label * _softplus(-s) + (1.0 - label) * _softplus(s)
        return {"loss": state["loss"] + self._weigh(tile, loss, axis).sum(axis)}

    def merge(self, state: State, axes: Axes) -> State:
        return {"loss": scatter(state["loss"], axes)}

    def finish(self, state: State) -> Stats:
        return state

    def gradient(self, tile: Tile, stats: Stats, cotangent: Stats, axis: int) -> Gradients:
        label, s = self._label(tile), tile.scores
        if label is None:
            grad = jax.nn.sigmoid(s)
        elif label.dtype == jnp.bool_:
            grad = jax.nn.sigmoid(jnp.where(label, -s, s))
            grad = jnp.where(label, -grad, grad)
        else:
            grad = (1.0 - label) * jax.nn.sigmoid(s) - label * jax.nn.sigmoid(-s)
        return {"score": across(cotangent["loss"], axis) * self._weigh(tile, grad, axis)}

    def _label(self, tile: Tile) -> jax.Array | None:
        if tile.teacher is None:
            return tile.positive
        if tile.share is None:
            raise ValueError("this statistic needs the teacher's share")
        soft = tile.share * jax.nn.sigmoid(tile.teacher)
        if tile.positive is None:
            return soft
        return soft + jnp.where(tile.positive, 1.0 - tile.share, 0.0)

    def _weigh(self, tile: Tile, values: jax.Array, axis: int) -> jax.Array:
        for weight in (tile.sample_weight(values.dtype), tile.pair_weight):
            values = values if weight is None else values * weight
        return keep(values, tile.counted("all", axis), 0.0)


def _softplus(s: jax.Array) -> jax.Array:
    """log(1 + exp(s)) of finite s; jax.nn's takes care of infinities, which costs time."""
    return jnp.maximum(s, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(s)))


def _teacher(tile: Tile) -> jax.Array:
    if tile.teacher is None:
        raise ValueError("this statistic needs the teacher's scores")
    return tile.teacher


def _merge_at_top(state: State, axes: Axes) -> State:
    """Brings the devices' sums to a common maximum, then adds them."""
    common = lax.pmax(state["top"], axes)
    factor = jnp.exp(state["top"] - common)
    sums = {name: scatter(v * factor, axes) for name, v in state.items() if name != "top"}
    return {"top": own_part(common, axes)} | sums


def _or_one(total: jax.Array) -> jax.Array:
    return jnp.where(total > 0, total, 1.0)


def scatter(v: jax.Array, axes: Axes) -> jax.Array:
    """Sums over the devices, each keeping its own part.

    One axis after the other: over several at once TPUs would sum everything everywhere.
    """
    for axis in axes:
        v = lax.psum_scatter(v, axis, tiled=True)
    return v


def gather(v: jax.Array, axes: Axes) -> jax.Array:
    """All devices' parts in order; one axis after the other, as `scatter`."""
    for axis in reversed(axes):
        v = lax.all_gather(v, axis, tiled=True)
    return v


def own_part(v: jax.Array, axes: Axes) -> jax.Array:
    """This device's part of an array that all devices hold."""
    length = v.shape[0] // lax.axis_size(axes)
    return lax.dynamic_slice_in_dim(v, lax.axis_index(axes) * length, length)
