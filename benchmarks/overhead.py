"""What the loop costs over the bare compiled step, and what starting again costs.

    python benchmarks/overhead.py [--rounds 3] [--steps 200] [--out FILE.json]

Both run the same compiled program on the same model in turn in one process. "bare" calls it with a
few batches that already lie on the device and waits once, at the end. "vlalign" is the loop as
`vlalign train` runs it: batches made and placed, metrics fetched and logged every 10 steps, a
checkpoint every 100; evaluation and the final save are left out. The aim is at most 3 % at steps of
100 ms. Pictures are small and not augmented: making them is the data's matter, and on a CPU takes
the step's own cores.

Starting again: `vlalign train emoji_clip` is killed after its first checkpoint and started anew, in
turn with and without kept programs. Restoring, compiling and the first step then are compared with
the cold start's compilation: at most 1.5 times it, 0.3 with kept programs.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
from _faults_config import config

from vlalign import tree
from vlalign.encoders.text import TextTransformer
from vlalign.encoders.vit import ViT
from vlalign.evals.goodput import read_events
from vlalign.evals.results import read_metrics
from vlalign.experiment import Experiment
from vlalign.parallel.mesh import MeshSpec
from vlalign.train.assemble import assemble, run_tokenizer
from vlalign.train.checkpoint import newest_step
from vlalign.train.config import Train
from vlalign.train.feed import Feed, local_rows
from vlalign.train.loop import train
from vlalign.train.programs import Programs
from vlalign.train.step import signals


def experiment(steps: int, batch_size: int) -> Experiment:
    """Some 100 ms a step on two cores."""
    tower: dict[str, Any] = {"width": 384, "depth": 4, "heads": 6, "embed_dim": 64, "scan": False}
    base = config()
    data = tree.replace(base.data, batch_size=batch_size)
    return tree.replace(
        base,
        model={
            "image": ViT(patch_size=4, pool="mean", **tower),
            "text": TextTransformer(vocab_size=320, **tower),
        },
        objectives={"momentum": tree.replace(base.objectives["momentum"], queue=0)},
        data=data,
        evals={},
        mesh=MeshSpec(devices=1),
        train=Train(steps=steps, log_every=10, save_every=100),
    )


def bare(run: Experiment, folder: Path, steps: int) -> float:
    """Seconds a step of the compiled program alone."""
    parts = assemble(run, run_tokenizer(run, folder))
    programs = Programs(run, parts)
    list(programs.compile_from(0))
    size = run.data.batch_size
    with jax.set_mesh(parts.mesh), run.data.batches(parts.tokenizer, seed=0) as made:
        feed = Feed(made, parts.mesh, local_rows(parts.mesh, size), size)
        batches = [feed.next() for _ in range(4)]
        told = [signals(parts.mesh, number) for number in range(steps + 5)]
        state = parts.plan.create(0)
        for number in range(5):
            state, metrics = programs.of(batches[0])(state, batches[0], told[number])
        jax.block_until_ready(metrics)
        start = time.perf_counter()
        for number in range(5, steps + 5):
            batch = batches[number % 4]
            state, metrics = programs.of(batch)(state, batch, told[number])
        jax.block_until_ready(metrics)
        return (time.perf_counter() - start) / steps


def whole(run: Experiment, folder: Path) -> float:
    """Seconds a step of `vlalign train`, from its own log; start-up left out."""
    with contextlib.redirect_stdout(io.StringIO()):
        train(run, folder, quiet=True)
    rows = read_metrics(folder / "metrics.jsonl")
    first, last = rows[0], rows[-2]  # the last row is written after the final evaluation
    return float((last["time"] - first["time"]) / (last["step"] - first["step"]))


def restart(cache: Path, folder: Path, *, keep: bool) -> dict[str, float]:
    """Seconds of a cold start's compilation, and of restoring to the first step after a kill."""
    line = [sys.executable, "-m", "vlalign", "train", "emoji_clip", "--run-dir", str(folder)]
    for setting in ("train.steps=400", "train.save_every=3", "train.log_every=1"):
        line += ["--set", setting]
    switch = {"JAX_ENABLE_COMPILATION_CACHE": str(int(keep)), "VLALIGN_CACHE": str(cache)}
    for _ in range(2):
        before = newest_step(folder / "checkpoints") or 0
        process = subprocess.Popen(line, env=os.environ | switch, stdout=subprocess.DEVNULL)
        while (newest_step(folder / "checkpoints") or 0) <= before and process.poll() is None:
            time.sleep(0.1)
        process.kill()
        process.wait()
    starts = [event for event in read_events(folder / "events.jsonl") if event["event"] == "start"]
    firsts = []
    for start in starts:
        rows = [e for e in read_events(folder / "events.jsonl") if e["life"] == start["life"]]
        firsts.append(next(row["seconds"] for row in rows if row["event"] == "time"))
    cold, again = firsts
    return {
        "cold compile": cold["compile"],
        "again": again["restore"] + again["compile"] + again["step"],
    }


def main() -> None:
    """Measures both and prints tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a JSON file for the numbers")
    args = parser.parse_args()
    run = experiment(args.steps, args.batch)
    found: dict[str, list[float]] = {"bare": [], "vlalign": []}
    restarts: dict[str, list[dict[str, float]]] = {"kept": [], "not kept": []}
    for number in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            found["bare"].append(bare(run, Path(folder), args.steps))
            found["vlalign"].append(whole(run, Path(folder) / "run"))
            for name in restarts:
                target = Path(folder) / name
                restarts[name].append(restart(Path(folder), target, keep=name == "kept"))
        ratio = found["vlalign"][-1] / found["bare"][-1]
        print(f"round {number + 1}: {found['bare'][-1]:.4f} s bare, {ratio:.3f} of it", flush=True)
    ratios = [b / a for a, b in zip(found["bare"], found["vlalign"], strict=True)]
    print(f"loop over bare step of {1e3 * statistics.median(found['bare']):.0f} ms: ", end="")
    print(f"median {statistics.median(ratios):.3f} (aim 1.03)")
    for name, rows in restarts.items():
        again = statistics.median(row["again"] / row["cold compile"] for row in rows)
        print(f"starting again, programs {name}: {again:.2f} of the cold compilation")
    if args.out is not None:
        numbers = {"command": "python " + " ".join(sys.argv), **found, "restarts": restarts}
        args.out.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
