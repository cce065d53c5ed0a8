"""The stages of the input pipeline: they are told apart, and the slowest is named."""

import dataclasses
import time
from collections.abc import Callable

import numpy as np
import pytest

from vlalign.data import bench
from vlalign.data.captions import CaptionView
from vlalign.data.images import ImageView
from vlalign.data.pipeline import Data
from vlalign.data.record import BadRecord, Record
from vlalign.data.sources import MemorySource
from vlalign.data.tokenizer import Tokenizer
from vlalign.errors import UserError

SLOW = 0.002  # seconds


class SlowSource(MemorySource):
    def __getitem__(self, index: int) -> Record:
        time.sleep(SLOW)
        if index % 4 == 0:
            raise BadRecord("unreadable record", "every fourth")
        return super().__getitem__(index)


@dataclasses.dataclass(frozen=True)
class SlowView:
    def __call__(self, record: Record, rng: np.random.Generator) -> np.ndarray:
        time.sleep(SLOW)
        return self.example()

    def example(self) -> np.ndarray:
        return np.ones(3, np.float32)


@dataclasses.dataclass(frozen=True)
class Two:
    """Two texts a sample."""

    def __call__(self, record: Record, rng: np.random.Generator) -> tuple[str, ...]:
        return (record.key, "")

    def example(self) -> tuple[str, ...]:
        return ("", "")


def data_of(records: MemorySource, **views: object) -> Data:
    chosen = {"image": ImageView(size=8), "text": CaptionView(template=0.0), **views}
    return Data(source=records, views=chosen, batch_size=8)  # type: ignore[arg-type]


@pytest.fixture
def tokenizer(source: Callable[[int], MemorySource]) -> Tokenizer:
    return data_of(source(8)).fit_tokenizer()


def test_a_slow_source_is_named(
    source: Callable[[int], MemorySource], tokenizer: Tokenizer
) -> None:
    data = data_of(SlowSource(records=source(16).records))
    stages = bench.measure_stages(data, tokenizer, seconds=0.05)
    assert stages.slowest() == "read"
    assert stages.seconds["read"] >= SLOW * stages.samples
    assert stages.bad * 4 == stages.samples
    assert sum(stages.shares().values()) == pytest.approx(1.0)
    assert stages.rate() < 1 / SLOW
    assert "local disk" in bench.advice("read", data)


def test_a_slow_view_is_named(source: Callable[[int], MemorySource], tokenizer: Tokenizer) -> None:
    data = data_of(source(8), slow=SlowView(), several=Two())
    stages = bench.measure_stages(data, tokenizer, seconds=0.05)
    assert list(stages.seconds) == [
        "read",
        *("view image", "view text", "view slow", "view several"),
        *("tokenise", "assemble"),
    ]
    assert stages.slowest() == "view slow"
    assert all(stages.seconds.values())
    for stage in stages.seconds:
        assert stage in bench.advice(stage, data)


def test_the_rate_is_that_of_the_pipeline(
    source: Callable[[int], MemorySource], tokenizer: Tokenizer
) -> None:
    data = data_of(source(8), slow=SlowView())
    rate = bench.measure_rate(data, tokenizer, workers=0, seconds=0.5)
    assert rate.workers == 0
    assert 0.02 / SLOW < rate.samples_per_s < 1.5 / SLOW


def test_the_verdict_says_what_to_change(source: Callable[[int], MemorySource]) -> None:
    data = data_of(source(8))
    seconds = {"read": 1.0, "view image": 6.0, "view text": 1.0, "tokenise": 1.0, "assemble": 1.0}
    stages = bench.Stages(seconds=seconds, samples=1000, bad=0, records=8)
    rates = [
        bench.Rate(workers=0, samples_per_s=100.0, start_s=0.1),
        bench.Rate(workers=2, samples_per_s=190.0, start_s=3.0),
    ]
    told = "\n".join(bench.verdict(stages, rates, data, cores=4))
    assert "view image takes 60 % of a sample's time" in told
    assert "more than 100 samples/s with data.workers=0 waits" in told
    assert "data.workers=2 gives 1.9 times as much" in told
    assert "read more than once" in told
    fresh = dataclasses.replace(stages, records=10_000)
    told = "\n".join(bench.verdict(fresh, rates[:1], data, cores=4))
    assert "try --workers 0 1 2 4" in told
    assert "read more than once" not in told


def test_an_empty_source_is_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="empty"):
        bench.measure_stages(data_of(MemorySource(records=())), tokenizer, seconds=0.1)
