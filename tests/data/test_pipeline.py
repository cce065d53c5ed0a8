"""The contract of the pipeline: a sample depends on (seed, position), and on nothing else."""

import collections
import dataclasses
import gc
import itertools
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vlalign
from vlalign.data.captions import CaptionView
from vlalign.data.crops import RandomResizedCrop
from vlalign.data.emoji import Emoji
from vlalign.data.images import ImageView
from vlalign.data.pipeline import Data
from vlalign.data.record import PROBLEMS, BadRecord, Caption, Record
from vlalign.data.sources import MemorySource
from vlalign.data.tokenizer import Bpe, Tokenizer
from vlalign.data.views import Batch, View
from vlalign.errors import UserError

Make = Callable[..., Record]
MakeSource = Callable[[int], MemorySource]

IMAGE = ImageView(size=8, random_background=0.5, rotation=20.0, hue=20.0, erase=0.5)


def _data(source: Any, **changes: Any) -> Data:
    fields: dict[str, Any] = {
        "source": source,
        "views": {"image": IMAGE, "text": CaptionView()},
        "tokenizer": Bpe(vocab_size=300, length=16),
        "batch_size": 8,
    }
    return Data(**{**fields, **changes})


def _take(data: Data, tokenizer: Tokenizer, count: int, **options: Any) -> list[Batch]:
    with data.batches(tokenizer, **{"seed": 0, **options}) as batches:
        return list(itertools.islice(batches, count))


def _assert_equal(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other) > 0
    for left, right in zip(one, other, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_array_equal(left[name], right[name], err_msg=name)
            assert left[name].dtype == right[name].dtype


def test_fields(source: MakeSource) -> None:
    data = _data(source(11))
    tokenizer = data.fit_tokenizer()
    (batch,) = _take(data, tokenizer, 1)
    shapes = {name: (values.dtype.name, values.shape) for name, values in batch.items()}
    assert shapes == {
        "image": ("uint8", (8, 8, 8, 3)),
        "text": ("int32", (8, 16)),
        "weight": ("float32", (8,)),
        "index": ("int32", (8,)),
        "problem": ("int32", (8,)),
        "truncated": ("bool", (8,)),
    }
    assert (batch["weight"] == 1).all()
    assert not batch["problem"].any()
    example = data.example(tokenizer)
    for name, values in example.items():
        assert values.shape == (2, *batch[name].shape[1:])
        assert values.dtype == batch[name].dtype
        assert not values.any()


def test_rows_show_their_records(source: MakeSource) -> None:
    data = _data(source(11), views={"image": ImageView(size=12), "text": CaptionView()})
    tokenizer = data.fit_tokenizer()
    for batch in _take(data, tokenizer, 3):
        for index, image in zip(batch["index"], batch["image"], strict=True):
            expected = ImageView(size=12).evaluate(data.source[int(index)].image)
            np.testing.assert_array_equal(image, expected)


def _of_host(data: Data, host: int, hosts: int) -> range:
    each = data.batch_size // hosts
    return range(host * each, (host + 1) * each)


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("start", [0, 5])
def test_hosts_and_restarts_change_nothing(hosts: int, start: int, source: MakeSource) -> None:
    data = _data(source(11))
    tokenizer = data.fit_tokenizer()
    whole = _take(data, tokenizer, 8)[start:]
    parts = [
        _take(data, tokenizer, 8 - start, start_step=start, rows=_of_host(data, host, hosts))
        for host in range(hosts)
    ]
    joined = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]
    _assert_equal(whole, joined)


@pytest.mark.parametrize(
    "changes", [{"threads": 3}, {"prefetch": 1}, {"threads": 4, "prefetch": 9}]
)
def test_threads_change_nothing(changes: dict[str, int], source: MakeSource) -> None:
    data = _data(source(11))
    tokenizer = data.fit_tokenizer()
    other = dataclasses.replace(data, **changes)
    _assert_equal(_take(data, tokenizer, 12), _take(other, tokenizer, 12))
    assert other.fingerprint() == data.fingerprint()


