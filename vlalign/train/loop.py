"""The loop. Its order is a contract, kept by a test:

restore -> compile -> (evals due, save due or signal, next batch, step, last step's metrics, log).
Evaluations come before a save, so that a checkpoint never stands for results that were not written;
the data position is the step, so a batch is drawn only for a step that will be taken.
"""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from vlalign.data.record import PROBLEMS
from vlalign.errors import UserError
from vlalign.evals.base import remember
from vlalign.evals.embedder import Embedder
from vlalign.evals.results import flat, read_metrics, write_results
from vlalign.parallel.rules import check_sharded
from vlalign.train.assemble import Assembly, assemble, run_tokenizer, run_tools
from vlalign.train.checkpoint import Checkpoints, newest_step
from vlalign.train.describe import describe_compiled
from vlalign.train.feed import Feed
from vlalign.train.metrics import MetricWriter, Progress, clock
from vlalign.train.state import TrainState
from vlalign.train.step import compile_step, make_step
from vlalign.versions import versions

if TYPE_CHECKING:
    from vlalign.experiment import Experiment


class Diverged(UserError):
    """Loss or gradient stopped being finite."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    step: steps done.   finished: False if a signal asked it to stop before the last step.
    """

    step: int
    finished: bool


def train(experiment: Experiment, run_dir: Path, *, quiet: bool = False) -> Outcome:
    """Trains, or goes on training, in `run_dir`.

    Called again after any kind of end it goes on from the newest checkpoint there, to the same
    parameters bit for bit. Raises UserError for bad input, Diverged for a loss that is not finite.
    """
    started = time.perf_counter()
    run_dir.mkdir(parents=True, exist_ok=True)
    parts = assemble(experiment, run_tokenizer(experiment, run_dir))
    checkpoints = Checkpoints(
        run_dir / "checkpoints",
        keep=experiment.train.keep,
        keep_every=experiment.train.keep_every,
    )
    try:
        with jax.set_mesh(parts.mesh):
            state, origin = _start(experiment, parts, checkpoints)
            loop = _Loop(experiment, run_dir, parts, checkpoints, int(state.step), quiet=quiet)
            loop.progress.say(origin)
            try:
                return loop.run(state, started)
            finally:
                loop.writer.close()
    finally:
        checkpoints.close()


def _start(
    experiment: Experiment, parts: Assembly, checkpoints: Checkpoints
) -> tuple[TrainState, str]:
    """The state to go on from: own checkpoint, else `init_from`, else the seed."""
    restored = checkpoints.restore_newest(parts.plan.abstract())
    if restored is not None:
        state, meta = restored
        _check_meta(meta, data_meta(experiment, parts))
        return state, f"going on from step {int(state.step)} ({checkpoints.directory})"
    state = parts.plan.create(experiment.seed)
    check_sharded(state.params, parts.mesh)
    source = experiment.train.init_from
    if source is None:
        return state, f"starting from seed {experiment.seed}"
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


