"""launch/local.sh, really run: two processes, a killed one, a signal, wrong input."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLAIN = ("emoji_clip", "--run-dir", "runs/a")
# In place of vlalign. `me` is the process, `attempt` counts its starts from 1. All wait until each
# has started once.
PROGRAM = """#!{python}
import os, signal, sys, time
from pathlib import Path
me = os.environ["JAX_PROCESS_ID"]
path = Path("attempt" + me)
attempt = int(path.read_text()) + 1 if path.exists() else 1
path.write_text(str(attempt))
print("process", me, "attempt", attempt, *sys.argv[1:], flush=True)
while len(list(Path().glob("attempt*"))) < int(os.environ["JAX_NUM_PROCESSES"]):
    time.sleep(0.01)
{body}
"""


@pytest.fixture
def local(machine: Any) -> Callable[..., Any]:
    """Starts local.sh with a program in place of vlalign."""

    def start(body: str, **variables: str) -> Any:
        text = PROGRAM.format(python=sys.executable, body=body)
        program = machine.program("program", text)
        return machine.start("local.sh", *PLAIN, VLALIGN=str(program), **variables)

    return start


def attempts(machine: Any) -> list[int]:
    """How often each process was started."""
    paths = sorted(machine.path.glob("attempt*"))
    return [int(path.read_text()) for path in paths]


def test_all_end_well(machine: Any, local: Callable[..., Any]) -> None:
    process = local("print('trouble', file=sys.stderr)")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    said = "attempt 1 train emoji_clip --run-dir runs/a"
    assert sorted(out.splitlines()) == [f"[1] process 1 {said}", f"process 0 {said}"]
    assert sorted(err.splitlines()) == ["[1] trouble", "trouble"]
    assert attempts(machine) == [1, 1]


@pytest.mark.parametrize("victim", [0, 1])
def test_after_a_kill_all_start_again(machine: Any, local: Callable[..., Any], victim: int) -> None:
    process = local(
        f"if attempt == 1 and me == '{victim}': os.kill(os.getpid(), signal.SIGKILL)\n"
        "if attempt == 1: time.sleep(100)"
    )
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "local.sh: a process ended with exit code 137; restart 1 of 3" in err
    assert attempts(machine) == [2, 2]


def test_restarts_are_counted(machine: Any, local: Callable[..., Any]) -> None:
    process = local("sys.exit(7 if me == '1' else 0)", RESTARTS="2", PROCESSES="3")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 7
    assert "no restart is left" in err
    assert attempts(machine)[1] == 3  # the others may be ended before they count


def test_wrong_input_is_not_tried_again(machine: Any, local: Callable[..., Any]) -> None:
    process = local("sys.exit(2)")
    process.communicate(timeout=120)
    assert process.returncode == 2
    assert attempts(machine) == [1, 1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_all(
    machine: Any,
    local: Callable[..., Any],
    number: signal.Signals,
    wait_for: Callable[[Callable[[], bool]], None],
) -> None:
    process = local(
        "def save(*_):\n"
        "    time.sleep(0.5)\n"
        "    Path('saved' + me).write_text('')\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "Path('ready' + me).write_text('')\n"
        "time.sleep(100)"
    )
    wait_for(lambda: len(list(machine.path.glob("ready*"))) == 2)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143
    assert len(list(machine.path.glob("saved*"))) == 2
    assert attempts(machine) == [1, 1]
    assert "the same command goes on" in err


def test_who_does_not_stop_is_killed(
    machine: Any, local: Callable[..., Any], wait_for: Callable[[Callable[[], bool]], None]
) -> None:
    body = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "Path('ready' + me).write_text('')\n"
        "time.sleep(1000)"
    )
    process = local(body, GRACE="1")
    wait_for(lambda: len(list(machine.path.glob("ready*"))) == 2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 143


def test_the_processes_find_each_other(machine: Any, local: Callable[..., Any]) -> None:
    process = local(
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import jax\n"
        "jax.config.update('jax_platforms', 'cpu')\n"
        "jax.config.update('jax_num_cpu_devices', 1)\n"
        "from vlalign.parallel import hosts\n"
        "hosts.join(hosts.find_cluster(os.environ))\n"
        "print('heard', hosts.broadcast_text('hello from ' + me), flush=True)"
    )
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    heard = sorted(line for line in out.splitlines() if "heard" in line)
    assert heard == ["[1] heard hello from 0", "heard hello from 0"]
