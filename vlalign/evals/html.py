"""HTML by functions: what is not `Html` already is escaped, so that no caption becomes markup."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from vlalign.data import decode
from vlalign.evals.pictures import open_image

_MEDIA = {"WEBP": "image/webp", "PNG": "image/png", "JPEG": "image/jpeg"}
_VOID = ("img", "meta", "br")


class Html(str):
    """A string that is markup already."""


def element(name: str, /, *children: str, **attributes: str | bool | int | None) -> Html:
    """`<name ...>children</name>`, escaped; `class_` is `class`, `aria_label` is `aria-label`.

    An attribute that is True stands alone; None and False leave it out.
    """
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}"
        + ("" if value is True else f'="{html.escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def join(parts: Iterable[str], between: str = "") -> Html:
    """The parts one after the other, each escaped unless it is `Html`."""
    return Html(between.join(p if isinstance(p, Html) else html.escape(p) for p in parts))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str) -> Html:
    """A table with a caption, column headers, and a row header in the first column."""
    body = [
        element(
            "tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])
        )
        for row in rows
    ]
    header = element("tr", *(element("th", cell, scope="col") for cell in head))
    whole = element(
        "table",
        element("caption", caption),
        element("thead", header),
        element("tbody", *body),
    )
    return element("div", whole, class_="scroll", tabindex=0, role="region", aria_label=caption)


def image(data: bytes, *, alt: str, size: int = 96) -> Html:
    """An inlined picture, made smaller if it has more than `size` pixels a side.

    Raises `UserError` if the bytes are no picture.
    """
    media, small = _thumbnail(data, size)
    source = f"data:{media};base64,{base64.b64encode(small).decode('ascii')}"
    return element("img", src=source, alt=alt, width=size, height=size, loading="lazy")


def _thumbnail(data: bytes, size: int) -> tuple[str, bytes]:
    picture = open_image(data)
    with Image.open(io.BytesIO(data), formats=decode.FORMATS) as original:
        media = _MEDIA.get(original.format or "")
    if media is not None and max(picture.size) <= size:
        return media, data  # as it is: nothing is lost, transparency included
    picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=85)
    return _MEDIA["WEBP"], buffer.getvalue()


def page(title: str, *sections: Html) -> Html:
    """A whole document without a single outside address."""
    # Quotes are not escaped in a style element, and nobody's input is in this one.
    style = Html((Path(__file__).parent / "report.css").read_text(encoding="utf-8"))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", style),
    )
    body = element("body", element("main", *sections, id="top"))
    return Html("<!doctype html>\n" + element("html", head, body, lang="en") + "\n")
