"""A compiled step in numbers: memory, operations, traffic, and what time they may take.

Nothing runs, so every time here is an estimate, and there are two kinds of it:

roofline: each instruction takes max(operations / peak, bytes of memory / bandwidth), one after
another. It knows nothing of layouts, vector units and latencies: a step is hardly ever faster.
compiler: the cycles that the TPU compiler schedules by. They are true for matrix products, and too
many for the rest, up to several times: a step is hardly ever slower. For kernels, which it gives no
cycles, the roofline's time stands in.

To both are added the collectives that the compiler does not let run beside computation, at the
bandwidth of one axis of the torus (two links).
"""

import collections
import dataclasses
from typing import Any

import jax
import numpy as np

from vlalign.parallel.chips import Chip
from vlalign.plan.collectives import Collective, collectives
from vlalign.plan.costs import products, traffic
from vlalign.plan.hlo import Program, Run
from vlalign.plan.step import Step
from vlalign.plan.target import Target

# Between slices: 200 Gbit/s of a host's network for its 4 chips, bytes/s a chip one way.
DATA_CENTRE = 6.25e9


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device.

    temporary: activations, gradients and copies, at the fullest moment.   peak: of all, then.
    allocated: what the program's buffers span, gaps between them included: what it takes on a chip
    is between the peak and this.
    """

    parameters: int
    optimizer: int
    other_state: int
    batch: int
    temporary: int
    program: int
    peak: int
    allocated: int
    limit: int | None


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind in one place: bytes are a chip's, a step.

    count: in the program.   executions: a step.   bytes: of the whole arrays.   wire: sent.
    """

    kind: str
    loops: int
    group: int
    hidden: bool
    between_slices: bool
    count: int
    executions: int
    bytes: int
    wire: float


@dataclasses.dataclass(frozen=True)
class Time:
    """Seconds of a step on the chip of the table; estimates, all of them.

    compute, memory, network: all operations at peak, all bytes at bandwidth, all collectives at the
    bandwidth of two links, each alone.   exposed: collectives that nothing runs beside.
    roofline, compiler: of the step, see above; compiler is None where no cycles are given.
    """

    compute: float
    memory: float
    network: float
    exposed: float
    roofline: float
    compiler: float | None

    @property
    def step(self) -> float:
        """The headline: the compiler's where there is one, for it errs on the slow side."""
        return self.roofline if self.compiler is None else self.compiler


@dataclasses.dataclass(frozen=True)
class Cost:
    """An instruction among those that take most of the time, all executions of it."""

    source: str
    shape: str
    times: int
    compiler: float
    roofline: float
    flops: int


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What is known of a compiled step. Operations and bytes of one device, `model_flops` too."""

    memory: Memory
    model_flops: float
    program_flops: float
    traffic: int
    collectives: tuple[Traffic, ...]
    time: Time | None
    slowest: tuple[Cost, ...]
    compile_seconds: float

    @property
    def fits(self) -> bool | None:
        """Whether it fits the chip (a TPU's compiler refuses what does not); None: not known."""
        return None if self.memory.limit is None else self.memory.peak <= self.memory.limit

    @property
    def wire(self) -> float:
        """Bytes that a chip sends in a step."""
        return sum(one.wire for one in self.collectives)


def estimate(step: Step, target: Target, *, top: int = 12) -> Estimate:
    """Reads a compiled step. top: instructions in `slowest`."""
    program = Program(step.compiled.as_text() or "")
    devices = step.parts.mesh.size
    moved = tuple(collectives(program, devices=devices, slices=target.slices))
    weighed = [_weigh(program, run) for run in program.runs]
    weighed = [one for one in weighed if one.flops or one.bytes or one.run.cycles]
    chip = target.chip
    return Estimate(
        memory=_memory(step, chip),
        model_flops=step.flops / devices,
        program_flops=sum(one.flops for one in weighed),
        traffic=sum(one.bytes for one in weighed),
        collectives=_gathered(moved),
        time=_time(weighed, moved, chip) if chip else None,
        slowest=_slowest(weighed, chip, top) if chip else (),
        compile_seconds=step.seconds,
    )


def _memory(step: Step, chip: Chip | None) -> Memory:
    found: Any = step.compiled.memory_analysis()
    shapes, shardings = step.parts.plan.shapes, step.parts.plan.shardings
    parameters = device_bytes(shapes.params, shardings.params)
    optimizer = device_bytes(shapes.opt_state, shardings.opt_state)
    state = device_bytes(shapes, shardings)
    given, program = found.argument_size_in_bytes, found.generated_code_size_in_bytes
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    allocated = given + results + found.temp_size_in_bytes + program
    alive = found.peak_memory_in_bytes or allocated - program
    return Memory(
        parameters=parameters,
        optimizer=optimizer,
        other_state=state - parameters - optimizer,
        batch=max(0, given - state),
        temporary=max(0, alive - given),
        program=program,
        peak=alive + program,
        allocated=max(allocated, alive + program),
        limit=chip.memory if chip else None,
    )


def device_bytes(shapes: Any, shardings: Any) -> int:
    """Bytes of a tree of arrays on one device."""
    pairs = zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True)
    return sum(int(np.prod(s.shard_shape(a.shape))) * a.dtype.itemsize for a, s in pairs)


