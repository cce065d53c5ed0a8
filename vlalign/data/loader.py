"""What grain reads from: element i is a host's batch of step start + i."""

import dataclasses
import operator
import zlib
from collections.abc import Mapping
from typing import Any

import grain
import numpy as np

from vlalign.data.record import BadRecord, Record
from vlalign.data.sources import Source
from vlalign.data.tokenizers.base import TextTokenizer
from vlalign.data.views import Batch, Value, View, fields_of

# (first step, views) of each part of a run, the first from step 0.
Stages = tuple[tuple[int, Mapping[str, View]], ...]

STEPS = 1 << 40  # as good as infinite, and a length that grain can slice
_POSITION = 1 << 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loader:
    """Batches by their number, for grain. Pickles to workers.

    first: step of element 0.   batch_size: rows of the global batch.   rows: those of this host.
    """

    source: Source
    stages: Stages
    tokenizer: TextTokenizer
    seed: int
    order: "grain.MapDataset[int]"
    first: int
    batch_size: int
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, element: int) -> Batch:
        step = self.first + operator.index(element)
        places = [step * self.batch_size + row for row in self.rows]
        views = views_at(self.stages, step)
        batch = blank(views, self.tokenizer, len(places))
        masks = {name: _Stream(self.seed, f"{name}/mask") for name in _masking(views)}
        streams = {name: _Stream(self.seed, name) for name in views}
        texts: dict[str, dict[tuple[int, ...], str]] = {}
        for row, place in enumerate(places):
            index = self.order[place]
            batch["index"][row] = index
            try:
                record = self.source[index]
                values: dict[str, Value] = {}
                for name, view in views.items():
                    seen = self._with_partners(view, record, place)
                    values |= fields_of(name, view(seen, streams[name].at(place)))
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
        for name, masking in _masking(views).items():
            for (row,) in texts.get(name, {}):
                rng = masks[name].at(places[row])
                masked = masking(batch[name][row].copy(), self.tokenizer, rng)
                for field, found in zip(_mask_fields(name), masked, strict=True):
                    batch[field][row] = found
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


def views_at(stages: Stages, step: int) -> Mapping[str, View]:
    """The views of the part of the run that `step` is in."""
    return next(views for first, views in reversed(stages) if first <= step)


def _masking(views: Mapping[str, View]) -> dict[str, Any]:
    """The maskings of the views that have their tokens masked."""
    return {name: v.masking for name, v in views.items() if hasattr(v, "masking")}


def _mask_fields(name: str) -> tuple[str, str, str]:
    """What a masked view gives: ids with some hidden, the ids to find, where they are hidden."""
    return name, f"{name}_targets", f"{name}_mask"


def blank(views: Mapping[str, View], tokenizer: TextTokenizer, rows: int) -> Batch:
    """A batch of zeros of the right shapes and dtypes."""
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
