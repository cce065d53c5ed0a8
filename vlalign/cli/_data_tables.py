"""The counts of `vlalign.data.stats` in words, for the terminal and for the page."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vlalign.cli._data_source import megabytes, shown

if TYPE_CHECKING:
    from rich.table import Table

_MOST = 12  # lines of a list of values
_DISTRIBUTIONS = {
    "width": "width, pixels",
    "height": "height, pixels",
    "aspect_milli": "width / height",
    "image_bytes": "image size",
    "captions": "captions a record",
    "caption_characters": "characters a caption",
    "caption_words": "words a caption",
}

Rows = list[list[str]]


def facts(document: dict[str, Any]) -> list[tuple[str, str]]:
    """The first lines: (name, value)."""
    lines = [("records", f"{document['records']:,}"), ("bad", _of(document, "bad"))]
    if document["without_caption"]:
        lines.append(("without a caption", _of(document, "without_caption")))
    for name, what in (("images", "image"), ("texts", "caption"), ("keys", "key")):
        found = document["duplicates"][name]
        if found["copies"]:
            about = "" if found["exact"] else "about "
            most = f", one {what} {found['most_of_one']:,} times"
            lines.append((f"copies of {name}", f"{about}{found['copies']:,}{most}"))
    return lines


def _of(document: dict[str, Any], name: str) -> str:
    count, share = document[name], 100 * document[name] / max(1, document["records"])
    return f"{count:,} ({share:.1f} %)" if share >= 0.1 else f"{count:,}"


def distributions(document: dict[str, Any]) -> Rows:
    """Rows: what, min, 5 %, median, 95 %, max, mean."""
    rows = []
    for name, what in _DISTRIBUTIONS.items():
        found = document[name]
        if found["count"]:
            numbers = [found[k] for k in ("min", "p05", "median", "p95", "max", "mean")]
            rows.append([what, *(_number(name, number) for number in numbers)])
    return rows


def _number(name: str, value: float) -> str:
    if name == "image_bytes":
        return megabytes(value)
    if name == "aspect_milli":
        return f"{value / 1000:.2f}"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.1f}"


def values(document: dict[str, Any]) -> Iterator[tuple[str, Rows]]:
    """(title, rows of value and number) of what is counted by value, the most frequent first."""
    for name, title in (("formats", "format"), ("kinds", "caption kind")):
        yield title, _counted(document[name])
    scripts = {
        f"{language or '(no tag)'}: {script}": count
        for language, found in document["scripts"].items()
        for script, count in found.items()
    }
    yield "language as tagged: script seen", _counted(scripts)
    yield "problem", _counted(document["problems"])


def _counted(counts: dict[str, int]) -> Rows:
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rows = [[shown(name, 60), f"{count:,}"] for name, count in ranked[:_MOST]]
    if len(ranked) > _MOST:
        rest = sum(count for _, count in ranked[_MOST:])
        rows.append([f"{len(ranked) - _MOST} more", f"{rest:,}"])
    return rows


def examples(document: dict[str, Any]) -> Rows:
    """Rows: problem, index, key, detail."""
    return [
        [kind, f"{one['index']:,}", shown(one["key"], 60), shown(one["detail"])]
        for kind, found in document["examples"].items()
        for one in found
    ]


def overview(document: dict[str, Any]) -> "Iterator[Table]":
    """Everything as tables of a terminal."""
    yield _table(["", ""], [list(fact) for fact in facts(document)])
    yield _table(["", "min", "5 %", "median", "95 %", "max", "mean"], distributions(document))
    for title, rows in values(document):
        if rows:
            yield _table([title, "number"], rows)
    found = examples(document)
    if found:
        yield _table(["examples", "record", "key", "detail"], found)


def _table(head: list[str], rows: Rows) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", padding=(0, 3, 0, 0), show_header=any(head))
    for column in head:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: nothing in the data is markup
    return table
