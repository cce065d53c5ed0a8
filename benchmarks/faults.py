"""Breaks a training run in every way we know and checks that it ends bit for bit as if left alone.

    python benchmarks/faults.py --kills 20

A run of several processes on this machine is broken at random moments, start-up, compilation,
saving and evaluation included; then the same command is given again, until the run ends, and its
parameters, moments, memory, average, losses and evaluations are compared with those of a run left
alone. A run that has ended makes place for a new one until all faults have struck. The faults:

kill one     SIGKILL to one process; the others must end by themselves
kill all     SIGKILL to all
preempt      SIGTERM to one process: all save and end well
truncate     kill all, then a file of the newest checkpoint is cut to half its length
delete       kill all, then a file of the newest checkpoint is removed
full disk    files over 24 KiB cannot be written: the run must end with an error that says so
stall        one process is stopped (SIGSTOP): the watchdog names it and ends the others

Prints a table and exits with 1 if a run was lost, differs, or a process did not end.
"""

import argparse
import collections
import dataclasses
import json
import logging
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from vlalign.evals.results import read_metrics
from vlalign.experiment import load_text
from vlalign.train.assemble import assemble, run_tokenizer
from vlalign.train.checkpoint import Checkpoints, newest_step, to_dict

CONFIG = Path(__file__).with_name("_faults_config.py")
FAULTS = ("kill one", "kill all", "preempt", "truncate", "delete", "full disk", "stall")
# How often each is drawn; kills are what machines do most.
WEIGHTS = (8, 6, 3, 2, 2, 1, 1)
FULL_KIB = 24
JOIN = 60  # seconds that processes wait for each other at the start
PATIENCE = 240.0  # seconds within which processes must end by themselves


@dataclasses.dataclass
class Strike:
    """One fault: what, after how many seconds, what ended how, and the newest checkpoint then.

    ended: seconds until the processes that were left had ended by themselves.
    """

    fault: str
    after: float
    codes: list[int]
    ended: float
    checkpoint: int | None
    problem: str = ""


