"""Reads the text of a compiled XLA program: what runs, how often, in how many loops.

The text is XLA's own (`Compiled.as_text()`), of any backend. Everything is counted as often as it
runs: an instruction in a loop times the loop's trips. Of a conditional the cheapest branch counts,
the others being the ways out of rare cases. Cycles are the TPU compiler's own estimates and stand
in the text of TPU programs only; it gives none for collectives, asynchronous copies and kernels.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BYTES = {"pred": 1, "bf16": 2, "c64": 8, "c128": 16, "token": 0}
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|token|[a-z]+\d+\w*)\[([\d,]*)\](?:\{([^}]*)\})?")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape: dtype, dimensions, and XLA's layout as text (`1,0:T(8,128)S(1)`)."""

    dtype: str
    sizes: tuple[int, ...]
    layout: str = ""

    @property
    def elements(self) -> int:
        """Their number."""
        return math.prod(self.sizes)

    @property
    def width(self) -> int:
        """Bytes of an element; types below a byte count as one."""
        if self.dtype in _BYTES:
            return _BYTES[self.dtype]
        digits = re.search(r"\d+", self.dtype)
        return max(1, int(digits[0]) // 8) if digits else 1

    @property
    def bytes(self) -> int:
        """Without padding."""
        return self.elements * self.width

    @property
    def in_memory(self) -> int:
        """Bytes in the device's main memory, padded to the layout's tiles; 0 if kept on the chip.

        A TPU lays the two innermost dimensions out in tiles such as T(8,128); S(1) and up are
        memories of the core.
        """
        space = re.search(r"S\((\d+)\)", self.layout)
        if space and int(space[1]) > 0:
            return 0
        order = [int(axis) for axis in self.layout.split(":")[0].split(",") if axis]
        tile = re.search(r"T\(([\d,]+)\)", self.layout)
        sizes = [self.sizes[axis] for axis in order] or list(self.sizes)
        if tile:
            steps = [int(step) for step in tile[1].split(",")][::-1]
            for place, step in enumerate(steps[: len(sizes)]):
                sizes[place] = -(-sizes[place] // step) * step
        return math.prod(sizes) * self.width


def arrays(shape: str) -> list[Array]:
    """All arrays of a shape, in order."""
    return [
        Array(dtype, tuple(int(size) for size in sizes.split(",") if size), layout)
        for dtype, sizes, layout in _ARRAY.findall(shape)
    ]


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

    @functools.cached_property
    def operands(self) -> list[str]:
        """Names of the operands."""
        return re.findall(r"%([\w.\-]+)", self.rest.split(")", 1)[0])

    @functools.cached_property
    def results(self) -> list[Array]:
        """The arrays of the result."""
        return arrays(self.shape)

    @property
    def cycles(self) -> int:
        """The TPU compiler's estimate for one execution; 0 where it gives none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
        return int(found[1]) if found else 0

    @property
    def source(self) -> str:
        """The path of jax functions and modules it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Run:
    """An instruction that runs: how often, in how many loops, and in which computation."""

    instruction: Instruction
    times: int
    depth: int
    computation: str

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
        self.named = {one.name: one for inner in self.computations.values() for one in inner}

    @functools.cached_property
    def runs(self) -> list[Run]:
        """All instructions that run, without the insides of fusions."""
        return list(self._runs(self.entry, 1, 0))

    @functools.cached_property
    def cycles(self) -> int:
        """Estimated, of the whole program."""
        return sum(run.cycles for run in self.runs)

    @property
    def largest(self) -> int:
        """Elements of the largest array."""
        return max(array.elements for one in self.named.values() for array in one.results)

    def users(self, one: Instruction) -> list[Instruction]:
        """The instructions that have this one as an operand."""
        return self._users.get(one.name, [])

    @functools.cached_property
    def _users(self) -> dict[str, list[Instruction]]:
        found: dict[str, list[Instruction]] = {}
        for user in self.named.values():
            for name in dict.fromkeys(user.operands):
                found.setdefault(name, []).append(user)
        return found

    def inside(self, one: Instruction) -> list[Instruction]:
        """The instructions of a fusion; of any other instruction itself."""
        if one.opcode != "fusion":
            return [one]
        return self.computations[one.attribute("calls")]

    def _runs(self, name: str, times: int, depth: int) -> Iterator[Run]:
        for one in self.computations[name]:
            yield Run(one, times, depth, name)
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
        """How often a loop's body runs: as noted, or of its condition `i < n` and its step, from 0.

        The compiler unrolls loops and lets i rise by more than one.
        """
        if noted := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(noted[1])
        condition = self.computations[loop.attribute("condition")]
        bounds = {
            int(one.rest.split(")")[0])
            for one in condition
            if one.opcode == "constant" and re.match(r"[su]\d+\[\]", one.shape)
        }
        if len(bounds) != 1:
            raise ValueError(f"loop {loop.name}: expected one bound of its trips, found {bounds}")
        return -(-bounds.pop() // self._step(loop, condition))

    def _step(self, loop: Instruction, condition: list[Instruction]) -> int:
        """By how much the counter of a loop rises; 1 if its body does not say."""
        counter = next((one for one in condition if one.opcode == "get-tuple-element"), None)
        index = re.search(r"index=(\d+)", counter.rest) if counter else None
        (root,) = (one for one in self.computations[loop.attribute("body")] if one.root)
        if index is None or root.opcode != "tuple":
            return 1
        risen = self.named[root.operands[int(index[1])]]
        added = [self.named[name] for name in risen.operands if risen.opcode == "add"]
        steps = [int(one.rest.split(")")[0]) for one in added if one.opcode == "constant"]
        return steps[0] if steps else 1


def _branches(conditional: Instruction) -> list[str]:
    found = re.search(r"branch_computations=\{([^}]*)\}", conditional.rest)
    if found:
        return re.findall(r"[\w.\-]+", found[1])
    return [conditional.attribute(f"{case}_computation") for case in ("true", "false")]
