"""A machine with the clusters' commands on it: stand-ins that write down how they were called."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
COMMANDS = ("sbatch", "srun", "scancel", "scontrol", "gcloud", "kubectl", "xpk", "vlalign")
# A stand-in notes its arguments and does what behaviour.py beside it says.
STAND_IN = """#!{python}
import json, os, sys, time
from pathlib import Path
here, name = Path(__file__).parent, Path(__file__).name
with open(here / "calls.jsonl", "a") as log:
    log.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
exec((here / "behaviour.py").read_text())
"""


class Machine:
    """Where a launch script is run: `run`, `start`, and what it called."""

    def __init__(self, path: Path):
        self.path = path
        self.bin = path / "bin"
        self.bin.mkdir()
        for name in COMMANDS:
            self.program(name, STAND_IN.format(python=sys.executable))
        self.behave("")

    def program(self, name: str, text: str) -> Path:
        """Puts a program on PATH."""
        path = self.bin / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    def behave(self, text: str) -> None:
        """What the stand-ins do: Python with `name` and `sys.argv`."""
        (self.bin / "behaviour.py").write_text(text)

    def calls(self) -> list[list[str]]:
        """All calls of stand-ins: name and arguments."""
        log = self.bin / "calls.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def start(self, script: str | list[str], *arguments: str, **variables: str) -> Any:
        """Starts a script of launch/, or another command."""
        command = [str(LAUNCH / script)] if isinstance(script, str) else script
        keep = {name: os.environ[name] for name in ("LANG", "TMPDIR") if name in os.environ}
        path = f"{self.bin}:/usr/local/bin:/usr/bin:/bin"
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [*command, *arguments],
            cwd=self.path,
            env=keep | {"PATH": path, "HOME": str(self.path)} | variables,
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            text=True,
        )

    def run(self, script: str | list[str], *arguments: str, **variables: str) -> Any:
        """As `start`, when it has ended."""
        process = self.start(script, *arguments, **variables)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """One for each test."""
    return Machine(tmp_path)


@pytest.fixture
def wait_for() -> Callable[[Callable[[], bool]], None]:
    """Waits for a condition; how long does not matter."""
    import time

    def wait(condition: Callable[[], bool]) -> None:
        for _ in range(1200):
            if condition():
                return
            time.sleep(0.1)
        raise AssertionError("it did not come about within 120 s")

    return wait
