"""The contrast kernel: statistics of all pairs, in memory linear in rows and columns, on any mesh.

No (b, B) array is made: the forward pass keeps statistics per row and per column, the backward pass
recomputes each tile once and feeds both sides' gradients from it. The gradient is written by hand
(`jax.custom_vjp` around the devices' program, not inside it), so no collective is left to autodiff.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, PartitionSpec

from vlalign.losses._forms import Form
from vlalign.losses._scores import Score
from vlalign.losses._tiles import Side, Tile, Tree, join, split, sweep, wide

Route = Literal["gather", "ring"]
# Adds the devices' column accumulators over mesh axes.
Merge = Callable[[Tree, tuple[str, ...]], Tree]


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that is static: what to compute, and how it is laid out.

    score, form: the functions of a tile. block: longest side of a tile.
    mesh: the mesh in use, None for one device. axes: those of its axes that the batch is cut over.
    route: how columns reach all devices: "gather" holds them all at once (fewest steps), "ring"
    passes them on (no array of the whole batch on any device).
    """

    score: Score
    form: Form
    block: int
    mesh: AbstractMesh | None = None
    axes: tuple[str, ...] = ()
    route: Route = "gather"


class Given(NamedTuple):
    """What is not differentiated: sides without z, and the parameters of the teacher's score."""

    rows: Side
    columns: Side
    extra: Side | None = None
    soft: Tree = None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def pair_statistics(
    plan: Plan, x: Tree, y: Tree, extra: Tree, shared: Tree, given: Given
) -> tuple[Tree, Tree]:
    """Statistics of each row and of each column over all pairs, as `plan.form` defines them.

    x, y: embeddings of rows and of the batch's columns, (B, ...); row i and column i belong to one
    sample. extra: of further columns (Q, ...), the same on all devices, or None. shared: the
    score's parameters. Gradients flow to these four.
    Returns dictionaries of (B,) arrays, None for a direction that the form does not want.
    """
    return _forward(plan, x, y, extra, shared, given)[:2]


def _forward_rule(
    plan: Plan, x: Tree, y: Tree, extra: Tree, shared: Tree, given: Given
) -> tuple[tuple[Tree, Tree], Tree]:
    rows, columns, kept = _forward(plan, x, y, extra, shared, given)
    return (rows, columns), (x, y, extra, shared, given, (rows, columns), kept)


def _backward_rule(plan: Plan, residuals: Tree, cotangents: Tree) -> tuple[Tree, ...]:
    return *_backward(plan, *residuals, cotangents), None


pair_statistics.defvjp(_forward_rule, _backward_rule)


@functools.partial(jax.jit, static_argnums=0)
def _forward(plan: Plan, x: Tree, y: Tree, extra: Tree, shared: Tree, given: Given) -> Tree:
    batch, whole, rest = _places(plan)
    body = functools.partial(_forward_on_device, plan)
    places = (batch, batch, whole, whole, rest)
    return _on_mesh(plan, body, places, (batch, batch, batch))(x, y, extra, shared, given)


@functools.partial(jax.jit, static_argnums=0)
def _backward(plan: Plan, *arguments: Tree) -> Tree:
    batch, whole, rest = _places(plan)
    body = functools.partial(_backward_on_device, plan)
    places = (batch, batch, whole, whole, rest, batch, batch, batch)
    return _on_mesh(plan, body, places, (batch, batch, whole, whole))(*arguments)


def _places(plan: Plan) -> tuple[PartitionSpec, PartitionSpec, Given]:
    """Where arrays of the batch lie, arrays that all devices share, and what is given."""
    batch, whole = PartitionSpec(plan.axes or None), PartitionSpec()
    return batch, whole, Given._make((batch, batch, whole, whole))


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
    form, dtype = plan.form, wide(jax.tree.leaves(x)[0].dtype)
    rows, columns, extras = _sides(x, y, extra, given)
    n_rows = rows.place.shape[0]
    rows = split(rows, plan.block)

    def visit(side: Side, row_acc: Tree, merge: Merge, *, extra: bool) -> tuple[Tree, Tree, Tree]:
        for_rows, for_columns = form.directions(extra=extra)
        keep = _is_one_tile(plan, rows, side, extra=extra)

        def tile(row: Side, column: Side, row_acc: Tree, column_acc: Tree, _: Tree) -> Tree:
            scores, soft = _scores(plan, row, column, shared, given.soft)
            if for_rows:
                row_acc = form.forward(scores, soft, row, column, row_acc, 1)
            if for_columns:
                column_acc = form.forward(scores, soft, row, column, column_acc, 0)
            return row_acc, column_acc, (scores, soft) if keep else None

        def start(column: Side) -> Tree:
            return form.start(column.place.shape[0], dtype) if for_columns else None

        return _visit(plan, tile, rows, side, (row_acc, None), start, merge, extra=extra)

    row_acc = None
    if form.directions(extra=False)[0]:
        row_acc = _stack(form.start(rows.place.shape[1], dtype), rows.place.shape[0])
    row_acc, column_acc, kept = visit(columns, row_acc, form.merge, extra=False)
    kept_extra = None
    if extras is not None:
        row_acc, _, kept_extra = visit(extras, row_acc, form.merge, extra=True)
    row_stats = None if row_acc is None else form.finish(join(row_acc, n_rows))
    column_stats = None if column_acc is None else form.finish(column_acc)
    return row_stats, column_stats, (kept, kept_extra)


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
            scores, soft = kept or _scores(plan, row, column, shared, given.soft)
            grad = plan.form.backward(scores, soft, row, column, extra=extra)
            grads = plan.score.backward(grad, row.z, column.z, shared)
            return jax.tree.map(jnp.add, (row_acc, column_acc, total), grads)

        return _visit(plan, tile, rows, side, carry, lambda c: _zeros(c.z), merge, extra=extra)

    carry = (_zeros(rows.z), _zeros(shared))
    for_rows, for_columns, total = visit(columns, carry, kept[0], _sum_scatter, extra=False)
    for_extra = None
    if extras is not None:
        carry = (for_rows, total)
        for_rows, for_extra, total = visit(extras, carry, kept[1], _sum_all, extra=True)
    total = _sum_all(total, plan.axes) if plan.axes else total
    grads = (join(for_rows, n_rows), for_columns, for_extra, total)
    return jax.tree.map(lambda g, like: g.astype(like.dtype), grads, (x, y, extra, shared))


