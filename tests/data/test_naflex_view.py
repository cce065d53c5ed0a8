"""Patches of images of any shape, against transformers' processor.

The golden file is written by tests/encoders/make_golden_naflex.py.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlalign.data.naflex import NaflexView, grid_for, pack, to_patches
from vlalign.data.record import BadRecord
from vlalign.errors import UserError

GOLDEN = Path(__file__).parents[1] / "encoders" / "golden" / "naflex_processor.npz"


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return dict(file)


def png(pixels: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", **options)
    return file.getvalue()


def test_grids_are_the_originals(golden: dict[str, np.ndarray]) -> None:
    assert len(golden["grids"]) == 3000
    for height, width, patch, budget, rows, columns in golden["grids"].tolist():
        assert grid_for(height, width, patch, budget) == (rows, columns)
        assert rows * columns <= budget


@pytest.mark.parametrize("index", range(3))
def test_patches_are_the_originals_but_for_rounding(
    index: int, golden: dict[str, np.ndarray]
) -> None:
    view = NaflexView(budget=12, patch_size=8)
    found = view.evaluate(png(golden[f"image_{index}"]))
    np.testing.assert_array_equal(found["shapes"], golden[f"shapes_{index}"])
    wanted = golden[f"patches_{index}"]
    assert found["patches"].shape == (12, 192)
    apart = np.abs(found["patches"][: len(wanted)].astype(np.float32) - wanted)
    assert apart.max() < 1.01
    assert apart.mean() < 0.25
    assert not found["patches"][len(wanted) :].any()


def test_patches_lie_row_by_row_channels_last() -> None:
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    found = to_patches(image, 2)
    assert found.shape == (6, 12)
    np.testing.assert_array_equal(found[4].reshape(2, 2, 3), image[2:4, 2:4])
    with pytest.raises(ValueError, match="4x6 does not divide into patches of 4"):
        to_patches(image, 4)


def test_orientation_is_applied_where_it_is_asked_for(rng: np.random.Generator) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    image = png(rng.integers(0, 256, (20, 80, 3), np.uint8), exif=exif)
    lying, upright = (NaflexView(upright=u).evaluate(image)["shapes"][0] for u in (False, True))
    assert lying.tolist() == upright.tolist()[::-1]
    assert lying[0] < lying[1]


def test_an_example_has_the_shapes_of_a_view() -> None:
    view = NaflexView(budget=20, patch_size=8)
    made, example = view.evaluate(png(np.zeros((9, 9, 3), np.uint8))), view.example()
    assert {k: (v.shape, v.dtype) for k, v in made.items()} == {
        k: (v.shape, v.dtype) for k, v in example.items()
    }


def images_of(*grids: tuple[int, int]) -> list[dict[str, np.ndarray]]:
    return [
        {
            "patches": np.full((20, 12), index + 1, np.uint8),
            "shapes": np.array([grid], np.int32),
        }
        for index, grid in enumerate(grids)
    ]


def test_packing_fills_rows_with_the_largest_first() -> None:
    rows = pack(images_of((2, 3), (1, 1), (4, 4), (1, 2), (3, 3)), budget=18, most=2)
    assert [row["which"].tolist() for row in rows] == [[2, 3], [4, 0], [1, -1]]
    assert [row["shapes"].tolist() for row in rows] == [
        [[4, 4], [1, 2]],
        [[3, 3], [2, 3]],
        [[1, 1], [0, 0]],
    ]
    assert all(row["patches"].shape == (18, 12) for row in rows)
    np.testing.assert_array_equal(rows[1]["patches"][:, 0], [5] * 9 + [1] * 6 + [0] * 3)


def test_packing_nothing_is_nothing() -> None:
    assert pack([], budget=4, most=2) == []


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="16 patches in rows of 15"):
        pack(images_of((4, 4)), budget=15, most=2)
    with pytest.raises(UserError, match="a budget of 0 patches"):
        grid_for(4, 4, 16, 0)
    with pytest.raises(BadRecord, match="image too large"):
        grid_for(1, 100_000_000, 16, 4)
    for wrong in (dict(budget=0), dict(patch_size=0), dict(max_pixels=0)):
        with pytest.raises(UserError, match=f"NaflexView.{next(iter(wrong))}=0"):
            NaflexView(**wrong)
    with pytest.raises(BadRecord):
        NaflexView().evaluate(b"no image")
