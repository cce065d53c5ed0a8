"""Views of several texts: how many, which, in what order, what stands for none."""

import collections
import itertools

import numpy as np
import pytest

from vlalign.data.captions import CaptionView
from vlalign.data.record import BadRecord, Caption, Record
from vlalign.data.text_augment import SomeSentences, WordNoise
from vlalign.data.text_views import AllTexts, HardNegatives, LongShort, SubCaptions, VariedText
from vlalign.errors import UserError
from vlalign.tree import dumps, loads

THREE = Record(key="k", image=b"", captions=(Caption("one"), Caption("two"), Caption("three")))
LONG = Record(key="k", image=b"", captions=(Caption("One here. Two there. Three too.", "long"),))
NONE = Record(key="k", image=b"")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


VIEWS = [
    VariedText(steps=(WordNoise(), SomeSentences())),
    AllTexts(count=4),
    AllTexts(count=4, repeat=True),
    SubCaptions(count=4, whole=True),
    LongShort(),
    HardNegatives(count=2),
]


@pytest.mark.parametrize("view", VIEWS)
def test_every_view(view: VariedText) -> None:
    assert loads(dumps(view)) == view
    example = view.example()
    for record in (THREE, LONG):
        value = view(record, rng(3))
        assert value == view(record, rng(3))
        assert type(value) is type(example)
        if isinstance(value, tuple):
            assert len(value) == len(example)
            assert value[0]
            assert set(example) == {""}
            # What is missing is at the end.
            assert not any(later and not text for text, later in itertools.pairwise(value))
        assert list(view.texts(record)) == list(CaptionView().texts(record))
    with pytest.raises(BadRecord, match="empty caption"):
        view(NONE, rng())


def test_all_texts() -> None:
    drawn = collections.Counter(AllTexts(count=2)(THREE, rng(seed)) for seed in range(600))
    assert len(drawn) == 6  # ordered pairs
    assert min(drawn.values()) > 60
    for seed in range(10):
        four = AllTexts(count=4)(THREE, rng(seed))
        assert sorted(four) == ["", "one", "three", "two"]
        assert four[3] == ""
        again = AllTexts(count=7, repeat=True)(THREE, rng(seed))
        assert again[:3] == again[3:6] == four[:3]
        assert again[6] == again[0]


def test_sub_captions() -> None:
    seen = {SubCaptions(count=2)(LONG, rng(seed)) for seed in range(60)}
    assert len(seen) == 6
    assert {text for pair in seen for text in pair} == {"One here.", "Two there.", "Three too."}
    whole = SubCaptions(count=4, whole=True)(LONG, rng())
    assert whole[0] == "One here. Two there. Three too."
    assert sorted(whole[1:]) == ["", "One here.", "Three too.", "Two there."]
    runs = {t for s in range(60) for t in SubCaptions(count=1, length=(2, 2))(LONG, rng(s))}
    assert runs == {"One here. Two there.", "Two there. Three too.", "Three too."}


def test_long_and_short() -> None:
    assert LongShort()(LONG, rng()) == ("One here. Two there. Three too.", "One here.")
    assert LongShort()(THREE, rng())[0] == LongShort()(THREE, rng())[1]


def test_hard_negatives() -> None:
    record = Record(key="k", image=b"", captions=(Caption("a red cat on a blue mat"),))
    view = HardNegatives(count=3)
    for seed in range(20):
        text, *others = view(record, rng(seed))
        assert text == "a red cat on a blue mat"
        assert len(set(others) | {text}) == 4
        assert all(others)
    one = HardNegatives(count=2, rules=("swap_attributes",))
    assert one(record, rng()) == (text, "a blue cat on a red mat", "")
    assert one(THREE, rng())[1:] == ("", "")


def test_wrong_fields_are_named() -> None:
    for make in (AllTexts, SubCaptions, HardNegatives):
        with pytest.raises(UserError, match=f"{make.__name__}.count=0: at least 1"):
            make(count=0)
    with pytest.raises(UserError, match=r"SubCaptions\.length=\(2, 1\)"):
        SubCaptions(length=(2, 1))
    with pytest.raises(UserError, match="no rule 'negat'; nearest: negate"):
        HardNegatives(rules=("negat",))
    with pytest.raises(UserError, match="rules is empty"):
        HardNegatives(rules=())
