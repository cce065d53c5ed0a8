"""Blocks of rows and columns, and the one loop over their tiles under all losses over pairs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# A pytree of arrays: the kernel does not look inside what a score or a form hands it.
Tree = Any


class Side(NamedTuple):
    """What a tile knows of its rows, or of its columns. All leaves have the same leading axis n.

    place: int32 (n,), a sample's index in the global batch; extra columns count on behind it.
    z: what each score compares, by the score's name; for example embeddings (n, d).
    group: integer (n,), equal for positives, or None.
    key: integer (n,), equal for duplicates, which are not each other's negatives, or None.
    owner: int32 (n,), the row that does not see an extra column, or None.
    valid: bool (n,), False leaves a sample out; None: all are in.
    weight: (n,), or None for ones.
    floor, ceiling: (n,), a negative counts if it scores above and below these; None: no limit.
    stats, cotangent: the forward pass's statistics and their cotangents, in the backward pass only.
    acc: accumulators that travel with the columns (ring only).
    """

    place: jax.Array
    z: Tree = None
    group: jax.Array | None = None
    key: jax.Array | None = None
    owner: jax.Array | None = None
    valid: jax.Array | None = None
    weight: jax.Array | None = None
    floor: jax.Array | None = None
    ceiling: jax.Array | None = None
    stats: Tree = None
    cotangent: Tree = None
    acc: Tree = None


# (row, column, row accumulators, column accumulators, totals) -> the three, with the tile in them.
Visit = Callable[[Side, Side, Tree, Tree, Tree], tuple[Tree, Tree, Tree]]


def wide(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype to accumulate in: float32, or float64 for float64."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def wide_of(tree: Tree) -> jnp.dtype:
    """The dtype to accumulate in what the float arrays of a tree give."""
    return wide(
        next(a.dtype for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.floating))
    )


def block_length(n: int, limit: int) -> int:
    """Length of the fewest equal blocks of at most `limit` that cover n: little is padded."""
    if n <= limit:
        return n
    even = -(-n // -(-n // limit))
    return min(limit, -(-even // 8) * 8)  # whole SIMD lanes


def split(side: Side, limit: int) -> Side:
    """Cuts (n, ...) into (blocks, length, ...), filling the last block with left-out samples."""
    n = side.place.shape[0]
    length = block_length(n, limit)
    blocks = -(-n // length)
    pad = blocks * length - n
    if pad and side.valid is None:
        side = side._replace(valid=jnp.ones((n,), jnp.bool_))

    def cut(a: jax.Array) -> jax.Array:
        if pad:
            a = jnp.pad(a, ((0, pad), *(((0, 0),) * (a.ndim - 1))))
        return a.reshape(blocks, length, *a.shape[1:])

    cut_side: Side = jax.tree.map(cut, side)
    return cut_side


def join(tree: Tree, n: int) -> Tree:
    """Undoes `split` for accumulators: (blocks, length, ...) to (n, ...)."""
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:n], tree)


def sweep(
    visit: Visit, rows: Side, columns: Side, carry: tuple[Tree, Tree], start: Callable[[Side], Tree]
) -> tuple[Tree, Tree, Tree]:
    """Visits every tile of split `rows` x `columns` once.

    Columns are the outer loop: a column block's accumulators are written once, when it is done, and
    only the row accumulators (a device's own, shorter side) are updated in place. A side of one
    block costs no loop.

    visit: folds one tile into the accumulators. carry: row accumulators (split as rows) and totals.
    start: a column block's first accumulators.
    Returns row accumulators and column accumulators (blocks, length, ...), and totals.
    """
    n_rows, n_columns = rows.place.shape[0], columns.place.shape[0]

    def one_column(carry: tuple[Tree, Tree], column: Side) -> tuple[tuple[Tree, Tree], Tree]:
        def one_row(i: jax.Array | int, state: tuple[Tree, Tree, Tree]) -> tuple[Tree, Tree, Tree]:
            row_acc, column_acc, total = state
            new, column_acc, total = visit(
                _take(rows, i), column, _take(row_acc, i), column_acc, total
            )
            return _put(row_acc, new, i), column_acc, total

        state = (carry[0], start(column), carry[1])
        state = one_row(0, state) if n_rows == 1 else lax.fori_loop(0, n_rows, one_row, state)
        return (state[0], state[2]), state[1]

    if n_columns == 1:
        (row_acc, total), column_acc = one_column(carry, _take(columns, 0))
        return row_acc, jax.tree.map(lambda a: a[None], column_acc), total
    (row_acc, total), column_acc = lax.scan(one_column, carry, columns)
    return row_acc, column_acc, total


def _take(tree: Tree, i: jax.Array | int) -> Tree:
    return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, i, keepdims=False), tree)


def _put(tree: Tree, new: Tree, i: jax.Array | int) -> Tree:
    return jax.tree.map(lambda a, b: lax.dynamic_update_index_in_dim(a, b, i, 0), tree, new)
