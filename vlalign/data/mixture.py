"""Several sources as one: what share of the samples comes from each, written down."""

import dataclasses
import hashlib
import itertools
from collections.abc import Mapping

import grain
import numpy as np

from vlalign.data.record import Record
from vlalign.data.sources import Source
from vlalign.errors import UserError, nearest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """Sources mixed by weight. It is itself a source: all their records, one source after another.

    In the order of training every window of samples holds the sources in proportion to their
    weights, as exactly as whole numbers can; within its own samples each source gives all of its
    records once before any comes again, in an order of its own each time. So a source of weight w
    and n records has been seen p * w / n times after p samples (weights made to sum to 1).

    sources: by name; keys of records get it in front, as "name/key".
    weights: of the samples, by name; None: by the sources' sizes. 0 leaves a source out.
    temperature: with weights=None, sizes to this power: 1 proportional, 0 all alike, in between
    small sources come more often than their size says.
    limits: at most so many records of a source are used: a fixed choice spread over it by hash, the
    same for every seed. It counts as the source's size.
    """

    sources: Mapping[str, Source]
    weights: Mapping[str, float] | None = None
    temperature: float = 1.0
    limits: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.sources:
            raise UserError("Mixture.sources is empty: name at least one source")
        for field, names in (("weights", self.weights or {}), ("limits", self.limits)):
            for name in names:
                if name not in self.sources:
                    raise UserError(f"Mixture.{field}: {name!r}{nearest(name, self.sources)}")
        if self.weights is not None:
            if missing := sorted(set(self.sources) - set(self.weights)):
                raise UserError(f"Mixture.weights: none for {', '.join(missing)}; 0 leaves one out")
            values = list(self.weights.values())
            if not all(0.0 <= w < float("inf") for w in values) or not any(values):
                raise UserError(f"Mixture.weights={dict(self.weights)}: >= 0, one above 0")
        if not 0.0 <= self.temperature <= 1.0:
            raise UserError(f"Mixture.temperature={self.temperature}: 0..1")
        if bad := {name: limit for name, limit in self.limits.items() if limit < 1}:
            raise UserError(f"Mixture.limits={bad}: at least 1; weight 0 leaves a source out")

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources.values())

    def __getitem__(self, index: int) -> Record:
        name, place = self.locate(index)
        record = self.sources[name][place]
        return dataclasses.replace(record, key=f"{name}/{record.key}")

    def locate(self, index: int) -> tuple[str, int]:
        """The source and the index in it of record `index`."""
        if index >= 0:
            rest = index
            for name, source in self.sources.items():
                if rest < len(source):
                    return name, rest
                rest -= len(source)
        raise IndexError(f"record {index} of a mixture of {len(self)}")

    def fingerprint(self) -> str:
        """sha256 over the sources' fingerprints and all that decides the order."""
        lines = [f"{name} {source.fingerprint()}" for name, source in self.sources.items()]
        weights = None if self.weights is None else sorted(self.weights.items())
        lines += [repr(weights), repr(self.temperature), repr(sorted(self.limits.items()))]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def shares(self) -> dict[str, float]:
        """The share of each source in the samples; they sum to 1."""
        if self.weights is not None:
            weights = dict(self.weights)
        else:
            weights = {name: float(self._used(name)) ** self.temperature for name in self.sources}
            weights = {name: w if self._used(name) else 0.0 for name, w in weights.items()}
        total = sum(weights.values())
        return {name: weight / total for name, weight in weights.items()}

    def order(self, seed: int) -> "grain.MapDataset[int]":
        """Global position -> index into the mixture, without end.

        seed: below 2^32; each source is shuffled by its own hash of it.
        """
        ends = itertools.accumulate(map(len, self.sources.values()), initial=0)
        starts = dict(zip(self.sources, ends, strict=False))
        shares = {name: share for name, share in self.shares().items() if share > 0}
        parts = []
        for name in shares:
            if len(self.sources[name]) == 0:
                raise UserError(f"Mixture: the source {name!r} is empty and has a weight above 0")
            parts.append(self._part(name, starts[name], seed))
        if len(parts) == 1:
            return parts[0]
        mixed: grain.MapDataset[int] = grain.MapDataset.mix(parts, weights=list(shares.values()))
        return mixed

    def _used(self, name: str) -> int:
        count = len(self.sources[name])
        return min(count, self.limits.get(name, count))

    def _part(self, name: str, start: int, seed: int) -> "grain.MapDataset[int]":
        """One source's records in its own order, by their index in the mixture."""
        count, used = len(self.sources[name]), self._used(name)
        hashed = hashlib.sha256(f"order {seed} {name}".encode()).digest()
        part = grain.MapDataset.range(start, start + count)
        if used < count:
            chosen = start + _choice(name, count, used)
            part = grain.MapDataset.source(chosen).map(int)
        return part.shuffle(seed=int.from_bytes(hashed[:4], "little")).repeat()


def _choice(name: str, count: int, used: int) -> np.ndarray:
    """`used` of `count` indices, sorted: the same for every seed and machine."""
    digest = hashlib.sha256(f"limit {name}".encode()).digest()
    rng = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:8], "little")))
    return np.sort(rng.choice(count, used, replace=False, shuffle=False))
