"""What a source holds, counted: sizes, formats, captions, duplicates and bad records.

Memory does not grow with the number of records: histograms have fixed relative bins, and duplicates
are found by 64-bit hashes of which at most `MOST_HASHES` are kept (see `Distinct`).
"""

import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlalign.data import decode
from vlalign.data.jobs import pieces, run_jobs
from vlalign.data.record import BadRecord, Record
from vlalign.data.scripts import script_of
from vlalign.data.sources import Source

MOST_HASHES = 1 << 22  # 64 MiB for each of images, texts and keys
EXAMPLES = 5  # of each kind of bad record
MAX_PIXELS = 64_000_000  # as ImageView's default
_PIECE = 2048  # records a job
_FEW = 1 << 16  # hashes that may wait unsorted
_TURNED = (5, 6, 7, 8)  # values of the EXIF orientation that exchange width and height
_ORIENTATION = 0x0112


class Histogram:
    """Whole numbers >= 0 in bins at most 1/16 of their value wide; mean and range are exact."""

    def __init__(self) -> None:
        self.bins: Counter[int] = Counter()
        self.count = self.total = self.high = 0
        self.low: int | None = None

    def add(self, value: int) -> None:
        """Count one value."""
        shift = max(0, value.bit_length() - 5)
        self.bins[16 * shift + (value >> shift)] += 1
        self.count += 1
        self.total += value
        self.high = max(self.high, value)
        self.low = value if self.low is None else min(self.low, value)

    def merge(self, other: "Histogram") -> None:
        """Add the counts of another one."""
        self.bins.update(other.bins)
        self.count += other.count
        self.total += other.total
        self.high = max(self.high, other.high)
        lows = [low for low in (self.low, other.low) if low is not None]
        self.low = min(lows, default=None)

    def quantile(self, share: float) -> float:
        """The value below which `share` of the values are, to 1/32 of it; nan if there are none."""
        rest = share * self.count
        for index in sorted(self.bins):
            rest -= self.bins[index]
            if rest <= 0:
                low, width = _edges(index)
                return float(min(max(low + (width - 1) / 2, self.low or 0), self.high))
        return math.nan

    def bars(self) -> list[tuple[int, int, int]]:
        """(low, high, count) of the bins between the lowest and the highest, empty ones too."""
        if not self.bins:
            return []
        span = range(min(self.bins), max(self.bins) + 1)
        return [(low, low + width, self.bins[i]) for i in span for low, width in [_edges(i)]]

    def summary(self) -> dict[str, Any]:
        """Plain numbers: count, mean, min, median, 5th and 95th per cent, max."""
        if not self.count:
            return {"count": 0}
        return {
            "count": self.count,
            "mean": self.total / self.count,
            "min": self.low,
            "p05": self.quantile(0.05),
            "median": self.quantile(0.5),
            "p95": self.quantile(0.95),
            "max": self.high,
        }


