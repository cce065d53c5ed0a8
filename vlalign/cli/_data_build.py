"""Build a data set from its public sources.

`vlalign data build emoji --from DIR` makes the embedded emoji data set again, from the four npm
tarballs in DIR, as these commands leave them:

    npm pack emoji-datasource@16.0.0 emoji-datasource-google@16.0.0
    npm pack emoji-datasource-twitter@16.0.0 cldr-annotations-full@48.2.0

The same tarballs give the same bytes. Nothing is unpacked to disk.
"""

import argparse
from pathlib import Path

from vlalign.cli._data_source import progress_bar
from vlalign.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the action."""
    parser.add_argument("dataset", choices=["emoji"], help="the data set to build")
    parser.add_argument(
        "--from", dest="from_dir", type=Path, required=True, metavar="DIR", help="the tarballs"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where to write it (default: into the installed package)",
    )


def run(args: argparse.Namespace) -> int:
    """Builds the data set and prints what was written."""
    from vlalign.data import emoji, emoji_build

    out = args.out or emoji.ASSETS
    if not args.from_dir.is_dir():
        raise UserError(f"--from {args.from_dir}: no such folder")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: not a folder")
    with progress_bar() as bar:
        tasks = {style: bar.add_task(style, total=None) for style in emoji_build.STYLE_PACKAGES}
        sizes = emoji_build.build(
            args.from_dir,
            out,
            progress=lambda what, done, total: bar.update(tasks[what], completed=done, total=total),
        )
    for name, size in sizes.items():
        print(f"{size:>10,}  {out / name}")
    return 0
