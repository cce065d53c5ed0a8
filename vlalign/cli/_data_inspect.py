"""Look at a sample of a source: a page with images and captions, and what was found.

    vlalign data inspect photos/
    vlalign data inspect 'shards/{000..099}.tar' --rows 500 --out shards.html

Records are drawn evenly over the source, the same ones for the same --seed. The page needs no
network and no other file; its pictures are drawn anew from decoded pixels, its texts are escaped:
nothing of the data runs in it. Duplicates are those within the sample; `vlalign data stats` counts
them all. Languages are as the data tags them, scripts are guessed from the letters.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vlalign.cli._data_source import PATH_HELP, check_least, console, open_path, progress_bar

if TYPE_CHECKING:
    from vlalign.cli._data_page import Copies, Tile
    from vlalign.data.sources import Source
    from vlalign.data.stats import Summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the action."""
    parser.add_argument("path", metavar="PATH", help=PATH_HELP)
    parser.add_argument(
        "--rows", type=int, default=200, metavar="N", help="records (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("report.html"),
        metavar="FILE.html",
        help="the page (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Writes the page, prints the counts."""
    from vlalign.cli._data_page import inspection
    from vlalign.cli._data_tables import overview
    from vlalign.data.stats import sample
    from vlalign.errors import UserError
    from vlalign.evals.results import write_atomically

    check_least(args, rows=1, seed=0)
    if args.out.is_dir():
        raise UserError(f"--out {args.out} is a folder: name a file, such as report.html")
    source = open_path(args.path)
    if not len(source):
        raise UserError(f"{args.path} has no records")
    indices = list(sample(len(source), args.rows, seed=args.seed))
    summary, tiles, copies = _look(source, indices)
    about = f"{len(indices):,} of {len(source):,} records of {args.path}"
    write_atomically(args.out, inspection(args.path, about, summary, tiles, copies))
    out = console()
    for table in overview(summary.as_json()):
        out.print(table)
    out.print(f"{about}, drawn in {args.out}", soft_wrap=True)
    return 0


def _look(source: "Source", indices: list[int]) -> "tuple[Summary, list[Tile], Copies]":
    """The counts, a tile for each record, and which of them are equal."""
    from vlalign.cli._data_page import Copies, Tile, thumbnail
    from vlalign.data.record import BadRecord
    from vlalign.data.stats import Summary

    summary, copies, tiles = Summary(), Copies(), []
    with progress_bar() as bar:
        for index in bar.track(indices, description="records"):
            record = None
            try:
                record = source[index]
                picture = thumbnail(record.image)
            except BadRecord as error:
                summary.add_problem(index, record.key if record else "", error)
                tiles.append(Tile(index=index, record=record, problem=str(error)))
            else:
                summary.add(index, record, whole=False)
                copies.add(index, record)
                tiles.append(Tile(index=index, record=record, picture=picture))
    return summary, tiles, copies