@pytest.mark.parametrize(("workers", "hosts"), [(1, 1), (2, 2), (4, 4)])
def test_workers_change_nothing_and_leave_nothing(workers: int, hosts: int) -> None:
    """With other numbers of hosts and restarts at once: the global rows stay what they are."""
    data = _data(Emoji())
    tokenizer = data.fit_tokenizer()
    expected = _take(data, tokenizer, 7, start_step=3)
    other, rows = dataclasses.replace(data, workers=workers), _of_host(data, hosts - 1, hosts)
    found = _take(other, tokenizer, 7, start_step=3, rows=rows)
    mine = slice(rows.start, rows.stop)
    _assert_equal([{name: a[mine] for name, a in batch.items()} for batch in expected], found)
    assert multiprocessing.active_children() == []


def test_seeds_and_positions_differ(source: MakeSource) -> None:
    data = _data(source(8), batch_size=8)
    tokenizer = data.fit_tokenizer()
    first, second = _take(data, tokenizer, 2)
    (other,) = _take(data, tokenizer, 1, seed=1)
    for batch in (second, other):
        assert sorted(batch["index"]) == list(range(8))
        assert (batch["index"] != first["index"]).any()
        same = {int(i): row for i, row in zip(first["index"], first["image"], strict=True)}
        for index, row in zip(batch["index"], batch["image"], strict=True):
            assert (row != same[int(index)]).any()  # augmented anew


def test_neighbouring_seeds_do_not_share_orders(source: MakeSource) -> None:
    data = _data(source(8))
    tokenizer = data.fit_tokenizer()
    _, second = _take(data, tokenizer, 2, seed=0)
    (first,) = _take(data, tokenizer, 1, seed=1)
    assert (second["index"] != first["index"]).any()


def test_a_view_does_not_disturb_the_others(source: MakeSource) -> None:
    data = _data(source(8))
    tokenizer = data.fit_tokenizer()
    more = dataclasses.replace(data, views={"a": CaptionView(), **data.views, "z": IMAGE})
    (plain,), (wide,) = _take(data, tokenizer, 1), _take(more, tokenizer, 1)
    _assert_equal([plain], [{name: wide[name] for name in plain}])
    assert (wide["z"] != wide["image"]).any()


class _Key:
    """A view without an image: pipelines of any size cost nothing."""

    def __call__(self, record: Record, rng: np.random.Generator) -> np.ndarray:
        return np.array([rng.integers(1 << 30)], np.int64)

    def example(self) -> np.ndarray:
        return np.zeros(1, np.int64)


