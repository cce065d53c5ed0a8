"""Plans: a configuration on a target, compiled once and remembered in the user's cache."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vlalign
from vlalign import tree
from vlalign.data.storage import cache_folder
from vlalign.parallel.chips import Chip, chip_of
from vlalign.plan.estimate import Cost, Estimate, Memory, Time, Traffic, estimate
from vlalign.plan.step import DoesNotFit, compile_for, parts_of
from vlalign.plan.target import Target
from vlalign.versions import versions

if TYPE_CHECKING:
    from vlalign.experiment import Experiment

# Where the code is that decides the compiled step and how it is read.
_ROOMS = ("encoders", "losses", "objectives", "parallel", "plan", "train")

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A configuration on a target.

    remat: of each tower.   mesh: axis -> size.   device_kind: jax's name of the chip.
    needed, limit: bytes of a device, where the compiler found no place; then estimate is None.
    """

    config: str
    target: str
    device_kind: str
    devices: int
    batch: int
    micro_batches: int
    remat: dict[str, str]
    mesh: dict[str, int]
    versions: dict[str, str | None]
    estimate: Estimate | None = None
    needed: int | None = None
    limit: int | None = None

    @property
    def chip(self) -> Chip | None:
        """The row of the chip table."""
        return chip_of(self.device_kind)

    @property
    def fits(self) -> bool | None:
        """Whether it fits; None if the device's memory is not known."""
        return False if self.estimate is None else self.estimate.fits

    @property
    def seconds(self) -> float | None:
        """Estimated, of a step."""
        return self.estimate.time.step if self.estimate and self.estimate.time else None

    @property
    def samples_per_s(self) -> float | None:
        """Estimated, all devices."""
        return self.batch / self.seconds if self.seconds else None

    def share_of_peak(self, *, hardware: bool = False, roofline: bool = False) -> float | None:
        """MFU, estimated: the model's operations over the step's time at peak.

        hardware: HFU, all products of the program, recomputed ones too.   roofline: over the
        roofline's time in place of the headline's.
        """
        found, chip = self.estimate, self.chip
        if found is None or found.time is None or chip is None:
            return None
        flops = found.program_flops if hardware else found.model_flops
        return flops / chip.peak_flops / (found.time.roofline if roofline else found.time.step)

    def cost(self, samples: int, price: float) -> float | None:
        """Of so many samples at a price of a chip for an hour, in the price's currency."""
        rate = self.samples_per_s
        return None if rate is None else samples / rate / 3600 * self.devices * price


def as_json(plan: Plan) -> dict[str, Any]:
    """Plain data; `from_json` reads it."""
    return dataclasses.asdict(plan)


def from_json(data: dict[str, Any]) -> Plan:
    """The plan that `as_json` wrote."""
    found = data["estimate"]
    if found is not None:
        parts = {
            "memory": Memory(**found["memory"]),
            "time": Time(**found["time"]) if found["time"] else None,
            "collectives": tuple(Traffic(**one) for one in found["collectives"]),
            "slowest": tuple(Cost(**one) for one in found["slowest"]),
        }
        found = Estimate(**{**found, **parts})
    return Plan(**{**data, "estimate": found})


class Planner:
    """Makes plans, and remembers them.

    say: is told what is being compiled.   keep: whether plans are read from and written to the
    cache ($VLALIGN_CACHE, ~/.cache/vlalign).   times: seconds of the compilations so far.
    """

    def __init__(self, say: Say = lambda text: None, *, keep: bool = True) -> None:
        self._say, self._keep = say, keep
        self.times: list[float] = []

    def plan(self, experiment: "Experiment", target: Target) -> Plan:
        """The plan of an experiment on a target. Raises UserError for what cannot run there."""
        path = cache_folder() / "plans" / f"{_key(experiment, target)}.json"
        if self._keep and path.is_file():
            return from_json(json.loads(path.read_text(encoding="utf-8")))
        self._say(f"compiling {describe(experiment, target)} ... ({self._expected()})")
        start = time.perf_counter()
        plan = _compiled(experiment, target)
        self.times.append(time.perf_counter() - start)
        if self._keep:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(as_json(plan)), encoding="utf-8")
            partial.replace(path)
        return plan

    def _expected(self) -> str:
        if not self.times:
            return "seconds for small models, minutes for large ones"
        return f"some {sum(self.times) / len(self.times):.0f} s, as those before"


def describe(experiment: "Experiment", target: Target) -> str:
    """`siglip_b16 for v5e:16x16: batch 32,768, 2 micro-batches, remat full`."""
    remat = ", ".join(sorted(set(_remat(experiment).values())))
    return (
        f"{experiment.name} for {target.name}: batch {experiment.data.batch_size:,}, "
        f"{experiment.train.micro_batches} micro-batches" + (f", remat {remat}" if remat else "")
    )


def _compiled(experiment: "Experiment", target: Target) -> Plan:
    facts: dict[str, Any] = {
        "config": experiment.name,
        "target": target.name,
        "device_kind": target.devices[0].device_kind,
        "batch": experiment.data.batch_size,
        "micro_batches": experiment.train.micro_batches,
        "remat": _remat(experiment),
        "versions": _versions(target),
    }
    try:
        step = compile_for(experiment, target)
    except DoesNotFit as problem:
        mesh = parts_of(experiment, target).mesh
        facts |= {"needed": problem.needed, "limit": problem.limit}
        return Plan(**facts, devices=mesh.size, mesh=dict(mesh.shape))
    mesh, found = step.parts.mesh, estimate(step, target)
    return Plan(**facts, devices=mesh.size, mesh=dict(mesh.shape), estimate=found)


def _remat(experiment: "Experiment") -> dict[str, str]:
    towers = experiment.model.items()
    return {name: module.remat for name, module in towers if hasattr(module, "remat")}


def _versions(target: Target) -> dict[str, str | None]:
    found = versions()
    if target.devices[0].platform == "tpu":
        try:
            found["libtpu"] = version("libtpu")
        except PackageNotFoundError:
            found["libtpu"] = None
    return found


def _key(experiment: "Experiment", target: Target) -> str:
    """sha256 over all that decides a plan: configuration, target, versions, vlalign's own code."""
    parts = [tree.dumps(experiment), target.name, target.devices[0].device_kind]
    parts += [json.dumps(_versions(target), sort_keys=True), _code()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _code() -> str:
    digest = hashlib.sha256()
    for room in _ROOMS:
        for path in sorted((Path(vlalign.__file__).parent / room).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
