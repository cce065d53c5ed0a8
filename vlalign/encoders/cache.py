"""What generation remembers of the tokens before: keys and values, in the collection "cache".

A module remembers where it is applied with `mutable=["cache"]`. The first call, over as many tokens
as there will ever be, makes the arrays; each later one adds its tokens behind those of the calls
before it, from `place` on. Whoever calls gives a mask that hides what is not written yet.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlalign.encoders.layers import Parts

COLLECTION = "cache"


def remembers(module: nn.Module) -> bool:
    """Whether `module` is applied so that it remembers."""
    return module.is_mutable_collection(COLLECTION) and not module.is_initializing()


def extended(module: nn.Module, parts: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """`parts` of the new tokens behind those of earlier ones: (b, l, h, k) -> (b, s, h, k) each."""
    place = module.variable(COLLECTION, "place", jnp.zeros, (), jnp.int32)
    kept = [_variable(module, number, part) for number, part in enumerate(parts)]
    for variable, part in zip(kept, parts, strict=True):
        variable.value = jax.lax.dynamic_update_slice_in_dim(variable.value, part, place.value, 1)
    place.value = place.value + parts[0].shape[1]
    return tuple(variable.value for variable in kept)


class RememberedParts(Parts):
    """`Parts` of a sequence that is the same in all calls: made in the first, then remembered."""

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:  # type: ignore[override]
        """x: (..., *inputs) -> as many (..., *outputs[1:])."""
        if not remembers(self):
            return super().__call__(x)
        if not self.has_variable(COLLECTION, "part_0"):
            for number, part in enumerate(super().__call__(x)):
                _variable(self, number, part).value = part
        maps = range(self.outputs[0])
        return tuple(self.get_variable(COLLECTION, f"part_{number}") for number in maps)


def _variable(module: nn.Module, number: int, part: jax.Array) -> Any:
    return module.variable(COLLECTION, f"part_{number}", jnp.zeros, part.shape, part.dtype)


def rewound(cache: Any, place: jax.Array) -> Any:
    """The cache as if it held the tokens before `place` alone: the next ones go there."""

    def at(path: Any, leaf: jax.Array) -> jax.Array:
        return jnp.full_like(leaf, place) if path[-1].key == "place" else leaf

    return jax.tree_util.tree_map_with_path(at, cache)
