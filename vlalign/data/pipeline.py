"""Records to batches. The sample at global position p depends on (seed, p), and on nothing else.

So neither hosts, nor workers, nor a restart change the data, and the position to resume at *is* the
step: there is no other state. grain orders, prefetches and runs the workers. Its element here is a
whole batch: its cost per element (some 30 us a stage) is then paid once a batch, not once a sample.
"""

import atexit
import dataclasses
import hashlib
import operator
import weakref
import zlib
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from absl import flags
from numpy.typing import NDArray

from vlalign.data.mixture import Mixture
from vlalign.data.record import BadRecord, Record
from vlalign.data.sources import Source
from vlalign.data.tokenizer import Bpe
from vlalign.data.tokenizers.base import TextTokenizer, TokenizerConfig
from vlalign.errors import UserError

Batch = dict[str, NDArray[Any]]
Value = NDArray[Any] | str | tuple[str, ...]
# One field, or several: "" is the view's own, any other key is NAME_key.
Values = Value | Mapping[str, Value]

# Fields that every batch has beside its views.
RESERVED = ("weight", "index", "problem", "truncated")
_STEPS = 1 << 40  # as good as infinite, and a length that grain can slice
_POSITION = 1 << 64

# Left open until the interpreter is half gone, grain's iterators fail noisily.
_OPEN: "weakref.WeakSet[Batches]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for batches in list(_OPEN):
        batches.close()


@runtime_checkable
class View(Protocol):
    """A named field of the batch, made from a record: an array, or texts that are tokenised.

    A view with an attribute `partners` is given a tuple of records: the sample's, and those of so
    many positions behind it in the global order.
    """

    def __call__(self, record: Any, rng: np.random.Generator, /) -> Values:
        """The field's value for one sample; BadRecord if the record cannot give it.

        Several texts always are of one number; "" stands for one that the record does not have.
        """

    def example(self) -> Values:
        """A value of the right shape and dtype, without data; a text for a text view."""


