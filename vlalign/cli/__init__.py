"""The `vlalign` command: finds the subcommand, runs it, and words its failures.

A subcommand NAME is the module `vlalign.cli.NAME` with `add_arguments(parser)` and
`run(args) -> int`; its docstring is its help. It is imported only when it is called, so that
`vlalign --help` does not wait for jax.
Exit codes: 0 done, 1 a finding or a failure, 2 wrong input, 130 interrupted.
"""

import argparse
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from vlalign import __version__
from vlalign.errors import UserError, nearest

COMMANDS = {
    "train": "train a configuration, or go on with an interrupted run",
    "eval": "repeat the evaluation of a run",
    "embed": "write a run's embeddings to a Parquet file",
    "search": "find images for a sentence, or names for an image",
    "report": "write the report.html of a run",
    "plan": "memory, FLOPs, collectives, time and cost on machines that are not there",
    "show": "print a configuration, its parameters and its FLOPs",
    "models": "list published models: sizes, parameters, GFLOPs",
    "convert": "models from and to open_clip and Hugging Face",
    "data": "build and inspect data sets",
    "doctor": "check this installation: versions, devices, a self-test",
}


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that allows no abbreviations and raises `UserError` for wrong input."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raises, where `argparse` prints and exits, so that all wrong input is reported alike."""
        raise UserError(f"{message}\n{self.format_usage().rstrip()}\n(see {self.prog} --help)")

    def parse_known_args(
        self, args: Iterable[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """As the parent, but an unknown argument raises with the nearest option."""
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            options = [option for option in self._option_string_actions if option[:2] == "--"]
            hint = nearest(unknown[0].split("=")[0], options) if unknown[0][0] == "-" else ""
            self.error(f"unexpected argument {unknown[0]!r}{hint}")
        return known, unknown


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line `arguments` (default: the process's own) and returns its exit code."""
    try:
        code = _dispatch(sys.argv[1:] if arguments is None else list(arguments))
        sys.stdout.flush()  # here, where a reader that has left (`| head`) can be handled
        return code
    except UserError as error:
        print(f"vlalign: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nvlalign: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        traceback.print_exc()
        print(f"\nvlalign: {_explanation(error)}", file=sys.stderr)
        return 1


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        return _without_command(arguments)
    name, *rest = arguments
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}{nearest(name, COMMANDS)} (see vlalign --help)")
    module = importlib.import_module(f"vlalign.cli.{name}")
    parser = Parser(prog=f"vlalign {name}", description=inspect.cleandoc(module.__doc__ or ""))
    module.add_arguments(parser)
    run: Callable[[argparse.Namespace], int] = module.run
    return run(parser.parse_args(rest))


def _without_command(arguments: list[str]) -> int:
    width = max(map(len, COMMANDS))
    parser = Parser(
        prog="vlalign",
        usage="vlalign COMMAND [ARGUMENTS]",
        description="Train and evaluate models that put images and text into one space.",
        epilog="\n".join(
            ["commands:"]
            + [f"  {name:<{width}}  {line}" for name, line in COMMANDS.items()]
            + ["", "`vlalign COMMAND --help` describes a command and its arguments."]
        ),
    )
    parser.add_argument("--version", action="version", version=f"vlalign {__version__}")
    parser.parse_args(arguments)
    parser.print_help(sys.stderr)
    return 2


def _explanation(error: Exception) -> str:
    """What a person can do about an error that no command has foreseen."""
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return "out of memory: make the batch or the model smaller, or use more devices"
    if isinstance(error, OSError):
        return f"the system refused: {error} (a path, a permission, or a full disk?)"
    return (
        "this is a bug in vlalign. Please report it with the lines above, the command, "
        "and what `vlalign doctor` prints."
    )
