"""How the scores of a tile come about, and their gradient: a new kind of score is a new class."""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from vlalign.losses._tiles import Tree, wide

# Parameters of a score; {"scale": (), "bias": () or None} for `Cosine`.
Shared = dict[str, Any]


class Score(Protocol):
    """Pure functions on the embeddings of one tile's rows and columns; must be hashable."""

    def forward(self, row: Tree, column: Tree, shared: Tree) -> jax.Array:
        """Scores (r, c), float32 or wider, of r rows against c columns."""
        ...

    def backward(
        self, grad: jax.Array, row: Tree, column: Tree, shared: Tree
    ) -> tuple[Tree, Tree, Tree]:
        """Gradients of sum(grad * scores) for row, column and shared, float32 or wider."""
        ...


@dataclasses.dataclass(frozen=True)
class Cosine:
    """scale * <row, column> + bias: of unit vectors, the scaled cosine."""

    def forward(self, row: jax.Array, column: jax.Array, shared: Shared) -> jax.Array:
        """Scores (r, c): products in the input dtype, summed in float32 or wider."""
        scores = shared["scale"] * _product(row, column, ((1,), (1,)))
        return scores if shared["bias"] is None else scores + shared["bias"]

    def backward(
        self, grad: jax.Array, row: jax.Array, column: jax.Array, shared: Shared
    ) -> tuple[jax.Array, jax.Array, Shared]:
        """Two products; the scale's gradient is <row, for_row>, so the cosines need not be kept."""
        low = grad.astype(row.dtype)
        for_row = _product(low, column, ((1,), (0,)))
        for_column = _product(low, row, ((0,), (0,)))
        scale = jnp.sum(row.astype(for_row.dtype) * for_row)
        bias = None if shared["bias"] is None else jnp.sum(grad)
        gradients = (shared["scale"] * for_row, shared["scale"] * for_column)
        return *gradients, {"scale": scale, "bias": bias}


def _product(
    a: jax.Array, b: jax.Array, contract: tuple[tuple[int, ...], tuple[int, ...]]
) -> jax.Array:
    """Matrix product in the inputs' dtype; accelerators must not round float32 inputs down."""
    out = wide(a.dtype)
    precision = lax.Precision.HIGHEST if a.dtype == out else lax.Precision.DEFAULT
    dimensions = (contract, ((), ()))
    return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=out)
