"""The loop. Its order is a contract, kept by a test:

restore -> compile -> (evals due, save due or signal, next batch, step, last step's metrics, log).
Evaluations come before a save, so that a checkpoint never stands for results that were not written;
the data position is the step, so a batch is drawn only for a step that will be taken.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from vlalign.errors import UserError
from vlalign.evals.base import remember
from vlalign.evals.embedder import Embedder
from vlalign.evals.results import flat, read_metrics, write_results
from vlalign.parallel import hosts
from vlalign.parallel.chips import chip_of
from vlalign.train.account import Account, Diary
from vlalign.train.assemble import Assembly, assemble, run_tokenizer, run_tools
from vlalign.train.checkpoint import Checkpoints
from vlalign.train.feed import Feed, local_rows
from vlalign.train.metrics import MetricWriter, Progress, clock
from vlalign.train.programs import Programs
from vlalign.train.rows import Rows
from vlalign.train.start import Start, find_start, save_meta
from vlalign.train.state import TrainState
from vlalign.train.step import signals
from vlalign.train.stop import Profile, StopRequest
from vlalign.train.watchdog import Watchdog

if TYPE_CHECKING:
    from vlalign.experiment import Experiment

Metrics = dict[str, jax.Array]


class Diverged(UserError):
    """Loss or gradient stopped being finite."""


class _Rewind(Exception):
    """The batch of `step` is bad; the newest checkpoint is to be gone back to."""

    def __init__(self, step: int):
        super().__init__(step)
        self.step = step


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    step: steps done.   finished: False if a signal asked it to stop before the last step.
    """

    step: int
    finished: bool


def train(
    experiment: Experiment,
    run_dir: Path,
    *,
    quiet: bool = False,
    started: float | None = None,
    profile: tuple[int, int] | None = None,
) -> Outcome:
    """Trains, or goes on training, in `run_dir`. All processes of a run call it alike.

    Called again after any kind of end it goes on from the newest checkpoint there, to the same
    parameters bit for bit. Raises UserError for bad input, Diverged for a loss that is not finite.
    started: `time.perf_counter()` when the command began.   profile: (first, last) step of a trace
    for TensorBoard or Perfetto, written below `run_dir/profile`.
    """
    account = Account(started=started)
    run_dir.mkdir(parents=True, exist_ok=True)
    with account.spend("tokenizer"):
        tokenizer = run_tokenizer(experiment, run_dir)
    with account.spend("plan"):
        parts = assemble(experiment, tokenizer)
    checkpoints = Checkpoints(
        run_dir / "checkpoints", keep=experiment.train.keep, keep_every=experiment.train.keep_every
    )
    try:
        with jax.set_mesh(parts.mesh):
            record = Profile(run_dir / "profile", profile if hosts.is_main() else None)
            return _Loop(
                experiment, run_dir, parts, checkpoints, account, record, quiet=quiet
            ).run()
    finally:
        checkpoints.close()


