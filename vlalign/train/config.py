"""The configuration of the loop."""

import dataclasses
from typing import Literal

from vlalign.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """How long, and what happens when.

    steps: of the whole run.   micro_batches: parts a batch is encoded in, one after the other;
    the loss is over all of it (see objectives/total.py).   ema: decay of the average of the
    parameters that is evaluated in their place, None for none.   log_every, save_every: steps.
    keep: newest checkpoints kept.   keep_every: steps of checkpoints kept for ever, None for none.
    init_from: what this run starts from: a run directory, or a pre-trained model (directory, file,
      hf://org/name) that gives the same numbers here. The run's own checkpoint always wins.
    max_bad_share: of rows that cannot be used, above which the run stops.
    on_nan: what to do when loss or gradient are not finite: "stop", or "rewind" to the newest
      checkpoint and leave out the batches from there to the bad one.
    max_rewinds: without a new checkpoint between them; one more stops the run.
    stall_s: seconds without a sign of the loop after which the watchdog says which host is behind;
      after as long again it ends the process. Longer than an evaluation or a save takes.
    eval_batch_size: rows encoded at once in evaluation.
    """

    steps: int = 1000
    micro_batches: int = 1
    ema: float | None = None
    log_every: int = 10
    save_every: int = 200
    keep: int = 2
    keep_every: int | None = None
    init_from: str | None = None
    max_bad_share: float = 0.1
    on_nan: Literal["stop", "rewind"] = "stop"
    max_rewinds: int = 3
    stall_s: float = 1800.0
    eval_batch_size: int = 256

    def __post_init__(self) -> None:
        counts = ("steps", "micro_batches", "log_every", "save_every", "keep", "eval_batch_size")
        for name in counts:
            if getattr(self, name) < 1:
                raise UserError(f"train.{name}={getattr(self, name)} must be at least 1")
        if self.stall_s <= 0 or self.max_rewinds < 0:
            raise UserError("train.stall_s must be positive, train.max_rewinds at least 0")
        if self.ema is not None and not 0 < self.ema < 1:
            raise UserError(f"train.ema={self.ema} must be between 0 and 1, or none")
