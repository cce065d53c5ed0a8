"""The embedded real data set: 1,911 emoji, drawn in two styles, named in nine languages.

Built from public npm packages by `vlalign data build emoji`; the licences stand beside the data
in `assets/emoji/ATTRIBUTION.md`.
"""

import dataclasses
import functools
import gzip
import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from vlalign.data.record import Caption, Record
from vlalign.data.sources import ArrayRecordSource, file_digest
from vlalign.errors import UserError, nearest

ASSETS = Path(__file__).parent / "assets" / "emoji"
LANGUAGES = ("en", "de", "es", "fr", "zh", "ja", "ar", "hi", "ru")
STYLES = ("noto", "twemoji")
CONCEPTS_FILE = "concepts.jsonl.gz"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Emoji:
    """Emoji as a source: one record a concept, in a fixed order that is the same in both styles.

    style: who drew them: "noto" (Google, Apache-2.0) or "twemoji" (Twitter, CC-BY 4.0).
    languages: of the captions (kinds "name" and "keywords"), from `LANGUAGES`.
    directory: a folder made by `vlalign data build emoji --out`; None: the packaged data.

    A record's key is "style/codepoints", its group the code points, its label the English name;
    labels hold "category" and "subcategory". All concepts have English captions; 326 (country
    flags, families, hair styles, "facing right") have no captions in the other languages.
    """

    style: Literal["noto", "twemoji"] = "noto"
    languages: tuple[str, ...] = ("en",)
    directory: str | None = None

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise UserError(f"unknown emoji style {self.style!r}{nearest(self.style, STYLES)}")
        if not self.languages:
            raise UserError(f"Emoji.languages is empty; valid: {', '.join(LANGUAGES)}")
        for language in self.languages:
            if language not in LANGUAGES:
                hint = nearest(language, LANGUAGES)
                raise UserError(f"unknown emoji language {language!r}{hint}")

    def __len__(self) -> int:
        return len(self._records())

    def __getitem__(self, index: int) -> Record:
        records = self._records()
        if not 0 <= index < len(records):
            raise IndexError(f"record {index} of a source of {len(records)}")
        return records[index]

    def fingerprint(self) -> str:
        """sha256 over the style's images, the text and the chosen languages."""
        folder = self._folder()
        parts = (
            file_digest(str(folder / f"{self.style}.array_record")),
            file_digest(str(folder / CONCEPTS_FILE)),
            *self.languages,
        )
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _folder(self) -> Path:
        return ASSETS if self.directory is None else Path(self.directory)

    def _records(self) -> tuple[Record, ...]:
        return _load(str(self._folder()), self.style, self.languages)


# 1,911 records are 3 MB with their images: read once a process, shared by all sources.
@functools.lru_cache(maxsize=8)
def _load(folder: str, style: str, languages: tuple[str, ...]) -> tuple[Record, ...]:
    images = ArrayRecordSource(paths=(str(Path(folder) / f"{style}.array_record"),))
    concepts = read_concepts(Path(folder) / CONCEPTS_FILE)
    if len(images) != len(concepts):
        raise UserError(f"{folder}: {len(images)} {style} images but {len(concepts)} concepts")
    return tuple(
        _record(images[index], concept, style, languages) for index, concept in enumerate(concepts)
    )


def read_concepts(path: Path) -> list[dict[str, Any]]:
    """The concepts' text: key, category, subcategory, and per language name, keywords, source."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"cannot read the emoji text {path}: {error}") from error


def _record(
    image: Record, concept: dict[str, Any], style: str, languages: tuple[str, ...]
) -> Record:
    key = concept["key"]
    if image.key != key:
        raise UserError(f"emoji image {image.key!r} stands where {key!r} should: rebuild the data")
    captions = []
    for language in languages:
        text = concept["text"].get(language)
        if text is not None:
            source = text["source"]
            captions.append(Caption(text["name"], "name", language, source))
            if text["keywords"]:
                captions.append(Caption(", ".join(text["keywords"]), "keywords", language, source))
    return Record(
        key=f"{style}/{key}",
        image=image.image,
        captions=tuple(captions),
        label=concept["text"]["en"]["name"],
        labels={name: concept[name] for name in ("category", "subcategory")},
        group=key,
    )
