"""Policies of what the backward pass keeps: names that exist, equal gradients, memory in order."""

import functools
import itertools
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from jax.extend import core

from vlalign.encoders.blocks import Block, Stack
from vlalign.encoders.remat import KEPT, Mark, Remat
from vlalign.errors import UserError

# From the least memory to the most.
ORDER = ("full", "attention", "dots", "minimal", "none")


def stack(**options: Any) -> Stack:
    return Stack(32, 3, 4, 128, **options)


@functools.cache
def example(batch: int = 2, length: int = 16) -> tuple[Any, jax.Array]:
    x = jax.random.normal(jax.random.key(1), (batch, length, 32), jnp.float32)
    return meta.unbox(jax.jit(stack().init)(jax.random.key(0), x)), x


def gradients(batch: int = 2, **options: Any) -> jax.stages.Compiled:
    params, x = example(batch)

    def loss(p: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(stack(**options).apply(p, x)))

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(params, x).compile()


def names_in(jaxpr: core.Jaxpr) -> set[str]:
    """The names that `checkpoint_name` gave to anything computed in a jaxpr."""
    found = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "name":
            found.add(equation.params["name"])
        for inner in jax.tree.leaves(
            equation.params, is_leaf=lambda x: isinstance(x, core.Jaxpr | core.ClosedJaxpr)
        ):
            if isinstance(inner, core.ClosedJaxpr):
                found |= names_in(inner.jaxpr)
            elif isinstance(inner, core.Jaxpr):
                found |= names_in(inner)
    return found


def test_a_block_computes_every_name_that_a_policy_keeps() -> None:
    block = Block(32, 4, 128, "gelu", 1.0, 1e-6, "float32")
    x = jnp.zeros((2, 16, 32), jnp.float32)
    params = jax.eval_shape(block.init, jax.random.key(0), x, None)
    found = names_in(jax.make_jaxpr(lambda p: block.apply(p, x, None))(params).jaxpr)
    assert found == set(get_args(Mark))
    assert {name for names in KEPT.values() for name in names} <= found


def test_every_policy_has_its_place_in_the_order() -> None:
    assert sorted(ORDER) == sorted(get_args(Remat))


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("remat", ORDER[:-1])
def test_gradients_are_equal(remat: Any, scan: bool) -> None:
    params, x = example()
    got, wanted = gradients(remat=remat, scan=scan)(params, x), gradients()(params, x)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_memory_is_in_the_documented_order() -> None:
    done = [gradients(64, remat=remat) for remat in ORDER]
    memory = [compiled.memory_analysis().temp_size_in_bytes for compiled in done]
    assert all(less < more for less, more in itertools.pairwise(memory)), memory


def test_work_is_in_the_opposite_order() -> None:
    # Unrolled: of a loop the compiler counts the body once.
    done = [gradients(remat=remat, scan=False) for remat in ORDER]
    flops = [compiled.cost_analysis()["flops"] for compiled in done]
    assert all(more > less for more, less in itertools.pairwise(flops)), flops


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(UserError, match=r"remat='atention'; nearest: attention"):
        jax.eval_shape(stack(remat="atention").init, jax.random.key(0), example()[1])
