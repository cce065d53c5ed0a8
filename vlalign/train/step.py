"""The one compiled step."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vlalign.objectives.base import Arrays, Objective
from vlalign.objectives.total import total_loss
from vlalign.parallel.mesh import batch_sharding, replicated
from vlalign.train.optimizer import Optimizer, merge, split
from vlalign.train.rows import count_rows
from vlalign.train.state import Blueprint, TrainState

Step = Callable[[TrainState, Arrays, Arrays], tuple[TrainState, Arrays]]

# Fields about rows, which the towers have no use for.
_ACCOUNT = ("problem", "truncated")


def make_step(
    model: Mapping[str, nn.Module],
    objectives: Mapping[str, Objective],
    optimizer: Optimizer,
    plan: Blueprint,
    *,
    seed: int,
    steps: int,
    micro_batches: int,
    ema_decay: float | None,
) -> Step:
    """The pure function (state, batch, signals) -> (state', metrics).

    signals: see `signals`. If "number" is not the state's own step, or loss or gradient are not
    finite, the state comes back as it was: after a bad step the ones already on their way change
    nothing, and what is saved is the last good state. metrics["ok"] says so; metrics["stop"] tells
    all hosts at the same step that one of them was asked to stop.
    """

    def moved(state: TrainState, grads: Any, memory: Any) -> TrainState:
        return _moved(state, grads, memory, plan, objectives, ema_decay)

    def step(state: TrainState, batch: Arrays, signals: Arrays) -> tuple[TrainState, Arrays]:
        account = count_rows(batch)
        batch = {name: x for name, x in batch.items() if name not in _ACCOUNT}
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        trained, frozen = split(state.params, plan.trainable)

        def loss_fn(trained: Any) -> tuple[jax.Array, tuple[Arrays, dict[str, Any]]]:
            return total_loss(
                model,
                objectives,
                merge(trained, frozen),
                state.memory,
                batch,
                rng,
                state.step,
                micro_batches=micro_batches,
            )

        (loss, (metrics, memory)), grads = jax.value_and_grad(loss_fn, has_aux=True)(trained)
        grad_norm = optax.tree.norm(grads)
        ok = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & (signals["number"] == state.step)
        # A branch, not a selection of every array: what is left as it was is not read, and on CPU
        # the new state is written in place, where a selection copies the old one first.
        new = jax.lax.cond(ok, moved, lambda state, grads, memory: state, state, grads, memory)
        metrics |= account | {
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": optimizer.rate(state.step, steps),
            "examples": jnp.sum((batch["weight"] > 0).astype(jnp.float32)),
            "ok": ok,
            "stop": jnp.any(signals["stop"]),
        }
        return new, metrics

    return step


def _moved(
    state: TrainState,
    grads: Any,
    memory: Any,
    plan: Blueprint,
    objectives: Mapping[str, Objective],
    ema_decay: float | None,
) -> TrainState:
    """The state after the step, with the objectives' next memory."""
    trained, frozen = split(state.params, plan.trainable)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes its counters with floats
        updates, opt_state = plan.tx.update(grads, state.opt_state, trained)
    params = merge(optax.apply_updates(trained, updates), frozen)
    own = params["objectives"]
    own = {name: objective.finish(own[name]) for name, objective in objectives.items()}
    params = {**params, "objectives": own}
    ema = _average(state.ema, params, state.step, ema_decay)
    return TrainState(state.step + 1, params, opt_state, memory, ema)


def signals(mesh: Mesh, number: int, *, stop: bool = False) -> Arrays:
    """What the step is told beside its batch.

    number: of the step that the batch belongs to -> "number" () int32.
    stop: whether this host was asked to stop -> "stop" (devices,) bool, a part from each device.
    """
    own = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    everyone = np.full(mesh.size, stop)
    asked = jax.make_array_from_callback(everyone.shape, own, everyone.__getitem__)
    step = jax.make_array_from_callback((), replicated(mesh), lambda _: np.int32(number))
    return {"number": step, "stop": asked}


def _options(mesh: Mesh) -> dict[str, Any] | None:
    """Compiler options of the mesh's platform."""
    if mesh.devices.flat[0].platform != "tpu":
        return None
    # The partitioner would turn FSDP's gathers of weights into loops that send narrow slices on:
    # 890 against 601 ms for two layers of So400m on v5p:2x2x4, by the compiler's own estimate.
    return {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}


def _average(ema: Any, params: Any, step: jax.Array, decay: float | None) -> Any:
    if decay is None:
        return None
    # Warm-up: early on the average follows closely, or it would stay at the random start.
    done = step.astype(jnp.float32)
    rate = jnp.minimum(decay, (1.0 + done) / (10.0 + done))
    return jax.tree.map(lambda a, p: a + (1.0 - rate) * (p - a), ema, params)


def compile_step(
    step: Step, plan: Blueprint, mesh: Mesh, batch: Mapping[str, jax.ShapeDtypeStruct]
) -> jax.stages.Compiled:
    """The step compiled for a mesh: the state donated, all shardings pinned.

    batch: field -> shape and dtype of the global batch. Call the result with the state, a batch and
    `signals`, within `jax.set_mesh`.
    """
    rows = batch_sharding(mesh)
    fields = {
        name: jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=rows)
        for name, spec in batch.items()
    }
    whole = replicated(mesh)
    own = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    told = {
        "number": jax.ShapeDtypeStruct((), jnp.int32, sharding=whole),
        "stop": jax.ShapeDtypeStruct((mesh.size,), jnp.bool_, sharding=own),
    }
    with jax.set_mesh(mesh):
        jitted = jax.jit(step, donate_argnums=(0,), out_shardings=(plan.shardings, whole))
        return jitted.lower(plan.abstract(), fields, told).compile(_options(mesh))
