"""What a tower costs, without making it."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlalign.encoders.presets.base import Preset


@dataclasses.dataclass(frozen=True)
class Cost:
    """Numbers of one part of a model.

    parameters: without statistics.   statistics: means and variances of BatchNorm.
    flops: forward, of matrix products and convolutions, for one image or text.
    """

    parameters: int
    statistics: int
    flops: int


def costs(preset: Preset) -> dict[str, Cost]:
    """Costs of "image", "text" and, where there is one, "decoder". Nothing is allocated."""
    size, length = preset.image_size, preset.context_length
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    text = jax.ShapeDtypeStruct((1, length), jnp.int32)
    found = {"image": _tower(preset.image, image), "text": _tower(preset.text, text)}
    if preset.decoder is not None:
        seen, words = (_tokens(preset.image, image), _tokens(preset.text, text))
        flops = preset.decoder.flops((words.shape[1], *seen.shape[1:]))
        found["decoder"] = Cost(*_numbers(preset.decoder, words, seen), flops)
    return found


@functools.cache
def _tower(tower: nn.Module, example: jax.ShapeDtypeStruct) -> Cost:
    flops = tower.flops(example.shape[1:])
    return Cost(*_numbers(tower, example), flops)


def _numbers(module: nn.Module, *examples: Any) -> tuple[int, int]:
    """Parameters, and statistics among them."""
    made = jax.eval_shape(lambda *inputs: module.init(jax.random.key(0), *inputs), *examples)
    leaves, _ = jax.tree_util.tree_flatten_with_path(nn.unbox(made)["params"])
    kept = sum(leaf.size for path, leaf in leaves if path[-1].key in ("mean", "var"))
    return sum(leaf.size for _, leaf in leaves) - kept, kept


def _tokens(tower: nn.Module, example: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    made = jax.eval_shape(lambda x: tower.init_with_output(jax.random.key(0), x)[0], example)
    tokens: jax.ShapeDtypeStruct = made.tokens
    return tokens
