"""The contrast kernel: statistics of all pairs, in memory linear in rows and columns, on any mesh.

No (b, B) array is made: the forward pass keeps statistics per row and per column, the backward pass
recomputes each tile once and feeds both sides' gradients from it. The gradient is written by hand
(`jax.custom_vjp` around the devices' program, not inside it), so no collective is left to autodiff.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from vlalign.losses.kernel import form as f
from vlalign.losses.kernel.plan import Plan
from vlalign.losses.kernel.statistics import scatter
from vlalign.losses.kernel.sweep import Side, Tree, join, split, wide, wide_of
from vlalign.losses.kernel.tile import Tile
from vlalign.losses.kernel.travel import (
    Merge,
    add,
    is_one_tile,
    ring_of_states,
    ring_of_sums,
    stack,
    visit_all,
)


class Given(NamedTuple):
    """What is not differentiated: sides without z, and the teacher's share in a pair's label."""

    rows: Side
    columns: Side
    extra: Side | None = None
    share: jax.Array | None = None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def pair_statistics(
    plan: Plan, x: Tree, y: Tree, extra: Tree, shared: Tree, given: Given
) -> tuple[f.AllStats | None, f.AllStats | None]:
    """Statistics of each row and of each column over all pairs, as `plan.form` names them.

    x, y: what the scores compare, by the score's name, of rows and of the batch's columns: trees of
    (B, ...); row i and column i belong to one sample. extra: of further columns (Q, ...), or None.
    shared: each score's parameters, by its name. Gradients flow to the float leaves of these four,
    of the scores in `plan.learned`.
    Returns dictionaries of (B, ...) arrays, None for a direction that the form does not want.
    """
    return _forward(plan, x, y, extra, shared, given)[:2]


def _forward_rule(
    plan: Plan, x: Tree, y: Tree, extra: Tree, shared: Tree, given: Given
) -> tuple[tuple[Tree, Tree], Tree]:
    rows, columns, kept = _forward(plan, x, y, extra, shared, given)
    return (rows, columns), (x, y, extra, shared, given, (rows, columns), kept)


def _backward_rule(plan: Plan, residuals: Tree, cotangents: Tree) -> tuple[Tree, ...]:
    grads = _backward(plan, *residuals, cotangents)
    rest = dict.fromkeys(name for name, _ in plan.scores)
    return *(None if g is None else rest | g for g in grads), None


pair_statistics.defvjp(_forward_rule, _backward_rule)


@functools.partial(jax.jit, static_argnums=0)
def _forward(plan: Plan, x: Tree, y: Tree, extra: Tree, shared: Tree, given: Given) -> Tree:
    batch, more, whole, rest = _places(plan)
    body = functools.partial(_forward_on_device, plan)
    places = (batch, batch, more, whole, rest)
    return _on_mesh(plan, body, places, (batch, batch, batch))(x, y, extra, shared, given)


@functools.partial(jax.jit, static_argnums=0)
def _backward(plan: Plan, *arguments: Tree) -> Tree:
    batch, more, whole, rest = _places(plan)
    body = functools.partial(_backward_on_device, plan)
    places = (batch, batch, more, whole, rest, batch, batch, batch)
    return _on_mesh(plan, body, places, (batch, batch, more, whole))(*arguments)


def _places(plan: Plan) -> tuple[PartitionSpec, PartitionSpec, PartitionSpec, Given]:
    """Where lie arrays of the batch, of extra columns, arrays that all share, and what is given."""
    batch, whole = PartitionSpec(plan.axes or None), PartitionSpec()
    more = whole if plan.whole_extra else batch
    return batch, more, whole, Given(batch, batch, more, whole)  # type: ignore[arg-type]


def _on_mesh(
    plan: Plan, body: Callable[..., Tree], inputs: Tree, outputs: Tree
) -> Callable[..., Tree]:
    """`body` on every device's part; mesh axes that do not cut the batch repeat the same work."""
    if plan.mesh is None:
        return body
    return jax.shard_map(body, mesh=plan.mesh, in_specs=inputs, out_specs=outputs, check_vma=False)


def _forward_on_device(
    plan: Plan, x: Tree, y: Tree, extra: Tree, shared: Tree, given: Given
) -> tuple[Tree, Tree, Tree]:
    """Statistics of this device's rows and columns, and the scores where they are one tile."""
    form, dtype = plan.form, wide_of(x["score"])
    rows, columns, extras = _sides(x, y, extra, given)
    n_rows = rows.place.shape[0]
    rows = split(rows, plan.block)

    def visit(side: Side, row_acc: Tree, *, extra: bool) -> tuple[Tree, Tree, Tree]:
        wanted = form.wanted(0, extra=extra)
        keep = is_one_tile(plan, rows, side, extra=extra)

        def tile(row: Side, column: Side, row_acc: Tree, column_acc: Tree, _: Tree) -> Tree:
            scores = _scores(plan, row, column, shared)
            view = form.tile(scores, row, column, given.share)
            row_acc = f.fold(form.rows, view, row_acc, 1)
            return row_acc, f.fold(wanted, view, column_acc, 0), scores if keep else None

        def begin(column: Side) -> Tree:
            return f.start(wanted, column.place.shape[0], dtype)

        merge = functools.partial(f.merge, wanted)
        carry = (row_acc, None)
        return visit_all(plan, tile, rows, side, carry, begin, merge, ring_of_states, extra=extra)

    row_acc = stack(f.start(form.rows, rows.place.shape[1], dtype), rows.place.shape[0])
    row_acc, column_acc, kept = visit(columns, row_acc, extra=False)
    kept_extra = None
    if extras is not None:
        row_acc, _, kept_extra = visit(extras, row_acc, extra=True)
    row_stats = f.finish(form.rows, join(row_acc, n_rows))
    return row_stats, f.finish(form.columns, column_acc), (kept, kept_extra)


