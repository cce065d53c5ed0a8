"""RandAugment's operations against PIL's, which the paper's code and torchvision's call."""

import math

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from vlalign.data import randaugment
from vlalign.data.randaugment import OPERATIONS, RandAugment


def _image(seed: int = 0) -> np.ndarray:
    """Smooth, of low contrast: no operation is the identity on it."""
    rng = np.random.default_rng(seed)
    knots = Image.fromarray(rng.integers(20, 230, (6, 7, 3), np.uint8))
    return np.asarray(knots.resize((61, 48), Image.Resampling.BICUBIC))


EXACT = {
    "autocontrast": lambda image, m, sign: ImageOps.autocontrast(image),
    "equalize": lambda image, m, sign: ImageOps.equalize(image),
    "solarize": lambda image, m, sign: ImageOps.solarize(image, math.ceil(255 * (1 - m))),
    "posterize": lambda image, m, sign: ImageOps.posterize(image, 8 - round(4 * m)),
}
WITHIN_ONE = {
    "brightness": lambda image, f: ImageEnhance.Brightness(image).enhance(f),
    "contrast": lambda image, f: ImageEnhance.Contrast(image).enhance(f),
    "colour": lambda image, f: ImageEnhance.Color(image).enhance(f),
    "sharpness": lambda image, f: ImageEnhance.Sharpness(image).enhance(f),
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("strength", [0.0, 0.3, 0.77, 1.0])
def test_operations_that_are_pils_to_the_bit(name: str, strength: float) -> None:
    for seed in range(3):
        ours = OPERATIONS[name](_image(seed), strength, 1)
        pil = EXACT[name](Image.fromarray(_image(seed)), strength, 1)
        np.testing.assert_array_equal(ours, np.asarray(pil))


@pytest.mark.parametrize("name", WITHIN_ONE)
@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("sign", [-1, 1])
def test_operations_that_are_pils_within_one(name: str, strength: float, sign: int) -> None:
    factor = 1 + 0.9 * sign * strength
    ours = OPERATIONS[name](_image(), strength, sign).astype(int)
    pil = np.asarray(WITHIN_ONE[name](Image.fromarray(_image()), factor))
    assert np.abs(ours - pil).max() <= 1


@pytest.mark.parametrize("sign", [-1, 1])
def test_geometry_is_pils(sign: int) -> None:
    pixels = _image()
    image = Image.fromarray(pixels)
    height, width = pixels.shape[:2]
    middle = width / 2, height / 2
    lean, shift = 0.3 * sign, (0.45 * sign * width, 0.45 * sign * height)
    maps = {
        "shear_x": (1, lean, -lean * middle[1], 0, 1, 0),
        "shear_y": (1, 0, 0, lean, 1, -lean * middle[0]),
        "translate_x": (1, 0, shift[0], 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, shift[1]),
    }
    grey, bilinear = (128, 128, 128), Image.Resampling.BILINEAR
    expected = {
        name: image.transform(image.size, Image.Transform.AFFINE, matrix, bilinear, fillcolor=grey)
        for name, matrix in maps.items()
    }
    expected["rotate"] = image.rotate(30 * sign, bilinear, fillcolor=grey)
    for name, other in expected.items():
        ours = OPERATIONS[name](pixels, 1.0, sign).astype(int)
        difference = np.abs(ours - np.asarray(other)).max(-1)
        # PIL leaves the outermost half pixel to the fill, cv2 mixes it.
        assert np.mean(difference > 3) < 0.06, name


def test_a_flat_image_is_survived_by_all() -> None:
    for value in (0, 128, 255):
        for shape in ((1, 1, 3), (2, 40, 3), (9, 9, 3)):
            for operation in OPERATIONS.values():
                out = operation(np.full(shape, value, np.uint8), 1.0, -1)
                assert (out.shape, out.dtype) == (shape, np.uint8)


def test_draws() -> None:
    image = _image()
    assert RandAugment()(image, np.random.default_rng(0)) is image
    view = RandAugment(count=2, magnitude=10)
    outputs = [view(image, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert not np.array_equal(outputs[0], outputs[2])
    before, after = np.random.default_rng(7), np.random.default_rng(7)
    view(image, before)
    RandAugment(count=5)(image, after)
    assert before.random() == after.random()


def test_every_operation_is_drawn() -> None:
    seen: set[str] = set()

    def spy(name: str):
        return lambda image, strength, sign: (seen.add(name), image)[1]

    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            patch.setitem(randaugment.OPERATIONS, name, spy(name))
        for seed in range(40):
            RandAugment(count=4)(_image(), np.random.default_rng(seed))
    assert seen == set(OPERATIONS)
    assert len(seen) == 14
