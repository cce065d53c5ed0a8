"""Real processes on this machine, one simulated device each: together, lost, failed, lonely."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vlalign.errors import UserError
from vlalign.parallel import hosts, notes
from vlalign.parallel.hosts import Cluster, find_cluster

PROGRAM = Path(__file__).with_name("_one_process.py")
SRUN = {
    "SLURM_JOB_ID": "71",
    "SLURM_STEP_NODELIST": "node[03-04]",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
}
MPIRUN = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}
TPU = {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}
STATED = {"JAX_COORDINATOR_ADDRESS": "node-0:8476", "JAX_NUM_PROCESSES": "4"}
AUTO = Cluster(None, None, None, "jax's detection")


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, None),
        (SRUN, Cluster(None, 16, 9, "srun")),
        (SRUN | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        # The batch script itself runs once: only srun's steps are tasks.
        ({k: v for k, v in SRUN.items() if k != "SLURM_STEP_NODELIST"}, None),
        (MPIRUN, Cluster(None, 4, 3, "mpirun")),
        (MPIRUN | {"OMPI_COMM_WORLD_SIZE": "1"}, None),
        (TPU, Cluster(None, None, None, "the TPU's environment")),
        (TPU | {"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        (
            TPU | {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"},
            Cluster(None, None, None, "the TPU's environment"),
        ),
        ({"JOB_COMPLETION_INDEX": "3"}, None),  # an indexed Job may as well be a sweep
        (
            STATED | {"JOB_COMPLETION_INDEX": "3"},
            Cluster("node-0:8476", 4, 3, "the environment"),
        ),
        (
            STATED | {"JAX_PROCESS_ID": "2", "JOB_COMPLETION_INDEX": "3"},
            Cluster("node-0:8476", 4, 2, "the environment"),
        ),
        (STATED | SRUN | {"JAX_PROCESS_ID": "2"}, Cluster("node-0:8476", 4, 2, "the environment")),
        (STATED | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, None),
        (
            SRUN | {"JAX_COORDINATOR_ADDRESS": "node-0:8476"},
            Cluster("node-0:8476", 16, 9, "srun"),
        ),
    ],
)
def test_finds_the_cluster_in_the_environment(
    environ: dict[str, str], found: Cluster | None
) -> None:
    assert find_cluster(environ) == found


@pytest.mark.parametrize("environ", [{}, SRUN, MPIRUN, TPU, STATED])
def test_flags_win(environ: dict[str, str]) -> None:
    stated = find_cluster(environ, coordinator="[::1]:1234", processes=2, process=1)
    assert stated == Cluster("[::1]:1234", 2, 1, "the command line")
    assert find_cluster(environ, coordinator="auto") == AUTO
    assert find_cluster(environ, coordinator="a:1", processes=1, process=0) is None


@pytest.mark.parametrize(
    ("environ", "flags", "says"),
    [
        ({}, {"coordinator": "a:1"}, "but not --processes and --process-id"),
        ({}, {"processes": 2, "process": 1}, "but not --coordinator"),
        ({}, {"coordinator": "auto", "processes": 2}, "but not --process-id"),
        ({}, {"coordinator": "a:1", "processes": 2, "process": 2}, "must be 0 to 1"),
        ({}, {"coordinator": "a:1", "processes": 2, "process": -1}, "must be 0 to 1"),
        ({}, {"coordinator": "a:1", "processes": 0, "process": 0}, "--processes=0: at least 1"),
        ({}, {"coordinator": "a", "processes": 2, "process": 0}, "expected HOST:PORT"),
        ({}, {"coordinator": "a:port", "processes": 2, "process": 0}, "expected HOST:PORT"),
        ({}, {"coordinator": "a:70000", "processes": 2, "process": 0}, "expected HOST:PORT"),
        (STATED, {}, "but not JAX_PROCESS_ID"),
        ({"JAX_PROCESS_ID": "1"}, {}, "but not JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES"),
        (STATED | {"JAX_PROCESS_ID": "4"}, {}, "JAX_PROCESS_ID=4: of 4"),
        (STATED | {"JAX_PROCESS_ID": "one"}, {}, "JAX_PROCESS_ID='one'"),
        (SRUN | {"SLURM_NTASKS": "x"}, {}, "SLURM_NTASKS='x'"),
        (SRUN | {"JAX_COORDINATOR_ADDRESS": "node-0"}, {}, "expected HOST:PORT"),
    ],
)
def test_contradictions_are_errors(
    environ: dict[str, str], flags: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError) as error:
        find_cluster(environ, **flags)
    assert says in str(error.value)


def test_one_process_alone() -> None:
    board = hosts.Notes()
    board.put("step/0", "1")
    board.put("step/0", "2")
    board.put("stepwise", "no part of step")
    assert board.all("step") == {"step/0": "2"}
    assert (hosts.process(), hosts.processes(), hosts.is_main()) == (0, 1, True)
    hosts.barrier("alone")
    assert hosts.broadcast_text("as it is") == "as it is"
    with pytest.raises(UserError, match="no text"):
        hosts.broadcast_text(None)
    with pytest.raises(KeyError), hosts.together():
        raise KeyError


def test_notes_without_the_private_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notes, "service", lambda: None)
    board = hosts.Notes()
    board.put("step/0", "1")
    assert board.all("step") == {"step/0": "1"}


def test_a_slice_that_did_not_join_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts.jax, "process_count", lambda: 4)
    with pytest.raises(UserError, match="--coordinator auto"):
        hosts.processes()


class Ended:
    """What became of one process."""

    def __init__(self, process: subprocess.Popen[str]):
        self.out, self.err = process.communicate(timeout=300)
        self.code = process.returncode

    def facts(self) -> dict[str, Any]:
        """The last line of JSON that it printed."""
        lines = [line for line in self.out.splitlines() if line.startswith("{")]
        assert lines, self.err
        found: dict[str, Any] = json.loads(lines[-1])
        return found


@pytest.fixture
def port() -> int:
    """One that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


