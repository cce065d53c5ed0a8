"""Train a model, or go on with a run that was stopped.

Without an argument: configs/emoji_clip.py, a CLIP on the embedded emoji, in a few minutes on two
CPU cores. The run directory gets checkpoints, the configuration as text, metrics (JSONL and
TensorBoard) and report.html. The same command again goes on where the run stopped, bit for bit.
"""

import argparse
import time
from pathlib import Path

from vlalign.cli._configs import add_config_arguments, find_config
from vlalign.cli._devices import simulate
from vlalign.cli._hosts import add_host_arguments, join_hosts
from vlalign.errors import UserError
from vlalign.programs import keep_compiled_programs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add_config_arguments(parser)
    parser.add_argument("--run-dir", type=Path, help="where the run lives (default: runs/<name>)")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("--no-report", action="store_true", help="do not write report.html")
    parser.add_argument(
        "--profile",
        type=_window,
        metavar="FIRST:LAST",
        help="record these steps for TensorBoard or Perfetto, below RUN_DIR/profile",
    )
    add_host_arguments(parser)


def _window(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise UserError(f"--profile {text!r}: expected FIRST:LAST, for example 100:105")
    return int(first), int(last)


def run(args: argparse.Namespace) -> int:
    """Trains; exit code 0 when finished or stopped by SIGTERM with everything saved."""
    started = time.perf_counter()
    simulate(args.devices)
    keep_compiled_programs()
    join_hosts(args)
    from vlalign.parallel import hosts

    with hosts.together():
        return _train(args, started)


def _train(args: argparse.Namespace, started: float) -> int:
    from vlalign import tree
    from vlalign.experiment import load_config
    from vlalign.parallel import hosts
    from vlalign.runs import prepare_run
    from vlalign.train.loop import train

    experiment = tree.override(load_config(find_config(args.config)), args.overrides)
    run_dir = args.run_dir or Path("runs") / experiment.name
    if hosts.is_main():
        prepare_run(experiment, run_dir)
    hosts.barrier("run directory")
    quiet = args.quiet or not hosts.is_main()
    if not quiet:
        print(f"run directory {run_dir}", flush=True)
    outcome = train(experiment, run_dir, quiet=quiet, started=started, profile=args.profile)
    if outcome.finished and not args.no_report:
        if hosts.processes() > 1:
            if not quiet:
                print(f"the report of a run of several processes: vlalign report {run_dir}")
            return 0
        from vlalign.evals.report import report_from_run
        from vlalign.runs import open_run

        path = report_from_run(open_run(run_dir, allow_modules=tree.modules(experiment)))
        if not quiet:
            print(f"report {path}")
    return 0
