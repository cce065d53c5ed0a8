"""A function over a batch, computed part by part; gradients meet once, after the loop."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from vlalign.parallel.constraint import batch_axes, mapped_over, shard_batch

Tree = Any


def in_parts(
    f: Callable[[Tree, Tree], tuple[Tree, Tree]], params: Tree, batch: Tree, parts: int
) -> tuple[Tree, Tree]:
    """(sums, rows) of `f(params, batch)`, computed one part of the batch after the other.

    f: (params, part) -> (scalars that add up over rows, arrays with a row for each of the part).
    params: what gradients are wanted for; other arrays may be closed over.   batch: tree of
    (b, ...), b a multiple of parts x data x fsdp.   parts: 1 calls `f` on the whole batch.
    The backward pass computes each part again, so that only one part's activations are held at a
    time. No row moves to another device.
    """
    if parts == 1:
        return f(params, batch)
    if "data" not in batch_axes():
        sums, rows = _loop(f, params, batch, parts)
        return sums, jax.tree.map(shard_batch, rows)
    # One copy of the parameters for each place on `data`, as they lie there anyway: a gradient is
    # then added up over all parts copy by copy, and the copies meet in the sum that is the gradient
    # of this broadcast, once. (shard_map over `data` alone says the same more directly, but XLA's
    # partitioner aborts on look-ups in tables that the other axes cut.)
    copies = jax.sharding.get_abstract_mesh().shape["data"]
    with mapped_over("data"):
        split = jax.tree.map(lambda x: _split(x, copies), batch)
        sums, rows = jax.vmap(lambda p, b: _loop(f, p, b, parts), spmd_axis_name="data")(
            jax.tree.map(lambda x: _copies(x, copies), params), split
        )
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), sums), jax.tree.map(shard_batch, rows)


def _copies(x: jax.Array, copies: int) -> jax.Array:
    x = jnp.broadcast_to(x[None], (copies, *x.shape))
    free = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec("data", *free))


def _split(x: jax.Array, copies: int) -> jax.Array:
    x = x.reshape(copies, x.shape[0] // copies, *x.shape[1:])
    return jax.lax.with_sharding_constraint(x, PartitionSpec("data", batch_axes()))


def _loop(
    f: Callable[[Tree, Tree], tuple[Tree, Tree]], params: Tree, batch: Tree, parts: int
) -> tuple[Tree, Tree]:
    def cut(x: jax.Array) -> jax.Array:
        # Strided: part i holds rows i, i + parts, ... so that each part lies on all devices as the
        # batch does and no row has to move.
        x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:])
        return jnp.swapaxes(x, 0, 1)

    def join(x: jax.Array) -> jax.Array:
        x = jnp.swapaxes(x, 0, 1)
        return x.reshape(x.shape[0] * parts, *x.shape[2:])

    def body(carry: None, part: Tree) -> tuple[None, tuple[Tree, Tree]]:
        return carry, f(params, jax.tree.map(shard_batch, part))

    body = jax.checkpoint(body, prevent_cse=False)
    _, (sums, rows) = jax.lax.scan(body, None, jax.tree.map(cut, batch))
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), sums), jax.tree.map(join, rows)
