"""What a training step needs on machines you do not have: memory, FLOPs, collectives, time, cost.

    vlalign plan siglip_b16 --topology v5e:16x16
    vlalign plan siglip_b16 --topology v5e:16x16 v5p:4x4x8 --out plans/ --price 1.2 --samples 9e9
    vlalign plan siglip_b16 --topology v5e:16x16 --search
    vlalign plan emoji_clip --devices 8

The real step is compiled for the real chip, on a host without one: pip install 'vlalign[tpu]'. With
--devices it is compiled for simulated CPU devices, with neither for the devices of this machine.
Nothing runs, and no data is read: memory, operations and collectives are the compiler's, all times
are estimates. The exit code is 1 if something does not fit. Plans are kept in the cache
($VLALIGN_CACHE, ~/.cache/vlalign).
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlalign.cli._configs import add_config_arguments, find_config
from vlalign.errors import UserError

if TYPE_CHECKING:
    from vlalign.plan.plans import Plan, Planner
    from vlalign.plan.target import Target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add_config_arguments(parser)
    parser.add_argument(
        "--topology",
        nargs="+",
        default=[],
        metavar="T",
        help="TPU slices to plan for, as in v5e:16x16 v5p:4x4x8 v4:2x2x4 v6e:16x16",
    )
    parser.add_argument(
        "--slices", type=int, default=1, help="how many slices of each topology (default: 1)"
    )
    parser.add_argument("--batch", type=int, help="global batch (default: the configuration's)")
    parser.add_argument(
        "--search",
        action="store_true",
        help="find the fastest micro-batches and remat that fit, and then the largest batch",
    )
    parser.add_argument("--price", type=float, metavar="USD", help="of a chip for an hour")
    parser.add_argument("--samples", type=float, metavar="N", help="to train on, as in 9e9")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write plan.json and plan.png there"
    )
    parser.add_argument("--json", action="store_true", help="print the plans as JSON")
    parser.add_argument(
        "--no-cache", action="store_true", help="compile again what is in the cache"
    )


def run(args: argparse.Namespace) -> int:
    """Plans and prints; 1 if something does not fit."""
    _check(args)
    targets = _targets(args)
    from vlalign import tree
    from vlalign.experiment import load_config
    from vlalign.plan.plans import Planner
    from vlalign.plan.search import variant

    experiment = tree.override(load_config(find_config(args.config)), args.overrides)
    if args.batch is not None:
        experiment = variant(experiment, batch=args.batch)
    planner = Planner(_say, keep=not args.no_cache)
    plans, fit = [], True
    for target in targets:
        found = _search(planner, experiment, target) if args.search else []
        found = found or [planner.plan(experiment, target)]
        fit = fit and found[0].fits is not False
        plans += found
        if not args.json:
            _print(found, args)
    if args.json:
        print(json.dumps(_document(plans, args), indent=1))
    elif len(targets) > 1:
        from vlalign.plan.tables import comparison

        print("\n" + comparison(plans))
    if args.out:
        _write(plans, args)
    return 0 if fit else 1


def _check(args: argparse.Namespace) -> None:
    if args.topology and args.devices is not None:
        raise UserError("--topology and --devices: one of them; the one is TPUs, the other CPUs")
    if args.slices != 1 and not args.topology:
        raise UserError("--slices: of a --topology")
    if (args.price is None) != (args.samples is None):
        raise UserError("--price and --samples: give both, a cost is of samples at a price")
    for name in ("batch", "price", "samples", "slices"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name} {value}: more than 0")


def _targets(args: argparse.Namespace) -> "list[Target]":
    from vlalign.cli._devices import simulate

    if args.topology:
        import jax

        # The default backend is not needed; without this, jax would look for a TPU to run on.
        jax.config.update("jax_platforms", "cpu")
    else:
        simulate(args.devices)
    from vlalign.plan.target import here, topology

    return [topology(name, args.slices) for name in args.topology] or [here()]


def _search(planner: "Planner", experiment: Any, target: "Target") -> "list[Plan]":
    """The fastest that fits, the largest batch with it, and all that was tried on the way."""
    from vlalign.plan.search import largest_batch, searched, variant

    found = searched(planner, experiment, target)
    best = found[0]
    if best.fits is not True:
        return found
    remat = next(iter(best.remat.values()), None)
    fastest = variant(experiment, micro_batches=best.micro_batches, remat=remat)
    return found + list(largest_batch(planner, fastest, target))[1:]


def _print(plans: "list[Plan]", args: argparse.Namespace) -> None:
    from vlalign.plan import tables

    print("\n" + tables.details(plans[0]))
    if args.price is not None:
        print("\n" + tables.cost(plans[0], int(args.samples), args.price))
    if len(plans) > 1:
        print("\nall that was tried, the fastest that fits first, then larger batches with it")
        print(tables.comparison(plans))
    print("\n" + tables.note(plans), flush=True)


def _document(plans: "list[Plan]", args: argparse.Namespace) -> dict[str, Any]:
    from vlalign.plan import tables
    from vlalign.plan.plans import as_json

    rows = []
    for plan in plans:
        row = as_json(plan) | {"fits": plan.fits, "samples_per_s": plan.samples_per_s}
        row |= {"mfu": plan.share_of_peak(), "hfu": plan.share_of_peak(hardware=True)}
        row |= {"mfu_roofline": plan.share_of_peak(roofline=True)}
        if args.price is not None:
            row["cost"] = plan.cost(int(args.samples), args.price)
        rows.append(row)
    return {"note": tables.note(plans), "plans": rows}


def _write(plans: "list[Plan]", args: argparse.Namespace) -> None:
    from vlalign.evals.results import write_atomically
    from vlalign.plan.figure import draw

    write_atomically(args.out / "plan.json", json.dumps(_document(plans, args), indent=1) + "\n")
    write_atomically(args.out / "plan.png", draw(plans))
    _say(f"written: {args.out / 'plan.json'}, {args.out / 'plan.png'}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
