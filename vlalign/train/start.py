"""Where a run goes on from: its own newest checkpoint, else `init_from`, else the seed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from vlalign.data.views import ImagePreparation
from vlalign.errors import UserError
from vlalign.interop.bundle import Bundle
from vlalign.interop.convert import load_over
from vlalign.interop.hub import SCHEME
from vlalign.interop.numerics import Target
from vlalign.parallel.rules import check_sharded
from vlalign.train.assemble import Assembly
from vlalign.train.checkpoint import Checkpoints, newest_step
from vlalign.train.state import TrainState
from vlalign.versions import versions

if TYPE_CHECKING:
    from vlalign.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class Start:
    """state: to go on from.   step: the state's.   skipped: batches of the data left out so far
    (the batch of step s is number s + skipped).   origin: for people.
    """

    state: TrainState
    step: int
    skipped: int
    origin: str


def find_start(experiment: Experiment, parts: Assembly, checkpoints: Checkpoints) -> Start:
    """The state to go on from. Raises UserError if the run's checkpoints are of another run."""
    restored = checkpoints.restore_newest(parts.plan.abstract())
    if restored is not None:
        state, meta = restored
        _check_meta(meta, data_meta(experiment, parts))
        step = int(state.step)
        origin = f"going on from step {step} ({checkpoints.directory})"
        return Start(state, step, int(meta.get("skipped", 0)), origin)
    state = parts.plan.create(experiment.seed)
    check_sharded(state.params, parts.mesh)
    if experiment.train.init_from is None:
        return Start(state, 0, 0, f"starting from seed {experiment.seed}")
    state, origin = _with_params_of(experiment.train.init_from, experiment, parts, state)
    return Start(state, 0, 0, origin)


def _with_params_of(
    source: str, experiment: Experiment, parts: Assembly, state: TrainState
) -> tuple[TrainState, str]:
    place = Path(source)
    is_run = (place / "config.txt").exists() or (place / "checkpoints").exists()
    if not is_run and (source.startswith(SCHEME) or place.exists()):
        found, origin = _of_model(source, experiment, parts, state)
    else:
        found, origin = _of_run(source, experiment, parts)
    params = {**state.params, **found}
    if state.ema is not None:
        average = jax.tree.map(lambda x: x.copy(), params)
        state = dataclasses.replace(state, ema=average)
    memory = _memory_of(experiment, parts, {name: params[name] for name in experiment.model})
    return dataclasses.replace(state, params=params, memory=memory), origin


def _memory_of(experiment: Experiment, parts: Assembly, towers: dict[str, Any]) -> dict[str, Any]:
    """The objectives' memory at the start: a copy of the towers, say, is one of these."""

    def init(towers: dict[str, Any]) -> dict[str, Any]:
        size = experiment.data.batch_size
        return {name: o.init_memory(towers, size) for name, o in experiment.objectives.items()}

    made: dict[str, Any] = jax.jit(init, out_shardings=parts.plan.shardings.memory)(towers)
    return made


def _of_run(source: str, experiment: Experiment, parts: Assembly) -> tuple[dict[str, Any], str]:
    """The towers of a run, all of them."""
    directory = Path(source) / "checkpoints"
    step = newest_step(directory)
    if step is None:
        raise UserError(f"train.init_from={source}: no model, and no checkpoint below {directory}")
    reader = Checkpoints(directory, read_only=True)
    towers = {name: parts.plan.abstract().params[name] for name in experiment.model}
    found: dict[str, Any] = reader.restore_part(step, {"params": towers})["params"]
    reader.close()
    return found, f"starting from the parameters of {source}, step {step}"


def _of_model(
    source: str, experiment: Experiment, parts: Assembly, state: TrainState
) -> tuple[dict[str, Any], str]:
    """The towers of a model that have a name here, and its scale and bias where they are learned.

    Raises UserError if the model would give other numbers here, naming what differs.
    """
    view: object = experiment.data.views.get("image")
    maxima = [getattr(o, "logit_scale_max", None) for o in experiment.objectives.values()]
    target = Target(
        model=experiment.model,
        pixels=view.spec() if isinstance(view, ImagePreparation) else {},
        context_length=parts.tokenizer.length,
        tokenizer=parts.tokenizer.fingerprint(),
        logit_scale_max=min((limit for limit in maxima if limit is not None), default=None),
    )
    try:
        bundle = load_over(source, target)
    except UserError as error:
        options = [name for name in ("--tokenizer", "--config") if name in str(error)]
        hint = (
            "\n(that is an option of `vlalign convert`: convert first, and name here what it wrote)"
        )
        raise UserError(f"train.init_from={source}: {error}{hint if options else ''}") from error
    shared = [name for name in experiment.model if name in bundle.params]
    if not shared:
        raise UserError(
            f"train.init_from={source} has the towers {', '.join(bundle.params)}, and this model "
            f"none of these names: it has {', '.join(experiment.model)}"
        )
    own, scalars = _scalars(bundle, state.params["objectives"])
    given = {name: bundle.params[name] for name in shared} | {"objectives": own}
    abstract = {name: parts.plan.abstract().params[name] for name in given}
    found: dict[str, Any] = jax.tree.map(_placed, given, abstract)
    others = [name for name in experiment.model if name not in shared]
    rest = f"; {', '.join(others)} from seed {experiment.seed}" if others else ""
    return found, f"starting from {', '.join([*shared, *scalars])} of {bundle.origin}{rest}"


def _scalars(bundle: Bundle, objectives: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The objectives' parameters with the model's scale and bias, and which of them it gave."""
    names = ("logit_scale", "logit_bias")
    given = {name: getattr(bundle, name) for name in names if getattr(bundle, name) is not None}
    taken = [name for name in given if any(name in own for own in objectives.values())]
    found = {
        objective: {name: given.get(name, value) for name, value in own.items()}
        for objective, own in objectives.items()
    }
    return found, taken


def _placed(value: Any, spec: Any) -> jax.Array:
    """On the devices as `spec` says; each process gives its own devices their parts."""
    if isinstance(value, jax.Array):
        return value
    array = np.asarray(value, spec.dtype)
    if array.shape != spec.shape:
        raise UserError(f"train.init_from: a parameter is {array.shape}, here it is {spec.shape}")
    return jax.make_array_from_callback(spec.shape, spec.sharding, array.__getitem__)


def save_meta(experiment: Experiment, parts: Assembly, step: int, skipped: int) -> dict[str, Any]:
    """What stands beside the state in a checkpoint."""
    position = (step + skipped) * experiment.data.batch_size
    where = {"position": position, "skipped": skipped, "versions": versions()}
    return data_meta(experiment, parts) | where


def data_meta(experiment: Experiment, parts: Assembly) -> dict[str, Any]:
    """What must not change between a checkpoint and the run that goes on from it."""
    return {
        "data": experiment.data.fingerprint(),
        "tokenizer": parts.tokenizer.fingerprint(),
        "seed": experiment.seed,
        "batch_size": experiment.data.batch_size,
    }


def _check_meta(saved: dict[str, Any], now: dict[str, Any]) -> None:
    for name, value in now.items():
        if saved.get(name) != value:
            raise UserError(
                f"the checkpoint was made with another {name} ({saved.get(name)}, now {value}): "
                "going on would not be the same run; put it back, or use a new --run-dir"
            )
