import io

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from vlalign.errors import UserError
from vlalign.evals.pictures import (
    GOOD,
    PAPER,
    Hit,
    Sheet,
    SheetRow,
    contact_sheet,
    fit,
    font,
    save_png,
    tile_array,
    wrap,
)
from vlalign.evals.terminal import half_blocks, hits_table


@pytest.fixture
def sheet(world):
    hits = tuple(
        Hit(
            image=r.image,
            label=r.captions[0].text,
            score=0.9 - i / 10,
            right=[True, False, None][i],
        )
        for i, r in enumerate(world.records[:3])
    )
    return Sheet(title="Formen – 図形", rows=(SheetRow(query="a réd circle " * 20, hits=hits),) * 2)


def test_right_hits_are_framed(sheet):
    pixels = np.asarray(contact_sheet(sheet, size=48))
    green = (pixels == np.array(GOOD)).all(axis=2)
    columns = np.flatnonzero(green.sum(axis=0) > 48)
    assert green.sum() > 2 * 4 * 48  # two frames of at least a pixel
    assert columns.max() - columns.min() == 47  # and only around the first hit
    assert tuple(pixels[-1, -1]) == PAPER


def test_a_sheet_without_hits_is_a_page(sheet):
    image = contact_sheet(Sheet(title="none", rows=(SheetRow(query="x", hits=()),)))
    assert image.width >= 480


def test_saved_as_png(sheet, tmp_path):
    save_png(contact_sheet(sheet), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG"
    with pytest.raises(UserError, match="there is no folder"):
        save_png(contact_sheet(sheet), tmp_path / "absent" / "a.png")


@pytest.mark.parametrize("shape", [(1, 1), (200, 3), (7, 90)])
def test_a_picture_is_fitted_not_cut(shape):
    buffer = io.BytesIO()
    Image.new("RGB", shape, (9, 9, 9)).save(buffer, format="PNG")
    pixels = tile_array(buffer.getvalue(), 32)
    assert pixels.shape == (32, 32, 3)
    dark_rows, dark_columns = np.nonzero((pixels == 9).all(axis=2))
    extent = (np.ptp(dark_columns) + 1, np.ptp(dark_rows) + 1)
    assert max(extent) == 32
    assert extent == tuple(max(1, round(side * 32 / max(shape))) for side in shape)


def test_bytes_that_are_no_picture_are_named():
    with pytest.raises(UserError, match="not a readable picture"):
        tile_array(b"hello", 8)


def test_text_fits_its_width():
    face = font(12)
    assert fit("short", face, 100) == "short"
    cut = fit("a very long name indeed", face, 60)
    assert cut.endswith("…")
    assert face.getlength(cut) <= 60
    lines = wrap("one two three four five six seven", face, 60, 3)
    assert len(lines) == 3
    assert all(face.getlength(line) <= 60 for line in lines)
    assert wrap("one two", face, 200, 3) == ["one two"]
    assert wrap("", face, 200, 3) == []


def test_half_blocks_show_two_pixels_a_cell():
    image = np.zeros((3, 2, 3), np.uint8)
    image[0, 0] = (255, 0, 0)
    image[1, 0] = (0, 0, 255)
    segments = [s for s in half_blocks(image).segments if s.text == "▀"]
    assert len(segments) == 4
    assert segments[0].style.color.triplet == (255, 0, 0)
    assert segments[0].style.bgcolor.triplet == (0, 0, 255)
    with pytest.raises(ValueError, match="need uint8"):
        half_blocks(image.astype(np.float32))


def test_hits_are_drawn_in_the_width_of_the_terminal(sheet):
    console = Console(file=io.StringIO(), width=40, force_terminal=True, color_system="truecolor")
    console.print(hits_table(sheet.rows[0], columns=40, size=16))
    text = console.file.getvalue()
    assert text.count("▀") == 3 * 16 * 8
    assert "1. 0.900" in text
    plain = Console(file=io.StringIO(), width=40)
    plain.print(hits_table(sheet.rows[0], columns=40, size=16))
    assert max(map(len, plain.file.getvalue().splitlines())) <= 40
