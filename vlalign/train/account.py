"""Where a process's time goes, and the run's diary (`events.jsonl`) that outlives the process."""

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Account:
    """Seconds by what they were spent on; every second since the start belongs to one name."""

    def __init__(self, *, started: float | None = None, before: str = "imports"):
        """started: `time.perf_counter()` when the command began; what lies between is `before`."""
        self._seconds: dict[str, float] = defaultdict(float)
        self._names = ["other"]
        self._since = time.perf_counter()
        if started is not None:
            self._seconds[before] += self._since - started

    @contextmanager
    def spend(self, name: str) -> Iterator[None]:
        """Time inside is `name`'s, and not that of an account around it."""
        self._settle()
        self._names.append(name)
        try:
            yield
        finally:
            self._settle()
            self._names.pop()

    def seconds(self) -> dict[str, float]:
        """Name -> seconds, up to now."""
        self._settle()
        return dict(self._seconds)

    def line(self) -> str:
        """`compile 12.1 s, restore 0.8 s, ...`, the longest first."""
        spent = sorted(self.seconds().items(), key=lambda item: -item[1])
        return ", ".join(f"{name} {value:.1f} s" for name, value in spent if value >= 0.05)

    def _settle(self) -> None:
        now = time.perf_counter()
        self._seconds[self._names[-1]] += now - self._since
        self._since = now


class Diary:
    """Appends what happened to a run: starts, where time went, rewinds, stops.

    One JSON object a line: `time` (seconds since 1970), `life` (which process), `event`, and what
    belongs to it. Nothing is ever taken back, unlike the metrics: `vlalign report` reads from it
    what was lost to restarts.
    """

    def __init__(self, run_dir: Path, *, write: bool = True):
        """write: False on all hosts but one."""
        self.path, self._write = run_dir / "events.jsonl", write
        self.life = f"{time.time_ns()}-{os.getpid()}"
        if write and self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            self._append("\n")  # a line torn by a kill

    def note(self, event: str, **facts: Any) -> None:
        """One line."""
        row = {"time": round(time.time(), 3), "life": self.life, "event": event, **facts}
        if self._write:
            self._append(json.dumps(row) + "\n")

    def _append(self, text: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)
