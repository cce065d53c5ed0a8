"""How fast the input of an experiment is, and which stage limits it.

The stages are timed one after the other in one thread, as a batch is made: read the record, make
each view (decoding an image is part of its view), tokenise, put the batch together. Beside them
stands the rate of the real pipeline with its workers and threads.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlalign.data.pipeline import Data
from vlalign.data.record import BadRecord
from vlalign.data.tokenizers.base import TextTokenizer
from vlalign.data.views import Value, fields_of
from vlalign.errors import UserError

READ, TOKENISE, ASSEMBLE = "read", "tokenise", "assemble"
_SEED = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stages:
    """What the stages cost in one thread.

    seconds: stage ("read", "view NAME", "tokenise", "assemble") -> seconds spent in it.
    samples: made, bad ones included; bad: of them; records: of the source, to tell whether each was
    read once or more often, when caches help.
    """

    seconds: dict[str, float]
    samples: int
    bad: int
    records: int

    def shares(self) -> dict[str, float]:
        """Stage -> share of the time, 0..1."""
        whole = sum(self.seconds.values()) or 1.0
        return {name: seconds / whole for name, seconds in self.seconds.items()}

    def rate(self) -> float:
        """Samples a second of one thread that does nothing else."""
        return self.samples / (sum(self.seconds.values()) or float("nan"))

    def slowest(self) -> str:
        """The stage that takes most of the time."""
        return max(self.seconds, key=lambda name: self.seconds[name])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rate:
    """What the pipeline gives: samples a second with these workers, and up to its first batch."""

    workers: int
    samples_per_s: float
    start_s: float


def measure_stages(data: Data, tokenizer: TextTokenizer, *, seconds: float) -> Stages:
    """Times the stages batch by batch until `seconds` have passed, at least one batch."""
    count = len(data.source)
    if not count:
        raise UserError(f"the data source is empty: {data.source!r}")
    generator = np.random.Generator(np.random.Philox(_SEED))
    spent = dict.fromkeys((READ, *(f"view {name}" for name in data.views), TOKENISE, ASSEMBLE), 0.0)
    start, samples, bad = time.perf_counter(), 0, 0
    order = generator.permutation(count)
    while not samples or time.perf_counter() - start < seconds:
        places = np.arange(samples, samples + data.batch_size) % count
        rows = []
        for index in order[places].tolist():
            row = _sample(data, index, generator, spent)
            bad += row is None
            rows.append(row or {})
        _assemble(data, tokenizer, rows, spent)
        samples += data.batch_size
    return Stages(seconds=spent, samples=samples, bad=bad, records=count)


def _sample(
    data: Data, index: int, generator: np.random.Generator, spent: dict[str, float]
) -> dict[str, Value] | None:
    """The views of one record, None for a bad one; adds its times to `spent`."""
    values: dict[str, Value] = {}
    before, stage = time.perf_counter(), READ
    try:
        record = data.source[index]
        for name, view in data.views.items():
            more = range(index + 1, index + 1 + getattr(view, "partners", 0))
            partners = tuple(data.source[place % len(data.source)] for place in more)
            seen = (record, *partners) if partners else record
            now = time.perf_counter()
            spent[stage] += now - before
            before, stage = now, f"view {name}"
            values |= fields_of(name, view(seen, generator))
        return values
    except BadRecord:
        return None
    finally:
        spent[stage] += time.perf_counter() - before


def _assemble(
    data: Data, tokenizer: TextTokenizer, rows: list[dict[str, Value]], spent: dict[str, float]
) -> None:
    """One batch from the rows' values; adds its times to `spent`."""
    for name, view in data.views.items():
        example = view.example()
        found = {row: values[name] for row, values in enumerate(rows) if name in values}
        before = time.perf_counter()
        if isinstance(example, np.ndarray):
            batch: NDArray[Any] = np.zeros((len(rows), *example.shape), example.dtype)
            for row, value in found.items():
                batch[row] = value
        else:
            texts = {row: (v,) if isinstance(v, str) else tuple(v) for row, v in found.items()}
            places = [(row, i) for row, some in texts.items() for i in range(len(some))]
            ids, _ = tokenizer.encode([text for some in texts.values() for text in some])
            now = time.perf_counter()
            spent[TOKENISE] += now - before
            before = now
            count = 1 if isinstance(example, str) else len(example)
            batch = np.zeros((len(rows), count, tokenizer.length), np.int32)
            if places:
                batch[tuple(np.array(places).T)] = ids
        spent[ASSEMBLE] += time.perf_counter() - before


def measure_rate(data: Data, tokenizer: TextTokenizer, *, workers: int, seconds: float) -> Rate:
    """Takes batches for `seconds`, at least two, after those that were prepared at the start."""
    start = time.perf_counter()
    with dataclasses.replace(data, workers=workers).batches(tokenizer, seed=_SEED) as batches:
        next(batches)
        first = time.perf_counter() - start
        for _ in range(data.prefetch * max(1, workers)):
            if time.perf_counter() - start > first + seconds:
                break
            next(batches)
        taken, begin = 0, time.perf_counter()
        while taken < 2 or time.perf_counter() - begin < seconds:
            next(batches)
            taken += 1
        passed = time.perf_counter() - begin
    rate = taken * data.batch_size / passed
    return Rate(workers=workers, samples_per_s=rate, start_s=first)


def advice(stage: str, data: Data) -> str:
    """What makes this stage cheaper."""
    if stage == READ:
        return (
            "read: keep the data on a local disk, or `vlalign data convert --format arrayrecord`; "
            "data.threads hides the waiting for a store"
        )
    if stage == TOKENISE:
        return "tokenise: texts repeat? they are remembered; else shorter ones, or more workers"
    if stage == ASSEMBLE:
        return "assemble: the batch's own size; fewer or smaller views"
    name = stage.removeprefix("view ")
    if isinstance(data.views[name].example(), str | tuple):
        return f"{stage}: a text view; simpler choices, or more workers"
    return (
        f"{stage}: decoding and augmentation; images stored nearer to the view's size, a cache "
        "that holds them all (cache_mib), fewer augmentations, or more workers"
    )


def verdict(stages: Stages, rates: Sequence[Rate], data: Data, *, cores: int) -> list[str]:
    """What limits the pipeline and what to change, in sentences."""
    best = max(rates, key=lambda rate: rate.samples_per_s)
    now = next((rate for rate in rates if rate.workers == data.workers), rates[0])
    slowest = stages.slowest()
    lines = [
        f"{slowest} takes {100 * stages.shares()[slowest]:.0f} % of a sample's time",
        advice(slowest, data),
        f"training that takes more than {now.samples_per_s:,.0f} samples/s with "
        f"data.workers={now.workers} waits for data",
    ]
    if best.samples_per_s > 1.2 * now.samples_per_s:
        lines.append(
            f"data.workers={best.workers} gives {best.samples_per_s / now.samples_per_s:.1f} "
            "times as much"
        )
    elif max(data.workers, data.threads) < cores:
        lines.append(
            f"{cores} cores are here: try --workers 0 {' '.join(map(str, _some(cores)))} "
            "to see what more processes give"
        )
    if stages.samples > stages.records:
        lines.append(
            f"each of the {stages.records:,} records was read more than once: these are the times "
            "of later epochs, with caches filled"
        )
    return lines


def _some(cores: int) -> list[int]:
    return sorted({1, max(1, cores // 2), cores})
