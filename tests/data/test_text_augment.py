"""Varied texts: the words stay words, the sentences stay sentences, the numbers decide."""

import collections
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlalign.data.text_augment import SomeSentences, TextStep, WordNoise, sentences
from vlalign.errors import UserError

LONG = (
    'Mr. Smith went home at 3.30 p.m. today. He slept! "Really?" she said. It cost $3.50, e.g. '
    "little. J. Doe agreed\u2026 \u65e5\u672c\u8a9e\u3002"
    "\u6b21\u306e\u6587\u3002 Is it?\nA last line"
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_sentences() -> None:
    assert sentences(LONG) == [
        "Mr. Smith went home at 3.30 p.m. today.",
        "He slept!",
        '"Really?" she said.',
        "It cost $3.50, e.g. little.",
        "J. Doe agreed\u2026 \u65e5\u672c\u8a9e\u3002",
        "\u6b21\u306e\u6587\u3002",
        "Is it?",
        "A last line",
    ]
    assert sentences("") == sentences(" \n ") == []
    assert sentences("one") == ["one"]
    assert sentences("Wait... what? (Yes.) No") == ["Wait... what?", "(Yes.)", "No"]


@given(st.text(st.sampled_from("aB .!?\n\u3002'\")")))
def test_sentences_lose_no_word(text: str) -> None:
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())
    assert all(sentence == sentence.strip() != "" for sentence in sentences(text))


WORDS = st.lists(st.sampled_from(["a", "red", "cat", "on", "the", "mat"]), min_size=1, max_size=12)


@given(WORDS, st.integers(0, 99))
def test_words_are_dropped_but_one(words: list[str], seed: int) -> None:
    text = " ".join(words)
    out = WordNoise(swap=0.0, delete=0.5)(text, rng(seed)).split()
    rest = iter(words)
    assert all(word in rest for word in out)  # a subsequence
    assert out
    assert len(WordNoise(swap=0.0, delete=1.0)(text, rng(seed)).split()) == 1


@given(WORDS, st.integers(0, 99))
def test_words_change_places(words: list[str], seed: int) -> None:
    out = WordNoise(swap=0.5, delete=0.0)(" ".join(words), rng(seed)).split()
    assert collections.Counter(out) == collections.Counter(words)


@given(WORDS, st.integers(0, 99))
def test_words_come_twice(words: list[str], seed: int) -> None:
    out = WordNoise(insert=1.0, swap=0.0, delete=0.0)(" ".join(words), rng(seed)).split()
    assert len(out) in (2 * len(words), 2 * len(words) + 1)
    assert set(out) == set(words)
    rest = iter(out)
    assert all(word in rest for word in words)


def test_synonyms_come_from_the_table() -> None:
    table = (("cat", ("kitten", "feline")), ("red", ("crimson",)), ("mat", ()))
    step = WordNoise(replace=1.0, swap=0.0, delete=0.0, synonyms=table)
    found = {step("a Red cat on the mat", rng(seed)) for seed in range(20)}
    assert found == {f"a crimson {cat} on the mat" for cat in ("kitten", "feline")}


def test_shares() -> None:
    text = " ".join(map(str, range(1000)))
    dropped = 1000 - len(WordNoise(swap=0.0, delete=0.1)(text, rng()).split())
    assert 70 < dropped < 130
    assert WordNoise(swap=0.0, delete=0.0)(text, rng()) == text
    swapped = WordNoise(swap=0.1, delete=0.0)(text, rng()).split()
    moved = sum(a != b for a, b in zip(swapped, text.split(), strict=True))
    assert 150 < moved <= 200


def test_some_sentences() -> None:
    text = "One. Two. Three. Four."
    seen = {SomeSentences(count=(2, 3))(text, rng(seed)) for seed in range(60)}
    every = sentences(text)
    for out in seen:
        kept = sentences(out)
        assert len(kept) in (2, 3)
        assert kept == [s for s in every if s in kept]
    assert len(seen) == 6 + 4
    assert SomeSentences(count=(9, 9))(text, rng()) == text
    assert SomeSentences()("just one", rng()) == "just one"


STEPS = [WordNoise(insert=0.1, replace=0.5, synonyms=(("a", ("b",)),)), SomeSentences()]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "text",
    [
        "x" * 65_537,
        "." * 65_537,
        ".'" * 32_768,
        "a. " * 21_846,
        "\n" * 65_537,
        "?! " * 21_846,
        "a b " * 16_384,
        "\u3002" * 65_537,
        "'\")" * 21_846,
        "Mr." * 21_846,
    ],
)
def test_bounded_time(step: TextStep, text: str) -> None:
    start = time.process_time()
    step(text, rng())
    assert time.process_time() - start < 10.0


@given(st.text(min_size=1), st.integers(0, 9))
def test_deterministic_and_never_empty(text: str, seed: int) -> None:
    for step in STEPS:
        out = step(text, rng(seed))
        assert out == step(text, rng(seed))
        assert bool(out.split()) == bool(text.split())


def test_wrong_fields_are_named() -> None:
    with pytest.raises(UserError, match=r"WordNoise\.delete=1\.5"):
        WordNoise(delete=1.5)
    with pytest.raises(UserError, match=r"needs WordNoise\.synonyms"):
        WordNoise(replace=0.1, synonyms=(("a", ()),))
    with pytest.raises(UserError, match=r"SomeSentences\.count=\(0, 1\)"):
        SomeSentences(count=(0, 1))
