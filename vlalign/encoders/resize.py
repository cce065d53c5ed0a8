"""Learned positions carried to another image size or text length."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from vlalign.errors import UserError

Resize = Literal["bicubic", "bicubic_aliased", "linear"]


def resize_grid(
    position_ld: jax.Array,
    old: tuple[int, int],
    new: tuple[int, int],
    method: Resize = "bicubic",
) -> jax.Array:
    """A grid of positions resized, as others do it on loading weights or at another image size.

    position_ld: (rows*columns, d) of the old grid; returns (rows*columns, d) of the new one.
    method: "bicubic" antialiased (open_clip, timm, DINOv2 with registers), "bicubic_aliased"
    (DINOv2 without, SigLIP of transformers) or "linear" antialiased (SigLIP 2 NaFlex).
    """
    length, d = position_ld.shape
    if length != old[0] * old[1]:
        raise UserError(f"{length} positions are not a grid of {old[0]}x{old[1]}")
    if old == new:
        return position_ld
    grid = position_ld.reshape(*old, d)
    if method == "bicubic_aliased":
        down, across = (jnp.asarray(_cubic(a, b)) for a, b in zip(old, new, strict=True))
        return jnp.einsum("yr,xc,rcd->yxd", down, across, grid).reshape(-1, d)
    filled = jax.image.resize(grid, (*new, d), "cubic" if method == "bicubic" else method)
    return filled.reshape(-1, d)


def _cubic(old: int, new: int) -> np.ndarray:
    """Weights (new, old) of Keys's cubic (a = -0.75) at half-pixel centres, edges repeated.

    Four neighbours whatever the scale, so that a smaller grid is sampled, not averaged.
    """
    a, weights = -0.75, np.zeros((new, old))
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centre).astype(int)
    for offset in (-1, 0, 1, 2):
        x = np.abs(centre - first - offset)
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * (x**3 - 5 * x**2 + 8 * x - 4)
        place = np.clip(first + offset, 0, old - 1)
        np.add.at(weights, (np.arange(new), place), np.where(x <= 1, near, far))
    return weights.astype(np.float32)


def resize_length(position_ld: jax.Array, length: int) -> jax.Array:
    """Linear resize of text positions: (l, d) -> (length, d)."""
    if position_ld.shape[0] == length:
        return position_ld
    shape = (length, position_ld.shape[1])
    return jax.image.resize(position_ld, shape, "linear").astype(jnp.float32)


def stretch_length(position_ld: jax.Array, *, keep: int = 20, factor: int = 4) -> jax.Array:
    """Text positions made longer, the first of them as they are: 77 become 248 by default.

    Position keep + j / factor of the old ones, on the straight line between its neighbours, and
    past the last one on the line through the last two (Long-CLIP, Zhang et al. 2024,
    arXiv:2403.15378, section 3.2, and its code for the end).
    position_ld: (l, d) -> (keep + factor (l - keep), d) float32.
    Raises UserError unless keep <= l - 2 and factor >= 1.
    """
    length = position_ld.shape[0]
    if not 0 <= keep <= length - 2 or factor < 1:
        raise UserError(
            f"stretch_length keep={keep}, factor={factor} of {length} positions: keep must be in "
            f"0..{length - 2} and factor at least 1"
        )
    places = keep + np.arange((length - keep) * factor) / factor
    before = np.minimum(np.floor(places).astype(np.int32), length - 2)
    share = jnp.asarray((places - before)[:, None], jnp.float32)
    old = position_ld.astype(jnp.float32)
    line = old[before] * (1 - share) + old[before + 1] * share
    return jnp.concatenate([old[:keep], line])
