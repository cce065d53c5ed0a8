"""Random crops: torchvision's boxes, PIL's pixels within a measured distance, shared decoding."""

import io
import math
from typing import Any
from unittest import mock

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from vlalign import tree
from vlalign.data import crops, decode, resample
from vlalign.data.colour import Colour
from vlalign.data.crops import RandomResizedCrop, random_box
from vlalign.data.frame import Frame, frame
from vlalign.data.multicrop import MultiCrop, RegionCrops
from vlalign.data.pipeline import Data
from vlalign.data.preprocess import Preprocess, siglip
from vlalign.data.randaugment import RandAugment
from vlalign.data.record import BadRecord, Record, Region
from vlalign.data.sources import MemorySource
from vlalign.data.tokenizer import Bpe
from vlalign.errors import UserError

WHITE = (255, 255, 255)
MANY = 64_000_000


def _scene(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Discs and stripes, their edges as soft as a lens makes them, under a little noise."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.uint8)
    image[:] = rng.integers(0, 256, 3)
    for _ in range(60):
        centre = int(rng.integers(width)), int(rng.integers(height))
        colour = tuple(rng.integers(0, 256, 3).tolist())
        radius = int(rng.integers(3, max(4, height // 5)))
        cv2.circle(image, centre, radius, colour, int(rng.choice([-1, 2, 5])))
    soft = cv2.GaussianBlur(image, (0, 0), 1.0).astype(int)
    return np.clip(soft + rng.integers(-4, 5, soft.shape), 0, 255).astype(np.uint8)


def _jpeg(pixels: np.ndarray, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", **{"quality": 92, **options})
    return out.getvalue()


def _turned(pixels: np.ndarray, orientation: int, fmt: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, fmt, exif=exif, quality=92)
    return out.getvalue()


def _record(image: bytes, regions: tuple[Region, ...] = ()) -> Record:
    return Record(key="a", image=image, regions=regions)


def _psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = np.mean((one.astype(float) - other) ** 2)
    return 10 * math.log10(255**2 / max(error, 1e-9))


def test_boxes_have_torchvisions_distribution() -> None:
    # torchvision 0.29's RandomResizedCrop.get_params on 375 x 500 at (0.08, 1), 40,000 draws:
    # mean and standard deviation of top, left, height, width.
    peers = {
        "top": (52.29, 50.79),
        "left": (108.72, 80.26),
        "height": (270.29, 70.44),
        "width": (282.27, 86.56),
    }
    rng = np.random.default_rng(1)
    boxes = np.array(
        [random_box(375, 500, (0.08, 1.0), (3 / 4, 4 / 3), rng) for _ in range(4000)], float
    )
    for place, (name, (mean, deviation)) in enumerate(peers.items()):
        error = deviation / math.sqrt(len(boxes))
        assert abs(boxes[:, place].mean() - mean) < 4 * error, name
        assert boxes[:, place].std() == pytest.approx(deviation, rel=0.05), name


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (3, 400), (7, 7)])
def test_boxes_are_inside_and_the_last_resort_is_central(shape: tuple[int, int]) -> None:
    height, width = shape
    for seed in range(50):
        rng = np.random.default_rng(seed)
        top, left, h, w = random_box(height, width, (0.9, 1.0), (3 / 4, 4 / 3), rng)
        assert 0 <= top <= top + h <= height
        assert 0 <= left <= left + w <= width
        assert h > 0 < w
    if shape == (3, 400):
        assert (top, left, h, w) == (0, 198, 3, 4)


@pytest.mark.parametrize(
    ("height", "width"), [(60, 80), (180, 200), (240, 260), (300, 380), (448, 590)]
)
def test_a_resample_is_close_to_pils_bicubic(height: int, width: int) -> None:
    pixels = _scene(height, width)
    ours = resample.resize(pixels, 224, 224)
    pil = Image.fromarray(pixels).resize((224, 224), Image.Resampling.BICUBIC)
    assert _psnr(ours, np.asarray(pil)) > 40
    # No worse than PIL's other antialiased filter is.
    other = Image.fromarray(pixels).resize((224, 224), Image.Resampling.BILINEAR)
    assert _psnr(ours, np.asarray(pil)) > _psnr(np.asarray(other), np.asarray(pil))


@pytest.mark.parametrize("shape", [(700, 900), (1000, 100), (100, 1000), (224, 3000)])
def test_a_strong_reduction_is_averaged_not_sampled(shape: tuple[int, int]) -> None:
    pixels = np.zeros((*shape, 3), np.uint8)
    pixels[::2] = 200
    pixels[:, ::2] = 200 - pixels[:, ::2]
    out = resample.resize(pixels, 224, 224).astype(float)
    assert out[4:-4, 4:-4].mean() == pytest.approx(100, abs=2)
    if min(shape) > 600:
        assert np.ptp(out[4:-4, 4:-4]) < 40


@pytest.mark.parametrize("shape", [(375, 500), (768, 1024), (1000, 1500), (2000, 1400)])
def test_a_reduced_decode_loses_nothing_to_see(shape: tuple[int, int]) -> None:
    image = _jpeg(_scene(*shape))
    full = Image.open(io.BytesIO(image))
    seen = set()
    for seed in range(6):
        opened = frame(image, MANY, WHITE)
        box = random_box(*shape, (0.2, 1.0), (3 / 4, 4 / 3), np.random.default_rng(seed))
        ours = crops.cut(opened, box, 128)
        reduction = crops.reduction_for(opened, box, 128)
        seen.add(reduction)
        top, left, height, width = box
        corners = (left, top, left + width, top + height)
        whole = [side // reduction for side in full.size * 2]
        edges = [
            reduction * min(round(corner / reduction), most)
            for corner, most in zip(corners, whole, strict=True)
        ]
        pil = full.resize((128, 128), Image.Resampling.BICUBIC, box=tuple(edges))
        assert _psnr(ours, np.asarray(pil)) > 36
        assert min(box[2:]) // reduction >= 128 or reduction == 1
    assert (seen == {1, 2}) if shape == (375, 500) else max(seen) >= 4 or shape == (768, 1024)


def test_full_decoding_is_pils_to_the_bit() -> None:
    for options in ({}, {"progressive": True}, {"subsampling": 0}, {"quality": 40}):
        image = _jpeg(_scene(75, 101), **options)
        expected = np.asarray(Image.open(io.BytesIO(image)))
        np.testing.assert_array_equal(Frame(image, MANY, WHITE).pixels(), expected)
    grey = _jpeg(_scene(75, 101)[..., 0])
    expected = np.asarray(Image.open(io.BytesIO(grey)).convert("RGB"))
    np.testing.assert_array_equal(Frame(grey, MANY, WHITE).pixels(), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fmt", ["JPEG", "PNG"])
def test_orientation(orientation: int, fmt: str) -> None:
    image = _turned(_scene(64, 96), orientation, fmt)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(image))))
    opened = Frame(image, MANY, WHITE)
    assert (opened.height, opened.width) == upright.shape[:2]
    np.testing.assert_array_equal(opened.pixels(), upright)
    if fmt == "JPEG":
        half = opened.pixels(2)
        assert half.shape == (upright.shape[0] // 2, upright.shape[1] // 2, 3)
        area = cv2.resize(upright, half.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert _psnr(half, area) > 32


def test_transparency_shows_the_background_without_a_seam() -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[..., 0] = 255
    pixels[:, 4:] = (0, 0, 250, 128)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    shown = Frame(out.getvalue(), MANY, (10, 20, 30)).pixels()
    assert (shown[:, :4] == (10, 20, 30)).all()
    np.testing.assert_allclose(shown[:, 4:].astype(int), [[(5, 10, 140)] * 4] * 8, atol=1)


def test_the_fast_path_agrees_with_decode_on_every_kind_of_image() -> None:
    base = Image.fromarray(_scene(20, 30))
    for mode, fmt in (("L", "PNG"), ("P", "GIF"), ("CMYK", "JPEG"), ("RGB", "WEBP"), ("1", "TIFF")):
        out = io.BytesIO()
        base.convert(mode).save(out, fmt)
        rgba = decode.decode(out.getvalue(), MANY)
        opened = Frame(out.getvalue(), MANY, WHITE)
        assert opened.reductions == (1,)
        np.testing.assert_array_equal(opened.pixels(), rgba[..., :3])


def test_views_of_one_record_decode_once() -> None:
    record = _record(_jpeg(_scene(300, 400)))
    views = (
        MultiCrop(size=224, area=(0.5, 1.0)),
        RandomResizedCrop(size=200, area=(0.4, 1.0)),
        RegionCrops(size=200, count=2),
    )
    with mock.patch.object(cv2, "imdecode", wraps=cv2.imdecode) as counted:
        for view in views:
            view(record, np.random.default_rng(0))
        assert counted.call_count == 1
        views[0](_record(bytes(bytearray(record.image))), np.random.default_rng(0))
        assert counted.call_count == 2


def test_what_other_views_decoded_changes_nothing() -> None:
    image = _jpeg(_scene(900, 1200))
    view = RandomResizedCrop(size=96, area=(0.5, 1.0))
    alone = view(_record(image), np.random.default_rng(3))
    record = _record(bytes(bytearray(image)))
    RandomResizedCrop(size=500)(record, np.random.default_rng(0))  # decodes all of it
    np.testing.assert_array_equal(view(record, np.random.default_rng(3)), alone)
    assert not frame(record.image, MANY, WHITE).pixels().flags.writeable


def test_a_schedule_of_resolutions_shows_the_same_boxes() -> None:
    record = _record(_jpeg(_scene(900, 1200)))
    large = RandomResizedCrop(size=224, flip=0.5)
    for seed in range(6):
        crop = large(record, np.random.default_rng(seed))
        small = tree.replace(large, size=112)(record, np.random.default_rng(seed))
        halved = cv2.resize(crop, (112, 112), interpolation=cv2.INTER_AREA)
        assert _psnr(small, halved) > 26


CHANGES: dict[str, dict[str, Any]] = {
    "flip": {"flip": 1.0},
    "jitter": {"colour": Colour(brightness=0.5, contrast=0.5, saturation=0.5, hue=40.0)},
    "grayscale": {"colour": Colour(grayscale=1.0)},
    "blur": {"colour": Colour(blur=1.0, sigma=(2.0, 6.0))},
    "solarize": {"colour": Colour(solarize=1.0)},
    "randaugment": {"randaugment": RandAugment(count=4, magnitude=20)},
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_deterministic_and_leave_the_box_alone(name: str) -> None:
    record = _record(_jpeg(_scene(120, 160)))
    plain = RandomResizedCrop(size=64)(record, np.random.default_rng(5))
    view = RandomResizedCrop(size=64, **CHANGES[name])
    first, again = (view(record, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == plain.shape
    assert first.dtype == np.uint8
    assert not np.array_equal(first, plain)
    if name == "flip":
        np.testing.assert_array_equal(first, plain[:, ::-1])
    if name == "grayscale":
        assert np.ptp(first.astype(int), axis=-1).max() <= 1
    if name == "solarize":
        np.testing.assert_array_equal(first, np.where(plain < 128, plain, 255 - plain))


def test_multi_crop() -> None:
    record = _record(_jpeg(_scene(200, 300)))
    view = MultiCrop(crops=3, size=48, flip=0.5)
    out = view(record, np.random.default_rng(0))
    assert out.shape == view.example().shape == (3, 48, 48, 3)
    assert not np.array_equal(out[0], out[1])
    one = RandomResizedCrop(size=48, flip=0.5)(record, np.random.default_rng(0))
    np.testing.assert_array_equal(out[0], one)


def test_region_crops() -> None:
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[20:60, 100:180] = (250, 0, 0)
    regions = (Region((0.5, 0.2, 0.9, 0.6), "red"), Region((0.0, 0.0, 0.2, 0.2), "black"))
    record = _record(_jpeg(pixels, quality=98, subsampling=0), regions)
    view = RegionCrops(size=32, count=3, background=(9, 9, 9))
    out = view(record, np.random.default_rng(0)).astype(int)
    np.testing.assert_allclose(out[0], np.broadcast_to((250, 0, 0), (32, 32, 3)), atol=6)
    assert out[1].max() < 8
    assert not out[2].any()
    wide = tree.replace(view, margin=0.5)(record, np.random.default_rng(0)).astype(int)
    assert wide[0][:5].max() < 40
    np.testing.assert_allclose(wide[0][12:20, 12:20, 0], 250, atol=6)
    moved = [tree.replace(view, jitter=0.3)(record, np.random.default_rng(s)) for s in (1, 1, 2)]
    np.testing.assert_array_equal(moved[0], moved[1])
    assert not np.array_equal(moved[0], moved[2])


@pytest.mark.parametrize(
    "box",
    [(0.0, 0.0, 0.0, 0.0), (1.0, 1.0, 1.0, 1.0), (0.9, 0.9, 0.1, 0.1), (-3, 0, 9, float("nan"))],
)
def test_absurd_regions_are_still_crops(box: tuple[float, float, float, float]) -> None:
    record = _record(_jpeg(_scene(30, 40)), (Region(box, "?"),))
    assert RegionCrops(size=8, count=1)(record, np.random.default_rng(0)).shape == (1, 8, 8, 3)


def test_evaluation_and_specification() -> None:
    image = _turned(_scene(60, 90), 6)
    view = RandomResizedCrop(size=32, area=(0.9, 1.0), flip=0.5)
    expected = Preprocess(size=32, upright=True)
    np.testing.assert_array_equal(view.evaluate(image), expected.evaluate(image))
    assert view.spec() == expected.spec()
    assert tree.replace(view, evaluation=siglip(32)).spec() == siglip(32).spec()
    assert tree.loads(tree.dumps(view)) == view


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomResizedCrop(size=0), r"RandomResizedCrop\.size=0"),
        (lambda: RandomResizedCrop(area=(0.0, 1.0)), r"area=\(0\.0, 1\.0\)"),
        (lambda: RandomResizedCrop(ratio=(2.0, 1.0)), "ratio"),
        (lambda: RandomResizedCrop(flip=2.0), "probability"),
        (lambda: RandomResizedCrop(background=(0, 0, 300)), "0..255"),
        (lambda: RandomResizedCrop(evaluation=siglip(99)), "must be RandomResizedCrop.size=224"),
        (lambda: RandomResizedCrop(max_pixels=0), "max_pixels"),
        (lambda: MultiCrop(crops=0), r"MultiCrop\.crops=0"),
        (lambda: RegionCrops(count=0), r"RegionCrops\.count=0"),
        (lambda: RegionCrops(margin=-1.0), "margin"),
        (lambda: RegionCrops(jitter=0.5), "jitter"),
        (lambda: Colour(blur=1.5), r"Colour\.blur=1\.5"),
        (lambda: Colour(sigma=(0.0, 1.0)), r"Colour\.sigma"),
        (lambda: RandAugment(count=99), r"RandAugment\.count=99"),
        (lambda: RandAugment(magnitude=31.0), "magnitude"),
    ],
)
def test_wrong_fields_are_named(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_a_jpeg_whose_pixels_are_not_what_its_header_promises() -> None:
    with (
        mock.patch.object(cv2, "imdecode", return_value=np.zeros((5, 5, 3), np.uint8)),
        pytest.raises(BadRecord, match="header promises"),
    ):
        RandomResizedCrop(size=8)(_record(_jpeg(_scene(20, 20))), np.random.default_rng(0))


def test_views_in_a_pipeline_do_not_depend_on_each_other_or_on_workers() -> None:
    regions = (Region((0.1, 0.1, 0.6, 0.9), "disc"),)
    records = tuple(
        Record(key=f"r{i}", image=_jpeg(_scene(90, 120, i)), regions=regions) for i in range(6)
    )
    views = {
        "image": MultiCrop(crops=2, size=32, flip=0.5, colour=Colour(jitter=0.8, hue=20.0)),
        "local": MultiCrop(crops=3, size=16, area=(0.05, 0.14)),
        "regions": RegionCrops(count=2, size=16, jitter=0.1),
        "other": RandomResizedCrop(size=24, randaugment=RandAugment(count=2)),
    }
    bpe = Bpe()

    def first(views: dict[str, Any], threads: int) -> dict[str, np.ndarray]:
        data = Data(
            source=MemorySource(records=records), views=views, batch_size=4, threads=threads
        )
        with data.batches(bpe.train(["a"]), seed=3, start_step=2) as batches:
            return next(batches)

    together = first(views, 4)
    assert together["image"].shape == (4, 2, 32, 32, 3)
    assert together["local"].shape == (4, 3, 16, 16, 3)
    assert (together["weight"] == 1).all()
    for name, view in views.items():
        np.testing.assert_array_equal(first({name: view}, 1)[name], together[name])
