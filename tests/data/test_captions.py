"""Caption views: every form is drawn, by its weight, from what the record has."""

import collections
import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vlalign.data.captions import CaptionView
from vlalign.data.emoji import Emoji
from vlalign.data.record import BadRecord, Caption, Record
from vlalign.errors import UserError

Make = Callable[..., Record]
FORMS = ("name", "keywords", "name_keywords", "template")


def _draws(view: CaptionView, record: Record, count: int = 400) -> collections.Counter[str]:
    rng = np.random.default_rng(0)
    return collections.Counter(view(record, rng) for _ in range(count))


def _only(**weights: float) -> CaptionView:
    return CaptionView(**{**dict.fromkeys(FORMS, 0.0), **weights})  # type: ignore[arg-type]


def test_forms(record: Make) -> None:
    one = record(4)
    words = {"red", "round", "small", "old", "new"}
    assert set(_draws(_only(name=1.0), one)) == {"thing number 4"}
    chosen = [text.split(", ") for text in _draws(_only(keywords=1.0), one)]
    assert {len(some) for some in chosen} == {1, 2, 3, 4}
    assert {word for some in chosen for word in some} == words
    assert all(len(set(some)) == len(some) for some in chosen)
    assert ["red", "round"] in chosen  # both orders
    assert ["round", "red"] in chosen
    for text in _draws(_only(name_keywords=1.0), one):
        name, *some = text.split(", ")
        assert name == "thing number 4"
        assert 1 <= len(some) <= 4
        assert set(some) <= words
    assert set(_draws(_only(template=1.0), one)) == {"a picture of thing number 4"}
    two = ("{name}!", "{name}, one of {category}")
    assert set(_draws(dataclasses.replace(_only(template=1.0), templates=two), one)) == {
        "thing number 4!",
        "thing number 4, one of kind 1",
    }


def test_weights_are_proportions(record: Make) -> None:
    counts = _draws(_only(name=3.0, template=1.0), record(0), 2000)
    assert 0.7 < counts["thing number 0"] / 2000 < 0.8


def test_every_language_is_drawn_alike_and_templates_stay_english() -> None:
    view = CaptionView(languages=("en", "ja"), keywords=0.0, name_keywords=0.0)
    heart = next(
        r
        for r in map(Emoji(languages=("en", "ja")).__getitem__, range(1911))
        if r.label == "red heart"
    )
    counts = _draws(view, heart, 1000)
    japanese = sum(n for text, n in counts.items() if not text.isascii())
    assert 430 < japanese < 570
    assert all(text.isascii() for text in counts if "picture" in text)


def test_other_kinds_and_no_negatives() -> None:
    kinds = ("alt", "short", "long", "synthetic", "rewrite", "negative")
    record = Record(key="a", image=b"", captions=tuple(Caption(f"{k} text", k) for k in kinds))
    assert set(_draws(CaptionView(), record)) == {f"{kind} text" for kind in kinds[:-1]}
    assert set(_draws(CaptionView(alt=0.0, long=0.0), record)) == {
        "short text",
        "synthetic text",
        "rewrite text",
    }
    assert CaptionView().evaluate(record) == "alt text"


@pytest.mark.parametrize(
    "captions",
    [
        (),
        (Caption(""),),
        (Caption(" \n\t"),),
        (Caption("x", language="de"),),
        (Caption("x", "negative"),),
        (Caption(" , ", "keywords"),),
    ],
)
def test_no_usable_caption_is_a_bad_record(captions: tuple[Caption, ...]) -> None:
    record = Record(key="a", image=b"", captions=captions)
    view = CaptionView()
    for call in (lambda: view(record, np.random.default_rng(0)), lambda: view.evaluate(record)):
        with pytest.raises(BadRecord, match="empty caption: a has no caption for en"):
            call()
    assert list(view.texts(record)) == []


def test_evaluate_prefers_the_first_language_and_the_name(record: Make) -> None:
    assert CaptionView(name=0.0).evaluate(record(3)) == "thing number 3"
    two = record(0, captions=(Caption("Ding", "name", "de"), Caption("thing", "name")))
    assert CaptionView(languages=("en", "de")).evaluate(two) == "thing"
    assert CaptionView(languages=("de", "en")).evaluate(two) == "Ding"
    assert CaptionView(languages=("fr", "de")).evaluate(two) == "Ding"
    words = record(0, captions=(Caption("red, round", "keywords"),))
    assert CaptionView().evaluate(words) == "red, round"


