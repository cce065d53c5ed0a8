"""A ViT takes images of another size than it was made for: its positions are resized."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from vlalign.encoders.resize import resize_grid
from vlalign.encoders.vit import ViT
from vlalign.errors import UserError

VIT = ViT(patch_size=4, width=16, depth=1, heads=2, pool="mean", embed_dim=8)


def _params(side: int) -> dict[str, jax.Array]:
    images = jnp.zeros((1, side, side, 3), jnp.uint8)
    return meta.unbox(VIT.init(jax.random.key(0), images)["params"])


def test_another_size_is_the_same_as_resized_positions(rng: np.random.Generator) -> None:
    params = _params(16)
    images = rng.integers(0, 256, (2, 24, 32, 3), np.uint8)
    moved = params | {"position": resize_grid(params["position"], (4, 4), (6, 8))}
    apply = jax.jit(VIT.apply)
    np.testing.assert_allclose(
        apply({"params": params}, images).pooled,
        apply({"params": moved}, images).pooled,
        rtol=1e-6,
    )


def test_gradients_reach_the_positions_through_the_resize(rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (2, 8, 8, 3), np.uint8)

    def loss(params: dict[str, jax.Array]) -> jax.Array:
        return jnp.sum(jnp.square(VIT.apply({"params": params}, images).pooled))  # type: ignore[union-attr]

    gradient = jax.grad(loss)(_params(16))["position"]
    assert gradient.shape == (16, 16)
    assert np.all(np.any(np.asarray(gradient) != 0, axis=1))


def test_positions_that_are_no_square_cannot_be_resized() -> None:
    params = _params(16)
    params["position"] = params["position"][:12]
    with pytest.raises(UserError, match="12 positions are not a grid of 3x3"):
        VIT.apply({"params": params}, jnp.zeros((1, 8, 8, 3), jnp.uint8))
