"""Where a run goes on from: its own newest checkpoint, else `init_from`, else the seed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from vlalign.errors import UserError
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
    directory = Path(source) / "checkpoints"
    step = newest_step(directory)
    if step is None:
        raise UserError(f"train.init_from={source}: no checkpoint below {directory}")
    reader = Checkpoints(directory, read_only=True)
    towers = {name: parts.plan.abstract().params[name] for name in experiment.model}
    found = reader.restore_part(step, {"params": towers})["params"]
    reader.close()
    params = {**state.params, **found}
    if state.ema is not None:
        average = jax.tree.map(lambda x: x.copy(), params)
        state = dataclasses.replace(state, ema=average)
    origin = f"starting from the parameters of {source}, step {step}"
    return dataclasses.replace(state, params=params), origin


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
