"""The contrast kernel compiled for TPU pods, on a host without a TPU: memory, collectives, cycles.

    pip install 'vlalign[tpu]'
    python benchmarks/contrast_tpu.py --chip v5e v5p --tile 1024 2048 4096 8192

Compiles value and all gradients for v5e:16x16 and v5p:8x8x8 with libtpu and reads the result: bytes
a chip, collectives by kind and in how many loops they stand, and the compiler's estimated cycles
against the matrix products' floor: 8 B B d operations (2 forward, 2 recomputed, 4 for the
gradients) over all chips at peak. Nothing runs, and nothing here is a measurement: the estimate
takes the sum of all instructions, leaves out transfers (their bytes are listed), and is pessimistic
for what is not a matrix product.
"""

import argparse
import collections
import dataclasses
import importlib.metadata
import json
import math
import os
from pathlib import Path
from typing import Any

# libtpu: do not ask for a machine's metadata, nor for the one lock of a real TPU.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-256")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")

import jax
import jax.numpy as jnp
from _forms import compiled, ours, shapes
from jax.experimental import mesh_utils, topologies
from jax.sharding import AxisType, Mesh

from vlalign.parallel.chips import Chip, tpu
from vlalign.plan.collectives import collectives
from vlalign.plan.costs import products
from vlalign.plan.hlo import Program, Run

AIM = 0.6
MIB = 2**20