def _edges(index: int) -> tuple[int, int]:
    """The lowest value and the width of a histogram's bin."""
    shift = max(0, index // 16 - 1)
    return (index - 16 * shift) << shift, 1 << shift


class Distinct:
    """How many of many values are equal, by their 64-bit hashes.

    Exact (but for one chance of two million that two values share a hash) as long as at most `most`
    hashes are distinct. Beyond, only hashes divisible by 2, 4, 8, ... are kept: a sample of the
    *values*, each with all its copies, that stands for all. The order of merging changes nothing.
    """

    def __init__(self, most: int = MOST_HASHES) -> None:
        self._most = most
        self._values = 0
        self.bits = 0  # kept are hashes whose lowest `bits` bits are 0
        self._hashes: NDArray[np.uint64] = np.zeros(0, np.uint64)  # sorted, distinct
        self._times: NDArray[np.int64] = np.zeros(0, np.int64)
        self._fresh: list[int] = []
        self._waiting: list[tuple[NDArray[np.uint64], NDArray[np.int64]]] = []
        self._many = 0  # in `_waiting`

    def add(self, value: bytes) -> None:
        """Count one value."""
        self._values += 1
        self._fresh.append(int.from_bytes(hashlib.blake2b(value, digest_size=8).digest(), "little"))
        if len(self._fresh) >= _FEW:
            self._settle()

    def merge(self, other: "Distinct") -> None:
        """Add the counts of another one."""
        other._settle()
        self._values += other._values
        self.bits = max(self.bits, other.bits)
        self._waiting.append((other._hashes, other._times))
        self._many += len(other._hashes)
        # Sorting the whole for every small part would take a time that grows with the square.
        if self._many > max(_FEW, len(self._hashes) // 2):
            self._settle()

    def _settle(self) -> None:
        fresh = np.array(self._fresh, np.uint64)
        parts = [*self._waiting, (fresh, np.ones(len(fresh), np.int64))]
        self._fresh, self._waiting, self._many = [], [], 0
        hashes, times = (np.concatenate(found) for found in zip(*parts, strict=True))
        if len(hashes):
            both = np.concatenate([self._hashes, hashes])
            self._hashes, place = np.unique(both, return_inverse=True)
            counts = np.zeros(len(self._hashes), np.int64)
            np.add.at(counts, place, np.concatenate([self._times, times]))
            self._times = counts
        self._thin()

    def _thin(self) -> None:
        while True:
            kept = (self._hashes & np.uint64((1 << self.bits) - 1)) == 0
            if kept.sum() <= self._most:
                break
            self.bits += 1
        if not kept.all():
            self._hashes, self._times = self._hashes[kept], self._times[kept]

    def summary(self) -> dict[str, Any]:
        """Plain numbers: values, distinct ones, copies (values - distinct), most of one, exact."""
        self._settle()
        kept = int(self._times.sum())
        distinct = round(self._values * len(self._hashes) / kept) if kept else 0
        return {
            "values": self._values,
            "distinct": distinct,
            "copies": self._values - distinct,
            "most_of_one": int(self._times.max(initial=0)),
            "exact": self.bits == 0,
        }

    def __getstate__(self) -> dict[str, Any]:
        self._settle()
        return vars(self)


_HISTOGRAMS = (
    "width",
    "height",
    "aspect_milli",
    "image_bytes",
    "caption_characters",
    "caption_words",
)
_COUNTERS = ("formats", "modes", "kinds", "languages", "scripts", "problems")
_DISTINCT = ("images", "texts", "keys")


class Summary:
    """Counts over records; of parts of a source they merge into those of the whole.

    records: looked at, bad ones included. bad: of them. without_caption: good ones without a text.
    A script is counted with the language it was tagged as: ("en", "Cyrillic").
    examples: kind of problem -> the first few (index, key, detail).
    """

    def __init__(self) -> None:
        self.records = self.bad = self.without_caption = 0
        self.histograms = {name: Histogram() for name in (*_HISTOGRAMS, "captions")}
        self.counters: dict[str, Counter[Any]] = {name: Counter() for name in _COUNTERS}
        self.distinct = {name: Distinct() for name in _DISTINCT}
        self.examples: dict[str, list[tuple[int, str, str]]] = {}

    def add(self, index: int, record: Record, *, whole: bool) -> None:
        """Count a record; whole: decode its image, not only its header."""
        try:
            self._add_image(record.image, whole=whole)
        except BadRecord as error:
            self.add_problem(index, record.key, error)
            return
        self.records += 1
        self.distinct["keys"].add(record.key.encode(errors="replace"))
        self.distinct["images"].add(record.image)
        self.histograms["captions"].add(len(record.captions))
        self.without_caption += not any(caption.text.strip() for caption in record.captions)
        for caption in record.captions:
            self.histograms["caption_characters"].add(len(caption.text))
            self.histograms["caption_words"].add(len(caption.text.split()))
            self.counters["kinds"][caption.kind] += 1
            self.counters["languages"][caption.language] += 1
            self.counters["scripts"][caption.language, script_of(caption.text)] += 1
            self.distinct["texts"].add(caption.text.encode(errors="replace"))

    def _add_image(self, image: bytes, *, whole: bool) -> None:
        if whole:
            decode.decode(image, MAX_PIXELS)
        header = image_header(image)
        self.counters["formats"][header.format] += 1
        self.counters["modes"][header.mode] += 1
        self.histograms["width"].add(header.width)
        self.histograms["height"].add(header.height)
        self.histograms["aspect_milli"].add(round(1000 * header.width / header.height))
        self.histograms["image_bytes"].add(len(image))

    def add_problem(self, index: int, key: str, error: BadRecord) -> None:
        """Count a bad record."""
        self.records += 1
        self.bad += 1
        self.counters["problems"][error.kind] += 1
        examples = self.examples.setdefault(error.kind, [])
        if len(examples) < EXAMPLES:
            examples.append((index, key, error.detail))

    def merge(self, later: "Summary") -> None:
        """Add the counts of the records behind these."""
        self.records += later.records
        self.bad += later.bad
        self.without_caption += later.without_caption
        for name, histogram in self.histograms.items():
            histogram.merge(later.histograms[name])
        for name, counter in self.counters.items():
            counter.update(later.counters[name])
        for name, distinct in self.distinct.items():
            distinct.merge(later.distinct[name])
        for kind, found in later.examples.items():
            self.examples[kind] = (self.examples.get(kind, []) + found)[:EXAMPLES]

    def as_json(self) -> dict[str, Any]:
        """Everything as plain data."""
        scripts: dict[str, dict[str, int]] = {}
        for (language, script), count in _ranked(self.counters["scripts"]):
            scripts.setdefault(language, {})[script] = count
        counters = {name: dict(_ranked(self.counters[name])) for name in _COUNTERS}
        return {
            "records": self.records,
            "bad": self.bad,
            "without_caption": self.without_caption,
            **{name: found.summary() for name, found in self.histograms.items()},
            **counters,
            "scripts": scripts,
            "duplicates": {name: found.summary() for name, found in self.distinct.items()},
            "examples": {
                kind: [dict(zip(("index", "key", "detail"), one, strict=True)) for one in found]
                for kind, found in sorted(self.examples.items())
            },
        }


def _ranked(counter: Counter[Any]) -> list[tuple[Any, int]]:
    """The most frequent first, equal ones by name."""
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))