def _backward_on_device(
    plan: Plan,
    x: Tree,
    y: Tree,
    extra: Tree,
    shared: Tree,
    given: Given,
    stats: tuple[Tree, Tree],
    kept: tuple[Tree, Tree],
    cotangents: tuple[Tree, Tree],
) -> tuple[Tree, Tree, Tree, Tree]:
    """Gradients for this device's rows and columns, and for what all devices share."""
    rows, columns, extras = _sides(x, y, extra, given)
    n_rows = rows.place.shape[0]
    rows = split(rows._replace(stats=stats[0], cotangent=cotangents[0]), plan.block)
    columns = columns._replace(stats=stats[1], cotangent=cotangents[1])

    def visit(side: Side, carry: Tree, kept: Tree, merge: Merge, *, extra: bool) -> Tree:
        def tile(row: Side, column: Side, row_acc: Tree, column_acc: Tree, total: Tree) -> Tree:
            view = plan.form.tile(
                kept or _scores(plan, row, column, shared), row, column, given.share
            )
            grads = _tile_gradients(plan, view, shared, extra=extra)
            return add((row_acc, column_acc, total), grads)

        def begin(column: Side) -> Tree:
            return _zeros(plan, column.z)

        return visit_all(plan, tile, rows, side, carry, begin, merge, ring_of_sums, extra=extra)

    carry = (_zeros(plan, rows.z), _zeros(plan, shared))
    for_rows, for_columns, total = visit(columns, carry, kept[0], _sum_scatter, extra=False)
    for_extra = None
    if extras is not None:
        merge = _sum_all if plan.whole_extra else _sum_scatter
        for_rows, for_extra, total = visit(extras, (for_rows, total), kept[1], merge, extra=True)
    grads = _finish(plan, join(for_rows, n_rows), for_columns, for_extra, total, x, shared)
    return _cast(grads, tuple(_learned(plan, tree) for tree in (x, y, extra, shared)))


def _tile_gradients(plan: Plan, tile: Tile, shared: Tree, *, extra: bool) -> tuple[Tree, ...]:
    """Gradients of a tile for its rows, its columns and the shared parameters."""
    by_score = f.gradient(plan.form, tile, extra=extra)
    sides: tuple[dict[str, Tree], ...] = ({}, {}, {})
    for name, score in plan.scores:
        if name in plan.learned:
            grad = by_score.get(name, jnp.zeros_like(tile.scores))
            found = score.backward(grad, tile.row.z[name], tile.column.z[name], shared[name])
            for side, tree in zip(sides, found, strict=True):
                side[name] = tree
    return sides


def _finish(
    plan: Plan,
    for_rows: Tree,
    for_columns: Tree,
    for_extra: Tree,
    total: Tree,
    x: Tree,
    shared: Tree,
) -> tuple[Tree, ...]:
    """What the scores do once, after all tiles; and the sum of the parameters' over devices."""
    grads: tuple[dict[str, Tree], ...] = ({}, {}, {}, {})
    for name, score in plan.scores:
        if name in plan.learned:
            sums = (for_rows[name], for_columns[name], (for_extra or {}).get(name), total[name])
            found = score.finish(*sums, x[name], shared[name])
            for grad, tree in zip(grads, found, strict=True):
                grad[name] = tree
    rows, columns, extra, own = grads
    own = _sum_all(own, plan.axes) if plan.axes else own
    return rows, columns, None if for_extra is None else extra, own


def _sides(x: Tree, y: Tree, extra: Tree, given: Given) -> tuple[Side, Side, Side | None]:
    extras = None if given.extra is None else given.extra._replace(z=extra)
    return given.rows._replace(z=x), given.columns._replace(z=y), extras


def _scores(plan: Plan, row: Side, column: Side, shared: Tree) -> dict[str, jax.Array]:
    return {name: s.forward(row.z[name], column.z[name], shared[name]) for name, s in plan.scores}


def _learned(plan: Plan, tree: Mapping[str, Tree] | None) -> dict[str, Tree] | None:
    """The part of a tree by score that gets gradients."""
    return None if tree is None else {name: tree[name] for name in plan.learned}


def _zeros(plan: Plan, tree: Mapping[str, Tree]) -> Tree:
    """Accumulators of the gradients of a tree by score; None for what is not a float."""

    def zero(a: jax.Array) -> jax.Array | None:
        if not jnp.issubdtype(a.dtype, jnp.floating):
            return None
        return jnp.zeros(a.shape, wide(a.dtype))

    return jax.tree.map(zero, _learned(plan, tree))


def _cast(grads: Tree, like: Tree) -> Tree:
    def cast(grad: jax.Array | None, a: jax.Array) -> jax.Array | None:
        return None if grad is None else grad.astype(a.dtype)

    return jax.tree.map(cast, grads, like, is_leaf=lambda a: a is None)


def _sum_all(tree: Tree, axes: tuple[str, ...]) -> Tree:
    return lax.psum(tree, axes)


def _sum_scatter(tree: Tree, axes: tuple[str, ...]) -> Tree:
    return jax.tree.map(lambda a: scatter(a, axes), tree)
