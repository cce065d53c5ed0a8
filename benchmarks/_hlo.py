"""Reads the text of a compiled XLA program: loops, collectives, matrix products, cycles, arrays.

The text is XLA's own (`Compiled.as_text()`), of any backend. Everything is counted as often as it
runs: an instruction in a loop times the loop's trips. Of a conditional the cheapest branch counts,
the others being the ways out of rare cases. Cycles are the TPU compiler's own estimates and stand
in the text of TPU programs only; it gives none for collectives and asynchronous copies.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
_BYTES |= {"s64": 8, "u64": 8, "f64": 8}
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d+|pred)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation. `rest` is all after the opening parenthesis of the operands."""

    name: str
    shape: str
    opcode: str
    rest: str
    root: bool

    def attribute(self, name: str) -> str:
        """A computation's name that stands as `name=` in the line, or nothing."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.rest)
        return found[1] if found else ""

    @property
    def operands(self) -> list[str]:
        """Names of the operands."""
        return re.findall(r"%([\w.\-]+)", self.rest.split(")", 1)[0])

    @property
    def cycles(self) -> int:
        """The TPU compiler's estimate for one execution; 0 where it gives none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
        return int(found[1]) if found else 0

    @property
    def bytes(self) -> int:
        """Of all arrays of the result; what starts a transfer names the operands, too."""
        total = sum(_BYTES[dtype] * math.prod(sizes) for dtype, sizes in arrays(self.shape))
        return total // 2 if self.opcode.endswith("-start") else total


@dataclasses.dataclass(frozen=True)
class Run:
    """An instruction that runs, how often, and in how many loops it stands."""

    instruction: Instruction
    times: int
    depth: int

    @property
    def cycles(self) -> int:
        """Estimated, of all its executions."""
        return self.times * self.instruction.cycles


class Program:
    """A compiled program, from its text."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        current: list[Instruction] = []
        for line in text.splitlines():
            if head := _HEAD.match(line):
                current = self.computations.setdefault(head[2], [])
                self.entry = head[2] if head[1] else self.entry
            elif found := _LINE.match(line):
                current.append(Instruction(found[2], found[3], found[4], found[5], bool(found[1])))
        self._named = {one.name: one for inner in self.computations.values() for one in inner}

    @functools.cached_property
    def runs(self) -> list[Run]:
        """All instructions that run, without the insides of fusions."""
        return list(self._runs(self.entry, 1, 0))

    @functools.cached_property
    def cycles(self) -> int:
        """Estimated, of the whole program."""
        return sum(run.cycles for run in self.runs)

    @functools.cached_property
    def flops(self) -> int:
        """Multiplications and additions of all matrix products."""
        return sum(run.times * self.products(run.instruction) for run in self.runs)

    @property
    def largest(self) -> int:
        """Elements of the largest array."""
        return max(
            math.prod(sizes) for one in self._named.values() for _, sizes in arrays(one.shape)
        )

    def collectives(self) -> Iterator[tuple[str, Run]]:
        """Each collective that runs, with its kind; on a TPU a fusion may hold one."""
        for run in self.runs:
            inside = [run.instruction]
            if run.instruction.opcode == "fusion":
                inside = self.computations[run.instruction.attribute("calls")]
            kinds = {one.opcode.removesuffix("-start") for one in inside}
            # A reduce-scatter is an all-reduce fused with the slice of it that is kept.
            scatter = run.instruction.opcode == "fusion" and "all-reduce" in kinds
            for kind in sorted(kinds.intersection(COLLECTIVES)):
                yield "reduce-scatter" if scatter else kind, run

    def products(self, one: Instruction) -> int:
        """Multiplications and additions of the matrix products in one execution."""
        if one.opcode == "fusion":
            return sum(self.products(i) for i in self.computations[one.attribute("calls")])
        if one.opcode not in ("dot", "convolution"):
            return 0
        ((_, left),) = arrays(self._named[one.operands[0]].shape)
        ((_, out),) = arrays(one.shape)
        return 2 * math.prod(out) * math.prod(left[axis] for axis in _contracted(one))

    def _runs(self, name: str, times: int, depth: int) -> Iterator[Run]:
        for one in self.computations[name]:
            yield Run(one, times, depth)
            if one.opcode == "while":
                inner = one.attribute("body")
                yield from self._runs(inner, times * self._trips(one), depth + 1)
            elif one.opcode == "conditional":
                branches = [list(self._runs(b, times, depth)) for b in _branches(one)]
                yield from min(branches, key=lambda runs: sum(run.cycles for run in runs))
            elif one.opcode in ("call", "async-start"):
                inner = one.attribute("to_apply") or one.attribute("calls")
                yield from self._runs(inner, times, depth)

    def _trips(self, loop: Instruction) -> int:
        """How often a loop's body runs: as noted, or n of its condition `i < n`, i from 0."""
        if noted := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(noted[1])
        condition = self.computations[loop.attribute("condition")]
        bounds = {
            int(one.rest.split(")")[0])
            for one in condition
            if one.opcode == "constant" and one.shape.startswith("s32[]")
        }
        if len(bounds) != 1:
            raise ValueError(f"loop {loop.name}: expected one bound of its trips, found {bounds}")
        return bounds.pop()


def arrays(shape: str) -> list[tuple[str, list[int]]]:
    """Dtype and dimensions of every array in a shape."""
    found = _ARRAY.findall(shape)
    return [(dtype, [int(size) for size in sizes.split(",") if size]) for dtype, sizes in found]


def _contracted(product: Instruction) -> list[int]:
    """Axes of the left operand that are summed over. Matrix products only: no windows."""
    if product.opcode == "dot":
        found = re.search(r"lhs_contracting_dims=\{([\d,]+)\}", product.rest)
        return [int(axis) for axis in found[1].split(",")] if found else []
    labels = re.search(r"dim_labels=(\w+)_", product.rest)
    return [labels[1].index("f")] if labels else []


def _branches(conditional: Instruction) -> list[str]:
    found = re.search(r"branch_computations=\{([^}]*)\}", conditional.rest)
    if found:
        return re.findall(r"[\w.\-]+", found[1])
    return [conditional.attribute(f"{case}_computation") for case in ("true", "false")]