@dataclasses.dataclass(frozen=True)
class _Weighed:
    """A run with the operations and bytes of all its executions."""

    run: Run
    flops: int
    bytes: int

    @property
    def hidden(self) -> bool:
        """Whether it is a copy that runs beside computation."""
        return self.run.instruction.opcode.endswith("-start")

    def roofline(self, chip: Chip) -> float:
        """Seconds of all executions."""
        return max(self.flops / chip.peak_flops, self.bytes / chip.bandwidth)

    def compiler(self, chip: Chip) -> float:
        """Seconds by the compiler's cycles; the roofline's for a kernel, that has none."""
        if self.run.cycles:
            return self.run.cycles / chip.clock
        return self.roofline(chip) if self.run.instruction.opcode == "custom-call" else 0.0


def _weigh(program: Program, run: Run) -> _Weighed:
    one = run.instruction
    return _Weighed(run, run.times * products(program, one), run.times * traffic(program, one))


def _time(weighed: list[_Weighed], moved: tuple[Collective, ...], chip: Chip) -> Time:
    def seconds(one: Collective) -> float:
        return one.wire / (DATA_CENTRE if one.across else chip.link * min(chip.links, 2))

    exposed = sum(seconds(one) for one in moved if not one.hidden)
    memory = sum(one.bytes for one in weighed) / chip.bandwidth
    bound = sum(one.roofline(chip) for one in weighed if not one.hidden)
    has_cycles = chip.clock and any(one.run.cycles for one in weighed)
    own = sum(one.compiler(chip) for one in weighed) if has_cycles else None
    return Time(
        compute=sum(one.flops for one in weighed) / chip.peak_flops,
        memory=memory,
        network=sum(seconds(one) for one in moved),
        exposed=exposed,
        roofline=max(bound, memory) + exposed,
        compiler=None if own is None else own + exposed,
    )


def _slowest(weighed: list[_Weighed], chip: Chip, top: int) -> tuple[Cost, ...]:
    def seconds(one: _Weighed) -> float:
        return one.compiler(chip) if chip.clock else one.roofline(chip)

    return tuple(
        Cost(
            source=one.run.instruction.source or one.run.instruction.opcode,
            shape=one.run.instruction.shape.split("{")[0].lstrip("("),
            times=one.run.times,
            compiler=one.compiler(chip) if chip.clock else 0.0,
            roofline=one.roofline(chip),
            flops=one.flops,
        )
        for one in sorted(weighed, key=seconds, reverse=True)[:top]
    )


def _gathered(moved: tuple[Collective, ...]) -> tuple[Traffic, ...]:
    """By kind, loops around, size of the group, and whether hidden or between slices."""
    found: dict[Any, list[Collective]] = collections.defaultdict(list)
    for one in moved:
        found[one.kind, one.depth, one.group, one.hidden, one.across].append(one)
    return tuple(
        Traffic(
            kind=key[0],
            loops=key[1],
            group=key[2],
            hidden=key[3],
            between_slices=key[4],
            count=len(ones),
            executions=sum(one.times for one in ones),
            bytes=sum(one.times * one.bytes for one in ones),
            wire=sum(one.wire for one in ones),
        )
        for key, ones in sorted(found.items())
    )