@given(st.integers(1, 40), st.integers(1, 17), st.integers(0, 2**32 - 1), st.integers(0, 50))
@settings(max_examples=20)
def test_every_record_once_an_epoch(count: int, size: int, seed: int, start: int) -> None:
    assert isinstance(_Key(), View)
    records = tuple(Record(key=str(i), image=b"") for i in range(count))
    data = _data(MemorySource(records=records), views={"n": _Key()}, batch_size=size)
    first = start * size
    skip = -first % count  # to the start of an epoch
    steps = -(-(skip + 2 * count) // size)
    seen = _take(data, TOKENIZER, steps, seed=seed, start_step=start)
    indices = np.concatenate([batch["index"] for batch in seen])[skip:]
    for epoch in (indices[:count], indices[count : 2 * count]):
        assert sorted(epoch.tolist()) == list(range(count))
    if count > 10:
        assert indices[:count].tolist() != indices[count : 2 * count].tolist()
    numbers = np.concatenate([batch["n"][:, 0] for batch in seen])
    assert len(np.unique(numbers)) > 0.9 * len(numbers)


TOKENIZER = Bpe(vocab_size=300, length=16).train(["one red thing"])


@dataclasses.dataclass(frozen=True)
class _Broken(MemorySource):
    """Record 1 cannot even be read."""

    def __getitem__(self, index: int) -> Record:
        if index == 1:
            raise BadRecord("unreadable record", "a hole")
        return super().__getitem__(index)


def test_bad_records_are_counted_zero_rows(record: Make) -> None:
    records = [
        record(0, weight=0.25),
        record(1),
        record(2, image=b""),
        record(3, image=b"\x89PNG broken"),
        record(4, captions=()),
        record(5, captions=(Caption("word " * 2_000),)),
        record(6, image=b"text"),
    ]
    long = Bpe(vocab_size=300, length=64)
    data = _data(_Broken(records=tuple(records)), batch_size=7, tokenizer=long)
    tokenizer = data.fit_tokenizer()
    (batch,) = _take(data, tokenizer, 1)
    rows = {int(index): row for row, index in enumerate(batch["index"])}
    kinds = {index: PROBLEMS[batch["problem"][row]] for index, row in rows.items()}
    assert kinds == {
        0: "ok",
        1: "unreadable record",
        2: "empty image",
        3: "corrupt image",
        4: "empty caption",
        5: "ok",
        6: "unsupported image",
    }
    for index, row in rows.items():
        if kinds[index] != "ok":
            assert batch["weight"][row] == 0
            assert not batch["image"][row].any()
            assert not batch["text"][row].any()
    assert batch["weight"][rows[0]] == 0.25
    assert batch["truncated"].nonzero()[0].tolist() == [rows[5]]


def test_a_data_set_of_broken_records_still_gives_batches(record: Make) -> None:
    data = _data(MemorySource(records=(record(0, image=b""),) * 3))
    (batch,) = _take(data, TOKENIZER, 1)
    assert collections.Counter(batch["problem"].tolist()) == {PROBLEMS.index("empty image"): 8}
    assert not batch["weight"].any()


class _Bug:
    def __call__(self, record: Record, rng: np.random.Generator) -> np.ndarray:
        raise RuntimeError("a bug in a view")

    def example(self) -> np.ndarray:
        return np.zeros(1)


def test_a_bug_in_a_view_is_no_bad_record(source: MakeSource) -> None:
    with pytest.raises(RuntimeError, match="a bug in a view"):
        _take(_data(source(3), views={"n": _Bug()}), TOKENIZER, 1)


def test_the_tokenizer_knows_the_views_words(source: MakeSource) -> None:
    data = _data(source(20), tokenizer=Bpe(vocab_size=400, length=16))
    tokenizer = data.fit_tokenizer()
    assert tokenizer == data.fit_tokenizer()
    ids, _ = tokenizer.encode(["thing number"])
    assert (ids[0] != tokenizer.pad_id).sum() == 4  # one token a word
    few = dataclasses.replace(data, tokenizer=Bpe(vocab_size=400, length=16, train_records=2))
    assert few.fit_tokenizer() != tokenizer
    with pytest.raises(UserError, match="no captions to train a tokenizer on"):
        dataclasses.replace(data, views={"image": IMAGE}).fit_tokenizer()


def test_fingerprint_follows_what_decides_the_batches(source: MakeSource) -> None:
    data = _data(source(4))
    changes: list[dict[str, Any]] = [
        {"source": source(5)},
        {"views": {"image": dataclasses.replace(IMAGE, hue=5.0), "text": CaptionView()}},
        {"tokenizer": Bpe(vocab_size=300, length=17)},
        {"batch_size": 4},
    ]
    prints = {dataclasses.replace(data, **change).fingerprint() for change in [{}, *changes]}
    assert len(prints) == 5
    fewer_mib = {**data.views, "image": dataclasses.replace(IMAGE, cache_mib=1)}
    assert dataclasses.replace(data, views=fewer_mib).fingerprint() == data.fingerprint()


def test_wrong_use_is_named(source: MakeSource) -> None:
    data = _data(source(4))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"rows": range(6, 9)}, r"rows range\(6, 9\) are not of a batch of 8"),
        ({"rows": ()}, r"rows \(\) are not"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 1 << 32}, "seed 4294967296"),
        ({"start_step": -1}, "start_step -1"),
    ]
    for options, message in cases:
        with pytest.raises(UserError, match=message):
            data.batches(TOKENIZER, **{"seed": 0, **options})
    empty = dataclasses.replace(data, source=MemorySource(records=()))
    for use in (empty.fit_tokenizer, lambda: empty.batches(TOKENIZER, seed=0)):
        with pytest.raises(UserError, match="the data source is empty"):
            use()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"views": {}}, "views is empty"),
        ({"views": {"weight": CaptionView()}}, "'weight' is taken"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"workers": -1}, "workers=-1"),
        ({"threads": 0}, "threads=0"),
        ({"prefetch": 0}, "prefetch=0"),
    ],
)
def test_wrong_fields_are_named(changes: dict[str, Any], message: str, source: MakeSource) -> None:
    with pytest.raises(UserError, match=message):
        _data(source(2), **changes)


