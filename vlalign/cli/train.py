"""Train a model, or go on with a run that was stopped.

Without an argument: configs/emoji_clip.py, a CLIP on the embedded emoji, in a few minutes on two
CPU cores. The run directory gets checkpoints, the configuration as text, metrics (JSONL and
TensorBoard) and report.html. The same command again goes on where the run stopped, bit for bit.
"""

import argparse
from pathlib import Path

from vlalign.cli._configs import add_config_arguments, find_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add_config_arguments(parser)
    parser.add_argument("--run-dir", type=Path, help="where the run lives (default: runs/<name>)")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("--no-report", action="store_true", help="do not write report.html")


def run(args: argparse.Namespace) -> int:
    """Trains; exit code 0 when finished or stopped by SIGTERM with everything saved."""
    from vlalign.cli._devices import simulate

    simulate(args.devices)
    from vlalign import tree
    from vlalign.experiment import load_config
    from vlalign.runs import prepare_run
    from vlalign.train.loop import train

    experiment = tree.override(load_config(find_config(args.config)), args.overrides)
    run_dir = args.run_dir or Path("runs") / experiment.name
    prepare_run(experiment, run_dir)
    if not args.quiet:
        print(f"run directory {run_dir}", flush=True)
    outcome = train(experiment, run_dir, quiet=args.quiet)
    if outcome.finished and not args.no_report:
        from vlalign.evals.report import report_from_run
        from vlalign.runs import open_run

        path = report_from_run(open_run(run_dir, allow_modules=tree.modules(experiment)))
        if not args.quiet:
            print(f"report {path}")
    return 0
