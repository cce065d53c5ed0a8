"""The view of a record's captions: one text, drawn from all the forms it can take."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Literal

import numpy as np

from vlalign.data.record import BadRecord, Caption, Record
from vlalign.data.text_clean import MOST_CHARACTERS, checked, is_blank
from vlalign.errors import UserError, nearest

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_SEPARATOR = ", "
_FORMS = ("name", "keywords", "name_keywords", "template")
_CHOICES = ("weighted", "uniform", "joined")
_PLAIN = ("alt", "short", "long", "synthetic", "rewrite")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionView:
    """One caption of a record as text.

    choice "weighted": a language that the record has is drawn first, each equally likely, then a
    form that the record allows in it, by the weights below (0: never), then what fills the form.
    "uniform": one of `choices`, each equally likely. "joined": all of them in random order.

    A text with NUL or surrogates in it makes the sample bad ("invalid text"). Of a text longer than
    `MOST_CHARACTERS` the rest is left out, and the tokenizer counts it as cut.

    languages: of the captions, in order of preference for `evaluate`.
    name: weight of the record's name alone.
    keywords: weight of a random, shuffled choice of its keywords.
    name_keywords: weight of the name with a choice of keywords behind it.
    template: weight of a template with the name in it.
    alt: weight of captions of kind "alt".
    short: weight of captions of kind "short".
    long: weight of captions of kind "long".
    synthetic: weight of captions of kind "synthetic".
    rewrite: weight of captions of kind "rewrite".
    keyword_count: smallest and largest number of keywords chosen.
    templates: texts with {name} and the record's labels in them, such as {category}.
    template_language: language the templates are written in; names of others stay out of them.
    choice: "weighted", "uniform" or "joined", as above.
    joiner: what stands between the texts of "joined".
    prefixes: (source, text) pairs: what stands before every plain caption of that source (alt,
      short, long, synthetic, rewrite), such as "<web> " (Saito et al. 2023,
      2206.01125, section 3.2).
    """

    languages: tuple[str, ...] = ("en",)
    name: float = 1.0
    keywords: float = 1.0
    name_keywords: float = 1.0
    template: float = 1.0
    alt: float = 1.0
    short: float = 1.0
    long: float = 1.0
    synthetic: float = 1.0
    rewrite: float = 1.0
    keyword_count: tuple[int, int] = (1, 4)
    templates: tuple[str, ...] = ("a picture of {name}",)
    template_language: str = "en"
    choice: Literal["weighted", "uniform", "joined"] = "weighted"
    joiner: str = " "
    prefixes: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        weights = [getattr(self, form) for form in (*_FORMS, *_PLAIN)]
        if not self.languages:
            raise UserError("CaptionView.languages is empty; give at least one, such as 'en'")
        if not all(0.0 <= weight < float("inf") for weight in weights) or not any(weights):
            raise UserError("CaptionView: weights are >= 0 and at least one is above 0")
        if self.choice not in _CHOICES:
            hint = nearest(self.choice, _CHOICES)
            raise UserError(f"CaptionView.choice={self.choice!r}{hint}")
        if len(dict(self.prefixes)) < len(self.prefixes):
            raise UserError(f"CaptionView.prefixes={self.prefixes}: a source has two prefixes")
        low, high = self.keyword_count
        if not 1 <= low <= high:
            raise UserError(f"CaptionView.keyword_count={self.keyword_count}: 1 <= low <= high")
        if self.template and not self.templates:
            raise UserError("CaptionView.templates is empty: give templates or set template=0")
        for template in self.templates:
            if "name" not in _PLACEHOLDER.findall(template):
                raise UserError(f"CaptionView.templates: {template!r} has no {{name}}")

    def __call__(self, record: Record, rng: np.random.Generator) -> str:
        """A random caption; BadRecord if the record has none for this view, or a broken one."""
        if self.choice == "weighted":
            return checked(self._drawn(record, rng), record.key)
        every = self.choices(record)
        if self.choice == "uniform":
            return _one(every, rng)
        text = self.joiner.join(every[index] for index in rng.permutation(len(every)).tolist())
        return text[: MOST_CHARACTERS + 1]

    def choices(self, record: Record) -> list[str]:
        """All texts of the record that this view allows, in a fixed order, each once.

        By language, names first, then plain captions by kind, then all keywords as one text; no
        templates. BadRecord("empty caption") if there is none, "invalid text" if one is broken.
        """
        found: list[str] = []
        for texts in self._tables(record):
            if self.name:
                found += texts.names
            found += texts.plain(tuple(kind for kind in _PLAIN if getattr(self, kind)))
            if self.keywords and texts.keywords:
                found.append(_SEPARATOR.join(texts.keywords))
        if not found:
            raise BadRecord("empty caption", self._missing(record))
        return [checked(text, record.key) for text in dict.fromkeys(found)]

    def _drawn(self, record: Record, rng: np.random.Generator) -> str:
        tables = [table for table in self._tables(record) if self._forms(table)]
        if not tables:
            raise BadRecord("empty caption", self._missing(record))
        pick, choose = rng.random(2).tolist()
        texts = tables[int(pick * len(tables))]
        forms = self._forms(texts)
        return self._fill(_weighted(forms, choose), texts, record, rng)

    def evaluate(self, record: Record) -> str:
        """The fixed caption: the first name, else the first plain text, else the keywords.

        Languages are tried in order. BadRecord("empty caption") if there is none.
        """
        for texts in self._tables(record):
            for found in (texts.names, texts.plain(_PLAIN), texts.keywords):
                if found:
                    text = _SEPARATOR.join(found) if found is texts.keywords else found[0]
                    return checked(text, record.key)
        raise BadRecord("empty caption", self._missing(record))

    def texts(self, record: Record) -> Iterator[str]:
        """Every text a caption can be made of, for training a tokenizer; nothing if none."""
        for texts in self._tables(record):
            for form, _ in self._forms(texts):
                if form in _PLAIN:
                    yield from texts.plain((form,))
                elif form == "keywords":
                    yield from texts.keywords
                elif form == "template":
                    for name in texts.names:
                        yield from (self._templated(t, name, record) for t in self.templates)
                else:
                    yield from texts.names

    def example(self) -> str:
        """An empty text, in the place of a view's output."""
        return ""

    def _tables(self, record: Record) -> list["_Texts"]:
        """The record's texts by language, in the order of `languages`."""
        by_language: dict[str, list[Caption]] = {language: [] for language in self.languages}
        for caption in record.captions:
            if caption.language in by_language and not is_blank(caption.text):
                by_language[caption.language].append(caption)
        return [_Texts(name, found, self.prefixes) for name, found in by_language.items()]

    def _forms(self, texts: "_Texts") -> list[tuple[str, float]]:
        allowed = {
            "name": bool(texts.names),
            "keywords": bool(texts.keywords),
            "name_keywords": bool(texts.names and texts.keywords),
            "template": bool(texts.names) and texts.language == self.template_language,
        }
        forms = [(form, getattr(self, form)) for form in _FORMS if allowed[form]]
        forms += [(kind, getattr(self, kind)) for kind in _PLAIN if kind in texts.kinds]
        return [(form, weight) for form, weight in forms if weight]

    def _fill(self, form: str, texts: "_Texts", record: Record, rng: np.random.Generator) -> str:
        if form == "keywords":
            return _SEPARATOR.join(self._some(texts.keywords, rng))
        if form in _PLAIN:
            return _one(texts.plain((form,)), rng)
        name = _one(texts.names, rng)
        if form == "name_keywords":
            return _SEPARATOR.join([name, *self._some(texts.keywords, rng)])
        if form == "template":
            return self._templated(_one(self.templates, rng), name, record)
        return name

    def _some(self, keywords: list[str], rng: np.random.Generator) -> list[str]:
        """A random subset in random order."""
        low, high = self.keyword_count
        order = rng.random(len(keywords) + 1)
        count = low + int(order[-1] * (high - low + 1))
        return [keywords[index] for index in order[:-1].argsort()[:count].tolist()]

    def _templated(self, template: str, name: str, record: Record) -> str:
        values = {**record.labels, "name": name}

        def value(match: re.Match[str]) -> str:
            if match[1] not in values:
                hint = nearest(match[1], values)
                raise UserError(
                    f"template {template!r}: {record.key} has no label {match[1]!r}{hint}"
                )
            return values[match[1]]

        return _PLACEHOLDER.sub(value, template)

    def _missing(self, record: Record) -> str:
        return f"{record.key} has no caption for {', '.join(self.languages)} in this view"


