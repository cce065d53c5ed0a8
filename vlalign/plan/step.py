"""The real training step, compiled for a target: the one place where planning touches training.

No record and no vocabulary is read: a stand-in tokenizer has the configured length.
"""

import dataclasses
import re
import time
import typing
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh

from vlalign.data.tokenizer import Bpe
from vlalign.data.tokenizers.base import TextTokenizer
from vlalign.errors import UserError
from vlalign.plan.target import Target
from vlalign.train.assemble import Assembly, assemble
from vlalign.train.describe import step_flops
from vlalign.train.step import compile_step, make_step

if TYPE_CHECKING:
    from vlalign.experiment import Experiment


class DoesNotFit(Exception):
    """The compiler found no place: `needed` (at least) and `limit`, bytes of a device."""

    def __init__(self, needed: int, limit: int) -> None:
        super().__init__(f"needs {needed} bytes of {limit}")
        self.needed, self.limit = needed, limit


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled step.

    flops: of the model, all devices (forward, and twice that backward).   seconds: of compiling.
    """

    parts: Assembly
    compiled: jax.stages.Compiled
    flops: int
    seconds: float


def stand_in(config: Any) -> TextTokenizer:
    """A tokenizer of the configured length that knows bytes only, for want of the vocabulary.

    Rows have the right shape; whether a token table has rows enough, training says.
    """
    length = getattr(config, "length", None)
    if not isinstance(length, int):
        raise UserError(
            f"data.tokenizer={type(config).__name__} names no `length`, which a plan has to know"
        )
    return Bpe(vocab_size=259, length=length).train(["bytes"])


def mesh_of(experiment: "Experiment", target: Target) -> Mesh:
    """The experiment's mesh over the target's devices. Raises UserError if they do not fit."""
    return experiment.mesh.build(list(target.devices))


def parts_of(experiment: "Experiment", target: Target) -> Assembly:
    """Checks that an experiment can run on a target, and lays its state out there."""
    tokenizer = stand_in(experiment.data.tokenizer)
    return assemble(experiment, tokenizer, mesh=mesh_of(experiment, target))


def compile_for(experiment: "Experiment", target: Target) -> Step:
    """Compiles the step. Raises UserError for what cannot run, DoesNotFit for too little memory."""
    parts = parts_of(experiment, target)
    step = make_step(
        experiment.model,
        experiment.objectives,
        experiment.optimizer,
        parts.plan,
        seed=experiment.seed,
        steps=experiment.train.steps,
        micro_batches=experiment.train.micro_batches,
        ema_decay=experiment.train.ema,
    )
    start = time.perf_counter()
    try:
        shapes = parts.batch_shapes(experiment.data.batch_size)
        compiled = compile_step(step, parts.plan, parts.mesh, shapes)
    except jax.errors.JaxRuntimeError as error:
        raise _worded(error) from error
    flops = step_flops(experiment, parts.example)
    return Step(parts, compiled, flops, time.perf_counter() - start)


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# libtpu finds out early, from the temporary arrays alone, or when it lays all memory out.
_TOO_MUCH = (
    r"HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)",
    r"[Uu]sed ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm",
)


def _worded(error: Exception) -> Exception:
    """DoesNotFit where the compiler says how much memory is missing; any other error as it is."""
    for pattern in _TOO_MUCH:
        if found := re.search(pattern, str(error)):
            needed, limit = (float(found[i]) * _UNITS[found[i + 1]] for i in (1, 3))
            return DoesNotFit(int(needed), int(limit))
    return error


def remat_choices(experiment: "Experiment") -> tuple[str, ...]:
    """What `remat` of the towers may be: the values that the type of all of them allows."""
    choices: tuple[str, ...] | None = None
    for module in experiment.model.values():
        hints = typing.get_type_hints(type(module))
        values = tuple(str(value) for value in typing.get_args(hints.get("remat")))
        choices = values if choices is None else tuple(v for v in choices if v in values)
    return choices or ()
