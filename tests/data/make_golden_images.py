"""Records what open_clip and TensorFlow make of small images, for `test_preprocess.py`.

Run it with the `peers` extra for open_clip's part, and in an environment with tensorflow and pillow
for big_vision's: each writes the parts whose library it finds and keeps the others. In
`golden/preprocess.npz`, `image/<name>` has encoded bytes, `open_clip/<mode>-<filter>/<name>` and
`tensorflow/<antialias>/<name>` have uint8 (SIZE, SIZE, 3) before normalisation, `fast_jpeg` that of
TensorFlow's default decoder; `versions` says what ran.
"""

import importlib.util
import io
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

GOLDEN = Path(__file__).parent / "golden" / "preprocess.npz"
SIZE = 16


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """Smooth blobs under fine noise: what a photograph has of both."""
    rng = np.random.default_rng(seed)
    knots = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    smooth = np.asarray(knots.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(smooth + rng.integers(-24, 25, smooth.shape), 0, 255).astype(np.uint8)


def encoded(image: Image.Image, fmt: str, **options: object) -> np.ndarray:
    out = io.BytesIO()
    image.save(out, fmt, **options)
    return np.frombuffer(out.getvalue(), np.uint8)


def images() -> dict[str, np.ndarray]:
    rgb = Image.fromarray(picture(45, 70, 1))
    tall = Image.fromarray(picture(67, 31, 2))
    small = Image.fromarray(picture(13, 11, 3))
    alpha = rgb.convert("RGBA")
    alpha.putalpha(Image.fromarray(picture(45, 70, 4)[..., 0]))
    return {
        "jpeg": encoded(rgb, "JPEG", quality=90),
        "tall": encoded(tall, "PNG"),
        "small": encoded(small, "PNG"),
        "exact": encoded(Image.fromarray(picture(SIZE, SIZE, 5)), "PNG"),
        "grey": encoded(rgb.convert("L"), "JPEG", quality=90),
        "grey_png": encoded(rgb.convert("L"), "PNG"),
        "alpha": encoded(alpha, "PNG"),
        "grey_alpha": encoded(alpha.convert("LA"), "PNG"),
        "palette": encoded(tall.quantize(16), "PNG", transparency=3),
        "bits": encoded(tall.convert("1"), "PNG"),
        "cmyk": encoded(rgb.convert("CMYK"), "JPEG", quality=90),
        "webp": encoded(tall, "WEBP", lossless=True),
    }


def of_open_clip(data: np.ndarray, mode: str, interpolation: str) -> np.ndarray:
    import open_clip

    transform = open_clip.image_transform(
        SIZE,
        is_train=False,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        resize_mode=mode,
        interpolation=interpolation,
    )
    values = transform(Image.open(io.BytesIO(data.tobytes()))) * 255
    return values.round().byte().permute(1, 2, 0).numpy()


def of_tensorflow(data: np.ndarray, antialias: bool, precise: bool) -> np.ndarray:
    """What big_vision's `decode(precise=precise)|resize(SIZE, antialias=antialias)` calls."""
    import tensorflow as tf

    if precise:
        image = tf.image.decode_jpeg(data.tobytes(), channels=3, dct_method="INTEGER_ACCURATE")
    else:
        image = tf.io.decode_image(data.tobytes(), channels=3, expand_animations=False)
    image = tf.image.resize(image, (SIZE, SIZE), method="bilinear", antialias=antialias)
    return tf.cast(tf.clip_by_value(image, 0, 255), tf.uint8).numpy()


def main() -> None:
    old = dict(np.load(GOLDEN, allow_pickle=False)) if GOLDEN.exists() else {}
    inputs = images()
    # Another version of PIL may write other bytes for the same picture: both parts need the same.
    inputs = {name: old.get(f"image/{name}", data) for name, data in inputs.items()}
    new = {f"image/{name}": data for name, data in inputs.items()}
    versions = dict(line.split("==") for line in old.pop("versions", np.array([], str)).tolist())
    if importlib.util.find_spec("open_clip"):
        for mode in ("shortest", "squash", "longest"):
            for interpolation in ("bicubic", "bilinear"):
                for name, data in inputs.items():
                    key = f"open_clip/{mode}-{interpolation}/{name}"
                    new[key] = of_open_clip(data, mode, interpolation)
        versions |= {name: version(name) for name in ("open_clip_torch", "torchvision", "pillow")}
    if importlib.util.find_spec("tensorflow"):
        for antialias in (False, True):
            for name in ("jpeg", "tall", "small", "exact", "grey", "grey_png"):
                kind = "antialias" if antialias else "plain"
                new[f"tensorflow/{kind}/{name}"] = of_tensorflow(inputs[name], antialias, True)
            name = "fast_jpeg/antialias" if antialias else "fast_jpeg/plain"
            new[f"{name}/jpeg"] = of_tensorflow(inputs["jpeg"], antialias, False)
        versions["tensorflow-cpu"] = version("tensorflow-cpu")
    named = np.array([f"{name}=={number}" for name, number in sorted(versions.items())])
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, **{**old, **new, "versions": named})


if __name__ == "__main__":
    main()
