"""Plans as text for people: what is known of one, and several side by side."""

from collections.abc import Sequence

from vlalign.plan.estimate import Estimate
from vlalign.plan.plans import Plan
from vlalign.plan.search import memory_of

HEAD = (
    "target",
    "batch",
    "micro",
    "remat",
    "memory GiB",
    "of",
    "fits",
    "step ms",
    "samples/s",
    "MFU",
    "HFU",
    "roofline MFU",
    "sent MB",
)
NOTE = """\
All of this is read from the compiled program; nothing ran. Memory, operations and collectives are
the compiler's own. Times, and with them samples/s, MFU, HFU and cost, are estimates: the step is by
the compiler's cycles, which are true for matrix products and too many for most else; the roofline's
time is nearly never reached. The truth is between them."""
NOTE_ROOFLINE = (
    "This compiler gives no cycles: times are the roofline's, which is nearly never reached."
)
NOTE_CPU = (
    "Compiled for CPU devices: memory and collectives are this compiler's for CPUs, another one's\n"
    "will differ. Times are not known: no chip of that name is in vlalign's table."
)


def note(plans: Sequence[Plan]) -> str:
    """What of these plans is an estimate, in plain words."""
    times = [plan.estimate.time for plan in plans if plan.estimate]
    if times and all(time is None for time in times):
        return NOTE_CPU
    if times and all(time is None or time.compiler is None for time in times):
        return NOTE_ROOFLINE
    return NOTE


def row(plan: Plan) -> tuple[str, ...]:
    """A line of the comparison, as `HEAD` names it."""
    needed, limit = memory_of(plan)
    fits = {True: "yes", False: "NO", None: "?"}[plan.fits]
    if plan.fits and plan.estimate and plan.estimate.memory.allocated > limit:
        fits = "tight"
    return (
        plan.target,
        f"{plan.batch:,}",
        str(plan.micro_batches),
        "/".join(dict.fromkeys(plan.remat.values())) or "-",
        gib(needed),
        gib(limit) if limit else "?",
        fits,
        _or_dash(plan.seconds and 1e3 * plan.seconds, 1),
        _or_dash(plan.samples_per_s),
        percent(plan.share_of_peak()),
        percent(plan.share_of_peak(hardware=True)),
        percent(plan.share_of_peak(roofline=True)),
        _or_dash(plan.estimate.wire / 1e6 if plan.estimate else None),
    )


def comparison(plans: Sequence[Plan]) -> str:
    """All plans, a line each."""
    return aligned([HEAD, *map(row, plans)])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns under each other; the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in rows
    )


def details(plan: Plan) -> str:
    """All that is known of one plan."""
    mesh = " x ".join(f"{axis}={size}" for axis, size in plan.mesh.items())
    lines = [f"{plan.config} on {plan.target} ({plan.devices} x {plan.device_kind}), mesh {mesh}"]
    remat = ", ".join(f"{tower} {value}" for tower, value in plan.remat.items()) or "none"
    lines.append(
        f"batch {plan.batch:,}, {plan.batch // plan.devices:,} a chip; "
        f"micro-batches {plan.micro_batches}; remat {remat}"
    )
    if plan.estimate is None:
        lines += ["", *does_not_fit(plan)]
        return "\n".join(lines)
    parts = [_memory(plan.estimate), _work(plan, plan.estimate), _collectives(plan.estimate)]
    if plan.estimate.time:
        parts += [_times(plan, plan.estimate), _slowest(plan.estimate)]
    return "\n".join([*lines, *(line for part in parts for line in ["", *part])])


def does_not_fit(plan: Plan) -> list[str]:
    """By how much, and what by its size would fit."""
    needed, limit = memory_of(plan)
    parts, most = plan.micro_batches, plan.batch // max(1, plan.mesh["data"] * plan.mesh["fsdp"])
    while parts < most and needed * plan.micro_batches / parts > limit:
        parts *= 2
    return [
        f"DOES NOT FIT: at least {gib(needed)} GiB are needed, {gib(limit)} GiB are there",
        f"by its size train.micro_batches={parts} would fit (not compiled); --search finds out",
    ]


