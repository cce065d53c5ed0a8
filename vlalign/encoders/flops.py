"""FLOPs of the products of a module, counted in its own program.

A count of its own would be the architecture written down twice. The traced program holds every
matrix product and convolution with its shapes; loops count as often as they turn.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def traced_flops(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Forward FLOPs of matrix products and convolutions for one image of `shape` (h, w, 3).

    A product of a and b costs two: a multiplication and an addition. Products with the zeros of a
    padding count, as is usual.
    """
    module = module.clone(parent=None, name=None)

    def forward() -> Any:
        images = jnp.zeros((1, *shape), jnp.float32)
        return module.init_with_output(jax.random.key(0), images)[0]

    return program_flops(forward)


def program_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """FLOPs of the matrix products and convolutions in `function(*arguments)`."""
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            (left, _), _ = equation.params["dimension_numbers"]
            contracted = math.prod(equation.invars[0].aval.shape[axis] for axis in left)
            total += 2 * equation.outvars[0].aval.size * contracted
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            outputs = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * equation.outvars[0].aval.size * (kernel.size // outputs)
        elif name == "pallas_call":
            total += equation.params["cost_estimate"].flops
        else:
            times = equation.params["length"] if name == "scan" else 1
            total += times * sum(_count(inner) for inner in _inner(equation.params))
    return total


def _inner(parameters: dict[str, Any]) -> Iterator[Any]:
    """The programs that an operation (a loop, a call, a rematerialised part) consists of."""
    for value in parameters.values():
        value = getattr(value, "jaxpr", value)
        if hasattr(value, "eqns"):
            yield value
