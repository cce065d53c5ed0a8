"""Retrieval from a batch that serves as an associative memory, in linear memory."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike

from vlalign.losses.kernel.sweep import block_length, wide
from vlalign.losses.kernel.tile import EXCLUDED
from vlalign.losses.pairs import batch_axes
from vlalign.losses.scores import BLOCK_SIZE, product


def hopfield_retrieval(
    state_bd: jax.Array,
    stored_bd: jax.Array,
    *,
    scale: ArrayLike,
    row_weight_b: jax.Array | None = None,
    block_size: int = BLOCK_SIZE,
) -> jax.Array:
    """What a modern Hopfield network that stores the batch retrieves for each state, unit-norm.

    CLOOB (Fuerst et al. 2021, arXiv:2110.11316, eq. 3): normalise(stored^T softmax(scale * stored
    state)). Its loss is `softmax_contrast(..., denominator="negatives")` on what is retrieved.
    state_bd, stored_bd: unit-norm (B, d). scale: () the paper's beta. row_weight_b: (B,), samples
    of weight 0 are not stored and retrieve zeros. block_size: states at a time, so that temporaries
    are O(block_size * B) on a device; gradients flow into all three.
    Raises ValueError for shapes that do not agree, or a batch that the mesh does not divide.
    """
    if state_bd.shape != stored_bd.shape or state_bd.ndim != 2:
        shapes = f"state_bd {state_bd.shape}, stored_bd {stored_bd.shape}"
        raise ValueError(f"{shapes}: must be two equal (B, d)")
    mesh, axes, _ = batch_axes(state_bd.shape[0])
    everyone_b = jnp.ones(state_bd.shape[:1], jnp.bool_)
    valid_b = everyone_b if row_weight_b is None else row_weight_b > 0
    empty = jnp.zeros((), state_bd.dtype)
    state_bd, stored_bd = (jnp.where(valid_b[:, None], z, empty) for z in (state_bd, stored_bd))
    scale = jnp.asarray(scale).astype(wide(state_bd.dtype))
    body = functools.partial(_retrieve, axes, block_size)
    if mesh is not None:
        batch, whole = PartitionSpec(axes or None), PartitionSpec()
        places = (batch, batch, batch, whole)
        body = jax.shard_map(body, mesh=mesh, in_specs=places, out_specs=batch, check_vma=False)
    found_bd = body(state_bd, stored_bd, valid_b, scale)
    square_b = jnp.sum(jnp.square(found_bd), axis=1, keepdims=True)
    found_bd = found_bd * lax.rsqrt(jnp.maximum(square_b, 1e-24))
    return jnp.where(valid_b[:, None], found_bd, 0.0).astype(state_bd.dtype)


def _retrieve(
    axes: tuple[str, ...],
    block_size: int,
    state_bd: jax.Array,
    stored_bd: jax.Array,
    valid_b: jax.Array,
    scale: jax.Array,
) -> jax.Array:
    """Weighted means (b, d) of all stored patterns, a block of this device's states at a time."""
    if axes:
        stored_bd, valid_b = (lax.all_gather(a, axes, tiled=True) for a in (stored_bd, valid_b))

    @jax.checkpoint
    def block(state_rd: jax.Array) -> jax.Array:
        scores_rb = scale * product(state_rd, stored_bd, ((1,), (1,)))
        scores_rb = jnp.where(valid_b[None, :], scores_rb, jnp.asarray(EXCLUDED, scores_rb.dtype))
        p_rb = jax.nn.softmax(scores_rb, axis=1).astype(stored_bd.dtype)
        return product(p_rb, stored_bd, ((1,), (0,)))

    n, dim = state_bd.shape
    length = block_length(n, block_size)
    blocks = -(-n // length)
    if blocks == 1:
        return block(state_bd)
    padded = jnp.pad(state_bd, ((0, blocks * length - n), (0, 0)))
    return lax.map(block, padded.reshape(blocks, length, dim)).reshape(-1, dim)[:n]
