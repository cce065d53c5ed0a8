"""Groups, duplicates, labels, stored embeddings, boxes; and several texts of a sample."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vlalign.data.captions import CaptionView
from vlalign.data.fields import BoxesView, DuplicateView, GroupView, LabelView, TeacherView, hashed
from vlalign.data.pipeline import Data
from vlalign.data.record import BadRecord, Caption, Record, Region, Stored
from vlalign.data.sources import MemorySource
from vlalign.data.text_mask import MaskedText, MaskTokens
from vlalign.data.tokenizer import Bpe
from vlalign.data.views import Batch
from vlalign.errors import UserError

Make = Callable[..., Record]
RNG = np.random.default_rng(0)


def test_groups(record: Make) -> None:
    view = GroupView()
    first, second = record(1, group="cat"), record(2, group="cat")
    assert view(first, RNG) == view(second, RNG) != view(record(3), RNG)
    assert view(record(3), RNG) != view(record(4), RNG)
    assert view(record(5, group="key r6"), RNG) != view(record(6), RNG)
    kind = GroupView(taxonomy="category")
    assert kind(record(1), RNG) == kind(record(4), RNG) != kind(record(2), RNG)


def test_duplicates(record: Make) -> None:
    one, other = record(1), dataclasses.replace(record(2), image=record(1).image)
    assert DuplicateView()(one, RNG) != DuplicateView()(other, RNG)
    image = DuplicateView(by="image")
    assert image(one, RNG) == image(other, RNG) != image(record(3), RNG)
    texts = [record(i, captions=(Caption(t),)) for i, t in enumerate(("A  cat", "a cat", "dog"))]
    caption = [int(DuplicateView(by="caption")(r, RNG)) for r in texts]
    assert caption[0] == caption[1] != caption[2]
    same = record(7, duplicate="x"), record(8, duplicate="x")
    assert DuplicateView()(same[0], RNG) == DuplicateView()(same[1], RNG)


def test_hash_is_the_same_everywhere() -> None:
    assert hashed("vlalign").dtype == np.int32
    assert int(hashed("vlalign")) == 504773083


def test_labels(record: Make) -> None:
    view = LabelView(classes=("cat", "dog"))
    assert [int(view(record(0, label=x), RNG)) for x in ("dog", "cat", None)] == [1, 0, -1]
    with pytest.raises(UserError, match=r"class .cats. is not in LabelView\.classes; nearest: cat"):
        view(record(0, label="cats"), RNG)


def test_teacher(record: Make) -> None:
    array = np.asarray([0.5, 1.5], np.float16)
    view = TeacherView(name="clip", shape=(2,))
    found = view(record(0, teacher={"clip": Stored.of(array)}), RNG)
    np.testing.assert_array_equal(found, array)
    assert found.dtype == np.float32
    with pytest.raises(BadRecord, match=r"r0: array 'clip' of shape \(2,\) wanted, has none"):
        view(record(0), RNG)


def test_boxes(record: Make) -> None:
    regions = tuple(Region((0.1 * i, 0.0, 1.0, 1.0), str(i)) for i in range(5))
    few = BoxesView(count=3)(record(0, regions=regions[:2]), RNG)
    np.testing.assert_allclose(few[:, 0], [0.0, 0.1, 0.0], atol=1e-6)
    np.testing.assert_array_equal(few[:, 4], [1, 1, 0])
    many = BoxesView(count=3)(record(0, regions=regions), RNG)
    assert (np.diff(many[:, 0]) > 0).all()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Several:
    """The captions of a record, of which it may have fewer than `count`."""

    count: int = 3

    def __call__(self, record: Record, rng: np.random.Generator) -> tuple[str, ...]:
        texts = [caption.text for caption in record.captions][: self.count]
        return (*texts, *([""] * (self.count - len(texts))))

    def example(self) -> tuple[str, ...]:
        return ("",) * self.count

    def texts(self, record: Record) -> list[str]:
        return [caption.text for caption in record.captions]


def test_all_fields_in_a_batch(record: Make) -> None:
    records = tuple(record(i, label="cat", group=f"g{i // 2}") for i in range(8))
    views: dict[str, Any] = {
        "texts": Several(),
        "group": GroupView(),
        "duplicate": DuplicateView(by="image"),
        "label": LabelView(classes=("cat",)),
    }
    source = MemorySource(records=records)
    data = Data(source=source, views=views, tokenizer=Bpe(vocab_size=300, length=8), batch_size=8)
    tokenizer = data.fit_tokenizer()
    with data.batches(tokenizer, seed=0) as batches:
        batch = next(batches)
    assert batch["texts"].shape == (8, 3, 8)
    assert batch["texts"][:, :2, 0].all()
    np.testing.assert_array_equal(batch["texts_present"], [[True, True, False]] * 8)
    assert not batch["texts"][:, 2].any()
    assert batch["truncated"].any()
    assert len(set(batch["group"].tolist())) == 4
    for name, example in data.example(tokenizer).items():
        assert example.shape[1:] == batch[name].shape[1:]
        assert example.dtype == batch[name].dtype


def test_masked_tokens_are_a_function_of_the_position(record: Make) -> None:
    source = MemorySource(records=tuple(record(i) for i in range(8)))
    views: dict[str, Any] = {"text": MaskedText(masking=MaskTokens(share=0.5))}
    data = Data(source=source, views=views, tokenizer=Bpe(vocab_size=300, length=12), batch_size=8)
    plain = dataclasses.replace(data, views={"text": CaptionView()})
    tokenizer = data.fit_tokenizer()

    def second(data: Data, start: int) -> Batch:
        with data.batches(tokenizer, seed=0, start_step=start) as batches:
            return [next(batches) for _ in range(2 - start)][-1]

    batch, again = second(data, 0), second(data, 1)
    for name in ("text", "text_targets", "text_mask"):
        np.testing.assert_array_equal(batch[name], again[name])
    mask = batch["text_mask"]
    assert mask.any(axis=1).all()
    np.testing.assert_array_equal(batch["text_targets"], second(plain, 0)["text"])
    np.testing.assert_array_equal(batch["text"][~mask], batch["text_targets"][~mask])
    assert (batch["text"][mask] != batch["text_targets"][mask]).any()
