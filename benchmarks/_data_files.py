"""Makes the files of `benchmarks/data.py`: FOLDER COUNT, in an environment with scikit-image."""

import io
import random
import sys
import tarfile
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "cat")
WORDS = tuple(
    [
        "red",
        "blue",
        "small",
        "old",
        "photo",
        "cat",
        "cup",
        "rocket",
        "woman",
        "space",
        "table",
        "face",
    ]
)
SHARD = 500


def main() -> None:
    """Crops of photographs of random size about 500 x 375, quality 85, as files and in tars."""
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    for name in ("images", "tars"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    found = [getattr(skimage.data, name, None) for name in PHOTOGRAPHS]
    photographs = [Image.fromarray(load()) for load in found if load is not None]
    rng, lines, tar = random.Random(0), ["filepath\ttitle"], None
    for index in range(count):
        if index % SHARD == 0:
            tar = tarfile.open(folder / "tars" / f"{index // SHARD:05d}.tar", "w")  # noqa: SIM115
        photograph = rng.choice(photographs)
        left, top = rng.random() * 0.2, rng.random() * 0.2
        width, height = photograph.size
        box = (left * width, top * height, (left + 0.8) * width, (top + 0.8) * height)
        size = (rng.randint(460, 540), rng.randint(345, 405))
        pixels = np.asarray(photograph.resize(size, Image.Resampling.BICUBIC, box))
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "JPEG", quality=85)
        text = " ".join(rng.choices(WORDS, k=rng.randint(5, 15)))
        (folder / "images" / f"{index:06d}.jpg").write_bytes(out.getvalue())
        lines.append(f"images/{index:06d}.jpg\t{text}")
        for ending, data in (("jpg", out.getvalue()), ("txt", text.encode())):
            info = tarfile.TarInfo(f"{index:06d}.{ending}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        if index % SHARD == SHARD - 1 or index == count - 1:
            tar.close()
    (folder / "captions.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