class _Loop:
    """One process's passage through the steps of a run."""

    def __init__(
        self,
        experiment: Experiment,
        run_dir: Path,
        parts: Assembly,
        checkpoints: Checkpoints,
        account: Account,
        profile: Profile,
        *,
        quiet: bool,
    ):
        self.experiment, self.parts, self.checkpoints = experiment, parts, checkpoints
        self.config, self.run_dir, self.account = experiment.train, run_dir, account
        self.quiet = quiet or not hosts.is_main()
        self.diary = Diary(run_dir, write=hosts.is_main())
        self.watchdog = Watchdog(self.config.stall_s, hosts.Notes(), hosts.process())
        self.programs = Programs(experiment, parts)
        self.embedder = Embedder(experiment.model, parts.mesh, self.config.eval_batch_size)
        self.tools = run_tools(experiment, parts.tokenizer)
        self.profile = profile
        self.stop = StopRequest()
        self.prepared: dict[str, Any] = {}
        self.rewinds = 0

    def run(self) -> Outcome:
        """To the last step or a signal, through as many rewinds as are allowed."""
        with self.watchdog, self.stop:
            skipped: int | None = None
            while True:
                with self.account.spend("restore"):
                    start = find_start(self.experiment, self.parts, self.checkpoints)
                if skipped is not None:
                    start = dataclasses.replace(start, skipped=skipped - start.step)
                self._begin(start)
                try:
                    return self._live(start)
                except _Rewind as bad:
                    # The bad batch is number bad.step + skipped; the one after it comes next.
                    skipped = bad.step + self.skipped + 1
                    self.rewinds += 1
                    self.checkpoints.wait()
                finally:
                    self.writer.close()

    def _begin(self, start: Start) -> None:
        """Sets what belongs to the way from one start to its end."""
        self.first, self.skipped = start.step, start.skipped
        size = self.experiment.data.batch_size
        self.progress = Progress(self.config.steps, start.step, size, quiet=self.quiet)
        self.writer = MetricWriter(self.run_dir, first_step=start.step, write=hosts.is_main())
        self.evaluated = _evaluated_steps(self.run_dir, start.step)
        self.rows = Rows(self.config.max_bad_share)
        self.progress.say(start.origin)
        if self.rewinds:
            self.progress.say(f"rewound; batches left out of the data so far: {start.skipped}")
        facts = {"step": start.step, "skipped": start.skipped, "processes": hosts.processes()}
        self.diary.note("rewind" if self.rewinds else "start", **facts, **self._spent())

    def _live(self, start: Start) -> Outcome:
        steps = self.config.steps
        if start.step == steps and start.step in self.evaluated:
            self.progress.say(f"all {start.step} steps were done before")
            return Outcome(start.step, True)
        self.watchdog.beat(start.step, "compiling", limited=False)
        with self.account.spend("compile"):
            for text in self.programs.compile_from(start.step):
                self.progress.say(text)
        size = self.experiment.data.batch_size
        rows = local_rows(self.parts.mesh, size)
        batches = self.experiment.data.batches(
            self.parts.tokenizer,
            seed=self.experiment.seed,
            start_step=start.step + start.skipped,
            rows=rows,
        )
        feed = Feed(batches, self.parts.mesh, rows, size)
        try:
            state = self._steps(start.state, feed)
            self._save(state)
            self._written()
        finally:
            batches.close()
            self.profile.close()
        if self.rows.summary():
            text = f"rows not used as they were, of {self.rows.seen}: {self.rows.summary()}"
            self.progress.say(text)
        step = int(state.step)
        self.diary.note("end" if step == steps else "stop", step=step, **self._spent())
        if step < steps:
            self.progress.say(f"stopped by SIGTERM at step {step}, saved; the same command goes on")
        return Outcome(step, step == steps)

    def _steps(self, state: TrainState, feed: Feed) -> TrainState:
        pending: tuple[int, Metrics] | None = None
        for step in range(self.first, self.config.steps):
            if self._due(step):
                self._settle(pending, feed, state)
                pending = None
                self._evaluate(step, state)
            if self.stop.agreed or (step % self.config.save_every == 0 and step > self.first):
                self._settle(pending, feed, state)
                pending = None
                self._save(state)
            if self.stop.agreed:
                return state
            self.watchdog.beat(step, "waiting for data")
            with self.account.spend("input"):
                batch = feed.next()
            self.watchdog.beat(step, "in the step")
            with self.account.spend("step"), self.profile.at(step):
                told = signals(self.parts.mesh, step, stop=self.stop.asked)
                state, metrics = self.programs.of(batch)(state, batch, told)
                if step == self.first:
                    jax.block_until_ready(metrics["loss"])
            if step == self.first:
                self._started()
            self._settle(pending, feed, state)
            pending = (step, metrics)
        self._settle(pending, feed, state)
        if self.config.steps not in self.evaluated:
            self._evaluate(self.config.steps, state, last=True)
        return state

    def _started(self) -> None:
        seconds = self.account.seconds()
        self.progress.say(
            f"first step done {sum(seconds.values()):.1f} s after the start ({self.account.line()})"
        )

    def _settle(self, pending: tuple[int, Metrics] | None, feed: Feed, state: TrainState) -> None:
        """Fetches, checks and logs the metrics of the step before the one just dispatched."""
        if pending is None:
            return
        step, on_device = pending
        with self.account.spend("step"):
            metrics = jax.device_get(on_device)
        self.rows.add(metrics)
        self.stop.agreed = self.stop.agreed or bool(metrics["stop"])
        values = {k: float(v) for k, v in metrics.items() if k not in _NOT_LOGGED}
        if not metrics["ok"]:
            self._not_finite(step, values, state)
        done = step + 1
        if done % self.config.log_every == 0 or done == self.config.steps:
            values |= self._speed(done, feed)
            values |= {f"rows/{kind}": float(n) for kind, n in self.rows.problems.items()}
            self.writer.write(done, values)
            self.progress.line(done, values)
            self.diary.note("time", step=done, **self._spent())

    def _speed(self, done: int, feed: Feed) -> dict[str, float]:
        speed, devices = self.progress.speed(done), self.parts.mesh.size
        flops = self.programs.flops_of(done - 1) / self.experiment.data.batch_size
        rate = speed * flops / devices
        values = {
            "samples_per_s": speed,
            "samples_per_s_per_device": speed / devices,
            "tflops_per_s_per_device": rate / 1e12,
            "data_wait": feed.wait_share(),
        }
        chip = chip_of(jax.devices()[0].device_kind)
        return values if chip is None else values | {"mfu": rate / chip.peak_flops}

    def _not_finite(self, step: int, values: dict[str, float], state: TrainState) -> None:
        """Rewinds if that is wanted and allowed, else saves the state before the step and stops."""
        what = f"loss {values['loss']}, gradient norm {values['grad_norm']} is not finite"
        self.writer.write(step + 1, values)
        if self.config.on_nan == "rewind" and self.rewinds < self.config.max_rewinds:
            self.progress.say(f"step {step + 1}: {what}; going back to the newest checkpoint")
            raise _Rewind(step)
        advice = (
            f"after {self.rewinds} rewinds without a checkpoint between them"
            if self.rewinds
            else "train.on_nan=rewind would leave out the batches that led here"
        )
        self._save(state)
        self._written()
        self.diary.note("diverged", step=step, **self._spent())
        raise Diverged(
            f"step {step + 1}: {what}; the state before it (step {step}) is saved in "
            f"{self.checkpoints.directory}. Lower optimizer.learning_rate or set "
            f"optimizer.clip_norm, and start a new run with train.init_from=RUN ({advice})"
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
        with self.account.spend("evaluation"):
            for name, evaluator in self._evaluators(step, last=last).items():
                self.watchdog.beat(step, f"evaluating {name}")
                if name not in self.prepared:
                    self.prepared[name] = evaluator.prepare(self.tools)
                results[name] = evaluator.evaluate(self.prepared[name], embed)
        if last and hosts.is_main():
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
        step = int(state.step)
        self.watchdog.beat(step, "saving")
        start = time.perf_counter()
        with self.account.spend("checkpoint"):
            meta = save_meta(self.experiment, self.parts, step, self.skipped)
            if self.checkpoints.save(step, state, meta) and step > self.first:
                self.rewinds = 0
        self.progress.pause(time.perf_counter() - start)

    def _written(self) -> None:
        with self.account.spend("checkpoint"):
            self.checkpoints.wait()

    def _spent(self) -> dict[str, dict[str, float]]:
        return {"seconds": {k: round(v, 3) for k, v in self.account.seconds().items()}}


# What of a step's metrics the loop reads itself.
_NOT_LOGGED = ("ok", "stop", "problems", "truncated")


def _evaluated_steps(run_dir: Path, first: int) -> set[int]:
    """Steps up to `first` whose evaluations are written: as process 0 sees it, for all alike."""
    rows = read_metrics(run_dir / "metrics.jsonl") if hosts.is_main() else []
    steps = {int(row["step"]) for row in rows if any(name.startswith("eval/") for name in row)}
    known = json.loads(hosts.broadcast_text(json.dumps(sorted(steps))))
    return {step for step in known if step <= first}