def _memory(found: Estimate) -> list[str]:
    memory = found.memory
    rows = [
        ("parameters", memory.parameters),
        ("optimiser", memory.optimizer),
        ("other state (averages, memories)", memory.other_state),
        ("batch", memory.batch),
        ("activations, gradients, copies", memory.temporary),
        ("program", memory.program),
    ]
    limit = f"{gib(memory.limit)} GiB there" if memory.limit else "limit not known"
    lines = [("memory of a chip", "GiB"), *((f"  {name}", gib(size, 3)) for name, size in rows)]
    lines.append(("  peak, with padding of layouts", gib(memory.peak, 3)))
    lines.append(("  buffers with the gaps between them", gib(memory.allocated, 3)))
    return [*aligned(lines).split("\n"), f"  {limit}"]


def _work(plan: Plan, found: Estimate) -> list[str]:
    del plan
    again = found.program_flops / found.model_flops - 1
    return [
        "work of a chip and step",
        f"  model           {found.model_flops / 1e12:10.2f} TFLOP  analytic, matrix products, "
        "forward and backward",
        f"  program         {found.program_flops / 1e12:10.2f} TFLOP  compiled, loops counted: "
        f"{again:+.0%} (recomputed, the loss)",
        f"  main memory     {found.traffic / 1e9:10.2f} GB     read and written",
    ]


def _collectives(found: Estimate) -> list[str]:
    head = ("collectives of a chip and step", "loops", "group", "times", "MB", "MB sent", "")
    rows = [
        (
            f"  {one.kind}",
            str(one.loops),
            str(one.group),
            f"{one.executions:,}",
            f"{one.bytes / 1e6:,.1f}",
            f"{one.wire / 1e6:,.1f}",
            ("beside computation" if one.hidden else "")
            + (" between slices" if one.between_slices else ""),
        )
        for one in found.collectives
    ]
    return aligned([head, *rows]).split("\n") if rows else ["no collectives"]


def _times(plan: Plan, found: Estimate) -> list[str]:
    time = found.time
    assert time is not None
    named = {
        "all products at peak": time.compute,
        "all memory traffic at bandwidth": time.memory,
        "all collectives on two links": time.network,
        "collectives with nothing beside them": time.exposed,
        "step by the roofline": time.roofline,
    }
    if time.compiler is not None:
        named["step by the compiler's cycles"] = time.compiler
    lines = [f"  {name:<38}{1e3 * seconds:10.2f} ms" for name, seconds in named.items()]
    return [
        "estimated times of a step (nothing ran)",
        *lines,
        f"  {'samples/s':<38}{plan.samples_per_s or 0:10,.0f}",
        f"  MFU {percent(plan.share_of_peak())}, HFU {percent(plan.share_of_peak(hardware=True))}; "
        f"by the roofline MFU {percent(plan.share_of_peak(roofline=True))}",
    ]


def _slowest(found: Estimate) -> list[str]:
    lines = ["instructions that take most: ms by the compiler, by the roofline; TFLOP; times"]
    for one in found.slowest:
        lines.append(
            f"  {1e3 * one.compiler:8.2f} {1e3 * one.roofline:8.2f} {one.flops / 1e12:8.2f} "
            f"{one.times:6}  {one.shape}  {one.source[-70:]}"
        )
    return lines


def cost(plan: Plan, samples: int, price: float) -> str:
    """What samples cost, and how long they take."""
    found, rate = plan.cost(samples, price), plan.samples_per_s
    if found is None or rate is None:
        return f"{plan.target}: no time is known, so no cost"
    return (
        f"{plan.target}: {samples:,} samples in {samples / rate / 3600:,.1f} h, "
        f"{samples / rate / 3600 * plan.devices:,.0f} chip-hours, {found:,.0f} at {price} a "
        "chip-hour (estimated)"
    )


def gib(size: int, digits: int = 2) -> str:
    """Bytes as GiB, without the unit."""
    return f"{size / 2**30:.{digits}f}"


def percent(share: float | None) -> str:
    """`51.2 %`, or a dash."""
    return "-" if share is None else f"{100 * share:.1f} %"


def _or_dash(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
