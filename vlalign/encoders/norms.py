"""Normalisation by stored statistics."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlalign.encoders.layers import named


class BatchNorm(nn.Module):
    """(x - mean) / sqrt(var + epsilon) scale + bias per channel (Ioffe & Szegedy 2015), in float32.

    `mean` and `var` are the stored statistics: parameters in the tree, but behind `stop_gradient`,
    so that nothing moves them but weights from outside. That is fine-tuning with frozen statistics
    (open_clip's `--lock-image-freeze-bn-stats`). A tower trained from scratch normalises with the
    statistics it began with, 0 and 1: there this is a scale and a shift, not a normalisation.

    epsilon: added to the variance.   start: of `scale`, before training; 0 makes a residual branch
    that ends in this layer begin as nothing.   axis: name of the channels' axis.
    """

    epsilon: float = 1e-5
    start: float = 1.0
    axis: str | None = "embed"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (..., c) -> (..., c), of the type of x."""

        def vector(name: str, value: float) -> jax.Array:
            init = named(nn.initializers.constant(value), self.axis)
            return self.param(name, init, (x.shape[-1],), jnp.float32)

        mean, var = (jax.lax.stop_gradient(vector(*one)) for one in (("mean", 0.0), ("var", 1.0)))
        factor = vector("scale", self.start) * jax.lax.rsqrt(var + self.epsilon)
        shift = vector("bias", 0.0) - mean * factor
        row = (1,) * (x.ndim - 1) + factor.shape
        y = x.astype(jnp.float32) * factor.reshape(row) + shift.reshape(row)
        return y.astype(x.dtype)
