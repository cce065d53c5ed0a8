"""How many samples/s the input of a configuration gives, and which stage limits it.

    vlalign data bench emoji_clip
    vlalign data bench my_config.py --workers 0 2 8 --seconds 20 --set data.batch_size=1024

The stages (read, each view, tokenise, assemble) are timed in one thread; the rates are those of the
pipeline as training uses it, with the threads of the configuration. Nothing is trained; the
tokenizer is made as training makes it. Measure on the machine that trains, with nothing beside it.
"""

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

from vlalign.cli._configs import add_config_arguments, find_config
from vlalign.cli._data_source import console
from vlalign.cli._machine import cores
from vlalign.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from vlalign.data.bench import Rate, Stages


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the action."""
    add_config_arguments(parser)
    parser.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        metavar="S",
        help="of the stages, and of each rate (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        nargs="+",
        metavar="N",
        help="measure the rate with these numbers of worker processes (default: as configured)",
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")


def run(args: argparse.Namespace) -> int:
    """Measures and prints."""
    from vlalign.cli._devices import simulate

    if not 0 < args.seconds < float("inf"):
        raise UserError(f"--seconds {args.seconds}: more than 0")
    if min(args.workers or [0]) < 0:
        raise UserError(f"--workers {min(args.workers)}: 0 or more")
    simulate(args.devices)
    from rich.console import Console

    from vlalign import tree
    from vlalign.data import bench
    from vlalign.experiment import load_config

    data = tree.override(load_config(find_config(args.config)), args.overrides).data
    with Console(stderr=True).status("making the tokenizer ...") as status:
        tokenizer = data.fit_tokenizer()
        status.update("timing the stages ...")
        stages = bench.measure_stages(data, tokenizer, seconds=args.seconds)
        rates = []
        for workers in dict.fromkeys(args.workers or [data.workers]):
            status.update(f"taking batches with {workers} workers ...")
            rates.append(bench.measure_rate(data, tokenizer, workers=workers, seconds=args.seconds))
    lines = bench.verdict(stages, rates, data, cores=cores())
    if args.json:
        document = {
            "stages": dataclasses.asdict(stages),
            "rates": [dataclasses.asdict(rate) for rate in rates],
            "verdict": lines,
        }
        print(json.dumps(document, indent=1))
        return 0
    out = console()
    out.print(_stages(stages))
    out.print(f"the pipeline, data.threads={data.threads}, on {cores()} cores:")
    out.print(_rates(rates))
    for line in lines:
        out.print(f"- {line}", soft_wrap=True)
    return 0


def _stages(stages: "Stages") -> "Table":
    from rich.table import Table

    table = Table("stage", "µs a sample", "share", box=None, header_style="bold")
    for name, share in stages.shares().items():
        cost = 1e6 * stages.seconds[name] / stages.samples
        table.add_row(name, f"{cost:,.1f}", f"{100 * share:.1f} %")
    table.add_row("one thread", f"{1e6 / stages.rate():,.1f}", f"{stages.rate():,.0f} samples/s")
    if stages.bad:
        table.add_row("bad", "", f"{stages.bad:,} of {stages.samples:,}")
    return table


def _rates(rates: "list[Rate]") -> "Table":
    from rich.table import Table

    table = Table("workers", "samples/s", "first batch, s", box=None, header_style="bold")
    for rate in rates:
        table.add_row(str(rate.workers), f"{rate.samples_per_s:,.0f}", f"{rate.start_s:.1f}")
    return table
