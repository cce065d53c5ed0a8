"""Mosaics: every image whole in its cell, and its boxes with it."""

import io
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from PIL import Image

from vlalign.data.captions import CaptionView
from vlalign.data.mosaic import MosaicView, mosaic
from vlalign.data.pipeline import Data
from vlalign.data.record import Record
from vlalign.data.sources import MemorySource
from vlalign.data.tokenizer import Bpe
from vlalign.errors import UserError


def _images(count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Grey levels of their own, each with one white rectangle and its box."""
    rng = np.random.default_rng(count)
    images, boxes = [], []
    for index in range(count):
        height, width = rng.integers(60, 120, 2)
        pixels = np.full((height, width, 3), 10 + 12 * index, np.uint8)
        box = np.array([0.25, 0.5, 0.75, 1.0], np.float32)
        left, top, right, bottom = np.rint(box * [width, height, width, height]).astype(int)
        pixels[top:bottom, left:right] = 255
        images.append(pixels)
        boxes.append(np.stack([box, np.array([0, 0, 1, 1], np.float32)]))
    return images, boxes


@pytest.mark.parametrize(("grid", "size"), [(1, 64), (2, 128), (3, 200), (2, 129)])
def test_boxes_go_where_their_images_go(grid: int, size: int) -> None:
    images, boxes = _images(grid * grid)
    out, moved = mosaic(images, boxes, np.random.default_rng(3), grid, size=size)
    assert out.shape == (size, size, 3)
    assert out.dtype == np.uint8
    covered = np.zeros((size, size), int)
    for index, (box, whole) in enumerate(moved):
        left, top, right, bottom = np.rint(whole * size).astype(int)
        covered[top:bottom, left:right] += 1
        cell = out[top:bottom, left:right]
        assert np.isin(cell, [10 + 12 * index, 255]).mean() > 0.9
        x0, y0, x1, y1 = box * size
        inside = out[round(y0) + 3 : round(y1) - 2, round(x0) + 3 : round(x1) - 2]
        assert (inside == 255).all()
        outside = out[top + 1 : round(y0) - 3, left + 1 : right - 1]
        assert (outside == 10 + 12 * index).all()
    assert (covered == 1).all()


def test_placement_is_drawn() -> None:
    images, boxes = _images(4)
    first = [mosaic(images, boxes, np.random.default_rng(s), 2)[0] for s in (0, 0, 1, 2)]
    np.testing.assert_array_equal(first[0], first[1])
    assert len({image.tobytes() for image in first}) > 1
    assert first[0].shape == (max(images[0].shape[:2]),) * 2 + (3,)


def test_an_image_without_boxes() -> None:
    images, _ = _images(4)
    none = np.zeros((0, 4), np.float32)
    _, moved = mosaic(images, [none] * 4, np.random.default_rng(0), 2)
    assert [boxes.shape for boxes in moved] == [(0, 4)] * 4


def test_one_cell_is_a_resize() -> None:
    image = cv2.GaussianBlur(
        np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), (0, 0), 3
    )
    out, _ = mosaic([image], [np.zeros((0, 4))], np.random.default_rng(0), 1)
    np.testing.assert_array_equal(out, image)


def test_wrong_numbers_are_named() -> None:
    images, boxes = _images(4)
    with pytest.raises(ValueError, match="3 images with 4 lists of boxes: 2 x 2 want 4"):
        mosaic(images[:3], boxes, np.random.default_rng(0), 2)
    with pytest.raises(ValueError, match="a side of 1 pixels has no room for 2 cells"):
        mosaic(images, boxes, np.random.default_rng(0), 2, size=1)


def test_the_view_takes_its_partners_from_the_order(record: Callable[..., Record]) -> None:
    source = MemorySource(records=tuple(record(i, image=flat(i)) for i in range(6)))
    views = {"image": MosaicView(size=16, text=CaptionView(template=0.0, keywords=0.0))}
    data = Data(source=source, views=views, tokenizer=Bpe(vocab_size=300, length=16), batch_size=4)
    tokenizer = data.fit_tokenizer()
    with data.batches(tokenizer, seed=0) as batches:
        batch, following = next(batches), next(batches)
    assert batch["image"].shape == (4, 16, 16, 3)
    assert batch["image_texts"].shape == (4, 4, 16)
    assert batch["image_texts_present"].all()
    shown = np.concatenate([batch["index"], following["index"]])
    for row in range(4):
        for part, (x0, y0, _, _) in enumerate(batch["image_boxes"][row]):
            pixel = batch["image"][row, int(16 * y0) + 1, int(16 * x0) + 1]
            np.testing.assert_array_equal(pixel, 40 * shown[row + part])
    for name, example in data.example(tokenizer).items():
        assert example.shape[1:] == batch[name].shape[1:]
        assert example.dtype == batch[name].dtype
    with data.batches(tokenizer, seed=0, start_step=1) as batches:
        again = next(batches)
    for name in again:
        np.testing.assert_array_equal(again[name], following[name])


def test_the_view_checks_its_sizes() -> None:
    with pytest.raises(UserError, match="grid=5, size=4: 1 <= grid <= size"):
        MosaicView(grid=5, size=4)


def flat(index: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (10, 8), (40 * index,) * 3).save(out, "PNG")
    return out.getvalue()
