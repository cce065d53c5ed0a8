"""How others load the same files; run by `benchmarks/data.py` in an environment with the peers.

    python benchmarks/_data_peers.py FOLDER webdataset|folder SECONDS

Prints samples a second of one process without workers: open_clip's webdataset pipeline (its own
training transform and tokenizer) over FOLDER/tars, or a torch DataLoader over FOLDER/images.
"""

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

BATCH = 64


def convert(image: Any) -> Any:
    """As open_clip's transform does."""
    return image.convert("RGB")


TRAIN = transforms.Compose(
    [
        transforms.RandomResizedCrop(
            224, scale=(0.9, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
        ),
        convert,
        transforms.ToTensor(),
        transforms.Normalize((0.481, 0.458, 0.408), (0.269, 0.261, 0.276)),
    ]
)


class Folder(Dataset):
    """FOLDER/images/*.jpg with captions.csv's texts, tokenised by open_clip."""

    def __init__(self, folder: Path, tokenize: Any) -> None:
        lines = (folder / "captions.csv").read_text(encoding="utf-8").splitlines()[1:]
        self.rows = [line.split("\t") for line in lines]
        self.folder, self.tokenize = folder, tokenize

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        path, text = self.rows[index]
        return TRAIN(Image.open(self.folder / path)), self.tokenize([text])[0]


def webdataset_loader(folder: Path, tokenize: Any) -> Iterable[Any]:
    """open_clip's stages: tar files, shuffle, decode to PIL, rename, map, batch."""
    import webdataset

    shards = sorted(str(path) for path in (folder / "tars").glob("*.tar"))
    return (
        webdataset.WebDataset(shards, shardshuffle=len(shards), empty_check=False)
        .shuffle(500)
        .decode("pilrgb")
        .rename(image="jpg;png;jpeg;webp", text="txt")
        .map_dict(image=TRAIN, text=lambda text: tokenize([text])[0])
        .to_tuple("image", "text")
        .batched(BATCH)
    )


def rate(loader: Iterable[Any], seconds: float) -> float:
    """Samples a second, epochs one after another, the first batch not counted."""
    count, start = -1, 0.0
    while True:
        for images, _ in loader:
            if count < 0:
                count, start = 0, time.perf_counter()
                continue
            count += len(images)
            if time.perf_counter() - start > seconds:
                return count / (time.perf_counter() - start)


def main() -> None:
    """Prints the rate of the loader that was asked for."""
    folder, kind, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    import open_clip

    torch.set_num_threads(1)
    tokenize = open_clip.SimpleTokenizer()
    if kind == "webdataset":
        loader = webdataset_loader(folder, tokenize)
    else:
        loader = DataLoader(Folder(folder, tokenize), batch_size=BATCH, shuffle=True)
    print(rate(loader, seconds))


if __name__ == "__main__":
    main()
