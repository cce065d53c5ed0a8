"""Write report.html of a run again: curves, results with intervals, contact sheets, configuration.

The file is self-contained: it needs no network and no other file, and prints well.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")


def run(args: argparse.Namespace) -> int:
    """Writes the report and prints its path."""
    from rich.console import Console

    from vlalign.evals.report import report_from_run
    from vlalign.runs import open_run

    with Console(stderr=True).status("opening the run ...") as status:
        path = report_from_run(open_run(args.run), lambda text: status.update(f"{text} ..."))
    print(path)
    return 0
