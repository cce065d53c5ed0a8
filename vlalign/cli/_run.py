"""The argument RUN of the commands that use a trained model."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vlalign.cli._devices import keep_compiled_programs

if TYPE_CHECKING:
    from vlalign.runs import Run


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN, and the options of opening it."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument(
        "--step", type=int, metavar="N", help="checkpoint to use (default: the newest)"
    )
    parser.add_argument(
        "--allow-module",
        action="append",
        default=[],
        metavar="MODULE",
        dest="allow_modules",
        help="module of your own whose classes the configuration may use; looked for here first",
    )


def open_argument(args: argparse.Namespace) -> "Run":
    """The run that the arguments name."""
    keep_compiled_programs()
    from vlalign.runs import open_run

    if args.allow_modules:
        sys.path.insert(0, os.getcwd())
    return open_run(args.run, step=args.step, allow_modules=tuple(args.allow_modules))
