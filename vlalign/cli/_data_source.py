"""What the actions of `vlalign data` share: PATH, workers, progress, and how numbers are worded."""

import argparse
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlalign.cli._machine import cores
from vlalign.errors import UserError

if TYPE_CHECKING:
    from rich.progress import Progress

    from vlalign.data.sources import Source

PATH_HELP = (
    "what to read: a file, folder, pattern or URL of tar shards, Parquet, CSV, TSV, JSONL, "
    "ArrayRecord, TFDS or images; or `emoji`, `emoji:twemoji`"
)


def open_path(path: str) -> "Source":
    """The source that a PATH on the command line names."""
    name, _, style = path.partition(":")
    if name == "emoji" and not Path(path).exists():
        from vlalign.data.emoji import LANGUAGES, Emoji

        return Emoji(style=style or "noto", languages=LANGUAGES)  # type: ignore[arg-type]
    from vlalign.data.formats import open_source

    return open_source(path)


def add_workers(parser: argparse.ArgumentParser) -> None:
    """--workers: processes."""
    parser.add_argument(
        "--workers",
        type=int,
        default=cores(),
        metavar="N",
        help="processes, 0 for none beside this one; changes no result (default: %(default)s)",
    )


def check_least(args: argparse.Namespace, **least: int) -> None:
    """Raises UserError for an argument that is below its least value."""
    for name, low in least.items():
        if getattr(args, name) < low:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: at least {low}")


def progress_bar() -> "Progress":
    """A progress bar on the standard error: how many of how many, and for how long still."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description:>8}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))


def console() -> Any:
    """The standard output for tables; a file or pipe has no edge to fold at."""
    from rich.console import Console

    out = Console(highlight=False, markup=False, emoji=False)
    if not out.is_terminal:
        out.width = 400
    return out


def shown(text: str, limit: int = 200) -> str:
    """A text of the data as it may be printed: no control, direction or surrogate characters."""
    cut = text[: limit + 1]
    clean = "".join(
        sign if unicodedata.category(sign) not in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") else "\ufffd"
        for sign in " ".join(cut.split())
    )
    return clean if len(cut) <= limit else clean[: limit - 1] + "…"


def megabytes(size: float) -> str:
    """`532 bytes`, `1.5 kB`, `20.1 MB`, `3.2 GB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
