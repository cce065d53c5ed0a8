"""What people ask of a running loop: to stop (SIGTERM), to record a profile."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import jax

from vlalign.parallel import hosts


class StopRequest:
    """While it is entered, SIGTERM asks the loop to save and stop.

    asked: this process got the signal.   agreed: all processes know that one did, at the same step;
    the loop sets it. A process that is alone agrees at once.
    """

    def __init__(self) -> None:
        self.asked = self.agreed = False
        self._before: Any = None

    def __enter__(self) -> "StopRequest":
        # Outside of the main thread whoever runs us there handles signals.
        with contextlib.suppress(ValueError):
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self.agreed = self.agreed or hosts.processes() == 1


class Profile:
    """A trace of the steps from `window[0]` to `window[1]`, for TensorBoard or Perfetto."""

    def __init__(self, directory: Path, window: tuple[int, int] | None):
        """window: None records nothing."""
        self._directory, self._window, self._open = directory, window, False

    @contextlib.contextmanager
    def at(self, step: int) -> Iterator[None]:
        """Around one step."""
        if self._window is not None and self._window[0] <= step <= self._window[1]:
            if not self._open:
                jax.profiler.start_trace(str(self._directory))
                self._open = True
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                yield
            return
        self.close()
        yield

    def close(self) -> None:
        """Writes what was recorded."""
        if self._open:
            self._open = False
            jax.profiler.stop_trace()
