"""The training state: what it holds, and how it comes into being sharded from the first byte."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from flax.core import meta
from jax.sharding import Mesh

from vlalign.errors import UserError, nearest
from vlalign.objectives.base import Objective
from vlalign.parallel.rules import AxisRules, axis_names, tree_shardings
from vlalign.train.optimizer import Optimizer, split


@struct.dataclass
class TrainState:
    """Everything a step changes; no rng, which is fold_in(seed, step).

    step: () int32, steps done.   params: tower name -> parameters, and "objectives".
    opt_state: of the trained parameters only.   memory: objective name -> its memory.
    ema: moving average of `params` in float32, or None.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    memory: Any
    ema: Any


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """All that is known of the state before it exists.

    init: key -> TrainState.   shapes: TrainState of ShapeDtypeStructs.   shardings: likewise.
    names: parameter path -> axis names.   trainable: tree of bools like params.
    tx: the optax chain.
    """

    init: Any
    shapes: TrainState
    shardings: TrainState
    names: dict[str, tuple[str | None, ...]]
    trainable: Any
    tx: optax.GradientTransformation

    def create(self, seed: int) -> TrainState:
        """The state at step 0, each device making only its own part."""
        # It runs once: on CPU, optimising it costs more than it saves (5 s against 2 s).
        options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        init = jax.jit(self.init, out_shardings=self.shardings, compiler_options=options)
        state: TrainState = init(jax.random.key(seed))
        return state

    def abstract(self) -> TrainState:
        """Shapes with shardings: what a checkpoint is restored into."""
        state: TrainState = jax.tree.map(
            lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
            self.shapes,
            self.shardings,
        )
        return state


def init_params(
    model: Mapping[str, nn.Module],
    objectives: Mapping[str, Objective],
    example: Mapping[str, Any],
    rng: jax.Array,
) -> dict[str, Any]:
    """Parameters of towers and objectives at the start, boxed with their axis names.

    example: batch field -> array of the right shape; a tower reads the field of its own name.
    """
    params: dict[str, Any] = {}
    for name, module in model.items():
        if name not in example:
            raise UserError(
                f"model.{name}: no data view of that name{nearest(name, example)}; a tower is "
                "initialised on the view named like it"
            )
        key = jax.random.fold_in(rng, _name_number(name))
        params[name] = module.init({"params": key}, example[name])["params"]
    params["objectives"] = {
        name: objective.init(jax.random.fold_in(rng, _name_number(name)))
        for name, objective in objectives.items()
    }
    return params


def _name_number(name: str) -> int:
    # By name, not by order: adding a tower does not change how the others begin.
    return int.from_bytes(name.encode()[:4].ljust(4, b"\0"), "big") % (2**31)


def blueprint(
    model: Mapping[str, nn.Module],
    objectives: Mapping[str, Objective],
    optimizer: Optimizer,
    example: Mapping[str, np.ndarray],
    mesh: Mesh,
    rules: AxisRules,
    *,
    steps: int,
    batch_size: int,
    ema: bool,
) -> Blueprint:
    """Plans the state without making any of it. example: fields without the batch's own rows."""
    arrays = {name: jnp.asarray(value) for name, value in example.items()}
    boxed = jax.eval_shape(lambda key: init_params(model, objectives, arrays, key), _KEY)
    names = axis_names(boxed)
    trainable = optimizer.trainable(meta.unbox(boxed))
    tx = optimizer.build(names, steps)

    def init(key: jax.Array) -> TrainState:
        params = meta.unbox(init_params(model, objectives, arrays, key))
        towers = {name: params[name] for name in model}
        memory = {name: o.init_memory(towers, batch_size) for name, o in objectives.items()}
        trained, _ = split(params, trainable)
        average = jax.tree.map(jnp.copy, params) if ema else None
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(trained), memory, average)

    shapes = jax.eval_shape(init, _KEY)
    shardings = tree_shardings(shapes, names, rules, mesh)
    return Blueprint(init, shapes, shardings, names, trainable, tx)


_KEY = jax.ShapeDtypeStruct((), jax.eval_shape(lambda: jax.random.key(0)).dtype)
