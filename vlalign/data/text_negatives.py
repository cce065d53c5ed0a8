"""Hard negatives made by rule: a caption changed as little as makes it say something else.

After NegCLIP and ARO (Yuksekgonul et al. 2023, 2210.01936, section 3), SugarCrepe (Hsieh et al.
2023, 2306.14610) and, for negation, NegBench (Alhamoud et al. 2025, 2501.09425). No parser: lists
of words (`text_words`) and what stands next to what, so that a rule now and then makes an odd
sentence, and says nothing about a caption that it does not understand.
"""

import re
from collections.abc import Callable

import numpy as np

from vlalign.data.text_clean import canonical
from vlalign.data.text_words import (
    ATTRIBUTES,
    AUXILIARIES,
    CONTRACTIONS,
    DETERMINERS,
    FUNCTION_WORDS,
    OPPOSITE,
    POSTURES,
    RELATIONS,
)

_PIECES = re.compile(r"\w+(?:['\u2019-]\w+)*|\s+|[^\w\s]+")
_MOST_SITES = 32  # of a long caption, only the first places where a rule fits are looked at
_MOST_WORDS = 5  # of a thing's name, its article included
_TRIES = 8

_LINE = {word: line for line in ATTRIBUTES for word in line}


def _relations() -> dict[str, list[tuple[str, ...]]]:
    """First word -> the relations that begin with it, the longest first."""
    table: dict[str, list[tuple[str, ...]]] = {}
    every = {tuple(phrase.split()) for phrase in (*RELATIONS, *OPPOSITE, *OPPOSITE.values())}
    for phrase in sorted(every, key=lambda words: (-len(words), words)):
        table.setdefault(phrase[0], []).append(phrase)
    return table


_STARTS = _relations()

Rng = np.random.Generator
Rule = Callable[["_Text", Rng], "str | None"]


def negative(text: str, rule: str, rng: Rng) -> str | None:
    """A text that says something else than `text`, by the rule of `RULES` that is named.

    None if the rule finds nothing in the text that it could change. A result differs from the text
    by more than case, punctuation and white space. Takes time linear in the text.
    """
    new = RULES[rule](_Text(text), rng)
    return None if new is None or canonical(new) == canonical(text) else new


class _Text:
    """A text in pieces: words, and what stands between them, which stays where it is."""

    def __init__(self, text: str) -> None:
        self.pieces: list[str] = _PIECES.findall(text)
        self.at = [index for index, piece in enumerate(self.pieces) if piece[0].isalnum()]
        self.words = [self.pieces[index] for index in self.at]
        self.low = [word.lower() for word in self.words]

    def next_to(self, word: int) -> bool:
        """Whether only white space is between a word and the one before it."""
        if word == 0:
            return False
        return all(map(str.isspace, self.pieces[self.at[word - 1] + 1 : self.at[word]]))

    def changed(self, new: dict[int, str]) -> str:
        """The text with some words (by their number) replaced; "" takes a word out."""
        pieces = list(self.pieces)
        for word, value in new.items():
            at = self.at[word]
            pieces[at] = _as_cased(value, self.words[word])
            if not value and at + 1 < len(pieces) and pieces[at + 1].isspace():
                pieces[at + 1] = ""
            before = self.low[word - 1] if word else ""
            if before in ("a", "an") and value and word - 1 not in new and self.next_to(word):
                article = "an" if value[0].lower() in "aeiou" else "a"
                pieces[self.at[word - 1]] = _as_cased(article, self.words[word - 1])
        return "".join(pieces).strip()

    def relations(self) -> list[tuple[int, int]]:
        """Where relations stand, as (first word, word behind the last), the first few."""
        found: list[tuple[int, int]] = []
        word = 0
        while word < len(self.low) and len(found) < _MOST_SITES:
            end = self._relation_end(word)
            if end:
                found.append((word, end))
            word = end or word + 1
        return found

    def _relation_end(self, word: int) -> int:
        for phrase in _STARTS.get(self.low[word], ()):
            if tuple(self.low[word : word + len(phrase)]) == phrase:
                return word + len(phrase)
        return 0

    def thing_before(self, end: int) -> tuple[int, int] | None:
        """The words of the thing that ends before a relation, verbs between them left out."""
        while end and _is_verb(self.low[end - 1]) and self.next_to(end):
            end -= 1
        start = end
        while start and end - start < _MOST_WORDS and (start == end or self.next_to(start)):
            word = self.low[start - 1]
            if word in FUNCTION_WORDS and word not in DETERMINERS:
                break
            start -= 1
            if word in DETERMINERS:
                break
        return self._thing(start, end)

    def thing_after(self, start: int) -> tuple[int, int] | None:
        """The words of the thing that begins behind a relation."""
        end = start
        while end < len(self.low) and end - start < _MOST_WORDS and self.next_to(end):
            word = self.low[end]
            allowed = end == start if word in DETERMINERS else word not in FUNCTION_WORDS
            if not allowed or word in _STARTS or (end > start and _is_verb(word)):
                break
            end += 1
        return self._thing(start, end)

    def _thing(self, start: int, end: int) -> tuple[int, int] | None:
        named = any(word not in FUNCTION_WORDS for word in self.low[start:end])
        return (start, end) if named else None