@pytest.fixture
def start(port: int) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts one process of the program; what is left of them at the end is killed."""
    started = []
    quiet = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    quiet["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])

    def run(case: str, processes: int, process: int) -> subprocess.Popen[str]:
        address = f"127.0.0.1:{port}"
        command = [sys.executable, str(PROGRAM), address, str(processes), str(process), case]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=quiet))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


Start = Callable[[str, int, int], subprocess.Popen[str]]


def run_all(start: Start, case: str, processes: int) -> list[Ended]:
    """All processes of a case, started at once, when they have ended."""
    return [Ended(p) for p in [start(case, processes, i) for i in range(processes)]]


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_work_together(start: Start, processes: int) -> None:
    numbers = range(processes)
    for number, ended in enumerate(run_all(start, "work", processes)):
        assert ended.code == 0, ended.err
        assert ended.facts() == {
            "process": number,
            "processes": processes,
            "main": number == 0,
            "total": sum(range(1, processes + 1)),
            "anyone": [True, False],
            "steps": {f"step/{i}": f"{i} is here" for i in numbers},
            "slow": {"slow/0": "written before the barrier"},
            "none": {},
            "text": "text of 0",
            "long": True,
            "empty": "",
        }


def test_a_killed_process_ends_the_others(start: Start) -> None:
    """They hang outside jax: only the coordination service can end them (here after 10 s)."""
    *others, killed = run_all(start, "hang", 3)
    assert killed.code == -9
    for ended in others:
        assert ended.facts()["ready"]
        assert ended.code == -6
        assert "tasks are unhealthy (stopped sending heartbeats):\n2\n" in ended.err


def test_who_was_lost_in_a_collective_is_named(start: Start) -> None:
    """Here jax raises, with no name; the board tells who is missing."""
    *others, killed = run_all(start, "lose", 3)
    assert killed.code == -15  # jax does not swallow it
    for ended in others:
        assert ended.code == 1, ended.err
    said = "".join(ended.err for ended in others)
    assert "process 2 does not answer: killed?" in said
    assert "process 1 does not answer" not in said


def test_a_process_that_raises_ends_the_others_and_says_why(start: Start) -> None:
    *others, failed = run_all(start, "fail", 3)
    assert failed.code == 1
    assert "OSError: the disk is full" in failed.err
    for ended in others:
        assert ended.code == 1
        assert f"vlalign: process 2 ({socket.gethostname()}) failed: OSError: the disk" in ended.err


def test_process_0_too(start: Start) -> None:
    failed, *others = run_all(start, "fail-main", 2)
    assert failed.code == 2  # a user's mistake, as on the command line
    for ended in others:
        assert ended.code == 2  # so that no launcher starts them again
        assert "failed: UserError: the disk is full" in ended.err


def test_a_coordinator_that_cannot_be_reached(start: Start, port: int) -> None:
    ended = Ended(start("lonely", 2, 1))
    assert ended.code == 2
    message = ended.facts()["error"]
    assert f"no coordinator at 127.0.0.1:{port} within 4 s" in message
    assert "Check that process 0 runs" in message


def test_others_that_do_not_come(start: Start, port: int) -> None:
    ended = Ended(start("lonely", 2, 0))
    assert ended.code == 1
    assert f"process 0 of 2 waited 4 s at 127.0.0.1:{port}, and not all" in ended.err


def test_a_port_that_is_taken(start: Start, port: int) -> None:
    with socket.socket(socket.AF_INET6) as other:
        other.bind(("::", port))
        other.listen()
        ended = Ended(start("work", 2, 0))
    assert ended.code == 2
    assert f"process 0 cannot listen at 127.0.0.1:{port}" in ended.facts()["error"]
    assert "Give all processes another port" in ended.facts()["error"]