def _visit(
    plan: Plan,
    tile: Tile,
    rows: Side,
    columns: Side,
    carry: tuple[Tree, Tree],
    start: Callable[[Side], Tree],
    merge: Merge,
    *,
    extra: bool,
) -> tuple[Tree, Tree, Tree]:
    """Sweeps split `rows` over all devices' columns, or extra ones; `merge` brings sums home.

    carry: row accumulators and totals.
    Returns row accumulators (split), column accumulators (n, ...) and totals.
    """
    if plan.axes and not extra and plan.route == "ring":
        return _ring(plan, tile, rows, columns, carry, start)
    if plan.axes and not extra:
        columns = jax.tree.map(lambda a: lax.all_gather(a, plan.axes, tiled=True), columns)
    n = columns.place.shape[0]
    row_acc, column_acc, total = sweep(tile, rows, split(columns, plan.block), carry, start)
    column_acc = join(column_acc, n)
    if plan.axes and column_acc is not None:
        column_acc = merge(column_acc, plan.axes)
    return row_acc, column_acc, total


def _ring(
    plan: Plan,
    tile: Tile,
    rows: Side,
    columns: Side,
    carry: tuple[Tree, Tree],
    start: Callable[[Side], Tree],
) -> tuple[Tree, Tree, Tree]:
    """As `_visit`, but columns and their sums travel around all devices and come home."""
    n, devices = columns.place.shape[0], lax.axis_size(plan.axes)
    columns = split(columns, plan.block)
    first = jax.tree.map(lambda a: a[0], columns)
    columns = columns._replace(acc=_stack(start(first), columns.place.shape[0]))
    following = [(i, (i + 1) % devices) for i in range(devices)]

    def step(_: jax.Array, state: tuple[Side, Tree, Tree]) -> tuple[Side, Tree, Tree]:
        columns, row_acc, total = state
        row_acc, acc, total = sweep(tile, rows, columns, (row_acc, total), lambda c: c.acc)
        columns = jax.tree.map(
            lambda a: lax.ppermute(a, plan.axes, following), columns._replace(acc=acc)
        )
        return columns, row_acc, total

    columns, row_acc, total = lax.fori_loop(0, devices, step, (columns, *carry))
    return row_acc, join(columns.acc, n), total


def _sides(x: Tree, y: Tree, extra: Tree, given: Given) -> tuple[Side, Side, Side | None]:
    extras = None if given.extra is None else given.extra._replace(z=extra)
    return given.rows._replace(z=x), given.columns._replace(z=y), extras


def _scores(
    plan: Plan, row: Side, column: Side, shared: Tree, soft: Tree
) -> tuple[jax.Array, jax.Array | None]:
    """The tile's scores, and the teacher's (same kind of score, without gradient) or None."""
    teacher = None if soft is None else plan.score.forward(row.soft, column.soft, soft)
    return plan.score.forward(row.z, column.z, shared), teacher


def _is_one_tile(plan: Plan, rows: Side, columns: Side, *, extra: bool) -> bool:
    """Whether a device sees one tile only: its scores then stay, and backward saves a product."""
    n = columns.place.shape[0]
    if plan.axes and not extra:
        if plan.route == "ring":
            return False
        n *= lax.axis_size(plan.axes)
    return rows.place.shape[0] == 1 and n <= plan.block


def _stack(tree: Tree, blocks: int) -> Tree:
    return jax.tree.map(lambda a: jnp.broadcast_to(a[None], (blocks, *a.shape)), tree)


def _zeros(tree: Tree) -> Tree:
    return jax.tree.map(lambda a: jnp.zeros(a.shape, wide(a.dtype)), tree)


def _sum_all(tree: Tree, axes: tuple[str, ...]) -> Tree:
    return lax.psum(tree, axes)


def _sum_scatter(tree: Tree, axes: tuple[str, ...]) -> Tree:
    return jax.tree.map(lambda a: lax.psum_scatter(a, axes, tiled=True), tree)
