"""Notices that training stands still, says which host is behind and where, and ends the process."""

import contextlib
import faulthandler
import json
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

import jax

from vlalign.parallel.hosts import Notes

T = TypeVar("T")

# "Try again later": launchers start the same command again, which goes on from the last checkpoint.
STALLED = 75


class Watchdog:
    """A thread that expects to hear from the loop.

    Every host publishes its last step and what it does; a host that hears nothing from its own loop
    for `limit_s` prints what all of them said last. After as long again it ends its process, with
    exit code 75: a collective that waits for a lost host never returns.
    """

    def __init__(
        self,
        limit_s: float,
        notes: Notes,
        process: int,
        *,
        stop: Callable[[int], None] = os._exit,
    ):
        """limit_s: longer than any step, evaluation or save.   process: this one's number.
        stop: called with the exit code.
        """
        self.limit_s, self._notes, self._process, self._stop = limit_s, notes, process, stop
        self._last = (time.monotonic(), 0, "starting")
        self._said: tuple[int, str] | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def beat(self, step: int, doing: str, *, limited: bool = True) -> None:
        """The loop is at `step` and begins to do something, for any time if it is not `limited`."""
        self._last = (time.monotonic() if limited else math.inf, step, doing)

    def _watch(self) -> None:
        warned_at: float | None = None
        while not self._over.wait(min(5.0, self.limit_s / 4)):
            heard, step, doing = self._last
            self._publish(step, doing)
            silent = time.monotonic() - heard
            if silent < self.limit_s:
                warned_at = None
            elif warned_at != heard:
                warned_at = heard
                self._say(f"nothing moved for {silent:.0f} s; the hosts were last heard of at\n")
                self._say(self.table())
                faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr, all_threads=True)
            elif silent >= 2 * self.limit_s:
                self._say(f"still nothing after {silent:.0f} s: ending this process ({STALLED})\n")
                self._stop(STALLED)
                return

    def _publish(self, step: int, doing: str) -> None:
        if (step, doing) != self._said:
            self._said = (step, doing)
            note = {"host": socket.gethostname(), "step": step, "doing": doing, "time": time.time()}
            _in_time(lambda: self._notes.put(f"beat/{self._process}", json.dumps(note)))

    def table(self) -> str:
        """A line a process: host, step, what it does, since when; those furthest behind first."""
        found = _in_time(lambda: self._notes.all("beat"))
        if found is None:
            return "  process 0 does not answer: it holds what the others said\n"
        notes = {key: json.loads(text) for key, text in found.items()}
        rows = sorted(notes.items(), key=lambda item: (item[1]["step"], item[1]["time"]))
        now = time.time()
        return "".join(
            f"  process {key.rpartition('/')[2]} on {note['host']}: step {note['step']}, "
            f"{note['doing']}, for {now - note['time']:.0f} s\n"
            for key, note in rows
        )

    def _say(self, text: str) -> None:
        sys.stderr.write(f"vlalign watchdog (process {self._process}): {text}")
        sys.stderr.flush()


def _in_time(ask: Callable[[], T], seconds: float = 5.0) -> T | None:
    """What `ask` returns; None if it fails or takes too long. Process 0, who answers, may hang."""
    answer: list[T] = []

    def run() -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            answer.append(ask())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return answer[0] if answer else None