def test_texts_cover_all_that_can_be_drawn(record: Make) -> None:
    one, view = record(1), CaptionView()
    texts = set(view.texts(one))
    pieces = {word for text in texts for word in re.findall(r"\w+", text)}
    for text in _draws(view, one):
        assert set(re.findall(r"\w+", text)) <= pieces


def test_the_same_numbers_give_the_same_caption() -> None:
    view, record = CaptionView(), Emoji()[1000]
    texts = [view(record, np.random.default_rng(seed)) for seed in (1, 1, *range(20))]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 3


def test_an_unknown_label_in_a_template_names_the_nearest(record: Make) -> None:
    view = CaptionView(templates=("{name} {categry}",), name=0.0, keywords=0.0, name_keywords=0.0)
    with pytest.raises(UserError, match="has no label 'categry'; nearest: category"):
        view(record(0), np.random.default_rng(0))


def test_templates_cannot_reach_into_objects(record: Make) -> None:
    hostile = record(0, captions=(Caption("{category.__class__} {0}", "name"),))
    texts = _draws(_only(template=1.0), hostile)
    assert "a picture of {category.__class__} {0}" in texts


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"languages": ()}, "languages is empty"),
        ({"name": -1.0}, "weights are >= 0"),
        ({"name": float("nan")}, "weights are >= 0"),
        ({"keyword_count": (0, 2)}, "keyword_count"),
        ({"keyword_count": (3, 2)}, "keyword_count"),
        ({"choice": "unifrom"}, "choice='unifrom'; nearest: uniform"),
        ({"prefixes": (("a", "x"), ("a", "y"))}, "a source has two prefixes"),
        ({"templates": ()}, "templates is empty"),
        ({"templates": ("a picture",)}, "has no {name}"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CaptionView(**fields)


MANY = (
    Caption("thing", "name"),
    Caption("red, round", "keywords"),
    Caption("alt text", "alt", source="web"),
    Caption("made text", "synthetic", source="blip"),
    Caption("made text", "synthetic"),
    Caption("Ding", "name", "de"),
    Caption("wrong text", "negative"),
)


def test_choices_are_all_texts_once(record: Make) -> None:
    many = record(0, captions=MANY)
    assert CaptionView().choices(many) == ["thing", "alt text", "made text", "red, round"]
    assert CaptionView(name=0.0, keywords=0.0).choices(many) == ["alt text", "made text"]
    both = CaptionView(languages=("de", "en"), alt=0.0)
    assert both.choices(many) == ["Ding", "thing", "made text", "red, round"]
    with pytest.raises(BadRecord, match="empty caption"):
        CaptionView(languages=("fr",)).choices(many)


def test_uniform_choice(record: Make) -> None:
    counts = _draws(CaptionView(choice="uniform", alt=0.01), record(0, captions=MANY), 2000)
    assert set(counts) == {"thing", "alt text", "made text", "red, round"}
    assert all(420 < count < 580 for count in counts.values())


def test_joined_choice(record: Make) -> None:
    view = CaptionView(choice="joined", joiner=" | ", keywords=0.0)
    counts = _draws(view, record(0, captions=MANY))
    assert len(counts) == 6
    assert {tuple(sorted(text.split(" | "))) for text in counts} == {
        ("alt text", "made text", "thing")
    }


def test_prefixes_by_source(record: Make) -> None:
    view = CaptionView(prefixes=(("web", "<web> "), ("blip", "<made> ")), choice="uniform")
    many = record(0, captions=MANY)
    assert view.choices(many) == [
        "thing",
        "<web> alt text",
        "<made> made text",
        "made text",
        "red, round",
    ]
    assert set(_draws(_only(alt=1.0, synthetic=0.0), many)) == {"alt text"}
    weighted = dataclasses.replace(view, choice="weighted", languages=("en",))
    assert "<web> alt text" in _draws(weighted, many)
    assert {"<web> alt text", "<made> made text"} <= set(weighted.texts(many))


def test_a_broken_text_is_a_bad_record(record: Make) -> None:
    for choice in ("weighted", "uniform", "joined"):
        view = CaptionView(choice=choice)  # type: ignore[arg-type]
        with pytest.raises(BadRecord, match=r"invalid text: r0: U\+0000 at 1"):
            view(record(0, captions=(Caption("a\x00b"),)), np.random.default_rng(0))