class _Texts:
    """A record's texts in one language, by kind."""

    def __init__(
        self, language: str, captions: list[Caption], prefixes: tuple[tuple[str, str], ...]
    ) -> None:
        self.language = language
        self.kinds: dict[str, list[str]] = {}
        before = dict(prefixes)
        for caption in captions:
            prefix = before.get(caption.source, "") if caption.kind in _PLAIN else ""
            self.kinds.setdefault(caption.kind, []).append(prefix + caption.text)
        self.names = self.kinds.get("name", [])
        self.keywords = [
            word
            for text in self.kinds.get("keywords", [])
            for part in text.split(_SEPARATOR)
            if (word := part.strip())
        ]

    def plain(self, kinds: tuple[str, ...]) -> list[str]:
        """The captions of these kinds, in the order of the kinds."""
        return [text for kind in kinds for text in self.kinds.get(kind, [])]


def _weighted(forms: list[tuple[str, float]], u: float) -> str:
    """The form at share `u` (0..1) of the summed weights."""
    rest = u * sum(weight for _, weight in forms)
    for form, weight in forms:
        rest -= weight
        if rest < 0:
            return form
    return forms[-1][0]  # rounding may leave a rest of 0


def _one(texts: list[str] | tuple[str, ...], rng: np.random.Generator) -> str:
    return texts[int(rng.random() * len(texts))] if len(texts) > 1 else texts[0]
