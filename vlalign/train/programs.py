"""The compiled steps of a run: one for each size of the pictures (`Data.sizes`), mostly one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from vlalign.train.assemble import Assembly
from vlalign.train.describe import describe_compiled, step_flops
from vlalign.train.step import compile_step, make_step

if TYPE_CHECKING:
    from vlalign.experiment import Experiment

Shapes = tuple[tuple[str, tuple[int, ...]], ...]


class Programs:
    """Compiles before the first step all that the steps to come need, and finds the right one."""

    def __init__(self, experiment: Experiment, parts: Assembly):
        """parts: of the same experiment."""
        self._experiment, self._parts = experiment, parts
        self._compiled: dict[Shapes, jax.stages.Compiled] = {}
        self._examples: list[tuple[int, dict[str, np.ndarray]]] = [
            (first, experiment.data.example(parts.tokenizer, step=first))
            for first, _ in experiment.data.stages()
        ]

    def compile_from(self, first: int) -> Iterator[str]:
        """Compiles what the steps from `first` on need; yields a description of each program."""
        config = self._experiment.train
        step = make_step(
            self._experiment.model,
            self._experiment.objectives,
            self._experiment.optimizer,
            self._parts.plan,
            seed=self._experiment.seed,
            steps=config.steps,
            micro_batches=config.micro_batches,
            ema_decay=config.ema,
        )
        ends = [start for start, _ in self._examples[1:]] + [config.steps]
        for (start, example), end in zip(self._examples, ends, strict=True):
            shapes = self._parts.batch_shapes(self._experiment.data.batch_size, example)
            if end <= first or start >= config.steps or _key(shapes) in self._compiled:
                continue
            began = time.perf_counter()
            compiled = compile_step(step, self._parts.plan, self._parts.mesh, shapes)
            self._compiled[_key(shapes)] = compiled
            flops = step_flops(self._experiment, example)
            yield describe_compiled(self._parts, compiled, flops, time.perf_counter() - began)

    def of(self, batch: Mapping[str, jax.Array]) -> Any:
        """The program for a batch of these shapes."""
        return self._compiled[_key(batch)]

    def flops_of(self, step: int) -> int:
        """FLOPs of the matrix products of a step."""
        example = next(example for first, example in reversed(self._examples) if first <= step)
        return step_flops(self._experiment, example)


def _key(batch: Mapping[str, Any]) -> Shapes:
    return tuple(sorted((name, tuple(array.shape)) for name, array in batch.items()))
