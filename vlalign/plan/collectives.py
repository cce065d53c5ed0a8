"""The collectives of a compiled program: kind, size, group, loops; each counted once.

A collective may be one instruction, a pair of start and done, or, on a TPU, a chain of fusions that
carry it along while they compute; all that share a channel within a computation are one.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

from vlalign.plan.hlo import Instruction, Program, Run

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program.

    bytes: of the whole array on a chip, of one execution (all-gather: its result, reduce-scatter:
    its operand).   group: chips that take part.   times, depth: executions, loops around.
    hidden: the compiler lets it run beside computation.   across: it leaves the slice.
    source: the functions and modules it comes from.
    """

    kind: str
    bytes: int
    group: int
    times: int
    depth: int
    hidden: bool
    across: bool
    source: str

    @property
    def wire(self) -> float:
        """Bytes that a chip sends in all executions: a ring's, the least there is."""
        share = 1.0 if self.kind == "collective-permute" else 1 - 1 / self.group
        return self.times * self.bytes * share * (2 if self.kind == "all-reduce" else 1)


def collectives(program: Program, *, devices: int, slices: int = 1) -> Iterator[Collective]:
    """Each collective that runs.

    devices: of the program.   slices: in how many equal parts, in order, they lie apart.
    """
    seen: set[tuple[str, str]] = set()
    for run in program.runs:
        for one in program.inside(run.instruction):
            kind = one.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            channel = one.attribute("channel_id") or one.name
            if (run.computation, channel) in seen:
                continue
            seen.add((run.computation, channel))
            groups = _groups(one, devices)
            group = max(map(len, groups), default=devices)
            if group > 1:
                yield _collective(kind, run, one, program, groups, devices // slices)


def _collective(
    kind: str,
    run: Run,
    one: Instruction,
    program: Program,
    groups: list[list[int]],
    slice_size: int,
) -> Collective:
    size, inside = _bytes(one, kind, program), program.inside(run.instruction)
    # A TPU's reduce-scatter is an all-reduce fused with the slice of it that is kept.
    if kind == "all-reduce" and any(other.opcode == "dynamic-slice" for other in inside):
        kind = "reduce-scatter"
    hidden = one.opcode.endswith("-start")
    hidden = hidden or any("AsyncCollective" in other.rest for other in inside)
    hidden = hidden or "async_collective" in run.instruction.attribute("calls")
    across = any(len({place // slice_size for place in group}) > 1 for group in groups)
    most = max(map(len, groups), default=2)
    return Collective(kind, size, most, run.times, run.depth, hidden, across, one.source)


def _bytes(one: Instruction, kind: str, program: Program) -> int:
    """Of the whole arrays on one chip: the larger side."""
    operands = [program.named[name] for name in one.operands if name in program.named]
    given = sum(array.bytes for operand in operands for array in operand.results)
    results = one.results
    if one.opcode.endswith("-start") and kind != "all-reduce":  # (operands..., results..., ...)
        results = results[len(operands) : 2 * len(operands)]
    return max(given, sum(array.bytes for array in results))


def _groups(one: Instruction, devices: int) -> list[list[int]]:
    """The devices of each group; all of them in one where none are named."""
    if one.opcode.startswith("collective-permute"):
        pairs = re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", one.rest)
        return _listed(pairs[1]) if pairs else []
    if listed := re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", one.rest):
        return _listed(listed[1])
    if tiled := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", one.rest):
        order = _order(_numbers(tiled[2]), tiled[3])
        return _cut(order, _numbers(tiled[1])[-1])
    if meshed := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
        r" \{([^}]*)\}",
        one.rest,
    ):
        return _of_mesh(*meshed.groups())
    return [list(range(devices))]


def _of_mesh(axes: str, ids: str | None, turned: str | None, chosen: str) -> list[list[int]]:
    """Groups named as axes of a mesh: `mesh['a'=16,'b'=16], device_ids=([16,16]T(1,0)) {'a'}`.

    A part of an axis is written `'a':(1)4`: of its positions, 4 that lie 1 apart in size.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)}
    split: list[tuple[str, int]] = []
    picked = []
    wanted = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", chosen)
    for name, size in sizes.items():
        parts = [(int(b), int(n)) for axis, b, n in wanted if axis == name and n]
        if any(axis == name and not n for axis, _, n in wanted):
            parts = [(1, size)]
        before = 1
        for start, count in sorted(parts):
            if start > before:
                split.append((name, start // before))
            picked.append(len(split))
            split.append((name, count))
            before = start * count
        if size > before:
            split.append((name, size // before))
    shape = [size for _, size in split]
    total = math.prod(shape)
    order = _order(_numbers(ids), turned) if ids else list(range(total))
    rest = [axis for axis in range(len(shape)) if axis not in picked]
    places = _order(shape, ",".join(map(str, rest + picked)))
    return _cut([order[place] for place in places], math.prod(shape[axis] for axis in picked))


def _order(shape: list[int], turned: str | None) -> list[int]:
    """0, 1, ... of an array of this shape, read after its axes were exchanged."""
    axes = _numbers(turned) if turned else list(range(len(shape)))
    steps = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    found = [0]
    for axis in axes:
        found = [base + steps[axis] * place for base in found for place in range(shape[axis])]
    return found


def _listed(text: str) -> list[list[int]]:
    return [_numbers(group) for group in re.findall(r"\{([\d,]*)\}", text)]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _cut(order: list[int], size: int) -> list[list[int]]:
    return [order[start : start + size] for start in range(0, len(order), size)]
