"""Golden files of other people's towers at random weights, and our parameters made of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from vlalign.interop.rows import Table, export_params, import_params
from vlalign.parallel.rules import path_str

Arrays = Mapping[str, np.ndarray]
GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def part(arrays: Arrays, prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with `prefix`, without it."""
    return {key.removeprefix(prefix): x for key, x in arrays.items() if key.startswith(prefix)}


def flat(tree: Any) -> dict[str, np.ndarray]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {path_str(path): np.asarray(leaf) for path, leaf in leaves}


def parameters(module: nn.Module, table: Table, theirs: Arrays, *inputs: Any) -> Any:
    """The module's parameters from their tensors. inputs: what it is called with."""
    made = meta.unbox(jax.eval_shape(module.init, jax.random.key(0), *inputs))["params"]
    leaves, tree = jax.tree_util.tree_flatten_with_path(made)
    shapes = {path_str(path): leaf.shape for path, leaf in leaves}
    found = import_params(table, theirs, shapes)
    return jax.tree.unflatten(tree, [jnp.asarray(found[path]) for path in shapes])


def wave(x: jax.Array) -> jax.Array:
    """cos(0, 1, ...) in the shape of `x`: what the sums behind the gradients weigh by."""
    return jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)


def check_gradients(table: Table, grads: Any, arrays: Arrays, least: int) -> None:
    """That our gradients, in their names, are those of the file (grad/NAME), `least` or more."""
    ours, wanted = export_params(table, flat(grads)), part(arrays, "grad/")
    assert len(wanted) >= least
    for name, slope in wanted.items():
        assert np.abs(slope).max() > 1e-2, f"{name}: too small to compare"
        np.testing.assert_allclose(ours[name], slope, rtol=0, atol=1e-4, err_msg=name)
