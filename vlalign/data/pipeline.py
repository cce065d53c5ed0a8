"""Records to batches. The sample at global position p depends on (seed, p), and on nothing else.

So neither hosts, nor workers, nor a restart change the data, and the position to resume at *is* the
step: there is no other state. grain orders, prefetches and runs the workers. Its element here is a
whole batch: its cost per element (some 30 us a stage) is then paid once a batch, not once a sample.
"""

import atexit
import dataclasses
import hashlib
import weakref
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import grain
import numpy as np
from absl import flags

from vlalign.data.loader import Loader, Stages, blank, views_at
from vlalign.data.mixture import Mixture
from vlalign.data.record import BadRecord
from vlalign.data.sources import Source
from vlalign.data.tokenizer import Bpe
from vlalign.data.tokenizers.base import TextTokenizer, TokenizerConfig
from vlalign.data.views import Batch, View
from vlalign.errors import UserError

# Fields that every batch has beside its views.
RESERVED = ("weight", "index", "problem", "truncated")

# Left open until the interpreter is half gone, grain's iterators fail noisily.
_OPEN: "weakref.WeakSet[Batches]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for batches in list(_OPEN):
        batches.close()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Training data: a source, the views of its records, and how batches are made of them.

    source: the records.
    views: batch field -> view; `RESERVED` names are taken.
    tokenizer: how texts become tokens.
    batch_size: samples of a step over all hosts.
    sizes: (first step, pixels) of each part of a run in which the image views with a `size` have
      this one, in rising order of steps; before the first and in evaluation they have their own.
    workers: processes that prepare batches; 0: threads of this process.
    threads: threads that prepare batches, in each worker; changes no output.
    prefetch: batches prepared ahead, in each worker; changes no output.
    """

    source: Source
    views: Mapping[str, View]
    tokenizer: TokenizerConfig = Bpe()
    batch_size: int = 256
    sizes: tuple[tuple[int, int], ...] = ()
    workers: int = 0
    threads: int = 1
    prefetch: int = 4

    def __post_init__(self) -> None:
        if not self.views:
            raise UserError("Data.views is empty: name at least one view, such as image")
        for name in self.views:
            if name in RESERVED:
                raise UserError(f"Data.views: {name!r} is taken; reserved: {', '.join(RESERVED)}")
        for name, least in (("batch_size", 1), ("workers", 0), ("threads", 1), ("prefetch", 1)):
            if getattr(self, name) < least:
                raise UserError(f"Data.{name}={getattr(self, name)}: at least {least}")
        steps = [step for step, _ in self.sizes]
        if steps != sorted(set(steps)) or min(steps, default=0) < 0:
            raise UserError(f"Data.sizes={self.sizes}: (first step, pixels), steps rising from 0")
        if self.sizes and not any(_has_size(view) for view in self.views.values()):
            raise UserError("Data.sizes: no view has a `size` to change")

    def stages(self) -> Stages:
        """(first step, views) of the parts of a run, the first from step 0."""
        parts: list[tuple[int, Mapping[str, View]]] = [(0, self.views)]
        for step, size in self.sizes:
            sized = {
                name: dataclasses.replace(view, size=size) if _has_size(view) else view  # type: ignore[type-var]
                for name, view in self.views.items()
            }
            parts.append((step, sized))
        return tuple(parts[1:] if self.sizes and self.sizes[0][0] == 0 else parts)

    def fit_tokenizer(self) -> TextTokenizer:
        """The tokenizer trained on every text that the caption views can make of the records.

        Broken records give no text here; training counts them. UserError if there is no text.
        """
        count = _length(self.source)
        used = min(count, self.tokenizer.train_records)
        texts: list[str] = []
        for index in (i * count // used for i in range(used)):
            try:
                record = self.source[index]
            except BadRecord:
                continue
            for view in self.views.values():
                if hasattr(view, "texts"):
                    texts.extend(view.texts(record))
        return self.tokenizer.train(texts)

    def batches(
        self,
        tokenizer: TextTokenizer,
        *,
        seed: int,
        start_step: int = 0,
        rows: Sequence[int] | None = None,
    ) -> "Batches":
        """The batches of steps start_step, start_step + 1, ... without end.

        rows: those of the global batch that this host wants; None: all of them.
        Fields, b rows: one a view: its array, or int32 (b, length) for a text,
        (b, k, length) for k texts with NAME_present bool (b, k); of masked tokens also NAME_targets
        int32 and NAME_mask bool (b, length). "weight" float32
        (b,), "index" int32 (b,) of the record, "problem" int32 (b,) into `PROBLEMS` (such a row is
        zeros of weight 0), "truncated" bool (b,).
        Every record comes once an epoch, in an order of its own; of a `Mixture`, as it says.
        Preparation starts at once; close() or a `with` block ends its threads and processes.
        """
        count = _length(self.source)
        rows = range(self.batch_size) if rows is None else rows
        if not rows or not all(0 <= row < self.batch_size for row in rows):
            raise UserError(f"rows {rows} are not of a batch of {self.batch_size}")
        if not 0 <= seed < 1 << 32:
            raise UserError(f"seed {seed}: in 0..{(1 << 32) - 1}")
        if start_step < 0:
            raise UserError(f"start_step {start_step}: 0 or more")
        loader = Loader(
            source=self.source,
            stages=self.stages(),
            tokenizer=tokenizer,
            seed=seed,
            order=record_order(self.source, count, seed),
            first=start_step,
            batch_size=self.batch_size,
            rows=tuple(rows),
        )
        dataset = grain.MapDataset.source(loader).to_iter_dataset(
            grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=self.prefetch)
        )
        if self.workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # grain reads absl flags; vlalign has none to parse
            dataset = dataset.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=self.workers, per_worker_buffer_size=self.prefetch
                )
            )
        return Batches(dataset, shared=self.workers > 0)

    def example(self, tokenizer: TextTokenizer, *, step: int | None = None) -> Batch:
        """Two samples, zeros of the right shapes and dtypes; reads no data.

        step: of the run, where `sizes` change the shapes; None: the views as they are.
        """
        views = self.views if step is None else views_at(self.stages(), step)
        return blank(views, tokenizer, 2)

    def fingerprint(self) -> str:
        """sha256 over all that decides the batches: source, views, tokenizer, batch size."""
        views = "\n".join(f"{name}={view!r}" for name, view in sorted(self.views.items()))
        parts = [self.source.fingerprint(), views, repr(self.tokenizer), str(self.batch_size)]
        if self.sizes:
            parts.append(repr(self.sizes))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


class Batches(Iterator[Batch]):
    """An endless iterator over batches that owns threads or processes until it is closed."""

    def __init__(self, dataset: "grain.IterDataset[Batch]", *, shared: bool) -> None:
        self._iterator: Any = iter(dataset)
        self._shared = shared
        _OPEN.add(self)
        self._iterator.start_prefetch()

    def __next__(self) -> Batch:
        if self._iterator is None:
            raise ValueError("these batches were closed; ask Data.batches for new ones")
        batch: Batch = next(self._iterator)
        if self._shared:
            # Workers hand over shared memory, which must not outlive them in a caller's hands.
            batch = {name: np.array(values) for name, values in batch.items()}
        return batch

    def close(self) -> None:
        """End the threads and worker processes; no batch can be taken afterwards."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None
            _OPEN.discard(self)

    def __enter__(self) -> "Batches":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def record_order(source: Source, count: int, seed: int) -> "grain.MapDataset[int]":
    """Global position -> record index: all records once an epoch, in another order each epoch.

    A mixture has an order of its own.
    """
    if isinstance(source, Mixture):
        return source.order(seed)
    # grain shuffles epoch e by seed + e: but for the hash, neighbouring seeds would share orders.
    hashed = int.from_bytes(hashlib.sha256(f"order {seed}".encode()).digest()[:4], "little")
    return grain.MapDataset.range(count).shuffle(seed=hashed).repeat()


def _has_size(view: object) -> bool:
    return isinstance(getattr(view, "size", None), int)


def _length(source: Source) -> int:
    count = len(source)
    if count == 0:
        raise UserError(f"the data source is empty: {source!r}")
    if count >= 1 << 31:
        raise UserError(f"the data source has {count:,} records; at most 2**31 - 1")
    return count
