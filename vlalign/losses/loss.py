"""What every loss returns: sums over the batch, divided once by the caller."""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """A loss as sums over the batch; a pytree.

    sum: () weighted sum of the samples' losses. count: () sum of the samples' weights.
    metrics: weighted sums over the same samples, without gradient.
    """

    sum: jax.Array
    count: jax.Array
    metrics: dict[str, jax.Array] = dataclasses.field(default_factory=dict)

    @property
    def mean(self) -> jax.Array:
        """The loss of the batch; 0 if every row is left out."""
        return self.sum / jnp.where(self.count > 0, self.count, 1.0)

    def metric_means(self) -> dict[str, jax.Array]:
        """The metrics of the batch; 0 if every row is left out."""
        count = jnp.where(self.count > 0, self.count, 1.0)
        return {name: value / count for name, value in self.metrics.items()}
