"""Images and texts a second on CPU, and the start, of `vlalign.load` against open_clip.

    pip install open_clip_torch                            # in the peers' environment
    python benchmarks/encode.py --peers PEERS/bin/python --out benchmarks/results/encode.json

open_clip writes a model of random weights (float32); both load that directory, and must give the
same vectors within 1e-4. A batch goes from inputs that are ready (pixels, tokens) to unit vectors
in numpy. The sides are processes that live through all rounds and take turns, as does the machine's
own rate: products of 2048 x 2048 matrices, timed on both sides. A turn is several batches in a row,
of which the first does not count. Each side is run as it comes and with malloc's huge pages.
Numbers are medians over batches and rounds; a ratio is the median of the rounds' own ratios,
seconds of open_clip over seconds of vlalign, both with the same pages; beside it stands that of the
CPU seconds (all threads), which other work on the machine disturbs less. GFLOP/s count the matrix
products.

The start: fresh processes in turns, from the start of the process ("whole") and from the call that
loads ("load") to the vector of one picture; ours has started once before, so that its compiled
programs are kept. The exit code is 1 if the vectors differ or a ratio is below --aim.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from step import Side

HERE = Path(__file__).parent
TOWERS = ("image", "text")
SIDES = {
    "vlalign": ("vlalign", False),
    "open_clip": ("open_clip", False),
    "vlalign, huge pages": ("vlalign", True),
    "open_clip, huge pages": ("open_clip", True),
}
TOLERANCE = 1e-4


def serve(folder: Path, batch: int) -> None:
    """Our side: answers as `_encode_peer.py` does."""
    import jax
    import jax.numpy as jnp

    import vlalign

    model = vlalign.load(folder, batch_size=batch)
    with np.load(folder / "inputs.npz") as stored:
        inputs = {name: stored[name][:batch] for name in TOWERS}
    square = jnp.ones((2048, 2048), jnp.float32)
    product = jax.jit(jnp.matmul).lower(square, square).compile()
    for line in sys.stdin:
        *check, word = line.split()
        start, cpu = time.perf_counter(), time.process_time()
        if word == "rate":
            for _ in range(8):
                jax.block_until_ready(product(square, square))
            print(8 * 2 * 2048**3 / 1e9 / (time.perf_counter() - start), flush=True)
            continue
        vectors = model.embed(word, inputs[word])
        spent = time.perf_counter() - start, time.process_time() - cpu
        print(*(vectors[0] if check else spent), flush=True)


def first(folder: Path, picture: str) -> None:
    """Our start: seconds from the call of `load` to the vector of one picture."""
    import vlalign
    import vlalign.pretrained  # theirs is imported before its call too

    start = time.perf_counter()
    assert vlalign.load(folder).encode_image(picture).shape[0] == 1
    print(time.perf_counter() - start, flush=True)


def make(args: argparse.Namespace, name: str, folder: Path) -> dict[str, float]:
    """Weights and inputs of all sides; the GFLOP of a batch of each tower."""
    command = [args.peers, str(HERE / "_encode_peer.py"), "make", name, str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    from vlalign.interop.convert import load

    bundle = load(str(folder))
    rng = np.random.default_rng(0)
    size, length = bundle.preprocess.size, bundle.context_length
    pixels = rng.integers(0, 256, (args.batch, size, size, 3), np.uint8)
    tokens = rng.integers(1, 49_406, (args.batch, length), np.int32)
    tokens[:, 0], tokens[:, -1] = 49_406, 49_407
    np.savez(folder / "inputs.npz", image=pixels, text=tokens)
    Image.fromarray(pixels[0]).save(folder / "picture.png")
    model: dict[str, Any] = dict(bundle.model)
    shapes = {"image": (size, size, 3), "text": (length,)}
    return {tower: args.batch * model[tower].flops(shapes[tower]) / 1e9 for tower in TOWERS}


def compare(args: argparse.Namespace, folder: Path, gflop: dict[str, float]) -> dict[str, Any]:
    """All rounds of one model: rates, ratios, and how far the vectors are apart."""
    commands = {
        "vlalign": [sys.executable, str(HERE / "encode.py"), "--serve", str(folder)],
        "open_clip": [args.peers, str(HERE / "_encode_peer.py"), "serve", str(folder)],
    }
    commands["vlalign"] += [str(args.batch)]
    commands["open_clip"] += [str(args.batch), str(args.threads)]
    sides = {
        name: Side(commands[which], args.threads, huge_pages=pages)
        for name, (which, pages) in SIDES.items()
    }
    found: dict[str, Any] = {}
    rates: list[float] = []
    for tower in TOWERS:
        vectors = {name: np.array(side.ask(f"check {tower}")) for name, side in sides.items()}
        apart = max(float(np.abs(v - vectors["open_clip"]).max()) for v in vectors.values())
        rounds: dict[str, list[list[float]]] = {name: [] for name in sides}
        for number in range(args.rounds):
            for name, side in sides.items():
                rates.append(side.ask("rate")[0])
                turn = [side.ask(tower) for _ in range(args.batches + 1)][1:]
                rounds[name].append([statistics.median(c) for c in zip(*turn, strict=True)])
            last = ", ".join(f"{name} {rows[-1][0]:.2f} s" for name, rows in rounds.items())
            print(f"{folder.name} {tower} round {number + 1}: {last}", flush=True)
        found[tower] = _summary(rounds, gflop[tower], args.batch) | {"apart": apart}
    for side in sides.values():
        side.close()
    return found | {"machine_gflops": max(rates)}


def _summary(rounds: dict[str, list[list[float]]], gflop: float, batch: int) -> dict[str, Any]:
    out: dict[str, Any] = {"gflop": gflop}
    for name, rows in rounds.items():
        seconds, cpu = (statistics.median(column) for column in zip(*rows, strict=True))
        out[name] = {"seconds": seconds, "cpu_seconds": cpu, "rounds": rows}
        out[name] |= {"per_second": batch / seconds, "gflops": gflop / seconds}
    for end in ("", ", huge pages"):
        pairs = list(zip(rounds[f"open_clip{end}"], rounds[f"vlalign{end}"], strict=True))
        for place, key in enumerate(("ratio", "cpu_ratio")):
            ratios = [theirs[place] / ours[place] for theirs, ours in pairs]
            out[f"vlalign{end}"][key] = statistics.median(ratios)
    return out


def starts(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds to the first vector of fresh processes, medians."""
    picture = str(folder / "picture.png")
    ours = [sys.executable, str(HERE / "encode.py"), "--first", str(folder), picture]
    theirs = [args.peers, str(HERE / "_encode_peer.py"), "first", str(folder), picture]
    theirs.append(str(args.threads))
    _start(ours, args.threads)  # compiles, and keeps what it compiled
    found: dict[str, list[tuple[float, float]]] = {"vlalign": [], "open_clip": []}
    for number in range(args.starts):
        found["vlalign"].append(_start(ours, args.threads))
        found["open_clip"].append(_start(theirs, args.threads))
        last = ", ".join(f"{name} {rows[-1][0]:.2f} s" for name, rows in found.items())
        print(f"{folder.name} start {number + 1}: {last}", flush=True)
    return {
        name: dict(
            zip(("whole", "load"), map(statistics.median, zip(*rows, strict=True)), strict=True)
        )
        for name, rows in found.items()
    }


