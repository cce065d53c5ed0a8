"""What a run writes about itself: JSON lines, TensorBoard, and the line that a person reads."""

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from tensorboardX import SummaryWriter

from vlalign.evals.results import write_atomically

# Share of the time waiting for data above which a line of progress says so.
_LATE = 0.05


class MetricWriter:
    """Appends metrics of a run to `metrics.jsonl` and `tensorboard/`.

    A resumed run first drops the rows after the step it goes on from, so that the file is the same
    as that of a run that was never stopped.
    """

    def __init__(self, run_dir: Path, *, first_step: int, write: bool = True):
        """run_dir: exists.   first_step: rows of later steps are dropped.   write: False on all
        hosts but one: nothing is touched.
        """
        self.path = run_dir / "metrics.jsonl"
        self._write = write
        if write:
            _drop_after(self.path, first_step)
            self._file = self.path.open("a", encoding="utf-8")
            self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One row. Non-finite numbers are written as null: JSON has no other word for them."""
        if not self._write:
            return
        clean = {k: (v if math.isfinite(v) else None) for k, v in values.items()}
        row = {"step": step, "time": round(time.time(), 3), **clean}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in clean.items():
            if value is not None:
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes both."""
        if self._write:
            self._file.close()
            self._board.close()


def _drop_after(path: Path, step: int) -> None:
    """Keeps the rows up to `step`; a last line torn by a kill goes too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:
            break
    write_atomically(path, "".join(kept))


class Progress:
    """Lines for a person: step, loss, samples/s, ETA. A live last line on a terminal."""

    def __init__(self, steps: int, first_step: int, batch_size: int, *, quiet: bool = False):
        """steps: of the whole run.   first_step: done before.   batch_size: global."""
        self.steps, self.batch_size = steps, batch_size
        self.console = Console(file=sys.stdout, quiet=quiet, highlight=False, soft_wrap=True)
        self._start_step, self._start = first_step, time.perf_counter()
        self._paused = 0.0
        self._since: tuple[int, float] = (first_step, self._start)

    def pause(self, seconds: float) -> None:
        """Time that was not spent stepping (an evaluation): left out of the speed."""
        self._paused += seconds

    def speed(self, step: int) -> float:
        """Samples a second since the last call."""
        now = time.perf_counter() - self._paused
        steps, seconds = step - self._since[0], now - self._since[1]
        self._since = (step, now)
        return self.batch_size * steps / max(seconds, 1e-9)

    def eta(self, step: int) -> float:
        """Seconds to the end of the run, evaluations included at their pace so far."""
        done = max(step - self._start_step, 1)
        return (time.perf_counter() - self._start) / done * (self.steps - step)

    def line(self, step: int, values: Mapping[str, float]) -> None:
        """Prints one line of progress; where the data is late, also by how much."""
        wait = values["data_wait"]
        late = f"  waiting for data {wait:.0%} of the time" if wait > _LATE else ""
        speed = f"{values['samples_per_s']:,.0f} samples/s"
        if values["samples_per_s_per_device"] != values["samples_per_s"]:
            speed += f" ({values['samples_per_s_per_device']:,.1f} a device)"
        if "mfu" in values:
            speed += f"  MFU {values['mfu']:.1%}"
        self.console.print(
            f"step {step:>{len(str(self.steps))}}/{self.steps}  loss {values['loss']:.4f}  "
            f"{speed}  ETA {clock(self.eta(step))}{late}"
        )

    def say(self, text: str) -> None:
        """Prints a line of another kind."""
        self.console.print(text, markup=False)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    whole = int(seconds + 0.5)
    hours, rest = divmod(whole, 3600)
    minutes = f"{rest // 60:02d}" if hours else str(rest // 60)
    return (f"{hours}:" if hours else "") + f"{minutes}:{rest % 60:02d}"
