"""Kills a training run at random moments and checks that it ends bit for bit like one left alone.

    python benchmarks/kills.py [--kills 3] [--steps 40] [--seed 0] [--set PATH=VALUE ...]

Each kill is a SIGKILL to `vlalign train`, at a moment drawn from the time of the run left alone
(start-up, compilation, saving and evaluation included), then the same command again. Prints where
each kill struck, and at last how many of the parameters, optimiser moments and losses differ: 0.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from vlalign.evals.results import read_metrics
from vlalign.experiment import load_text
from vlalign.train.assemble import assemble, run_tokenizer
from vlalign.train.checkpoint import Checkpoints, newest_step, to_dict


def command(run_dir: Path, steps: int, overrides: list[str]) -> list[str]:
    """The command line that is run, killed and run again."""
    sets = [f"train.steps={steps}", "train.save_every=5", "train.log_every=1", *overrides]
    line = [sys.executable, "-m", "vlalign", "train", "--run-dir", str(run_dir), "--no-report"]
    return line + [word for value in sets for word in ("--set", value)]


def final_state(run_dir: Path) -> dict[str, np.ndarray]:
    """Path -> array of everything in the newest checkpoint."""
    from flax import traverse_util

    experiment = load_text(run_dir / "config.txt")
    parts = assemble(experiment, run_tokenizer(experiment, run_dir))
    reader = Checkpoints(run_dir / "checkpoints", read_only=True)
    step = newest_step(run_dir / "checkpoints")
    assert step is not None, f"{run_dir} has no checkpoint"
    state, _ = reader.restore(step, parts.plan.abstract())
    reader.close()
    flat = traverse_util.flatten_dict(to_dict(state), sep="/")
    return {path: np.asarray(leaf) for path, leaf in flat.items()}


def killed_run(line: list[str], run_dir: Path, kills: int, seconds: float, seed: int) -> None:
    """Runs `line` to its end through `kills` kills at random moments."""
    draw = random.Random(seed)
    for number in range(kills):
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        moment = draw.uniform(0.0, seconds)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        step = newest_step(run_dir / "checkpoints")
        print(f"kill {number + 1}: after {moment:.1f} s, newest checkpoint {step}", flush=True)
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)


def losses(run_dir: Path) -> list[tuple[int, float]]:
    """(step, loss) as logged."""
    rows = read_metrics(run_dir / "metrics.jsonl")
    return [(int(row["step"]), row["loss"]) for row in rows if "loss" in row]


def main() -> int:
    """Runs both and compares; exit code 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        alone, killed = Path(folder) / "alone", Path(folder) / "killed"
        start = time.perf_counter()
        subprocess.run(
            command(alone, args.steps, args.overrides), check=True, stdout=subprocess.DEVNULL
        )
        seconds = time.perf_counter() - start
        print(f"left alone: {seconds:.1f} s", flush=True)
        line = command(killed, args.steps, args.overrides)
        killed_run(line, killed, args.kills, seconds, args.seed)
        a, b = final_state(alone), final_state(killed)
        different = [path for path in a if not np.array_equal(a[path], b[path])]
        log = losses(alone) != losses(killed)
        print(f"{len(a)} arrays compared bit by bit, {len(different)} differ {different[:5]}")
        print(f"losses of all {args.steps} steps {'DIFFER' if log else 'are equal'}")
        return int(bool(different) or log or a.keys() != b.keys())


if __name__ == "__main__":
    raise SystemExit(main())