def _is_verb(word: str) -> bool:
    listed = word in AUXILIARIES or word in POSTURES or word.endswith(("n't", "n\u2019t"))
    return listed or _is_progressive(word)


def _is_progressive(word: str) -> bool:
    return word.endswith("ing") and len(word) > 5  # not: king, ring, thing


def _as_cased(new: str, old: str) -> str:
    """`new` with a capital if `old` has one."""
    return new[:1].upper() + new[1:] if old[:1].isupper() else new


def _one(values: list[int], rng: Rng) -> int:
    return values[int(rng.integers(len(values)))]


def _swap_attributes(text: _Text, rng: Rng) -> str | None:
    """Two attributes of two things change places: a red car and a blue bus."""
    sites = [
        word
        for word, low in enumerate(text.low[:-1])
        if low in _LINE and text.low[word + 1] not in FUNCTION_WORDS and text.next_to(word + 1)
    ][:_MOST_SITES]
    pairs = [
        (one, other)
        for index, one in enumerate(sites)
        for other in sites[index + 1 :]
        if text.low[one] != text.low[other]
        # Of one thing, `small red` and `red small` are the same.
        and any(low not in _LINE for low in text.low[one + 1 : other])
    ]
    if not pairs:
        return None
    one, other = pairs[int(rng.integers(len(pairs)))]
    return text.changed({one: text.low[other], other: text.low[one]})


def _replace_attribute(text: _Text, rng: Rng) -> str | None:
    """An attribute becomes another of its sort: a red car, a blue car."""
    sites = [word for word, low in enumerate(text.low) if low in _LINE][:_MOST_SITES]
    if not sites:
        return None
    word = _one(sites, rng)
    others = [other for other in _LINE[text.low[word]] if other != text.low[word]]
    return text.changed({word: others[int(rng.integers(len(others)))]})


def _swap_objects(text: _Text, rng: Rng) -> str | None:
    """The things on the two sides of a relation change places: a cat on a mat, a mat on a cat."""
    found = []
    for start, end in text.relations():
        left, right = text.thing_before(start), text.thing_after(end)
        if left and right and text.low[slice(*left)] != text.low[slice(*right)]:
            found.append((left, right))
    if not found:
        return None
    (a, b), (c, d) = found[int(rng.integers(len(found)))]
    one, other = text.pieces[text.at[a] : text.at[b - 1] + 1], text.pieces[text.at[c] :]
    other, rest = other[: text.at[d - 1] + 1 - text.at[c]], other[text.at[d - 1] + 1 - text.at[c] :]
    first = _as_cased(other[0], one[0])
    # A capital at the left was that of a sentence if the word is an article, else of a name.
    second = one[0].lower() if one[0].lower() in DETERMINERS else one[0]
    between = text.pieces[text.at[b - 1] + 1 : text.at[c]]
    return "".join(
        [*text.pieces[: text.at[a]], first, *other[1:], *between, second, *one[1:], *rest]
    )