def _start(command: list[str], threads: int) -> tuple[float, float]:
    def pin() -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:threads]))

    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=pin) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        whole = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}")
    return whole, float(said)


def show(name: str, result: dict[str, Any]) -> None:
    """Prints the table of one model."""
    print(f"{name}, batch {result['batch']}, float32, {result['threads']} threads")
    print("tower  side                     a second  GFLOP/s  ratio  ratio of CPU s")
    for tower in TOWERS:
        for side in SIDES:
            row = result[tower][side]
            ratios = f"{row['ratio']:6.2f} {row['cpu_ratio']:15.2f}" if "ratio" in row else ""
            print(f"{tower:6} {side:22} {row['per_second']:10.1f} {row['gflops']:8.0f} {ratios}")
        print(f"{'':6} largest difference of the vectors: {result[tower]['apart']:.1e}")
    print(f"{'':6} the machine's products: {result['machine_gflops']:.0f} GFLOP/s")
    for side, row in result["start"].items():
        print(f"start  {side:22} whole {row['whole']:.2f} s, from the call {row['load']:.2f} s")


def main() -> int:
    """Prints the tables; the exit code says whether the aim was reached."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", help="a Python with open_clip")
    parser.add_argument("--models", nargs="+", default=["ViT-B-32", "ViT-B-16"])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--batches", type=int, default=3, help="of a turn that count")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--aim", type=float, default=1.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--first", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(Path(args.serve[0]), int(args.serve[1]))
        return 0
    if args.first:
        first(Path(args.first[0]), args.first[1])
        return 0
    if args.peers is None:
        parser.error("--peers: name a Python that has open_clip")
    results = {}
    with tempfile.TemporaryDirectory() as place:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        os.environ["VLALIGN_CACHE"] = str(Path(place) / "cache")
        for name in args.models:
            folder = Path(place) / name
            folder.mkdir()
            gflop = make(args, name, folder)
            results[name] = compare(args, folder, gflop) | {"start": starts(args, folder)}
            results[name] |= {"batch": args.batch, "threads": args.threads}
            show(name, results[name])
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    rows = [result[tower] for result in results.values() for tower in TOWERS]
    slow = any(row[side].get("ratio", args.aim) < args.aim for row in rows for side in SIDES)
    return int(slow or any(row["apart"] > TOLERANCE for row in rows))


if __name__ == "__main__":
    sys.exit(main())
