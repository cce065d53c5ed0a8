"""Learning-rate schedules: multipliers of the peak rate, as functions of the step."""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from vlalign.errors import UserError


class Schedule(Protocol):
    """A frozen dataclass that turns a step into a multiple of the peak learning rate."""

    def __call__(self, step: jax.Array, steps: int) -> jax.Array:
        """step: () int32, from 0; steps: of the whole run -> () float32 in 0..1."""
        ...


def _warmup(step: jax.Array, warmup: int) -> jax.Array:
    # The first step already moves: (step + 1) / warmup.
    return jnp.minimum(1.0, (step.astype(jnp.float32) + 1.0) / max(warmup, 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine:
    """Linear warm-up, then half a cosine down to `final`.

    warmup: steps.   final: multiple of the peak at the last step.
    """

    warmup: int = 0
    final: float = 0.0

    def __call__(self, step: jax.Array, steps: int) -> jax.Array:
        """See Schedule."""
        if self.warmup >= steps:
            raise UserError(
                f"schedule warmup={self.warmup} must be below train.steps={steps}: "
                "lower optimizer.schedule.warmup or raise train.steps"
            )
        span = max(steps - self.warmup, 1)
        done = jnp.clip((step.astype(jnp.float32) - self.warmup) / span, 0.0, 1.0)
        decay = self.final + (1.0 - self.final) * 0.5 * (1.0 + jnp.cos(jnp.pi * done))
        return _warmup(step, self.warmup) * decay


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rsqrt:
    """Linear warm-up, then sqrt(timescale / step), then a linear cool-down to 0 at the end.

    warmup, timescale, cooldown: steps.
    """

    warmup: int = 0
    timescale: int = 10_000
    cooldown: int = 0

    def __call__(self, step: jax.Array, steps: int) -> jax.Array:
        """See Schedule."""
        past = jnp.maximum(step.astype(jnp.float32) - self.warmup, 0.0)
        decay = jax.lax.rsqrt(1.0 + past / self.timescale)
        left = (steps - step.astype(jnp.float32)) / max(self.cooldown, 1)
        return _warmup(step, self.warmup) * decay * jnp.clip(left, 0.0, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant:
    """Linear warm-up, then 1.   warmup: steps."""

    warmup: int = 0

    def __call__(self, step: jax.Array, steps: int) -> jax.Array:
        """See Schedule."""
        return _warmup(step, self.warmup)
