"""Find images for a sentence, or names for an image, with the model of a run.

    vlalign search RUN "a red heart"             the best images, listed and drawn
    vlalign search RUN "a cat" "rain" --out sheet.png
    vlalign search RUN --image photo.png         the best names for a picture
    vlalign search CONFIG "a cat" --model hf://org/name      with a pre-trained model

Searched are the records of the run's evaluators. Their embeddings are kept in RUN/search (those of
a pre-trained model in vlalign's cache), so the second search is fast. On a true-colour terminal the
hits are drawn there too.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlalign.cli._run import add_model_arguments, add_run_arguments, open_any, title_of
from vlalign.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from vlalign.evals.pictures import SheetRow
    from vlalign.evals.run import Run
    from vlalign.evals.search import Shelf


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add_run_arguments(parser)
    add_model_arguments(parser)
    parser.add_argument("query", nargs="*", metavar="TEXT", help="what to look for; several texts")
    parser.add_argument(
        "--image", type=Path, metavar="FILE", help="find names for this picture instead"
    )
    parser.add_argument(
        "--source-of",
        metavar="EVALUATOR",
        action="append",
        help="search only the records of this evaluator; repeatable (default: of all)",
    )
    parser.add_argument("--top", type=int, default=8, metavar="N", help="hits a query (default: 8)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.png",
        help="contact sheet of the hits (default: last.png beside the kept embeddings)",
    )
    parser.add_argument(
        "--no-draw", action="store_true", help="do not draw pictures in the terminal"
    )


def run(args: argparse.Namespace) -> int:
    """Searches and prints."""
    _check(args)
    from rich.console import Console

    from vlalign.evals.run import model_key
    from vlalign.evals.search import shelf, sources

    console = Console(highlight=False)
    with Console(stderr=True).status("opening the model ...") as status:
        opened = open_any(args)
        shelves = [
            shelf(
                source,
                opened.tools,
                opened.embed,
                folder=opened.path / "search",
                key=model_key(opened),
                progress=lambda text: status.update(f"{text} ..."),
            )
            for source in sources(opened.experiment.evals, args.source_of).values()
        ]
    for one in shelves:
        if one.skipped:
            console.print(f"{one.title}: {one.skipped} broken records left out", style="yellow")
    if args.image:
        _names_for(args.image, opened, shelves, args.top, console)
    else:
        _images_for(args, opened, shelves, console)
    return 0


def _check(args: argparse.Namespace) -> None:
    if bool(args.query) == bool(args.image):
        raise UserError('give either a text, as in `vlalign search RUN "a red heart"`, or --image')
    if args.top < 1:
        raise UserError(f"--top {args.top}: at least 1")
    blank = [text for text in args.query if not text.strip()]
    if blank:
        raise UserError("an empty text finds nothing: say what to look for")
    if args.out and args.image:
        raise UserError("--out draws images found for a text; with --image there are only names")
    if args.out and args.out.suffix.lower() != ".png":
        raise UserError(f"--out {args.out}: the contact sheet is a PNG, so name it FILE.png")
    if args.image and not args.image.is_file():
        raise UserError(f"--image {args.image}: no such file")


def _names_for(
    path: Path, opened: "Run", shelves: Sequence["Shelf"], top: int, console: "Console"
) -> None:
    from rich.table import Table

    from vlalign.data.record import BadRecord
    from vlalign.evals.search import find_names

    try:
        pixels = opened.tools.image(path.read_bytes())
    except BadRecord as error:
        raise UserError(f"--image {path} cannot be used: {error}") from error
    query_d = opened.embed("image", pixels[None])[0]
    table = Table("rank", "score", "name", box=None, title=path.name, title_justify="left")
    for rank, (score, name) in enumerate(find_names(query_d, shelves, top), start=1):
        table.add_row(str(rank), f"{score:.3f}", name)
    console.print(table)


def _images_for(
    args: argparse.Namespace, opened: "Run", shelves: Sequence["Shelf"], console: "Console"
) -> None:
    from rich.table import Table

    from vlalign.evals.pictures import Sheet, SheetRow, contact_sheet, save_png
    from vlalign.evals.search import as_hits, find_images

    queries_qd = opened.embed("text", opened.tools.tokens(args.query))
    rows = []
    for text, query_d in zip(args.query, queries_qd, strict=True):
        found = find_images(query_d, shelves, args.top)
        table = Table("rank", "score", "name", "in", box=None, title=text, title_justify="left")
        for rank, (score, name, one, _) in enumerate(found, start=1):
            table.add_row(str(rank), f"{score:.3f}", name, one.title)
        console.print(table)
        rows.append(SheetRow(query=text, hits=as_hits(found)))
    if not args.no_draw and console.is_terminal and console.color_system == "truecolor":
        _draw(rows, console)
    title = title_of(args, opened).removeprefix(f"{opened.path.parent}/")
    sheet = Sheet(title=title, rows=tuple(rows))
    out = args.out or opened.path / "search" / "last.png"
    save_png(contact_sheet(sheet), out)
    console.print(f"drawn in {out}", markup=False, soft_wrap=True)


def _draw(rows: Sequence["SheetRow"], console: "Console") -> None:
    from vlalign.evals.terminal import hits_table

    for row in rows:
        console.print(hits_table(row, columns=console.width))
