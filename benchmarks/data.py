"""Samples a second from tar shards of JPEGs, ours and others', from the same files in one run.

    pip install open_clip_torch webdataset scikit-image        # in the peers' environment
    python benchmarks/data.py --peers PEERS/bin/python

Makes 2,000 JPEGs of about 500 x 375 from scikit-image's photographs (by the peers' Python), as tar
shards and as a folder with a table. Everyone decodes, takes a random crop of 90 to 100 % of the
area to 224 x 224, tokenises to 77 and batches by 64, in one process, one thread, one core each:
vlalign's pipeline, open_clip's webdataset loader (webdataset, PIL, torchvision), a torch DataLoader
over the folder. Loaders take turns; the best of each counts. Ours hands out uint8, theirs float32.
Also: the index build in MB/s, and the time to start anywhere in a virtual corpus of 10^8 samples.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from vlalign.data.captions import CaptionView
from vlalign.data.crops import RandomResizedCrop
from vlalign.data.formats import tar_index
from vlalign.data.formats.table import TableSource
from vlalign.data.formats.webdataset import WebDatasetSource
from vlalign.data.pipeline import Data, record_order
from vlalign.data.sources import MemorySource, Source
from vlalign.data.tokenizer import Bpe

HERE = Path(__file__).parent
LIMITS = {"webdataset": 1.5, "folder": 1.2}


def make_files(folder: Path, peers: str, count: int) -> None:
    """The JPEGs, their tar shards and their table, by the peers' Python (it has scikit-image)."""
    command = [peers, str(HERE / "_data_files.py"), str(folder), str(count)]
    subprocess.run(command, check=True)


def ours(source: Source, seconds: float) -> float:
    """Samples a second of our pipeline with one thread; the first batches are not counted."""
    data = Data(
        source=source,
        views={"image": RandomResizedCrop(size=224, area=(0.9, 1.0)), "text": CaptionView()},
        tokenizer=Bpe(length=77, vocab_size=2048),
        batch_size=64,
        prefetch=1,
    )
    with data.batches(data.fit_tokenizer(), seed=0) as batches:
        for _ in range(2):
            next(batches)
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            count += len(next(batches)["weight"])
        return count / (time.perf_counter() - start)


def theirs(folder: Path, kind: str, peers: str, seconds: float) -> float:
    """Samples a second of a peer, in a process of its own on one core."""
    command = [peers, str(HERE / "_data_peers.py"), str(folder), kind, str(seconds)]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(found.stdout.split()[-1])


def index_rate(folder: Path) -> float:
    """MB/s of an index build over the tar shards, one process, files in the page cache."""
    shards = tuple(sorted(str(path) for path in (folder / "tars").glob("*.tar")))
    size = sum(Path(shard).stat().st_size for shard in shards)
    with tempfile.TemporaryDirectory() as place:
        start = time.perf_counter()
        tar_index.open_index(shards, place)
        return size / 1e6 / (time.perf_counter() - start)


class Virtual(MemorySource):
    """10^8 samples that nobody has."""

    def __len__(self) -> int:
        return 10**8


def start_seconds() -> float:
    """From nothing to the order's element at an arbitrary position."""
    start = time.perf_counter()
    source = Virtual(records=())
    record_order(source, len(source), 0)[123_456_789_012]
    return time.perf_counter() - start


def rates(folder: Path, peers: str, seconds: float, rounds: int) -> dict[str, dict[str, float]]:
    """Best rate of each, by kind of files: "webdataset" and "folder"."""
    sources: dict[str, Source] = {
        "webdataset": WebDatasetSource(shards=(str(folder / "tars" / "*.tar"),)),
        "folder": TableSource(file=str(folder / "captions.csv"), separator="\t"),
    }
    best: dict[str, dict[str, float]] = {kind: {"ours": 0.0, "theirs": 0.0} for kind in sources}
    for _ in range(rounds):
        for kind, source in sources.items():
            found = {"ours": ours(source, seconds), "theirs": theirs(folder, kind, peers, seconds)}
            best[kind] = {name: max(rate, best[kind][name]) for name, rate in found.items()}
    return best


def main() -> int:
    """Prints the table; the exit code is 1 if a limit is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", required=True, help="a Python with open_clip and webdataset")
    parser.add_argument("--folder", type=Path, help="where the files are, or are made")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # children inherit it
    folder = args.folder or Path(tempfile.mkdtemp())
    if not (folder / "captions.csv").exists():
        make_files(folder, args.peers, args.count)
    numbers: dict[str, Any] = {"rates": rates(folder, args.peers, args.seconds, args.rounds)}
    print("samples/s on one core      ours    theirs  ratio")
    missed = False
    for kind, found in numbers["rates"].items():
        ratio = found["ours"] / found["theirs"]
        missed |= ratio < LIMITS[kind]
        print(f"{kind:22} {found['ours']:8.0f}  {found['theirs']:8.0f}  {ratio:5.2f}")
    numbers |= {"index MB/s": index_rate(folder), "start seconds": start_seconds()}
    print(f"index build {numbers['index MB/s']:.0f} MB/s; start {numbers['start seconds']:.4f} s")
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
