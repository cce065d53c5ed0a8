"""Positions carried to other sizes: the formulas of those who trained them."""

import jax.numpy as jnp
import numpy as np
import pytest

from vlalign.encoders.resize import resize_grid, resize_length, stretch_length
from vlalign.errors import UserError


def test_positions_resize() -> None:
    grid = jnp.arange(16.0, dtype=jnp.float32).reshape(4, 4, 1).repeat(2, axis=2).reshape(16, 2)
    assert resize_grid(grid, (4, 4), (4, 4)) is grid
    bigger = resize_grid(grid, (4, 4), (8, 8))
    assert bigger.shape == (64, 2)
    np.testing.assert_allclose(bigger.mean(), grid.mean(), rtol=1e-4)
    assert resize_length(grid, 7).shape == (7, 2)
    with pytest.raises(UserError, match="3x4"):
        resize_grid(grid, (3, 4), (8, 8))


@pytest.mark.parametrize("new", [(7, 3), (2, 2), (5, 9)])
def test_aliased_bicubic_is_the_cubic_of_four_neighbours(
    new: tuple[int, int], rng: np.random.Generator
) -> None:
    old = (4, 5)
    grid = rng.normal(size=(*old, 3)).astype(np.float32)

    def cubic(x: float, a: float = -0.75) -> float:
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    wanted = np.zeros((*new, 3))
    for y, x in np.ndindex(new):
        at = ((y + 0.5) * old[0] / new[0] - 0.5, (x + 0.5) * old[1] / new[1] - 0.5)
        low = [int(np.floor(place)) for place in at]
        for i, j in np.ndindex(4, 4):
            r, c = low[0] - 1 + i, low[1] - 1 + j
            weight = cubic(at[0] - r) * cubic(at[1] - c)
            wanted[y, x] += weight * grid[np.clip(r, 0, old[0] - 1), np.clip(c, 0, old[1] - 1)]
    got = resize_grid(jnp.asarray(grid.reshape(-1, 3)), old, new, "bicubic_aliased")
    np.testing.assert_allclose(got, wanted.reshape(-1, 3), atol=1e-5)


def test_long_clip_keeps_the_first_and_stretches_the_rest(rng: np.random.Generator) -> None:
    old = rng.normal(size=(77, 4)).astype(np.float32)
    new = np.asarray(stretch_length(jnp.asarray(old)))
    assert new.shape == (248, 4)
    np.testing.assert_array_equal(new[:20], old[:20])
    for i in range(20, 76):
        for j in range(4):
            wanted = old[i] * (4 - j) / 4 + old[i + 1] * j / 4
            np.testing.assert_allclose(new[20 + 4 * (i - 20) + j], wanted, atol=1e-6)
    for j in range(4):
        wanted = old[76] + j * (old[76] - old[75]) / 4
        np.testing.assert_allclose(new[244 + j], wanted, atol=1e-5)


def test_a_stretch_of_one_changes_nothing(rng: np.random.Generator) -> None:
    old = jnp.asarray(rng.normal(size=(9, 4)), jnp.float32)
    np.testing.assert_allclose(stretch_length(old, keep=3, factor=1), old, atol=1e-6)


@pytest.mark.parametrize(("keep", "factor"), [(76, 4), (-1, 4), (20, 0)])
def test_a_stretch_that_has_no_meaning_is_refused(keep: int, factor: int) -> None:
    with pytest.raises(UserError, match=f"keep={keep}, factor={factor}"):
        stretch_length(jnp.zeros((77, 4)), keep=keep, factor=factor)
