"""Repeat the evaluation of a run: every evaluator of its configuration, on its newest checkpoint.

    vlalign eval RUN
    vlalign eval CONFIG --model hf://org/name    a pre-trained model, by CONFIG's evaluators

Prints each number with its 95 % bootstrap interval and writes them to evals.json in the run; with
--only or --model it just prints.
"""

import argparse
import dataclasses
import json
import sys

from vlalign.cli._run import add_model_arguments, add_run_arguments, open_any, title_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add_run_arguments(parser)
    add_model_arguments(parser)
    parser.add_argument(
        "--only",
        metavar="NAME",
        action="append",
        help="only this evaluator of the configuration; repeatable (default: all)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the results as JSON instead of tables"
    )


def run(args: argparse.Namespace) -> int:
    """Evaluates, prints, writes evals.json."""
    from rich.console import Console

    from vlalign.evals.results import choose, evaluate_all, write_results
    from vlalign.evals.tables import results_tables

    opened = open_any(args)
    title = title_of(args, opened)
    evals = choose(opened.experiment.evals, args.only)
    with Console(stderr=True).status(f"evaluating {title} ..."):
        results = evaluate_all(evals, opened.tools, opened.embed)
    if not args.only and args.model is None:  # evals.json is of all evaluators at one step
        write_results(opened.path / "evals.json", opened.step, results)
    if args.json:
        plain = {
            name: {metric: dataclasses.asdict(found) for metric, found in estimates.items()}
            for name, estimates in results.items()
        }
        what = {"step": opened.step} if args.model is None else {"model": args.model}
        json.dump({**what, "evaluators": plain}, sys.stdout, indent=2)
        print()
        return 0
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 400  # a file or pipe has no edge to fold at
    console.print(title, markup=False)
    for table in results_tables(results):
        console.print(table)
    return 0
