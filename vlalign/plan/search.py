"""The fastest micro-batches and rematerialisation that fit, and the largest batch with them."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vlalign import tree
from vlalign.parallel.mesh import batch_shards
from vlalign.plan.plans import Plan, Planner
from vlalign.plan.step import mesh_of, remat_choices
from vlalign.plan.target import Target

if TYPE_CHECKING:
    from vlalign.experiment import Experiment


def variant(
    experiment: "Experiment",
    *,
    batch: int | None = None,
    micro_batches: int | None = None,
    remat: str | None = None,
) -> "Experiment":
    """The experiment with another batch, micro-batches, or remat of all towers that have one."""
    overrides = []
    if batch is not None:
        overrides.append(f"data.batch_size={batch}")
    if micro_batches is not None:
        overrides.append(f"train.micro_batches={micro_batches}")
    if remat is not None:
        towers = [name for name, module in experiment.model.items() if hasattr(module, "remat")]
        overrides += [f"model.{name}.remat={remat}" for name in towers]
    changed: Experiment = tree.override(experiment, overrides)
    return changed


def searched(planner: Planner, experiment: "Experiment", target: Target) -> list[Plan]:
    """For each remat the fewest micro-batches that fit: the fastest first, those that do not last.

    More micro-batches than are needed only take longer: the parts are smaller, and a second one
    brings recomputation with it.
    """
    choices: tuple[str | None, ...] = remat_choices(experiment) or (None,)
    found = [_fewest(planner, experiment, target, remat) for remat in choices]
    return sorted(found, key=lambda plan: (plan.fits is False, plan.seconds or math.inf))


def _fewest(planner: Planner, experiment: "Experiment", target: Target, remat: str | None) -> Plan:
    batch = experiment.data.batch_size
    most = batch // batch_shards(mesh_of(experiment, target))
    parts = 1
    while True:
        plan = planner.plan(variant(experiment, micro_batches=parts, remat=remat), target)
        step = _factor(plan)
        if plan.fits is not False or parts * 2 > most or batch % (parts * 2):
            return plan
        while parts * step > most or batch % (parts * step):
            step //= 2
        parts *= step


def _factor(plan: Plan) -> int:
    """By what power of two the memory is too small; at least 2."""
    needed, limit = memory_of(plan)
    return 2 ** max(1, math.ceil(math.log2(max(needed / limit, 1.0)))) if limit else 2


def memory_of(plan: Plan) -> tuple[int, int]:
    """Bytes that are needed and that there are, of a device; 0 where not known."""
    if plan.estimate is not None:
        return plan.estimate.memory.peak, plan.estimate.memory.limit or 0
    return plan.needed or 0, plan.limit or 0


def largest_batch(planner: Planner, experiment: "Experiment", target: Target) -> Iterator[Plan]:
    """Plans on the way to the largest batch that fits, in powers of two of the configured one.

    Memory beside the state is taken to grow with the batch, which says where to look; the last plan
    that fits is the answer. None fits if even one row a device is too much.
    """
    least = batch_shards(mesh_of(experiment, target)) * experiment.train.micro_batches
    first = planner.plan(experiment, target)
    yield first
    batch, fitted, failed = experiment.data.batch_size, 0, 0
    plan = first
    while True:
        if plan.fits is False:
            failed, following = batch, batch // _factor(plan)
        else:
            fitted, following = batch, batch * _room(plan)
        if fitted and failed == 2 * fitted:
            return
        if failed and following >= failed:
            following = failed // 2
        if fitted and following <= fitted:
            following = fitted * 2
        if following < least or following % least:
            return
        batch = following
        plan = planner.plan(variant(experiment, batch=batch), target)
        yield plan


def _room(plan: Plan) -> int:
    """How often, as a power of two, the activations would have place; at least 2."""
    found = plan.estimate
    if found is None or not found.memory.limit:
        return 2
    fixed = found.memory.peak - found.memory.temporary
    times = (found.memory.limit - fixed) / max(found.memory.temporary, 1)
    return 2 ** max(1, math.floor(math.log2(max(times, 1.0))))
