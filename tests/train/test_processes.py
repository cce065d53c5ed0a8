"""Several real processes train as one: the same losses, one set of files, any end survived."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from vlalign import tree
from vlalign.evals.results import read_results
from vlalign.evals.retrieval import Retrieval
from vlalign.experiment import Experiment
from vlalign.parallel.mesh import MeshSpec
from vlalign.runs import open_run, prepare_run
from vlalign.train.checkpoint import newest_step
from vlalign.train.config import Train
from vlalign.train.loop import train

pytestmark = pytest.mark.slow

Make = Callable[..., Experiment]
Launch = Callable[..., "list[subprocess.Popen[str]]"]
PROGRAM = Path(__file__).with_name("_one_process.py")
GLOO = re.compile(r"\[Gloo\]|peer ranks|^\s*$")
MESH = MeshSpec(data=2, fsdp=2, devices=4)


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Starts the processes of a run; all that are left at the end are killed."""
    started: list[subprocess.Popen[str]] = []

    def start(
        experiment: Experiment, run_dir: Path, *, processes: int, devices: int
    ) -> list[subprocess.Popen[str]]:
        config = tmp_path / "config.txt"
        kept = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs"), "PYTHONUNBUFFERED": "1"}
        config.write_text(tree.dumps(experiment))
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        new = [
            subprocess.Popen(
                list(
                    map(
                        str,
                        (
                            sys.executable,
                            PROGRAM,
                            address,
                            processes,
                            number,
                            devices,
                            config,
                            run_dir,
                        ),
                    )
                ),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | kept,
            )
            for number in range(processes)
        ]
        started.extend(new)
        return new

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ends(
    processes: "list[subprocess.Popen[str]]", timeout: float = 240
) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each."""
    found = []
    for process in processes:
        out, err = process.communicate(timeout=timeout)
        found.append((process.returncode, out, err))
    return found


def finished(processes: "list[subprocess.Popen[str]]") -> list[str]:
    """What each printed; all must have ended well."""
    results = ends(processes)
    assert [code for code, _, _ in results] == [0] * len(results), results
    # gloo's threads tell of their connections, whoever prints, and break each other's lines.
    return ["".join(s for s in out.splitlines(True) if not GLOO.search(s)) for _, out, _ in results]


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def losses(run_dir: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in lines(run_dir) if "loss" in row}


def params(run_dir: Path) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(open_run(run_dir).params)]


def experiment(tiny: Make, **settings: Any) -> Experiment:
    config = {"steps": 8, "log_every": 1, "save_every": 3, **settings}
    evals = {"retrieval": Retrieval(source=tiny().data.source, ks=(1, 5), every=4)}
    return tiny(mesh=MESH, train=Train(**config), evals=evals)


def alone(tiny: Make, run_dir: Path) -> None:
    """The same run by this process, on four of its devices."""
    prepare_run(experiment(tiny), run_dir)
    train(experiment(tiny), run_dir, quiet=True)


@pytest.mark.parametrize(("processes", "devices"), [(2, 2), (4, 1)])
def test_processes_train_like_one(
    processes: int, devices: int, tiny: Make, launch: Launch, tmp_path: Path
) -> None:
    alone(tiny, tmp_path / "one")
    together = launch(experiment(tiny), tmp_path / "many", processes=processes, devices=devices)
    said = finished(together)
    assert "step 8/8" in said[0]
    assert said[1:] == [""] * (processes - 1)  # only process 0 prints
    one, many = losses(tmp_path / "one"), losses(tmp_path / "many")
    assert list(many) == list(range(1, 9))
    np.testing.assert_allclose(list(many.values()), list(one.values()), rtol=1e-5)
    for a, b in zip(params(tmp_path / "one"), params(tmp_path / "many"), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    steps = [
        row["step"] for row in lines(tmp_path / "many") if "eval/retrieval/t2i_recall@5" in row
    ]
    assert steps == [4, 8]
    assert read_results(tmp_path / "many/evals.json") == read_results(tmp_path / "one/evals.json")


def test_a_signal_to_one_process_saves_all_and_another_number_goes_on(
    tiny: Make, launch: Launch, tmp_path: Path
) -> None:
    alone(tiny, tmp_path / "one")
    run = experiment(tiny, steps=4000)
    two = launch(run, tmp_path / "run", processes=2, devices=2)
    wait_for(lambda: len(losses_if_any(tmp_path / "run")) > 4, two)
    two[1].send_signal(signal.SIGTERM)
    said = finished(two)
    assert "stopped by SIGTERM at step" in said[0]
    step = newest_step(tmp_path / "run" / "checkpoints")
    assert step is not None
    assert step >= 4
    assert max(losses(tmp_path / "run")) == step
    # The first steps of a schedule of 4,000 are another run's; what counts is that it goes on.
    four = launch(run, tmp_path / "run", processes=4, devices=1)
    wait_for(lambda: max(losses_if_any(tmp_path / "run"), default=0) > step + 2, four)
    four[0].send_signal(signal.SIGTERM)
    said = finished(four)
    assert f"going on from step {step}" in said[0]
    kept = losses(tmp_path / "run")
    assert list(kept) == list(range(1, max(kept) + 1))


def test_a_killed_process_ends_all_and_the_same_command_goes_on_bit_for_bit(
    tiny: Make, launch: Launch, tmp_path: Path
) -> None:
    run = experiment(tiny)
    finished(launch(run, tmp_path / "straight", processes=2, devices=2))
    slow = launch(run, tmp_path / "killed", processes=2, devices=2)
    wait_for(lambda: newest_step(tmp_path / "killed" / "checkpoints") is not None, slow)
    slow[1].kill()
    codes = [code for code, _, _ in ends(slow)]
    assert codes[1] == -signal.SIGKILL
    # (Where it was killed after its last step, the other may have ended before.)
    finished(launch(run, tmp_path / "killed", processes=2, devices=2))
    assert losses(tmp_path / "straight") == losses(tmp_path / "killed")
    for a, b in zip(params(tmp_path / "straight"), params(tmp_path / "killed"), strict=True):
        np.testing.assert_array_equal(a, b)
    # The newest checkpoint is cut short: both set it aside and repeat the steps from the last one.
    (tmp_path / "killed" / "evals.json").unlink()
    files = (tmp_path / "killed" / "checkpoints" / "8" / "state").rglob("*")
    for file in [path for path in files if path.is_file()]:
        os.truncate(file, file.stat().st_size // 2)
    said = finished(launch(run, tmp_path / "killed", processes=2, devices=2))
    assert "going on from step 6" in said[0]
    assert len(list((tmp_path / "killed" / "checkpoints-unreadable").iterdir())) == 1
    for a, b in zip(params(tmp_path / "straight"), params(tmp_path / "killed"), strict=True):
        np.testing.assert_array_equal(a, b)


def losses_if_any(run_dir: Path) -> dict[int, float]:
    try:
        return losses(run_dir)
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def wait_for(
    true: Callable[[], bool], processes: "list[subprocess.Popen[str]]", seconds: float = 200
) -> None:
    until = time.monotonic() + seconds
    while not true():
        gone = [p.returncode for p in processes if p.poll() not in (None, 0)]
        assert not gone, [p.communicate() for p in processes if p.poll() is not None]
        assert time.monotonic() < until, "nothing happened in time"
        time.sleep(0.05)
