"""How rows meet the columns of all devices: gathered at once, or passed on around a ring."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from vlalign.losses.kernel.plan import Plan
from vlalign.losses.kernel.statistics import gather
from vlalign.losses.kernel.sweep import Side, Tree, Visit, join, split, sweep

# Adds the devices' column accumulators over mesh axes.
Merge = Callable[[Tree, tuple[str, ...]], Tree]
# Visits columns while they travel around all devices.
Ring = Callable[..., tuple[Tree, Tree, Tree]]


def visit_all(
    plan: Plan,
    tile: Visit,
    rows: Side,
    columns: Side,
    carry: tuple[Tree, Tree],
    start: Callable[[Side], Tree],
    merge: Merge,
    ring: Ring,
    *,
    extra: bool,
) -> tuple[Tree, Tree, Tree]:
    """Sweeps split `rows` over all devices' columns, or extra ones; `merge` brings sums home.

    carry: row accumulators and totals. ring: what does it on the ring.
    Returns row accumulators (split), column accumulators (n, ...) and totals.
    """
    cut = bool(plan.axes) and not (extra and plan.whole_extra)
    if cut and plan.route == "ring":
        return ring(plan, tile, rows, columns, carry, start)
    if cut:
        columns = _gather(plan, columns)
    n = columns.place.shape[0]
    row_acc, column_acc, total = sweep(tile, rows, split(columns, plan.block), carry, start)
    column_acc = join(column_acc, n)
    if plan.axes and column_acc is not None:
        column_acc = merge(column_acc, plan.axes)
    return row_acc, column_acc, total


def ring_of_states(
    plan: Plan,
    tile: Visit,
    rows: Side,
    columns: Side,
    carry: tuple[Tree, Tree],
    start: Callable[[Side], Tree],
) -> tuple[Tree, Tree, Tree]:
    """As `visit_all`, but columns travel around all devices, and with them the states they fold."""
    n = columns.place.shape[0]
    columns = split(columns, plan.block)
    columns = columns._replace(acc=_begin(columns, start))

    def step(_: jax.Array, state: tuple[Side, Tree, Tree]) -> tuple[Side, Tree, Tree]:
        columns, row_acc, total = state
        following = _pass_on(plan, columns._replace(acc=None))
        row_acc, acc, total = sweep(tile, rows, columns, (row_acc, total), lambda c: c.acc)
        return following._replace(acc=_pass_on(plan, acc)), row_acc, total

    devices = lax.axis_size(plan.axes)
    state = (columns, *carry)
    columns, row_acc, total = lax.fori_loop(0, devices, step, state, unroll=_unroll(plan))
    return row_acc, join(columns.acc, n), total


def ring_of_sums(
    plan: Plan,
    tile: Visit,
    rows: Side,
    columns: Side,
    carry: tuple[Tree, Tree],
    start: Callable[[Side], Tree],
) -> tuple[Tree, Tree, Tree]:
    """As `ring_of_states` for sums, which follow their columns one step behind.

    So all that is sent in a step is there when it begins, and travels while the step computes.
    """
    n = columns.place.shape[0]
    columns = split(columns, plan.block)

    def step(_: jax.Array, state: tuple[Side, Tree, Tree, Tree]) -> tuple[Side, Tree, Tree, Tree]:
        columns, sums, row_acc, total = state
        following, sums = _pass_on(plan, (columns, sums))
        row_acc, own, total = sweep(tile, rows, columns, (row_acc, total), start)
        return following, add(sums, own), row_acc, total

    devices = lax.axis_size(plan.axes)
    state = (columns, _begin(columns, start), *carry)
    _, sums, row_acc, total = lax.fori_loop(0, devices, step, state, unroll=_unroll(plan))
    return row_acc, join(_pass_on(plan, sums), n), total


def _unroll(plan: Plan) -> int:
    """Steps of the ring in one turn of its loop.

    Two: what is sent and what is used change places without a copy, at the price of one more copy
    in memory. That is for accelerators, which the size of the tiles tells.
    """
    return 2 if plan.block >= 2048 else 1


def _begin(columns: Side, start: Callable[[Side], Tree]) -> Tree:
    """First accumulators of split columns."""
    first = jax.tree.map(lambda a: a[0], columns)
    return stack(start(first), columns.place.shape[0])


def _gather(plan: Plan, columns: Side) -> Side:
    """All devices' columns; their places are counted, which is cheaper than sent."""
    n = columns.place.shape[0]
    first = columns.place[0] - lax.axis_index(plan.axes) * n
    place = first + jnp.arange(n * lax.axis_size(plan.axes), dtype=jnp.int32)
    fields = columns._asdict() | {"place": None}
    everywhere = jax.tree.map(lambda a: gather(a, plan.axes), fields)
    return Side(**everywhere | {"place": place})


def _pass_on(plan: Plan, tree: Tree) -> Tree:
    """Each device's tree to the next device."""
    devices = lax.axis_size(plan.axes)
    following = [(i, (i + 1) % devices) for i in range(devices)]
    return jax.tree.map(lambda a: lax.ppermute(a, plan.axes, following), tree)


def is_one_tile(plan: Plan, rows: Side, columns: Side, *, extra: bool) -> bool:
    """Whether a device sees one tile only: its scores then stay, and backward saves a product."""
    n = columns.place.shape[0]
    if plan.axes and not (extra and plan.whole_extra):
        if plan.route == "ring":
            return False
        n *= lax.axis_size(plan.axes)
    return rows.place.shape[0] == 1 and n <= plan.block


def add(tree: Tree, other: Tree) -> Tree:
    """The sum of two trees."""
    return jax.tree.map(jnp.add, tree, other)


def stack(tree: Tree, blocks: int) -> Tree:
    """Copies of a tree for so many blocks, along a new leading axis."""
    return jax.tree.map(lambda a: jnp.broadcast_to(a[None], (blocks, *a.shape)), tree)