@dataclasses.dataclass(frozen=True)
class ImageHeader:
    """What an image's header says; width and height are upright, by the EXIF tag."""

    format: str
    mode: str
    width: int
    height: int


def image_header(image: bytes) -> ImageHeader:
    """The header of encoded bytes; no pixel is decoded.

    Raises BadRecord: "empty image", "unsupported image", "image too large" or "corrupt image".
    """
    with decode.opened(image, MAX_PIXELS) as file:
        width, height = file.size
        # PNG would have to be read whole for it.
        turned = file.format != "PNG" and file.getexif().get(_ORIENTATION) in _TURNED
        size = (height, width) if turned else (width, height)
        return ImageHeader(file.format or "", file.mode, *size)


def summarize(source: Source, indices: Iterable[int], *, whole: bool = False) -> Summary:
    """The counts of some records of a source."""
    summary = Summary()
    for index in indices:
        try:
            record = source[index]
        except BadRecord as error:
            summary.add_problem(index, "", error)
        else:
            summary.add(index, record, whole=whole)
    return summary


def _summarize(shared: tuple[Source, bool], job: Sequence[int]) -> Summary:
    source, whole = shared
    return summarize(source, job, whole=whole)


def stats(
    source: Source,
    *,
    workers: int = 0,
    whole: bool = False,
    progress: Callable[[int], None] = lambda records: None,
) -> Summary:
    """The counts of all records.

    workers: processes; 0: this one. Any number gives the same counts. whole: decode every image,
    which finds damage behind the header. progress: is told how many more records are counted.
    """
    total = Summary()
    jobs = pieces(len(source), _PIECE)
    for summary in run_jobs(_summarize, (source, whole), jobs, workers=workers):
        total.merge(summary)
        progress(summary.records)
    return total


def sample(count: int, rows: int, *, seed: int = 0) -> Iterator[int]:
    """`rows` different indices of 0..count-1 (all if they are fewer), ascending, evenly spread.

    One is drawn from each of `rows` equal parts, by the seed.
    """
    rows = min(rows, count)
    shares = np.random.default_rng(seed).random(rows).tolist()
    for row, share in enumerate(shares):
        start, stop = row * count // rows, (row + 1) * count // rows
        yield start + int(share * (stop - start))
