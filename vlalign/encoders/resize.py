"""Learned positions carried to another image size or text length."""

import jax
import jax.numpy as jnp

from vlalign.errors import UserError


def resize_grid(position_ld: jax.Array, old: tuple[int, int], new: tuple[int, int]) -> jax.Array:
    """Bicubic, antialiased resize of a grid of positions (as open_clip's `resize_pos_embed`).

    position_ld: (rows*columns, d) of the old grid; returns (rows*columns, d) of the new one.
    """
    length, d = position_ld.shape
    if length != old[0] * old[1]:
        raise UserError(f"{length} positions are not a grid of {old[0]}x{old[1]}")
    if old == new:
        return position_ld
    grid = position_ld.reshape(*old, d)
    return jax.image.resize(grid, (*new, d), "bicubic").reshape(-1, d)


def resize_length(position_ld: jax.Array, length: int) -> jax.Array:
    """Linear resize of text positions: (l, d) -> (length, d)."""
    if position_ld.shape[0] == length:
        return position_ld
    shape = (length, position_ld.shape[1])
    return jax.image.resize(position_ld, shape, "linear").astype(jnp.float32)
