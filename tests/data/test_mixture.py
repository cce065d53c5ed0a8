"""Mixtures: shares, epochs of each source, limits; the same at any position, in any order."""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlalign.data.captions import CaptionView
from vlalign.data.mixture import Mixture
from vlalign.data.pipeline import Data
from vlalign.data.record import Record
from vlalign.data.sources import MemorySource
from vlalign.data.tokenizer import Bpe
from vlalign.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counting:
    """A source of any size that holds nothing."""

    size: int
    name: str = ""

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Record:
        return Record(str(index), b"")

    def fingerprint(self) -> str:
        return f"{self.name} {self.size}"


def mixture(*sizes: int, **options: Any) -> Mixture:
    return Mixture(sources={f"s{i}": Counting(size=n) for i, n in enumerate(sizes)}, **options)


def names(mix: Mixture, count: int, seed: int = 0) -> list[str]:
    order = mix.order(seed)
    return [mix.locate(order[position])[0] for position in range(count)]


@settings(max_examples=10)
@given(st.lists(st.floats(0.05, 1.0), min_size=2, max_size=4), st.integers(0, 500))
def test_every_window_holds_the_shares(weights: list[float], start: int) -> None:
    mix = mixture(*([300] * len(weights)), weights={f"s{i}": w for i, w in enumerate(weights)})
    found = collections.Counter(names(mix, start + 200)[start:])
    for name, share in mix.shares().items():
        assert abs(found[name] - 200 * share) <= len(weights) + 1


def test_each_source_goes_through_its_own_epochs() -> None:
    mix = mixture(40, 7, weights={"s0": 0.5, "s1": 0.5})
    order = mix.order(3)
    places: dict[str, list[int]] = {"s0": [], "s1": []}
    for position in range(160):
        name, place = mix.locate(order[position])
        places[name].append(place)
    assert sorted(places["s0"][:40]) == sorted(places["s0"][40:80]) == list(range(40))
    assert places["s0"][:40] != places["s0"][40:80]
    for epoch in range(11):
        assert sorted(places["s1"][7 * epoch : 7 * epoch + 7]) == list(range(7))


def test_order_is_a_function_of_seed_and_position() -> None:
    mix = mixture(50, 9, 20)
    one, other = mix.order(1), mix.order(1)
    forward = [one[i] for i in range(100)]
    assert [other[i] for i in reversed(range(100))] == forward[::-1]
    assert [mix.order(2)[i] for i in range(100)] != forward


def test_weights_from_sizes_and_temperature() -> None:
    assert mixture(30, 10).shares() == {"s0": 0.75, "s1": 0.25}
    assert mixture(30, 10, temperature=0.0).shares() == {"s0": 0.5, "s1": 0.5}
    shares = mixture(400, 100, temperature=0.5).shares()
    np.testing.assert_allclose(shares["s0"] / shares["s1"], 2.0)
    assert mixture(400, 100, limits={"s0": 100}).shares() == {"s0": 0.5, "s1": 0.5}


def test_limits_use_the_same_records_for_every_seed() -> None:
    mix = mixture(100, 10, limits={"s0": 12}, weights={"s0": 1.0, "s1": 0.0})
    used = [sorted({mix.order(seed)[i] for i in range(24)}) for seed in (0, 5)]
    assert used[0] == used[1]
    assert len(used[0]) == 12


def test_a_huge_source_starts_anywhere_at_once() -> None:
    mix = mixture(1_500_000_000, 300_000_000)
    order = mix.order(0)
    assert 0 <= order[3 * 10**12 + 17] < len(mix)


def test_records_and_batches(record: Callable[..., Record]) -> None:
    sources = {
        name: MemorySource(records=tuple(record(10 * i + j) for j in range(n)))
        for i, (name, n) in enumerate((("a", 6), ("b", 3)))
    }
    mix = Mixture(sources=sources, weights={"a": 0.5, "b": 0.5})
    assert [mix[i].key for i in (0, 5, 6, 8)] == ["a/r0", "a/r5", "b/r10", "b/r12"]
    with pytest.raises(IndexError, match="record 9 of a mixture of 9"):
        mix[9]
    data = Data(
        source=mix, views={"text": CaptionView()}, tokenizer=Bpe(vocab_size=300), batch_size=8
    )
    with data.batches(data.fit_tokenizer(), seed=0) as batches:
        index = np.concatenate([next(batches)["index"] for _ in range(3)])
    assert (index < 6).sum() == 12
    order = mix.order(0)
    np.testing.assert_array_equal(index, [order[i] for i in range(24)])


def test_fingerprint_changes_with_all_that_decides_the_order() -> None:
    mixes = [
        mixture(5, 6),
        mixture(5, 7),
        mixture(5, 6, weights={"s0": 1.0, "s1": 2.0}),
        mixture(5, 6, temperature=0.5),
        mixture(5, 6, limits={"s0": 2}),
    ]
    assert len({mix.fingerprint() for mix in mixes}) == len(mixes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mixture(sources={}), "name at least one"),
        (lambda: mixture(5, 6, weights={"s0": 1.0, "s2": 1.0}), "'s2'; nearest: s"),
        (lambda: mixture(5, 6, weights={"s0": 1.0}), "none for s1"),
        (lambda: mixture(5, 6, weights={"s0": 0.0, "s1": 0.0}), "one above 0"),
        (lambda: mixture(5, 6, temperature=2.0), "0..1"),
        (lambda: mixture(5, 6, limits={"s1": 0}), "at least 1"),
        (lambda: mixture(5, 0, weights={"s0": 1.0, "s1": 1.0}).order(0), "'s1' is empty"),
    ],
)
def test_errors(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