def _replace_relation(text: _Text, rng: Rng) -> str | None:
    """A relation becomes its opposite: above, below."""
    found = [
        (start, end)
        for start, end in text.relations()
        if " ".join(text.low[start:end]) in OPPOSITE and start
    ]
    if not found:
        return None
    start, end = found[int(rng.integers(len(found)))]
    opposite = OPPOSITE[" ".join(text.low[start:end])]
    new = _as_cased(opposite, text.words[start])
    before, after = text.pieces[: text.at[start]], text.pieces[text.at[end - 1] + 1 :]
    return "".join([*before, new, *after])


def _negate(text: _Text, rng: Rng) -> str | None:
    """A negation taken out if there is one, else put in."""
    removals = [word for word in range(len(text.low)) if _affirmed(text, word) is not None]
    if removals:
        word = _one(removals[:_MOST_SITES], rng)
        return text.changed({word: _affirmed(text, word) or ""})
    sites = [word for word in range(len(text.low)) if _denied(text, word)]
    if not sites:
        return None
    word = _one(sites[:_MOST_SITES], rng)
    return text.changed({word: _denied(text, word) or ""})


def _affirmed(text: _Text, word: int) -> str | None:
    """What stands in the place of a word of negation; None if it is none."""
    low = text.low[word].replace("\u2019", "'")
    if low in ("not", "never"):
        return ""
    if low in ("no", "without"):
        return {"no": "the", "without": "with"}[low]
    if low in CONTRACTIONS:
        return CONTRACTIONS[low]
    return low.removesuffix("n't") if low.endswith("n't") else None


def _denied(text: _Text, word: int) -> str | None:
    """What a word becomes when it is negated; None if it cannot be."""
    low = text.low[word]
    if low in AUXILIARIES - {"be", "been", "being"} and word + 1 < len(text.low):
        return f"{low} not"
    if low == "with":
        return "without"
    if low in ("a", "an", "some", "any") and word + 1 < len(text.low):
        return "no"
    return f"not {low}" if _is_progressive(low) else None


def _permuted(text: _Text, places: list[int], size: int, rng: Rng) -> str | None:
    """The words at some places in another order, `size` of them kept together."""
    groups = [places[start : start + size] for start in range(0, len(places), size)]
    before = [text.low[word] for word in places]
    for _ in range(_TRIES):
        order = [word for index in rng.permutation(len(groups)) for word in groups[index]]
        if [text.low[word] for word in order] != before:
            pieces = list(text.pieces)
            for place, word in zip(places, order, strict=True):
                pieces[text.at[place]] = text.words[word]
            return "".join(pieces)
    return None


def _shuffle_words(text: _Text, rng: Rng) -> str | None:
    """All words in random order."""
    return _permuted(text, list(range(len(text.words))), 1, rng)


def _shuffle_bigrams(text: _Text, rng: Rng) -> str | None:
    """Pairs of neighbours in random order."""
    return _permuted(text, list(range(len(text.words))), 2, rng)


def _shuffle_content(text: _Text, rng: Rng) -> str | None:
    """Words that are not function words in random order; the others stay."""
    places = [word for word, low in enumerate(text.low) if low not in FUNCTION_WORDS]
    return _permuted(text, places, 1, rng)


RULES: dict[str, Rule] = {
    "swap_attributes": _swap_attributes,
    "replace_attribute": _replace_attribute,
    "swap_objects": _swap_objects,
    "replace_relation": _replace_relation,
    "negate": _negate,
    "shuffle_words": _shuffle_words,
    "shuffle_bigrams": _shuffle_bigrams,
    "shuffle_content": _shuffle_content,
}
