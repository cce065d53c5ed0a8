"""The page of `vlalign data inspect`: self-contained, and nothing of the data can run in it."""

import dataclasses
import io
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from PIL import Image

from vlalign.cli import _data_tables as words
from vlalign.cli._data_source import megabytes, shown
from vlalign.data import decode
from vlalign.data.record import Record
from vlalign.data.stats import MAX_PIXELS, Histogram, Summary, image_header
from vlalign.evals.html import Html, element, image, join, page, table

_SIDE = 160  # pixels of a thumbnail
_CAPTIONS = 4  # of a record that are shown
_LENGTH = 400  # characters of a caption that are shown
_BARS = 40  # of a histogram


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tile:
    """One record of the sample. picture: a thumbnail, encoded; problem: why there is none."""

    index: int
    record: Record | None
    picture: bytes = b""
    problem: str = ""


class Copies:
    """Which records of a sample have the same image, or the same caption."""

    def __init__(self) -> None:
        self._images: dict[bytes, list[int]] = {}
        self._texts: dict[str, list[int]] = {}

    def add(self, index: int, record: Record) -> None:
        """Remember one record."""
        self._images.setdefault(record.image, []).append(index)
        for text in dict.fromkeys(caption.text for caption in record.captions):
            self._texts.setdefault(text, []).append(index)

    def groups(self) -> Iterator[tuple[str, list[int]]]:
        """(what is equal, records), the largest groups of images first, then those of texts."""
        for found, name in ((self._images, None), (self._texts, "caption")):
            equal = [(k, indices) for k, indices in found.items() if len(indices) > 1]
            for value, indices in sorted(equal, key=lambda pair: (-len(pair[1]), pair[1])):
                yield f"{name} “{shown(str(value))}”" if name else "image", indices


def thumbnail(data: bytes) -> bytes:
    """A small picture drawn anew from the decoded pixels; BadRecord as `decode.decode`."""
    picture = Image.fromarray(decode.decode(data, MAX_PIXELS))
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX, reducing_gap=None)
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=80)
    return out.getvalue()


def inspection(path: str, about: str, summary: Summary, tiles: list[Tile], copies: Copies) -> Html:
    """The whole page."""
    document = summary.as_json()
    name = shown(PurePath(path.rstrip("/")).name or path)
    facts = [
        element("div", element("dt", what), element("dd", value))
        for what, value in words.facts(document)
    ]
    sections = {
        "Sizes": join([_distributions(document), _histograms(summary)]),
        "Formats, kinds, languages": join(
            table(["", "number"], rows, caption=title)
            for title, rows in words.values(document)
            if rows and title != "problem"
        ),
        "Bad records": _problems(document),
        "Equal ones": _copies(copies),
        "Records": element("ol", *map(_tile, tiles), class_="hits"),
    }
    filled = {title: inner for title, inner in sections.items() if inner}
    links = [element("a", title, href=f"#s{at}") for at, title in enumerate(filled)]
    body = [
        element("section", element("h2", title, id=f"s{at}"), inner)
        for at, (title, inner) in enumerate(filled.items())
    ]
    head = element("header", element("h1", name), element("p", shown(about, 500), class_="quiet"))
    foot = element("footer", "Written by vlalign data inspect. Scripts are guessed from letters.")
    nav = element("nav", *links, aria_label="Sections")
    known = element("dl", *facts, class_="facts")
    return page(f"{name} · vlalign", head, nav, known, *body, foot)


def _tile(tile: Tile) -> Html:
    record = tile.record
    about = [element("span", f"{tile.index:,}", class_="score")]
    if record is not None:
        about.append(_words("key", shown(record.key, 80)))
    if tile.problem or record is None:
        about.append(_words("problem", f"✗ {shown(tile.problem)}"))
        return element("li", *about, class_="wrong")
    header = image_header(record.image)
    size = f"{header.width} × {header.height} {header.format}, {megabytes(len(record.image))}"
    about.append(_words("size", size))
    for caption in record.captions[:_CAPTIONS]:
        text = shown(caption.text, _LENGTH)
        about.append(_words(f"{shown(caption.kind)}, {shown(caption.language)}", text))
    if len(record.captions) > _CAPTIONS:
        about.append(_words("more", f"and {len(record.captions) - _CAPTIONS} captions more"))
    return element("li", image(tile.picture, alt=f"record {tile.index}", size=_SIDE), *about)


def _words(title: str, text: str) -> Html:
    style = "-webkit-line-clamp: 5; margin-top: 3px"
    return element("span", text, class_="name", title=f"{title}: {text}", dir="auto", style=style)


def _distributions(document: dict[str, Any]) -> Html:
    head = ["", "min", "5 %", "median", "95 %", "max", "mean"]
    return table(head, words.distributions(document), caption="Distributions")


def _histograms(summary: Summary) -> Html:
    names = {
        "width": "Width, pixels",
        "height": "Height, pixels",
        "image_bytes": "Image size, bytes",
        "caption_characters": "Characters a caption",
    }
    figures = [
        element("figure", element("figcaption", title), bars(summary.histograms[name], title))
        for name, title in names.items()
        if summary.histograms[name].count
    ]
    return element("div", *figures, class_="curves")


def bars(histogram: Histogram, title: str) -> Html:
    """A histogram as inline SVG, in steps of equal ratio; each bar tells its range and number."""
    found = histogram.bars()
    step = -(-len(found) // _BARS)
    grouped = [found[at : at + step] for at in range(0, len(found), step)]
    columns = [(part[0][0], part[-1][1] - 1, sum(c for *_, c in part)) for part in grouped]
    highest, width, height = max(count for *_, count in columns), 640, 180
    each = min(width / len(columns), 60)
    drawn = []
    for place, (low, high, count) in enumerate(columns):
        span = f"{low:,} to {high:,}" if high > low else f"{low:,}"
        tall = round(height * count / highest, 1)
        drawn.append(
            element(
                "rect",
                element("title", f"{span}: {count:,}"),
                x=f"{place * each:.1f}",
                y=f"{height - tall:.1f}",
                width=f"{max(each - 1, 0.5):.1f}",
                height=f"{tall:.1f}",
                fill="var(--c0)",
            )
        )
    labels = [
        element("text", text, x=x, y=height + 20, fill="var(--quiet)", text_anchor=anchor)
        for text, x, anchor in (
            (f"{histogram.low:,}", "0", "start"),
            (f"{histogram.high:,}", f"{max(each * len(columns), 120):.0f}", "end"),
        )
    ]
    style = "font: 14px var(--font)"
    return element(
        "svg",
        *drawn,
        *labels,
        viewBox=f"0 0 {width} {height + 26}",
        role="img",
        aria_label=f"{title}, from {histogram.low:,} to {histogram.high:,}",
        style=style,
    )


def _copies(copies: Copies) -> Html:
    rows = [
        [what, f"{len(indices):,}", ", ".join(f"{i:,}" for i in indices[:12])]
        for what, indices in copies.groups()
    ]
    if not rows:
        return Html("")
    return table(["equal", "records", "which"], rows[:50], caption="Equal within the sample")


def _problems(document: dict[str, Any]) -> Html:
    counted = [[kind, f"{count:,}"] for kind, count in document["problems"].items()]
    if not counted:
        return Html("")
    head = ["problem", "record", "key", "detail"]
    return join(
        [
            table(["problem", "number"], counted, caption="By kind"),
            table(head, words.examples(document), caption="The first of each kind"),
        ]
    )