@runtime_checkable
class ImagePreparation(Protocol):
    """What a view of images says of evaluation: how it prepares them there, without chance."""

    def evaluate(self, image: bytes, /) -> NDArray[np.uint8]:
        """The deterministic view (size, size, 3) of encoded bytes; BadRecord if they are bad."""

    def spec(self) -> dict[str, Any]:
        """The same as plain data, to be compared."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Training data: a source, the views of its records, and how batches are made of them.

    source: the records.
    views: batch field -> view; `RESERVED` names are taken.
    tokenizer: how texts become tokens.
    batch_size: samples of a step over all hosts.
    workers: processes that prepare batches; 0: threads of this process.
    threads: threads that prepare batches, in each worker; changes no output.
    prefetch: batches prepared ahead, in each worker; changes no output.
    """

    source: Source
    views: Mapping[str, View]
    tokenizer: TokenizerConfig = Bpe()
    batch_size: int = 256
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
        host: int = 0,
        hosts: int = 1,
    ) -> "Batches":
        """The batches of steps start_step, start_step + 1, ... for one host, without end.

        Fields, b = batch_size / hosts rows: one a view: its array, or int32 (b, length) for a text,
        (b, k, length) for k texts with NAME_present bool (b, k); of masked tokens also NAME_targets
        int32 and NAME_mask bool (b, length). "weight" float32
        (b,), "index" int32 (b,) of the record, "problem" int32 (b,) into `PROBLEMS` (such a row is
        zeros of weight 0), "truncated" bool (b,). Host h has rows h*b..(h+1)*b of the global batch.
        Every record comes once an epoch, in an order of its own; of a `Mixture`, as it says.
        Preparation starts at once; close() or a `with` block ends its threads and processes.
        """
        count = _length(self.source)
        if not 0 <= host < hosts:
            raise UserError(f"host {host} of {hosts}: numbered from 0")
        if self.batch_size % hosts:
            raise UserError(f"Data.batch_size={self.batch_size} is not divisible by {hosts} hosts")
        if not 0 <= seed < 1 << 32:
            raise UserError(f"seed {seed}: in 0..{(1 << 32) - 1}")
        if start_step < 0:
            raise UserError(f"start_step {start_step}: 0 or more")
        rows = self.batch_size // hosts
        loader = _Loader(
            source=self.source,
            views=dict(self.views),
            tokenizer=tokenizer,
            seed=seed,
            order=record_order(self.source, count, seed),
            first=start_step * self.batch_size + host * rows,
            stride=self.batch_size,
            rows=rows,
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

    def example(self, tokenizer: TextTokenizer) -> Batch:
        """One batch of two samples, zeros of the right shapes and dtypes; reads no data."""
        return _blank(self.views, tokenizer, 2)

    def fingerprint(self) -> str:
        """sha256 over all that decides the batches: source, views, tokenizer, batch size."""
        views = "\n".join(f"{name}={view!r}" for name, view in sorted(self.views.items()))
        parts = (self.source.fingerprint(), views, repr(self.tokenizer), str(self.batch_size))
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Loader:
    """What grain reads from: element i is the host's batch of step start + i. Pickles to workers.

    first: global position of the first row of element 0; stride: positions between elements.
    """

    source: Source
    views: dict[str, View]
    tokenizer: TextTokenizer
    seed: int
    order: "grain.MapDataset[int]"
    first: int
    stride: int
    rows: int

    def __len__(self) -> int:
        return _STEPS

    def __getitem__(self, element: int) -> Batch:
        batch = _blank(self.views, self.tokenizer, self.rows)
        masks = {name: _Stream(self.seed, f"{name}/mask") for name in _masking(self.views)}
        streams = {name: _Stream(self.seed, name) for name in self.views}
        texts: dict[str, dict[tuple[int, ...], str]] = {}
        start = self.first + operator.index(element) * self.stride
        for row in range(self.rows):
            index = self.order[start + row]
            batch["index"][row] = index
            try:
                record = self.source[index]
                values: dict[str, Value] = {}
                for name, view in self.views.items():
                    seen = self._with_partners(view, record, start + row)
                    values |= fields_of(name, view(seen, streams[name].at(start + row)))
            except BadRecord as problem:
                batch["problem"][row] = problem.code
                continue
            batch["weight"][row] = record.weight
            for name, value in values.items():
                if isinstance(value, str):
                    texts.setdefault(name, {})[row,] = value
                elif isinstance(value, tuple):
                    some: dict[tuple[int, ...], str] = {
                        (row, i): text for i, text in enumerate(value) if text
                    }
                    texts.setdefault(name, {}).update(some)
                else:
                    batch[name][row] = value
        self._tokenise(texts, batch)
        for name, masking in _masking(self.views).items():
            for (place,) in texts.get(name, {}):
                rng = masks[name].at(start + place)
                masked = masking(batch[name][place].copy(), self.tokenizer, rng)
                for field, found in zip(_mask_fields(name), masked, strict=True):
                    batch[field][place] = found
        return batch

    def _with_partners(
        self, view: View, record: Record, position: int
    ) -> Record | tuple[Record, ...]:
        partners = getattr(view, "partners", 0)
        if not partners:
            return record
        behind = (self.order[position + step] for step in range(1, partners + 1))
        return record, *(self.source[index] for index in behind)

    def _tokenise(self, texts: dict[str, dict[tuple[int, ...], str]], batch: Batch) -> None:
        for name, by_place in texts.items():
            if by_place:
                ids, cut = self.tokenizer.encode(list(by_place.values()))
                places = tuple(np.array(list(by_place)).T)
                batch[name][places] = ids
                if (present := f"{name}_present") in batch:
                    batch[present][places] = True
                np.logical_or.at(batch["truncated"], places[0], cut)


class _Stream:
    """The random numbers of one view: a counter-based generator, set to a position at no cost.

    Each view has its own key, so that adding a view leaves the others' samples alone.
    """

    def __init__(self, seed: int, name: str) -> None:
        self._bits = np.random.Philox(key=[seed, zlib.crc32(name.encode())])
        self._generator = np.random.Generator(self._bits)
        self._state = self._bits.state

    def at(self, position: int) -> np.random.Generator:
        """The generator at the start of a position's numbers: 2**128 of them before the next."""
        self._state["state"]["counter"][:] = (0, 0, position % _POSITION, 0)
        self._bits.state = self._state
        return self._generator


def record_order(source: Source, count: int, seed: int) -> "grain.MapDataset[int]":
    """Global position -> record index: all records once an epoch, in another order each epoch.

    A mixture has an order of its own.
    """
    if isinstance(source, Mixture):
        return source.order(seed)
    # grain shuffles epoch e by seed + e: but for the hash, neighbouring seeds would share orders.
    hashed = int.from_bytes(hashlib.sha256(f"order {seed}".encode()).digest()[:4], "little")
    return grain.MapDataset.range(count).shuffle(seed=hashed).repeat()


def fields_of(name: str, values: Values) -> dict[str, Value]:
    """The fields of a view by their names in the batch."""
    if not isinstance(values, Mapping):
        return {name: values}
    return {f"{name}_{key}" if key else name: value for key, value in values.items()}


def _masking(views: Mapping[str, View]) -> dict[str, Any]:
    """The maskings of the views that have their tokens masked."""
    return {name: v.masking for name, v in views.items() if hasattr(v, "masking")}


def _mask_fields(name: str) -> tuple[str, str, str]:
    """What a masked view gives: ids with some hidden, the ids to find, where they are hidden."""
    return name, f"{name}_targets", f"{name}_mask"


def _blank(views: Mapping[str, View], tokenizer: TextTokenizer, rows: int) -> Batch:
    batch: Batch = {}
    examples: dict[str, Value] = {}
    for name, view in views.items():
        examples |= fields_of(name, view.example())
    for name, value in examples.items():
        if isinstance(value, str):
            batch[name] = np.zeros((rows, tokenizer.length), np.int32)
        elif isinstance(value, tuple):
            batch[name] = np.zeros((rows, len(value), tokenizer.length), np.int32)
            batch[f"{name}_present"] = np.zeros((rows, len(value)), np.bool_)
        else:
            batch[name] = np.zeros((rows, *value.shape), value.dtype)
    for name in _masking(views):
        for field, dtype in zip(_mask_fields(name), (np.int32, np.int32, np.bool_), strict=True):
            batch[field] = np.zeros((rows, tokenizer.length), dtype)
    batch["weight"] = np.zeros(rows, np.float32)
    batch["index"] = np.zeros(rows, np.int32)
    batch["problem"] = np.zeros(rows, np.int32)
    batch["truncated"] = np.zeros(rows, np.bool_)
    return batch


def _length(source: Source) -> int:
    count = len(source)
    if count == 0:
        raise UserError(f"the data source is empty: {source!r}")
    if count >= 1 << 31:
        raise UserError(f"the data source has {count:,} records; at most 2**31 - 1")
    return count
