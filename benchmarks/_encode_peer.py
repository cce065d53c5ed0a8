"""open_clip's encoders; run by `benchmarks/encode.py` in an environment with the peers.

    python benchmarks/_encode_peer.py make MODEL DIR            # a model with random weights
    python benchmarks/_encode_peer.py serve DIR BATCH THREADS
    python benchmarks/_encode_peer.py first DIR PICTURE THREADS

`serve` answers each line "image" or "text" on its standard input with seconds and CPU seconds of a
batch, from inputs that are ready to unit vectors as numpy; "check image" and "check text" with the
first vector; and "rate" with the GFLOP/s of 2048 x 2048 products. `first` prints the seconds from
loading the directory to the vector of one picture.
"""

import shutil
import sys
import time
from pathlib import Path

import numpy as np
import open_clip
import torch


class _NoTokenizer:
    """`save_for_hf` saves a tokenizer too; open_clip's own comes with the package."""

    def save_pretrained(self, folder: str) -> None:
        """Writes nothing."""


def make(name: str, folder: Path) -> None:
    """A random model in open_clip's own directory form, with its vocabulary beside it."""
    from open_clip.push_to_hf_hub import save_for_hf

    torch.manual_seed(0)
    model = open_clip.create_model(name, pretrained=None)
    config = open_clip.get_model_config(name)
    save_for_hf(model, _NoTokenizer(), config, str(folder), safe_serialization=True)
    vocabulary = "bpe_simple_vocab_16e6.txt.gz"
    shutil.copy(Path(open_clip.__file__).parent / vocabulary, folder / vocabulary)


def serve(folder: Path, batch: int, threads: int) -> None:
    """Answers until the input ends."""
    torch.set_num_threads(threads)
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    inputs = np.load(folder / "inputs.npz")
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    pixels = (inputs["image"][:batch] / np.float32(255) - np.float32(mean)) / np.float32(std)
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    tokens = torch.from_numpy(inputs["text"][:batch].astype(np.int64))
    square = torch.ones(2048, 2048)

    def encode(tower: str) -> np.ndarray:
        with torch.inference_mode():
            if tower == "image":
                return model.encode_image(images, normalize=True).numpy()
            return model.encode_text(tokens, normalize=True).numpy()

    for line in sys.stdin:
        *check, word = line.split()
        start, cpu = time.perf_counter(), time.process_time()
        if word == "rate":
            for _ in range(8):
                square @ square
            print(8 * 2 * 2048**3 / 1e9 / (time.perf_counter() - start), flush=True)
            continue
        vectors = encode(word)
        spent = time.perf_counter() - start, time.process_time() - cpu
        print(*(vectors[0] if check else spent), flush=True)


def first(folder: Path, picture: str, threads: int) -> None:
    """Loads, encodes one picture, prints the seconds of that."""
    from PIL import Image

    torch.set_num_threads(threads)
    start = time.perf_counter()
    model, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    with torch.inference_mode():
        vector = model.encode_image(prepare(Image.open(picture))[None], normalize=True).numpy()
    assert vector.shape[0] == 1
    print(time.perf_counter() - start, flush=True)


def main() -> None:
    """Does what the first argument says."""
    word, *rest = sys.argv[1:]
    if word == "make":
        make(rest[0], Path(rest[1]))
    elif word == "serve":
        serve(Path(rest[0]), int(rest[1]), int(rest[2]))
    else:
        first(Path(rest[0]), rest[1], int(rest[2]))


if __name__ == "__main__":
    main()
