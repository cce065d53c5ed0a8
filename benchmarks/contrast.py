"""Memory and time of the contrast kernel beside the forms that others use, in one run.

    python benchmarks/contrast.py --json benchmarks/results/contrast.json \
        --plot docs/images/contrast_memory.png

Memory: temporary bytes a device of the compiled program (8 simulated CPU devices, float32), value
and all gradients; nothing runs at these sizes. `slope` is the growth's exponent: 1 is linear in
the batch B, 2 quadratic. Time: one CPU device, ours / dense, both taking turns in one process.
"""

import argparse
import json
import math
import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _forms import DENSE, NAMES, Form, Pairs, compiled, local, ours, shapes
from _peers import inf_cl, tiled
from jax.sharding import AxisType
from jax.stages import Compiled

from vlalign.losses.scores import BLOCK_SIZE
from vlalign.plan.hlo import Program

MIB = 2**20
DEVICES = 8
# MiB of temporary memory a device that ours may take, by batch.
LIMITS = {
    "gather": {2**14: 120.0, 2**16: 500.0, 2**18: 2.2 * 1024},
    "ring": {2**14: 40.0, 2**16: 160.0, 2**18: 700.0},
}
MAX_RATIO = 0.9
Result = dict[str, Any]


def programs() -> dict[tuple[str, str], Form]:
    """All that memory is compared of, by form and way."""
    found: dict[tuple[str, str], Form] = {}
    for name in NAMES:
        for route in LIMITS:
            found[name, route] = ours(name, route=route)
        found[name, "global"] = DENSE[name]
        found[name, "local"] = local(name)
        found[name, "checkpoint"] = tiled(name, block=BLOCK_SIZE)
    return found | {("softmax", "inf-cl"): inf_cl(block=BLOCK_SIZE)}


def memory(batches: list[int], dim: int) -> list[Result]:
    """Prints and returns temporary memory a device, for every form, way and batch."""
    jax.config.update("jax_num_cpu_devices", DEVICES)
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))
    print(f"MiB of temporary memory a device; {DEVICES} devices, d={dim}")
    print("form    way        " + "".join(f"{f'B={b // 1024}K':>12}" for b in batches) + "  slope")
    results = []
    for (form, way), loss in programs().items():
        result: Result = {"form": form, "way": way, "bytes": {}, "largest_per_batch": {}}
        for batch in batches:
            with jax.set_mesh(mesh):
                done = compiled(loss, shapes(batch, dim, jnp.dtype(jnp.float32), mesh))
            result["bytes"][batch] = done.memory_analysis().temp_size_in_bytes
            largest = Program(done.as_text()).largest
            result["largest_per_batch"][batch] = largest / (batch * dim)
        result["slope"] = slope(result["bytes"])
        print(memory_line(result), flush=True)
        results.append(result)
    return results