@pytest.fixture
def no_threads_left() -> Iterator[None]:
    yield
    gc.collect()
    for thread in threading.enumerate():
        if thread.name.startswith("grain-prefetch"):
            thread.join(timeout=5)
            assert not thread.is_alive()


@pytest.mark.usefixtures("no_threads_left")
def test_closing_ends_the_threads(source: MakeSource) -> None:
    batches = _data(source(4)).batches(TOKENIZER, seed=0)
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(ValueError, match="these batches were closed"):
        next(batches)
    _data(source(4)).batches(TOKENIZER, seed=0).close()  # before the first batch


_SCRIPT = """
from vlalign.data.captions import CaptionView
from vlalign.data.crops import RandomResizedCrop
from vlalign.data.emoji import Emoji
from vlalign.data.pipeline import Data

if __name__ == "__main__":
    data = Data(source=Emoji(), views={"text": CaptionView()}, batch_size=16, workers=WORKERS)
    batches = data.batches(data.fit_tokenizer(), seed=0)
    kept = [next(batches) for _ in range(3)]
    print("read")
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_a_process_that_forgets_to_close_ends_quietly(workers: int, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT.replace("WORKERS", str(workers)))
    environment = {**os.environ, "PYTHONPATH": str(Path(vlalign.__file__).parents[1])}
    command = [sys.executable, "-W", "error", script]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=100, env=environment, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "read\n", "")


def test_sizes_change_the_pictures_from_their_step_on(source: MakeSource) -> None:
    views = {"image": RandomResizedCrop(size=32), "text": CaptionView()}
    plain = _data(source(11), views=views)
    data = dataclasses.replace(plain, sizes=((0, 8), (3, 16), (5, 32)))
    tokenizer = data.fit_tokenizer()
    batches = _take(data, tokenizer, 7)
    assert [batch["image"].shape[1] for batch in batches] == [8, 8, 8, 16, 16, 32, 32]
    for batch, step in zip(batches, range(7), strict=True):
        example = data.example(tokenizer, step=step)
        assert example["image"].shape[1:] == batch["image"].shape[1:]
    assert data.example(tokenizer)["image"].shape[1] == 32
    _assert_equal(_take(data, tokenizer, 3, start_step=4), batches[4:])
    same = _take(plain, tokenizer, 7)  # order, texts and the last size are what they were
    _assert_equal(same[5:], batches[5:])
    for one, other in zip(same, batches, strict=True):
        np.testing.assert_array_equal(one["text"], other["text"])
    assert data.fingerprint() != plain.fingerprint()


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        (((3, 8), (3, 16)), "steps rising"),
        (((-1, 8),), "steps rising"),
        (((5, 8), (2, 16)), "rising"),
    ],
)
def test_sizes_out_of_order_are_named(
    sizes: tuple[tuple[int, int], ...], says: str, source: MakeSource
) -> None:
    with pytest.raises(UserError, match=says):
        dataclasses.replace(_data(source(3)), sizes=sizes)
    captions_only = {"text": CaptionView()}
    with pytest.raises(UserError, match="no view has a `size`"):
        _data(source(3), views=captions_only, sizes=((0, 8),))
