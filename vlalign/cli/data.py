"""Builds data sets.

`vlalign data build emoji --from DIR` makes the embedded emoji data set again, from the four npm
tarballs in DIR, as these commands leave them:

    npm pack emoji-datasource@16.0.0 emoji-datasource-google@16.0.0
    npm pack emoji-datasource-twitter@16.0.0 cldr-annotations-full@48.2.0

The same tarballs give the same bytes. Nothing is unpacked to disk.
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vlalign.data import emoji, emoji_build
from vlalign.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `vlalign data`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = actions.add_parser("build", help="build a data set from its public sources")
    build.add_argument("dataset", choices=["emoji"], help="the data set to build")
    build.add_argument(
        "--from", dest="from_dir", type=Path, required=True, metavar="DIR", help="the tarballs"
    )
    build.add_argument(
        "--out",
        type=Path,
        default=emoji.ASSETS,
        metavar="DIR",
        help="where to write it (default: into the installed package)",
    )


def run(args: argparse.Namespace) -> int:
    """Builds the data set and prints what was written."""
    if not args.from_dir.is_dir():
        raise UserError(f"--from {args.from_dir}: no such folder")
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out {args.out}: not a folder")
    sizes = _with_progress(args.from_dir, args.out)
    for name, size in sizes.items():
        print(f"{size:>10,}  {args.out / name}")
    return 0


def _with_progress(from_dir: Path, out: Path) -> dict[str, int]:
    columns = (TextColumn("{task.description:>8}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        tasks = {style: bar.add_task(style, total=None) for style in emoji_build.STYLE_PACKAGES}
        return emoji_build.build(
            from_dir,
            out,
            progress=lambda what, done, total: bar.update(tasks[what], completed=done, total=total),
        )
