"""Write report.html of a run again: curves, results with intervals, contact sheets, configuration.

The file is self-contained: it needs no network and no other file, and prints well.
"""

import argparse

from vlalign.cli._run import add_run_arguments, open_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the report and prints its path."""
    from rich.console import Console

    from vlalign.evals.report import report_from_run

    with Console(stderr=True).status("opening the run ...") as status:
        path = report_from_run(open_argument(args), lambda text: status.update(f"{text} ..."))
    print(path)
    return 0