# Chip -> topology, mesh.
PODS = {"v5e": ("v5e:16x16", (16, 16)), "v5p": ("v5p:8x8x8", (8, 64))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One program to compile."""

    chip: str
    form: str
    route: str
    tile: int


def mesh_of(chip: str, *, flat: bool) -> Mesh:
    """All chips of the topology as `data` x `fsdp`, or as `data` alone; neighbours side by side."""
    topology, sizes = PODS[chip]
    devices = topologies.get_topology_desc(topology, "tpu").devices
    shape = (math.prod(sizes),) if flat else sizes
    axes = ("data", "fsdp")[: len(shape)]
    types = (AxisType.Auto,) * len(shape)
    return Mesh(mesh_utils.create_device_mesh(shape, devices), axes, axis_types=types)


def study(case: Case, batch: int, dim: int, *, flat: bool, top: int) -> dict[str, Any]:
    """Compiles one case and reads what came out, in plain numbers for a table and for JSON."""
    chip = tpu(case.chip)
    assert isinstance(chip, Chip)
    mesh = mesh_of(case.chip, flat=flat)
    with jax.set_mesh(mesh):
        pairs = shapes(batch, dim, jnp.dtype(jnp.bfloat16), mesh)
        done = compiled(ours(case.form, route=case.route, block=case.tile), pairs)
    memory, program = done.memory_analysis(), Program(done.as_text())
    needed = 8 * batch * batch * dim / mesh.size
    others = _beside_products(program)
    least = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    estimated, floor = program.cycles / chip.clock, needed / chip.peak_flops
    return dataclasses.asdict(case) | {
        "arguments": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "peak": memory.peak_memory_in_bytes,
        "fits": max(memory.peak_memory_in_bytes, least) <= chip.memory,
        "cycles": program.cycles,
        "estimated_seconds": estimated,
        "floor_seconds": floor,
        "floor_share": floor / estimated,
        "products_per_needed": _flops(program) / needed,
        "products_share": 1 - sum(run.cycles for run in others) / program.cycles,
        "largest_per_batch": program.largest / (batch * dim),
        "collectives": _collectives(program, mesh.size),
        "beside_products": [_cost(run, program) for run in others[:top]],
    }


def _flops(program: Program) -> int:
    return sum(run.times * products(program, run.instruction) for run in program.runs)


def _beside_products(program: Program) -> list[Run]:
    """All that holds no matrix product, what costs most first."""
    others = [run for run in program.runs if run.cycles and not products(program, run.instruction)]
    return sorted(others, key=lambda run: -run.cycles)


def _cost(run: Run, program: Program) -> dict[str, Any]:
    return {
        "name": run.instruction.name,
        "shape": run.instruction.shape.split("{")[0].lstrip("("),
        "loops": run.depth,
        "times": run.times,
        "cycles": run.instruction.cycles,
        "share": run.cycles / program.cycles,
    }


def _collectives(program: Program, devices: int) -> list[dict[str, Any]]:
    """By kind and number of loops around: how many, their executions, bytes of their arrays."""
    found: dict[tuple[str, int], list[int]] = collections.defaultdict(lambda: [0, 0, 0])
    for one in collectives(program, devices=devices):
        new = (1, one.times, one.times * one.bytes)
        key = one.kind, one.depth
        found[key] = [a + b for a, b in zip(found[key], new, strict=True)]
    names = ("instructions", "executions", "bytes")
    return [
        {"kind": kind, "loops": loops} | dict(zip(names, numbers, strict=True))
        for (kind, loops), numbers in sorted(found.items())
    ]


HEAD = (
    "chip form    route   tile   args MiB   temp MiB   peak MiB  fits"
    "   est. ms  floor ms  floor/est."
)


def line(r: dict[str, Any]) -> str:
    """A result as a line of the table."""
    memory = " ".join(f"{r[key] / MIB:10.1f}" for key in ("arguments", "temporary", "peak"))
    notes = f"  below {AIM:.0%}" if r["floor_share"] < AIM else ""
    if abs(r["products_per_needed"] - 1) > 0.01:
        notes += f"  products x{r['products_per_needed']:.2f}"
    return (
        f"{r['chip']:4} {r['form']:7} {r['route']:6} {r['tile']:5} {memory} "
        f"{'yes' if r['fits'] else 'NO':>5} {r['estimated_seconds'] * 1e3:9.1f} "
        f"{r['floor_seconds'] * 1e3:9.1f} {r['floor_share']:10.1%}{notes}"
    )


def details(r: dict[str, Any]) -> str:
    """Collectives of a result, and where cycles go beside the products."""
    lines = [f"{r['chip']} {r['form']} {r['route']}, best tile {r['tile']}:"]
    for c in r["collectives"]:
        place = "in a loop" if c["loops"] else "no loop"
        count = f"{c['instructions']:3} of it, {c['executions']:5} executions"
        lines.append(f"  {c['kind']:18} {place:10} {count}, {c['bytes'] / MIB:10.1f} MiB a chip")
    for b in r["beside_products"]:
        cycles = f"{b['share']:6.1%} {b['times']:6} x {b['cycles']:8} cycles"
        lines.append(f"  {cycles}  {b['name']} {b['shape']}")
    lines.append(f"  {r['products_share']:6.1%} in instructions that hold matrix products")
    if r["route"] == "ring":
        lines.append(f"  largest array: {r['largest_per_batch']:.4f} of B x d elements")
    return "\n".join(lines)


def main() -> None:
    """Prints the table, and the best tile's details."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chip", nargs="+", choices=PODS, default=list(PODS))
    parser.add_argument("--form", nargs="+", default=["softmax", "sigmoid"])
    parser.add_argument("--route", nargs="+", default=["gather", "ring"])
    parser.add_argument("--tile", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--batch", type=int, default=2**20)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--flat", action="store_true", help="one mesh axis over all chips")
    parser.add_argument("--top", type=int, default=6, help="instructions to list")
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args()
    # The default backend is not needed; without this, jax would look for a TPU to run on.
    jax.config.update("jax_platforms", "cpu")
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    print(f"B={args.batch}, d={args.dim}, bfloat16, value and all gradients; {versions}")
    print(HEAD, flush=True)
    results, best = [], []
    for chip, form, route in ((c, f, r) for c in args.chip for f in args.form for r in args.route):
        found = []
        for tile in args.tile:
            case = Case(chip=chip, form=form, route=route, tile=tile)
            found.append(study(case, args.batch, args.dim, flat=args.flat, top=args.top))
            print(line(found[-1]), flush=True)
        results += found
        best.append(max(found, key=lambda r: r["floor_share"]))
    print(*("\n" + details(r) for r in best), sep="")
    if args.json:
        args.json.write_text(json.dumps({"versions": versions, "results": results}, indent=1))


if __name__ == "__main__":
    main()