class _Loop:
    """One process's passage through the steps of a run."""

    def __init__(
        self,
        experiment: Experiment,
        run_dir: Path,
        parts: Assembly,
        checkpoints: Checkpoints,
        first: int,
        *,
        quiet: bool,
    ):
        self.experiment, self.parts, self.checkpoints = experiment, parts, checkpoints
        self.config, self.first, self.run_dir = experiment.train, first, run_dir
        quiet = quiet or jax.process_index() != 0
        self.progress = Progress(self.config.steps, first, experiment.data.batch_size, quiet=quiet)
        self.writer = MetricWriter(run_dir, first_step=first)
        self.evaluated = _evaluated_steps(run_dir)
        self.embedder = Embedder(experiment.model, parts.mesh, self.config.eval_batch_size)
        self.tools = run_tools(experiment, parts.tokenizer)
        self.prepared: dict[str, Any] = {}
        self.stop = False

    def run(self, state: TrainState, started: float) -> Outcome:
        """From `state` to the last step or a signal."""
        if self.first == self.config.steps and self.first in self.evaluated:
            self.progress.say(f"all {self.first} steps were done before")
            return Outcome(self.first, True)
        compiled = self._compile()
        batches = self.experiment.data.batches(
            self.parts.tokenizer,
            seed=self.experiment.seed,
            start_step=self.first,
            host=jax.process_index(),
            hosts=jax.process_count(),
        )
        feed = Feed(
            batches, self.parts.mesh, kinds=PROBLEMS, max_bad_share=self.config.max_bad_share
        )
        try:
            with _on_sigterm(self):
                state = self._steps(state, compiled, feed, started)
                self._save(state)
                self.checkpoints.wait()
        finally:
            batches.close()
        if feed.summary():
            self.progress.say(f"rows not used as they were, of {feed.seen}: {feed.summary()}")
        step = int(state.step)
        if step < self.config.steps:
            self.progress.say(f"stopped by SIGTERM at step {step}, saved; the same command goes on")
        return Outcome(step, step == self.config.steps)

    def _compile(self) -> jax.stages.Compiled:
        start = time.perf_counter()
        step = make_step(
            self.experiment.model,
            self.experiment.objectives,
            self.experiment.optimizer,
            self.parts.plan,
            seed=self.experiment.seed,
            steps=self.config.steps,
            micro_batches=self.config.micro_batches,
            ema_decay=self.config.ema,
        )
        shapes = self.parts.batch_shapes(self.experiment.data.batch_size)
        compiled = compile_step(step, self.parts.plan, self.parts.mesh, shapes)
        seconds = time.perf_counter() - start
        self.progress.say(describe_compiled(self.experiment, self.parts, compiled, seconds))
        return compiled

    def _steps(self, state: TrainState, compiled: Any, feed: Feed, started: float) -> TrainState:
        pending: tuple[int, dict[str, jax.Array]] | None = None
        for step in range(self.first, self.config.steps):
            if self._due(step):
                self._settle(pending, feed, state)
                pending = None
                self._evaluate(step, state)
            if self.stop or (step % self.config.save_every == 0 and step > self.first):
                self._settle(pending, feed, state)
                pending = None
                self._save(state)
            if self.stop:
                return state
            batch = feed.next()
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = compiled(state, batch, np.int32(step))
            if step == self.first:
                jax.block_until_ready(metrics["loss"])
                seconds = time.perf_counter() - started
                self.progress.say(f"first step done {seconds:.1f} s after the start")
            self._settle(pending, feed, state)
            pending = (step, metrics)
        self._settle(pending, feed, state)
        if self.config.steps not in self.evaluated:
            self._evaluate(self.config.steps, state, last=True)
        return state

    def _settle(
        self, pending: tuple[int, dict[str, jax.Array]] | None, feed: Feed, state: TrainState
    ) -> None:
        """Fetches, checks and logs the metrics of the step before the one just dispatched."""
        if pending is None:
            return
        step, metrics = pending
        if not bool(metrics["ok"]):
            self._diverged(step, {k: float(v) for k, v in metrics.items()}, state)
        done = step + 1
        if done % self.config.log_every == 0 or done == self.config.steps:
            values = {name: float(value) for name, value in metrics.items() if name != "ok"}
            speed = self.progress.speed(done)
            values |= {"samples_per_s": speed, "data_wait": feed.wait_share()}
            values |= {f"rows/{kind}": float(n) for kind, n in feed.problems.items()}
            self.writer.write(done, values)
            self.progress.line(done, values, speed)

    def _diverged(self, step: int, values: dict[str, float], state: TrainState) -> None:
        self.writer.write(step + 1, values)
        self._save(state)
        self.checkpoints.wait()
        raise Diverged(
            f"step {step + 1}: loss {values['loss']}, gradient norm {values['grad_norm']} is not "
            f"finite; the state before it (step {step}) is saved in {self.checkpoints.directory}. "
            "Lower optimizer.learning_rate or set optimizer.clip_norm, and start a new run with "
            "train.init_from=RUN"
        )

    def _due(self, step: int) -> bool:
        return step > 0 and step not in self.evaluated and bool(self._evaluators(step, last=False))

    def _evaluators(self, step: int, *, last: bool) -> dict[str, Any]:
        return {
            name: evaluator
            for name, evaluator in self.experiment.evals.items()
            if last or (evaluator.every and step % evaluator.every == 0)
        }

    def _evaluate(self, step: int, state: TrainState, *, last: bool = False) -> None:
        start = time.perf_counter()
        params = state.params if state.ema is None else state.ema
        embed = remember(self.embedder.using(params))
        results = {}
        for name, evaluator in self._evaluators(step, last=last).items():
            if name not in self.prepared:
                self.prepared[name] = evaluator.prepare(self.tools)
            results[name] = evaluator.evaluate(self.prepared[name], embed)
        if last:
            write_results(self.run_dir / "evals.json", step, results)
        values = flat(results)
        seconds = time.perf_counter() - start
        self.progress.pause(seconds)
        self.writer.write(step, values)
        self.evaluated.add(step)
        shown = {k: v for k, v in values.items() if k.endswith(("t2i_recall@5", "top1"))}
        text = "  ".join(f"{k.removeprefix('eval/')} {v:.1%}" for k, v in shown.items())
        self.progress.say(f"eval at step {step} ({clock(seconds)}): {text}")

    def _save(self, state: TrainState) -> None:
        meta = data_meta(self.experiment, self.parts) | {"versions": versions()}
        position = int(state.step) * self.experiment.data.batch_size
        self.checkpoints.save(int(state.step), state, meta | {"position": position})


def _evaluated_steps(run_dir: Path) -> set[int]:
    rows = read_metrics(run_dir / "metrics.jsonl")
    return {int(row["step"]) for row in rows if any(name.startswith("eval/") for name in row)}


@contextmanager
def _on_sigterm(loop: _Loop) -> Iterator[None]:
    """While inside, SIGTERM asks the loop to save and stop at the next step."""

    def ask(number: int, frame: Any) -> None:
        loop.stop = True

    try:
        old = signal.signal(signal.SIGTERM, ask)
    except ValueError:  # not the main thread: whoever runs us there handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)
