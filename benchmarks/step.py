"""One train step on CPU, vlalign's against open_clip's: CLIP ViT-B/32, the same batch and threads.

    pip install open_clip_torch                            # in the peers' environment
    python benchmarks/step.py --peers PEERS/bin/python --out benchmarks/results/step.json

Forward, loss, backward, clipping of the global norm, AdamW with decay. Ours is compiled by
`assemble`, `make_step` and `compile_step`, as `vlalign train` does; theirs is open_clip's model and
loss with torch's fused AdamW (`_step_peer.py`). All are processes that live through all rounds and
take turns, as does the machine's own rate: products of 2048 x 2048 matrices in the same dtype,
timed on both sides. A turn is several steps in a row, of which the first does not count: memory
that was given back during the others' turns has to be had again. Ours runs with malloc's huge
pages, which `vlalign` sets for itself; theirs is run both as it comes and with the same setting.
GFLOP/s count three times the forward FLOPs of the matrix products. All numbers are medians over
steps and rounds; a ratio is the median of the rounds' own ratios, seconds of theirs over seconds of
ours. CPU seconds (all threads) are given beside the clock's: other work on the machine disturbs
them less. The exit code is 1 if a ratio is below --aim.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NAMES = ("seconds", "cpu_seconds", "loss")
# What `vlalign` starts itself with (`vlalign/__main__.py`).
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
PEERS = ("open_clip", "open_clip, huge pages")


class Side:
    """A process that answers each word on its input with a line of numbers."""

    def __init__(self, command: list[str], threads: int, *, huge_pages: bool) -> None:
        def pin() -> None:
            # XLA takes as many threads as it may use cores.
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:threads]))

        pipe = subprocess.PIPE
        setting = HUGE_PAGES if huge_pages else {}
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, preexec_fn=pin, env=os.environ | setting
        )

    def ask(self, word: str) -> list[float]:
        """The numbers of its answer. Raises RuntimeError if it has died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"no answer from {self._process.args}")
        return [float(number) for number in answer.split()]

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def experiment(batch: int, dtype: Any, depth: int) -> Any:
    """open_clip's `ViT-B-32` as an experiment; its data are there for their shapes only."""
    from PIL import Image

    from vlalign.data.captions import CaptionView
    from vlalign.data.images import ImageView
    from vlalign.data.pipeline import Data
    from vlalign.data.record import Caption, Record
    from vlalign.data.sources import MemorySource
    from vlalign.data.tokenizer import Bpe
    from vlalign.encoders.text import TextTransformer
    from vlalign.encoders.vit import ViT
    from vlalign.experiment import Experiment
    from vlalign.objectives.contrastive import Clip
    from vlalign.parallel.mesh import MeshSpec
    from vlalign.train.optimizer import Optimizer

    picture = io.BytesIO()
    Image.new("RGB", (224, 224)).save(picture, "PNG")
    record = Record(key="grey", image=picture.getvalue(), captions=(Caption("grey", kind="name"),))
    tower: dict[str, Any] = {"depth": depth, "embed_dim": 512, "epsilon": 1e-5, "dtype": dtype}
    vit = ViT(patch_size=32, width=768, heads=12, pre_norm=True, patch_bias=False, **tower)
    text = TextTransformer(vocab_size=49408, width=512, heads=8, mask_padding=False, **tower)
    return Experiment(
        name="step",
        model={name: module.clone(scan=False) for name, module in (("image", vit), ("text", text))},
        objectives={"clip": Clip()},
        data=Data(
            source=MemorySource(records=(record,)),
            views={"image": ImageView(size=224), "text": CaptionView(template=0.0)},
            tokenizer=Bpe(length=77),
            batch_size=batch,
        ),
        optimizer=Optimizer(learning_rate=1e-4),
        mesh=MeshSpec(devices=1),
    )


