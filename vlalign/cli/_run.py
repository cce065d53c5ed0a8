"""The argument RUN of the commands that use a trained model, and --model in its place."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vlalign.cli._configs import find_config
from vlalign.errors import UserError
from vlalign.programs import keep_compiled_programs

if TYPE_CHECKING:
    from vlalign.evals.run import Run as AnyRun
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


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """--model, of the commands that a pre-trained model is enough for."""
    group = parser.add_argument_group("a pre-trained model in the place of a run")
    group.add_argument(
        "--model",
        metavar="SOURCE",
        help="directory, file or hf://org/name, as `vlalign convert` reads it; RUN is then a "
        "configuration (a Python file, or the name of a shipped one), whose evaluators are used "
        "with the towers, the preprocessing and the tokenizer of the model",
    )
    group.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="vocabulary of --model, where it does not lie beside the weights; `none`: do without",
    )


def open_argument(args: argparse.Namespace) -> "Run":
    """The run that the arguments name."""
    keep_compiled_programs()
    from vlalign.runs import open_run

    _find_modules(args)
    return open_run(args.run, step=args.step, allow_modules=tuple(args.allow_modules))


def open_any(args: argparse.Namespace) -> "AnyRun":
    """The run that the arguments name, or the pre-trained model as one."""
    if args.model is None:
        if args.tokenizer is not None:
            raise UserError("--tokenizer belongs to --model; a run has its own")
        return open_argument(args)
    if args.step is not None:
        raise UserError(f"--step {args.step}: a pre-trained model has no steps; leave it out")
    from vlalign.experiment import load_config
    from vlalign.pretrained import ModelRun, load

    _find_modules(args)
    experiment = load_config(find_config(str(args.run)))
    model = load(
        args.model,
        batch_size=experiment.train.eval_batch_size,
        tokenizer=args.tokenizer,
        allow_modules=tuple(args.allow_modules),
    )
    return ModelRun.of(model, experiment)


def title_of(args: argparse.Namespace, opened: "AnyRun") -> str:
    """What was opened, for people."""
    if args.model is None:
        return f"{opened.path}, step {opened.step:,}"
    return f"{args.model}, evaluators of {args.run}"


def _find_modules(args: argparse.Namespace) -> None:
    if args.allow_modules:
        sys.path.insert(0, os.getcwd())
