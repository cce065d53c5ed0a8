"""Hard negatives: each rule on sentences it knows, and what holds for any text."""

import collections
import re
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlalign.data.text_clean import canonical
from vlalign.data.text_negatives import RULES, negative
from vlalign.data.text_words import ATTRIBUTES, OPPOSITE, RELATIONS


def every(text: str, rule: str, count: int = 60) -> set[str | None]:
    return {negative(text, rule, np.random.default_rng(seed)) for seed in range(count)}


CASES = [
    ("swap_attributes", "a red car and a blue house", {"a blue car and a red house"}),
    ("swap_attributes", "An old man, a young dog.", {"A young man, an old dog."}),
    ("swap_attributes", "a small red car", {None}),  # of one thing
    ("swap_attributes", "a red car and a red house", {None}),
    ("swap_attributes", "the sky is blue and the car is red", {None}),
    ("replace_attribute", "a wet dog", {"a dry dog"}),
    ("replace_attribute", "a tall tree", {"a short tree"}),
    ("replace_attribute", "an open door", {"a closed door"}),
    ("swap_objects", "a cat on a mat", {"a mat on a cat"}),
    ("swap_objects", "A dog is sitting on the chair.", {"The chair is sitting on a dog."}),
    ("swap_objects", "a man riding a horse", {"a horse riding a man"}),
    (
        "swap_objects",
        "The cup stands to the left of an old book",
        {"An old book stands to the left of the cup"},
    ),
    ("swap_objects", "a bird isn't in the tree", {"the tree isn't in a bird"}),
    ("swap_objects", "a dog on a dog", {None}),
    ("swap_objects", "sitting on a chair", {None}),
    ("swap_objects", "two dogs", {None}),
    ("replace_relation", "a cat above a dog", {"a cat below a dog"}),
    ("replace_relation", "a cat to the left of a dog", {"a cat to the right of a dog"}),
    ("replace_relation", "a cat in front of a dog", {"a cat behind a dog"}),
    ("replace_relation", "a cat on top of a dog", {"a cat underneath a dog"}),
    ("replace_relation", "a cat in a box", {"a cat outside a box"}),
    ("replace_relation", "a cat near a dog", {"a cat far from a dog"}),
    ("replace_relation", "a cat chasing a dog", {None}),
    ("negate", "the door is open", {"the door is not open"}),
    ("negate", "the door is not open", {"the door is open"}),
    ("negate", "the door isn't open", {"the door is open"}),
    ("negate", "it can\u2019t fly", {"it can fly"}),
    ("negate", "people without hats", {"people with hats"}),
    ("negate", "people with hats", {"people without hats"}),
    ("negate", "no people", {"the people"}),
    ("negate", "A dog", {"No dog"}),
    ("negate", "dogs", {None}),
    ("shuffle_words", "red cat", {"cat red"}),
    ("shuffle_words", "cat", {None}),
    ("shuffle_words", "cat Cat, cat", {None}),
    ("shuffle_bigrams", "a cat, a mat", {"a mat, a cat"}),
    ("shuffle_content", "a cat on the mat", {"a mat on the cat"}),
    ("shuffle_content", "in the house", {None}),
]


@pytest.mark.parametrize(("rule", "text", "expected"), CASES)
def test_rules(rule: str, text: str, expected: set[str | None]) -> None:
    assert every(text, rule) == expected


def test_a_rule_with_a_choice_draws_each() -> None:
    assert every("a red car", "replace_attribute", 300) == {
        f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} car" for colour in ATTRIBUTES[0][1:]
    }
    assert every("a cat in a box under a table", "replace_relation") == {
        "a cat outside a box under a table",
        "a cat in a box over a table",
    }
    assert every("a dog is with a man", "negate") == {
        "no dog is with a man",
        "a dog is not with a man",
        "a dog is without a man",
        "a dog is with no man",
    }
    assert len(every("a b c d", "shuffle_words", 400)) == 23


def _words(text: str) -> collections.Counter[str]:
    found = re.findall(r"\w+(?:['\u2019-]\w+)*", text.lower())
    return collections.Counter(word for word in found if word not in ("a", "an"))


WORDS = (
    "a an the red blue big small old car house dog man cat is not isn't no with without on above "
    "left right to of in front next near riding holding sits and , . two three"
)
VOCABULARY = [*WORDS.split(), *OPPOSITE]
TEXT = st.lists(st.sampled_from(VOCABULARY), max_size=14).map(" ".join)


@given(TEXT | st.text(max_size=40), st.sampled_from(list(RULES)), st.integers(0, 999))
def test_invariants(text: str, rule: str, seed: int) -> None:
    new = negative(text, rule, np.random.default_rng(seed))
    assert new == negative(text, rule, np.random.default_rng(seed))
    if new is None:
        return
    assert canonical(new) != canonical(text)
    assert new.strip()
    if rule.startswith(("swap", "shuffle")):
        assert _words(new) == _words(text)
    if rule == "replace_attribute":
        gone, come = _words(text) - _words(new), _words(new) - _words(text)
        assert gone.total() == come.total() == 1
        assert any(set(gone) | set(come) <= set(line) for line in ATTRIBUTES)


def test_lists() -> None:
    words = [word for line in ATTRIBUTES for word in line]
    assert len(words) == len(set(words))
    assert all(one != other for one, other in OPPOSITE.items())
    assert len(set(RELATIONS)) == len(RELATIONS)
    back = [one for one, other in OPPOSITE.items() if OPPOSITE.get(other) == one]
    assert len(back) > 30
    assert OPPOSITE["above"] == "below"
    assert OPPOSITE["below"] == "above"


@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize(
    "text",
    ["a red car on a blue house ", "x", ".", "a'", "the ", "running ", "not ", "red ", "on ", "\n"],
)
def test_bounded_time(rule: str, text: str) -> None:
    # Milliseconds where the work grows with the length, minutes where it grows with its square.
    start = time.process_time()
    negative((text * 65_537)[:65_537], rule, np.random.default_rng(0))
    assert time.process_time() - start < 20