def serve(batch: int, dtype: str, depth: int) -> None:
    """Our side: answers "step" with seconds, CPU seconds and loss; "rate" with GFLOP/s."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from vlalign.parallel.mesh import batch_sharding
    from vlalign.train.assemble import assemble
    from vlalign.train.step import compile_step, make_step, signals

    whole = experiment(batch, dtype, depth)
    parts = assemble(whole, whole.data.fit_tokenizer())
    settings: dict[str, Any] = {"seed": 0, "steps": whole.train.steps, "micro_batches": 1}
    step = make_step(
        whole.model, whole.objectives, whole.optimizer, parts.plan, ema_decay=None, **settings
    )
    shapes = parts.batch_shapes(batch)
    compiled = compile_step(step, parts.plan, parts.mesh, shapes)
    rng = np.random.default_rng(0)
    high = {"image": 256, "text": 49408}
    made = {
        name: rng.integers(1, high.get(name, 2), spec.shape).astype(spec.dtype)
        for name, spec in shapes.items()
    }
    fields = jax.device_put(made, batch_sharding(parts.mesh))
    square = jnp.ones((2048, 2048), dtype)
    product = jax.jit(jnp.matmul).lower(square, square).compile()
    with jax.set_mesh(parts.mesh):
        state, number = parts.plan.create(0), 0
        for line in sys.stdin:
            start, cpu = time.perf_counter(), time.process_time()
            if line.strip() == "rate":
                for _ in range(8):
                    jax.block_until_ready(product(square, square))
                print(8 * 2 * 2048**3 / 1e9 / (time.perf_counter() - start), flush=True)
                continue
            state, metrics = compiled(state, fields, signals(parts.mesh, number))
            jax.block_until_ready(state)
            number += 1
            spent = time.perf_counter() - start, time.process_time() - cpu
            assert bool(metrics["ok"]), metrics
            print(*spent, float(metrics["loss"]), flush=True)


def step_flops(batch: int, dtype: str, depth: int) -> int:
    """Three times the forward FLOPs of the matrix products of a step."""
    model = experiment(batch, dtype, depth).model
    pair = model["image"].flops((224, 224, 3)) + model["text"].flops((77,))
    return int(3 * batch * pair)


def compare(args: argparse.Namespace, dtype: str) -> dict[str, Any]:
    """All rounds in one dtype: medians of both sides, ratios, rates."""
    common = [str(args.batch), dtype, str(args.depth)]
    ours = [sys.executable, str(HERE / "step.py"), "--serve", *common]
    theirs = [args.peers, str(HERE / "_step_peer.py"), *common, str(args.threads)]
    sides = {"vlalign": Side(ours, args.threads, huge_pages=True)}
    for name, huge_pages in zip(PEERS, (False, True), strict=True):
        sides[name] = Side(theirs, args.threads, huge_pages=huge_pages)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    rates: list[float] = []
    for number in range(args.rounds):
        for name, side in sides.items():
            rates.append(side.ask("rate")[0])
            turn = [side.ask("step") for _ in range(args.steps + 1)][1:]
            middle = [statistics.median(column) for column in zip(*turn, strict=True)]
            found[name].append(dict(zip(NAMES, middle, strict=True)))
        last = ", ".join(f"{name} {rows[-1]['seconds']:.2f} s" for name, rows in found.items())
        print(f"{dtype} round {number + 1}: {last}", flush=True)
    for side in sides.values():
        side.close()
    return _summary(found, rates, step_flops(args.batch, dtype, args.depth) / 1e9) | {
        "dtype": dtype,
        "batch": args.batch,
        "threads": args.threads,
        "rounds": args.rounds,
        "steps": args.steps,
    }


def _summary(
    found: dict[str, list[dict[str, float]]], rates: list[float], gflop: float
) -> dict[str, Any]:
    out: dict[str, Any] = {"gflop": gflop, "machine_gflops": max(rates)}
    for name, rows in found.items():
        middle = {key: statistics.median(row[key] for row in rows) for key in NAMES[:2]}
        out[name] = middle | {"gflops": gflop / middle["seconds"], "rounds": rows}
    for name in PEERS:
        pairs = list(zip(found[name], found["vlalign"], strict=True))
        for key, short in (("seconds", "ratio"), ("cpu_seconds", "cpu_ratio")):
            out[name][short] = statistics.median(theirs[key] / ours[key] for theirs, ours in pairs)
    return out


def main() -> int:
    """Prints the table; the exit code says whether the aim was reached."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", help="a Python with open_clip")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3, help="of a turn that count")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--depth", type=int, default=12, help="layers of each tower")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--aim", type=float, default=1.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(int(args.serve[0]), args.serve[1], int(args.serve[2]))
        return 0
    if args.peers is None:
        parser.error("--peers: name a Python that has open_clip")
    results = [compare(args, dtype) for dtype in args.dtype]
    print("dtype     side                    s/step  CPU s  GFLOP/s  ratio  ratio of CPU s")
    for result in results:
        for name in ("vlalign", *PEERS):
            row = result[name]
            numbers = f"{row['seconds']:7.2f} {row['cpu_seconds']:6.2f} {row['gflops']:8.0f}"
            ratios = f"{row['ratio']:6.2f} {row['cpu_ratio']:15.2f}" if name in PEERS else ""
            print(f"{result['dtype']:9} {name:22} {numbers} {ratios}")
        print(f"{'':9} the machine's products: {result['machine_gflops']:.0f} GFLOP/s")
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return int(any(result[name]["ratio"] < args.aim for result in results for name in PEERS))


if __name__ == "__main__":
    sys.exit(main())