class Run:
    """The processes of one run directory."""

    def __init__(self, run_dir: Path, processes: int, steps: int):
        self.run_dir, self.count, self.steps = run_dir, processes, steps
        self.processes: list[subprocess.Popen[bytes]] = []
        self.harmed = -1  # the step of the checkpoint that was last harmed

    def start(self, *, full: bool = False) -> None:
        """Gives the command again."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        line = [sys.executable, "-m", "vlalign", "train", str(CONFIG), "--no-report"]
        line += ["--run-dir", str(self.run_dir), "--devices", "1"]
        line += ["--set", f"train.steps={self.steps}"]
        if self.count > 1:
            line += ["--coordinator", f"localhost:{port}", "--processes", str(self.count)]
            line += ["--join-timeout", str(JOIN)]
        self.processes = []
        for number in range(self.count):
            own = ["--process-id", str(number)] if self.count > 1 else []
            log = (self.run_dir.parent / f"{self.run_dir.name}-{number}.log").open("wb")
            limit = ["bash", "-c", f'ulimit -f {FULL_KIB}; exec "$@"', "-"] if full else []
            process = subprocess.Popen([*limit, *line, *own], stdout=log, stderr=log)
            self.processes.append(process)
            log.close()

    def log(self, number: int) -> str:
        """What a process has printed since it was started."""
        return (self.run_dir.parent / f"{self.run_dir.name}-{number}.log").read_text(
            "utf-8", "replace"
        )

    def wait(self, seconds: float) -> bool:
        """Whether all ended within so long."""
        until = time.monotonic() + seconds
        for process in self.processes:
            try:
                process.wait(max(until - time.monotonic(), 0.01))
            except subprocess.TimeoutExpired:
                return False
        return True

    def kill(self) -> None:
        """Ends whatever is left."""
        for process in self.processes:
            process.kill()
            process.wait()

    def codes(self) -> list[int]:
        """Exit codes of the processes that have ended."""
        return [process.returncode for process in self.processes]


def strike(run: Run, fault: str, moment: float, draw: random.Random) -> Strike | None:
    """Starts the run and breaks it; None if it ended well before."""
    run.start(full=fault == "full disk")
    began = time.monotonic()
    if fault == "full disk":
        moment = PATIENCE
    if run.wait(moment):
        if not any(run.codes()):
            return None
        if fault != "full disk":
            step = newest_step(run.run_dir / "checkpoints")
            return Strike(fault, 0.0, run.codes(), 0.0, step, f"ended before: {run.log(0)[-500:]}")
    elif fault == "full disk":
        return Strike(fault, moment, [], PATIENCE, None, "did not end on a full disk")
    after = time.monotonic() - began
    victim = draw.randrange(run.count)
    if fault == "kill one":
        run.processes[victim].kill()
    elif fault == "preempt":
        run.processes[victim].terminate()
    elif fault == "stall":
        run.processes[victim].send_signal(signal.SIGSTOP)
    elif fault != "full disk":
        run.kill()
    struck = time.monotonic()
    left = [p for i, p in enumerate(run.processes) if not (fault == "stall" and i == victim)]
    problem = ""
    for process in left:
        try:
            process.wait(max(struck + PATIENCE - time.monotonic(), 0.01))
        except subprocess.TimeoutExpired:
            problem = f"process {run.processes.index(process)} did not end"
    ended = time.monotonic() - struck
    run.kill()
    problem = problem or judge(run, fault, victim)
    if fault in ("truncate", "delete"):
        harm(run, fault, draw)
    return Strike(
        fault, after, run.codes(), ended, newest_step(run.run_dir / "checkpoints"), problem
    )


def judge(run: Run, fault: str, victim: int) -> str:
    """What was not as it should be at the end of a broken run; "" if nothing was."""
    codes = run.codes()
    if fault == "full disk" and not any(
        "could not be written" in run.log(i) or "system refused" in run.log(i)
        for i in range(run.count)
    ):
        return f"a full disk was not named: {codes}"
    if fault == "stall" and run.count > 1:
        others = [i for i in range(run.count) if i != victim]
        if all(codes[i] == 0 for i in others):
            return ""
        # Process 0 holds what the others said: who hears nothing of it names it for that.
        named = (f"process {victim} on", *(("process 0 does not answer",) if not victim else ()))
        if not any(text in run.log(i) for i in others for text in named):
            said = " | ".join(run.log(i)[-500:] for i in others)
            return f"the stalled process was not named: {codes}: {said}"
    return ""


def harm(run: Run, fault: str, draw: random.Random) -> None:
    """Truncates or deletes one file of the newest checkpoint, if there is one.

    With none whole there would be nothing to go on from. So the oldest is left alone, and so is all
    until a newer one than that harmed last: what is before it may be half removed already.
    """
    run_dir = run.run_dir
    step = newest_step(run_dir / "checkpoints")
    if step is None or step <= run.harmed:
        return
    if len([p for p in (run_dir / "checkpoints").iterdir() if p.name.isdigit()]) < 2:
        return
    run.harmed = step
    files = sorted(p for p in (run_dir / "checkpoints" / str(step)).rglob("*") if p.is_file())
    chosen = draw.choice(files)
    if fault == "delete":
        chosen.unlink()
    else:
        os.truncate(chosen, chosen.stat().st_size // 2)


def final_state(run_dir: Path, step: int) -> dict[str, np.ndarray]:
    """Path -> array of everything in the checkpoint of the last step."""
    experiment = load_text(run_dir / "config.txt")
    parts = assemble(experiment, run_tokenizer(experiment, run_dir))
    reader = Checkpoints(run_dir / "checkpoints", read_only=True)
    state, _ = reader.restore(step, parts.plan.abstract())
    reader.close()
    flat = traverse_util.flatten_dict(to_dict(state), sep="/")
    return {path: np.asarray(leaf) for path, leaf in flat.items()}


def log_of(run_dir: Path) -> list[dict[str, Any]]:
    """The metrics but for what clocks say."""
    clocks = ("time", "samples_per_s", "samples_per_s_per_device", "tflops_per_s_per_device")
    rows = read_metrics(run_dir / "metrics.jsonl")
    return [{k: v for k, v in r.items() if k not in (*clocks, "data_wait", "mfu")} for r in rows]


def differences(one: Path, other: Path, steps: int) -> list[str]:
    """Arrays and logs that are not equal bit for bit."""
    a, b = final_state(one, steps), final_state(other, steps)
    found = [path for path in a if path not in b or not np.array_equal(a[path], b[path])]
    if log_of(one) != log_of(other):
        found.append("metrics.jsonl")
    return found


def to_the_end(run: Run) -> str:
    """Gives the command until the run has ended; "" or what went wrong."""
    run.start()
    if not run.wait(PATIENCE):
        run.kill()
        return "did not end"
    return "" if not any(run.codes()) else f"exit codes {run.codes()}: {run.log(0)[-800:]}"


def soak(folder: Path, args: argparse.Namespace) -> tuple[list[Strike], int, list[str]]:
    """All faults; the strikes, how many runs ended equal, and what was lost."""
    strikes, equal, lost = read(args.out)
    draw = random.Random(args.seed + len(strikes))
    alone = Run(folder / "alone", args.processes, args.steps)
    for run in (alone, Run(folder / "again", args.processes, args.steps)):
        began = time.monotonic()
        if problem := to_the_end(run):
            raise SystemExit(f"the run left alone failed: {problem}")
        life = time.monotonic() - began  # of the second: its programs are kept, as in restarts
        print(f"left alone: {life:.1f} s", flush=True)
    if found := differences(alone.run_dir, run.run_dir, args.steps):
        raise SystemExit(f"two runs left alone differ: {found}")
    number, before, began = 0, len(strikes), time.monotonic()
    run = Run(folder / f"run{number}", args.processes, args.steps)
    while True:
        over = len(strikes) >= args.kills
        if not over:
            fault = draw.choices(FAULTS, WEIGHTS)[0]
            fresh = newest_step(run.run_dir / "checkpoints") is None
            started = time.monotonic()
            struck = strike(run, fault, draw.uniform(0.0, life), draw)
            if struck is not None:
                strikes.append(struck)
                report(struck, len(strikes), before, args.kills, began)
                write(args.out, strikes, equal, lost)
                if struck.problem:
                    lost.append(f"{fault}: {struck.problem}")
                continue
            if fresh:  # a machine that has become quieter is struck sooner
                life = min(life, time.monotonic() - started)
        problem = to_the_end(run)
        found = [problem] if problem else differences(alone.run_dir, run.run_dir, args.steps)
        equal += not found
        lost += [f"{run.run_dir.name}: {text}" for text in found[:5]]
        print(f"{run.run_dir.name} has ended: {found[:5] or 'equal to the bit'}", flush=True)
        write(args.out, strikes, equal, lost)
        if over:
            return strikes, equal, lost
        if not found:
            shutil.rmtree(run.run_dir)
        number += 1
        run = Run(folder / f"run{number}", args.processes, args.steps)


def write(path: Path | None, strikes: list[Strike], equal: int, lost: list[str]) -> None:
    """What was found so far, as JSON: a soak of hours may itself be stopped."""
    if path is not None:
        facts = {"command": "python " + " ".join(sys.argv), "equal": equal, "lost": lost}
        rows = [dataclasses.asdict(struck) for struck in strikes]
        path.write_text(json.dumps(facts | {"strikes": rows}, indent=1) + "\n", encoding="utf-8")


def read(path: Path | None) -> tuple[list[Strike], int, list[str]]:
    """What an earlier soak of this command wrote: it goes on from there."""
    if path is None or not path.exists():
        return [], 0, []
    facts = json.loads(path.read_text(encoding="utf-8"))
    return [Strike(**row) for row in facts["strikes"]], facts["equal"], facts["lost"]


def report(struck: Strike, done: int, before: int, of: int, began: float) -> None:
    """A line a strike, with the time to go."""
    left = (time.monotonic() - began) / (done - before) * (of - done)
    print(
        f"{done:>3}/{of}  {struck.fault:<9} after {struck.after:5.1f} s, codes {struck.codes}, "
        f"ended in {struck.ended:.1f} s, newest checkpoint {struck.checkpoint}  "
        f"ETA {left / 60:.0f} min  {struck.problem}",
        flush=True,
    )


def main() -> int:
    """Runs the soak and prints the table; exit code 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="faults (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, help="a JSON file for the result; one that is there is gone on with"
    )
    args = parser.parse_args()
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells of every read-only opening
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", args.processes)
    with tempfile.TemporaryDirectory() as folder:
        strikes, equal, lost = soak(Path(folder), args)
    by_fault = collections.defaultdict(list)
    for struck in strikes:
        by_fault[struck.fault].append(struck)
    print("\nfault       times  median s until all had ended")
    for fault in FAULTS:
        ended = [struck.ended for struck in by_fault[fault]]
        print(f"{fault:<10} {len(ended):>6}  {statistics.median(ended) if ended else 0:.1f}")
    print(f"{len(strikes)} faults, {equal} runs ended equal to the bit, lost: {lost or 'nothing'}")
    return int(bool(lost))


if __name__ == "__main__":
    raise SystemExit(main())
