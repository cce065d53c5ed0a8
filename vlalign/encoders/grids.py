"""The grid of places that an image becomes: its sides, and learned positions on it."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlalign.encoders.layers import named
from vlalign.encoders.resize import resize_grid
from vlalign.errors import UserError


def grid_of(height: int, width: int, stride: int) -> tuple[int, int]:
    """Places down and across after a reduction by `stride` pixels.

    Raises UserError if the image does not divide.
    """
    if height % stride or width % stride:
        raise UserError(
            f"an image of {height}x{width} pixels does not divide by the tower's stride of "
            f"{stride} pixels; choose a multiple of it"
        )
    return height // stride, width // stride


def learned_positions(
    module: nn.Module, grid: tuple[int, int], width: int, *, extra: int = 0
) -> jax.Array:
    """The parameter `position` of `module`: (extra + rows*columns, width) of the grid, float32.

    It has the grid of the images at initialisation. Another one gets it resized, if it was a
    square; the `extra` positions in front are not of the grid and stay as they are.
    """
    length = extra + grid[0] * grid[1]
    wanted = length
    if module.has_variable("params", "position"):
        length = module.get_variable("params", "position").shape[0]
    init = named(nn.initializers.normal(width**-0.5), "length", "embed")
    position: jax.Array = module.param("position", init, (length, width), jnp.float32)
    if length == wanted:
        return position
    old = (math.isqrt(length - extra),) * 2
    resized = resize_grid(position[extra:], old, grid)
    return jnp.concatenate([position[:extra], resized]) if extra else resized
