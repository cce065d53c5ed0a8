"""Contact sheets: queries and their top hits, as one picture."""

import dataclasses
import functools
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from vlalign.data import decode
from vlalign.errors import UserError
from vlalign.evals.results import write_atomically

PAPER = (255, 255, 255)
INK = (24, 26, 31)
QUIET = (110, 116, 128)
LINE = (222, 225, 231)
GOOD = (22, 138, 70)
WRONG = (200, 52, 47)
TILE = (246, 247, 249)

_GAP = 10
_QUERY = 190
_LABEL = 34
_TITLE = 40
_INSET = 6  # so that a frame does not cover the picture


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hit:
    """One answer: `image` encoded, `label`, `score`, and `right` (None: nobody knows)."""

    image: bytes
    label: str
    score: float
    right: bool | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SheetRow:
    """One query and its hits, best first; `note` is a short tag such as `worst`."""

    query: str
    hits: tuple[Hit, ...]
    note: str = ""
    detail: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sheet:
    """Several queries under one title."""

    title: str
    rows: tuple[SheetRow, ...]


def open_image(data: bytes, *, name: str = "image") -> Image.Image:
    """The picture as RGBA. Raises `UserError` if these bytes are none that Pillow can read."""
    try:
        with Image.open(io.BytesIO(data), formats=decode.FORMATS) as image:
            return image.convert("RGBA")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{name} is not a readable picture: {error}") from error


def tile(data: bytes, size: int, background: tuple[int, int, int] = TILE) -> Image.Image:
    """An RGB square of `size` pixels with the picture fitted into it, not cut."""
    image = open_image(data)
    scale = min(size / image.width, size / image.height)
    shape = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(shape, Image.Resampling.LANCZOS)
    square = Image.new("RGB", (size, size), background)
    square.paste(image, ((size - shape[0]) // 2, (size - shape[1]) // 2), image)
    return square


def tile_array(data: bytes, size: int) -> np.ndarray:
    """`tile` as uint8 (size, size, 3)."""
    return np.asarray(tile(data, size))


@functools.cache
def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along: Latin, Greek, Cyrillic, Arabic; no Chinese."""
    from matplotlib import get_data_path  # slow to import, and only needed for pictures

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / name), size)


def contact_sheet(sheet: Sheet, *, size: int = 96) -> Image.Image:
    """Draws a sheet: a line for each query, pictures of `size` pixels, score and name under each.

    Right hits have a green frame and a tick, wrong ones a red cross; unknown ones neither.
    """
    columns = max((len(row.hits) for row in sheet.rows), default=0)
    height = size + _LABEL + _GAP
    width = _GAP + _QUERY + columns * (size + _GAP) + _GAP
    page = Image.new("RGB", (max(width, 480), _TITLE + len(sheet.rows) * (height + _GAP)), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text(
        (_GAP, 11),
        fit(sheet.title, font(16, bold=True), page.width - 2 * _GAP),
        INK,
        font(16, bold=True),
    )
    for number, row in enumerate(sheet.rows):
        y = _TITLE + number * (height + _GAP)
        draw.line([(_GAP, y), (page.width - _GAP, y)], LINE)
        _draw_query(draw, row, y + _GAP, size)
        for place, hit in enumerate(row.hits):
            _draw_hit(page, draw, hit, (_GAP + _QUERY + place * (size + _GAP), y + _GAP), size)
    return page


def save_png(image: Image.Image, path: Path) -> None:
    """Writes a PNG atomically. Raises `UserError` if the folder does not exist."""
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {path.parent}")
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    write_atomically(path, buffer.getvalue())


def fit(text: str, face: ImageFont.FreeTypeFont, width: int) -> str:
    """`text`, cut with an ellipsis to at most `width` pixels."""
    text = " ".join(text.split())
    if face.getlength(text) <= width:
        return text
    while text and face.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def wrap(text: str, face: ImageFont.FreeTypeFont, width: int, lines: int) -> list[str]:
    """`text` in at most `lines` lines of `width` pixels; what does not fit ends in an ellipsis."""
    done: list[str] = []
    words = text.split()
    while words and len(done) < lines - 1:
        taken = 1
        while taken < len(words) and face.getlength(" ".join(words[: taken + 1])) <= width:
            taken += 1
        done.append(fit(" ".join(words[:taken]), face, width))
        words = words[taken:]
    return [*done, fit(" ".join(words), face, width)] if words else done


def _draw_query(draw: ImageDraw.ImageDraw, row: SheetRow, y: int, size: int) -> None:
    width = _QUERY - 2 * _GAP
    if row.note:
        draw.text((_GAP, y), row.note.upper(), QUIET, font(10, bold=True))
        y += 17
    for line in wrap(row.query, font(15, bold=True), width, max(1, size // 24)):
        draw.text((_GAP, y), line, INK, font(15, bold=True))
        y += 20
    for line in wrap(row.detail, font(11), width, 2):
        draw.text((_GAP, y + 3), line, QUIET, font(11))
        y += 15


def _draw_hit(
    page: Image.Image, draw: ImageDraw.ImageDraw, hit: Hit, at: tuple[int, int], size: int
) -> None:
    x, y = at
    draw.rectangle([x, y, x + size - 1, y + size - 1], fill=TILE)
    page.paste(tile(hit.image, size - 2 * _INSET), (x + _INSET, y + _INSET))
    colour = {True: GOOD, False: LINE, None: LINE}[hit.right]
    draw.rectangle([x, y, x + size - 1, y + size - 1], outline=colour, width=3 if hit.right else 1)
    score = f"{hit.score:.3f}"
    draw.text((x, y + size + 4), score, INK, font(11, bold=True))
    if hit.right is not None:
        _draw_mark(draw, hit.right, (x + size - 11, y + size + 6))
    draw.text((x, y + size + 19), fit(hit.label, font(10), size), QUIET, font(10))


def _draw_mark(draw: ImageDraw.ImageDraw, right: bool, at: tuple[int, int]) -> None:
    """A tick or a cross, so that colour is not the only sign."""
    x, y = at
    if right:
        draw.line([(x, y + 4), (x + 3, y + 8), (x + 9, y)], GOOD, 2, joint="curve")
    else:
        draw.line([(x + 1, y), (x + 8, y + 7)], WRONG, 2)
        draw.line([(x + 8, y), (x + 1, y + 7)], WRONG, 2)