def alone(table: Callable[..., list[Result]], *arguments: Any) -> list[Result]:
    """A table from a process of its own: one has 8 devices, the other the whole CPU in one."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(table, *arguments).result()


def slope(sizes: dict[int, int]) -> float:
    """Exponent of the growth: of the straight line through log(bytes) over log(batch)."""
    if len(sizes) < 2:
        return math.nan
    batches, found = (np.log(np.array(list(v), float)) for v in (sizes.keys(), sizes.values()))
    return float(np.polyfit(batches, found, 1)[0])


def memory_line(result: Result) -> str:
    """A result as a line of the table; `!` stands at what is over its limit."""
    limits = LIMITS.get(result["way"], {})
    cells = [
        f"{size / MIB:11.1f}" + ("!" if size / MIB > limits.get(batch, math.inf) else " ")
        for batch, size in result["bytes"].items()
    ]
    text = f"{result['form']:7} {result['way']:11}" + "".join(cells) + f" {result['slope']:6.2f}"
    if result["way"] == "ring":
        whole = max(result["largest_per_batch"].values())
        text += f"  largest array {whole:.3f} B d" + (" !" if whole >= 1 else "")
    return text


def timing(batches: list[int], dim: int, blocks: list[int], repeats: int) -> list[Result]:
    """Prints and returns the time of ours, at its own tile and others, and of the dense form."""
    print(f"\nms of value and all gradients; one CPU device, d={dim}, best of {repeats}")
    tiles = "".join(f"{f'tile {b}':>16}" for b in blocks)
    print("form     batch      dense            ours" + tiles)
    results = []
    for form in NAMES:
        for batch in batches:
            arguments = embeddings(batch, dim)
            ours_too = [ours(form, block=block) for block in (None, *blocks)]
            ways = [compiled(way, arguments) for way in (DENSE[form], *ours_too)]
            dense, *found = seconds(ways, arguments, repeats)
            result = {"form": form, "batch": batch, "dense_seconds": dense}
            result["seconds"] = dict(zip(("own", *map(str, blocks)), found, strict=True))
            result["ratio"] = found[0] / dense
            print(timing_line(result), flush=True)
            results.append(result)
    return results


def timing_line(result: Result) -> str:
    """A result as a line of the table; `!` stands at a ratio that is too high."""
    dense = result["dense_seconds"]
    cells = [f"{s * 1e3:9.0f} ({s / dense:4.2f})" for s in result["seconds"].values()]
    return (
        f"{result['form']:7} {result['batch']:6} {dense * 1e3:10.0f} "
        + "".join(f"{cell:>16}" for cell in cells)
        + (" !" if result["ratio"] > MAX_RATIO else "")
    )


def seconds(ways: list[Compiled], arguments: Pairs, repeats: int) -> list[float]:
    """Best time of each program; taking turns, so that a busy machine hurts all alike.

    Each runs twice in its turn and the second counts: the first takes pages and caches from
    whatever ran before it.
    """
    best = [math.inf] * len(ways)
    for _ in range(repeats):
        for i, way in enumerate(ways):
            jax.block_until_ready(way(arguments))
            begin = time.perf_counter()
            jax.block_until_ready(way(arguments))
            best[i] = min(best[i], time.perf_counter() - begin)
    return best


def embeddings(batch: int, dim: int) -> Pairs:
    """Unit-norm random embeddings, a scale and a bias."""
    keys = jax.random.split(jax.random.key(0), 4)
    z = [jax.random.normal(key, (batch, dim), jnp.float32) for key in keys]
    x, y, tx, ty = (v / jnp.linalg.norm(v, axis=1, keepdims=True) for v in z)
    return Pairs(x, y, jnp.float32(20.0), jnp.float32(-10.0), tx, ty)


def plot(results: list[Result], path: Path) -> None:
    """Memory over batch, a panel for each form."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(NAMES), figsize=(11, 3.6), sharey=True, layout="tight")
    for form, panel in zip(NAMES, panels, strict=True):
        for result in (r for r in results if r["form"] == form):
            mine = result["way"] in LIMITS
            label = f"vlalign, {result['way']}" if mine else result["way"]
            sizes = [size / MIB for size in result["bytes"].values()]
            style = (
                {"marker": "o", "linewidth": 2.5} if mine else {"marker": ".", "linestyle": "--"}
            )
            panel.loglog(list(result["bytes"]), sizes, label=label, base=2, **style)
        panel.set(title=form, xlabel="batch")
        panel.grid(visible=True, alpha=0.3)
        panel.legend(fontsize=8)
    panels[0].set_ylabel("MiB of temporary memory a device")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Prints the tables; writes the picture and the numbers where asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=["memory", "time"], help="one of the two tables")
    parser.add_argument("--batch", type=int, nargs="+", default=[2**14, 2**16, 2**18, 2**20])
    parser.add_argument("--time-batch", type=int, nargs="+", default=[2**13, 2**14])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--block-size", type=int, nargs="*", default=[], help="other tiles")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--plot", type=Path, help="write the memory's picture here")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    args = parser.parse_args()
    machine = {"jax": jax.__version__, "cpus": os.cpu_count(), "machine": platform.machine()}
    numbers: Result = {"machine": machine, "dim": args.dim}
    if args.only != "time":
        numbers["memory"] = alone(memory, args.batch, args.dim)
        if args.plot:
            plot(numbers["memory"], args.plot)
    if args.only != "memory":
        numbers["time"] = alone(timing, args.time_batch, args.dim, args.block_size, args.repeats)
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
