"""Small images and records made on the spot."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from vlalign.data.record import Caption, Record
from vlalign.data.sources import MemorySource


def encode(pixels: np.ndarray, fmt: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, fmt, **options)
    return out.getvalue()


def picture(index: int, size: int = 12) -> bytes:
    return encode(np.random.default_rng(index).integers(0, 256, (size, size, 4), np.uint8))


def make_record(index: int, **changes: object) -> Record:
    values: dict[str, object] = {
        "key": f"r{index}",
        "image": picture(index),
        "captions": (
            Caption(f"thing number {index}", "name"),
            Caption("red, round, small, old, new", "keywords"),
        ),
        "labels": {"category": f"kind {index % 3}"},
    }
    return Record(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def png() -> Callable[..., bytes]:
    return encode


@pytest.fixture
def record() -> Callable[..., Record]:
    return make_record


@pytest.fixture
def source() -> Callable[[int], MemorySource]:
    return lambda count: MemorySource(records=tuple(make_record(i) for i in range(count)))
