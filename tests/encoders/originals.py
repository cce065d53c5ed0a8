"""Golden files of other people's towers at random weights, and our parameters made of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from vlalign.encoders.encoding import Encoding
from vlalign.interop.rows import Table, export_params, import_params
from vlalign.parallel.mesh import MeshSpec, batch_sharding
from vlalign.parallel.rules import AxisRules, axis_names, path_str, tree_shardings

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


def check_on_a_mesh(module: nn.Module, *inputs: Any) -> None:
    """That values and gradients are the same with parameters and batch cut over 8 devices."""
    boxed = jax.jit(module.init)(jax.random.key(0), *inputs)["params"]
    params, names = meta.unbox(boxed), axis_names(boxed)

    def total(params: Any, *inputs: Any) -> Any:
        out: Any = module.apply({"params": params}, *inputs)
        y = out.pooled if isinstance(out, Encoding) else out
        return jnp.mean(wave(y) * y), y

    run = jax.jit(jax.grad(total, has_aux=True))
    wanted = run(params, *inputs)
    mesh = MeshSpec(data=2, fsdp=2, tensor=2).build()
    shardings = tree_shardings(params, names, AxisRules(whole_below=1), mesh)
    cut = jax.device_put(inputs, batch_sharding(mesh))
    with jax.set_mesh(mesh):
        found = run(jax.device_put(params, shardings), *cut)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, wanted)
