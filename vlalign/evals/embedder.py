"""Inputs in, unit embeddings out: batched, padded, sharded, compiled once a tower."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vlalign.errors import UserError, nearest
from vlalign.evals.base import Embed
from vlalign.parallel.mesh import batch_sharding, batch_shards, replicated


class Embedder:
    """Encodes any number of inputs with the towers of a model on a mesh.

    The last batch is padded with copies of its first row and the padding cut off again, so the
    result does not depend on the batch size or the mesh.
    """

    def __init__(self, model: Mapping[str, nn.Module], mesh: Mesh, batch_size: int = 256):
        """batch_size: rows encoded at once, rounded up to a multiple of the mesh's batch shards."""
        self.model, self.mesh = model, mesh
        shards = batch_shards(mesh)
        self.batch_size = -(-batch_size // shards) * shards
        self._compiled: dict[str, Any] = {}

    def using(self, params: Mapping[str, Any]) -> Embed:
        """The function `embed(tower, inputs)` for these parameters.

        inputs: (n, ...) uint8 images or int32 tokens, n >= 0 -> (n, d) float32 on the host.
        """

        def embed(tower: str, inputs: np.ndarray) -> np.ndarray:
            if tower not in self.model:
                raise UserError(f"no tower '{tower}' in the model{nearest(tower, self.model)}")
            with jax.set_mesh(self.mesh):
                return self._run(tower, params[tower], inputs)

        return embed

    def _run(self, tower: str, params: Any, inputs: np.ndarray) -> np.ndarray:
        function = self._function(tower)
        count, size = len(inputs), self.batch_size
        if count == 0:
            shape = jax.ShapeDtypeStruct((size, *inputs.shape[1:]), inputs.dtype)
            return np.zeros((0, jax.eval_shape(function, params, shape).shape[1]), np.float32)
        parts = []
        for start in range(0, count, size):
            rows = inputs[start : start + size]
            if len(rows) < size:
                rows = np.concatenate([rows, np.repeat(rows[:1], size - len(rows), axis=0)])
            # All processes have all rows; each places those of its own devices.
            placed = jax.make_array_from_callback(
                rows.shape, batch_sharding(self.mesh), rows.__getitem__
            )
            parts.append(function(params, placed))
        return np.concatenate([np.asarray(part) for part in parts])[:count]

    def _function(self, tower: str) -> Any:
        if tower not in self._compiled:

            def encode(params: Any, inputs: jax.Array) -> jax.Array:
                pooled = self.model[tower].apply({"params": params}, inputs).pooled  # type: ignore[union-attr]
                norm = jnp.linalg.norm(pooled, axis=-1, keepdims=True)
                return pooled / jnp.maximum(norm, jnp.full_like(norm, 1e-12))

            self._compiled[tower] = jax.jit(encode, out_shardings=replicated(self.mesh))
        return self._compiled[tower]
