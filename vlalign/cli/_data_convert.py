"""Convert a source to shards of another format, in parallel and resumable.

    vlalign data convert 'shards/{000..099}.tar' records --format arrayrecord
    vlalign data convert emoji emoji_tar --format tar --shard-size 500

DST gets the shards, manifest.json (which records each shard holds, the source's fingerprint) and
bad.jsonl: index, kind and detail of every record that could not be converted. Stopped or killed,
the same command goes on where it was; the result has the same bytes whatever happened, with any
number of workers. The formats:

    arrayrecord  vlalign's own: nothing is lost, any record is one read away
    tar          as img2dataset writes it, for WebDataset: NUMBER.jpg, NUMBER.txt, NUMBER.json
    parquet      images inside, as Hugging Face's datasets have them
    jsonl        a line a record, in DST/records.jsonl, and the images as files beside it
"""

import argparse
from pathlib import Path

from vlalign.cli._data_source import (
    PATH_HELP,
    add_workers,
    check_least,
    console,
    megabytes,
    open_path,
    progress_bar,
)
from vlalign.errors import UserError

FORMATS = ("arrayrecord", "tar", "parquet", "jsonl")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the action."""
    parser.add_argument("source", metavar="SRC", help=PATH_HELP)
    parser.add_argument("folder", metavar="DST", help="a new folder, or an unfinished conversion")
    parser.add_argument("--format", choices=FORMATS, required=True, help="of the shards")
    parser.add_argument(
        "--shard-size",
        type=int,
        default=10_000,
        metavar="N",
        help="records a shard, broken ones counted (default: %(default)s)",
    )
    add_workers(parser)


def run(args: argparse.Namespace) -> int:
    """Converts; exit code 0 also when there were bad records, which are told."""
    from vlalign.data.convert import BAD, convert
    from vlalign.data.writers import FORMATS as WRITERS

    check_least(args, shard_size=1, workers=0)
    if "://" in args.folder:
        raise UserError(f"{args.folder}: convert to a local folder, then copy it there")
    folder = Path(args.folder)
    with progress_bar() as bar:
        task = bar.add_task("opening", total=None)
        source = open_path(args.source)
        count = len(source)

        def advance(records: int, resumed: bool) -> None:
            word = "there" if resumed else "convert"
            bar.update(task, description=word, total=count, advance=records)

        outcome = convert(
            source,
            folder,
            args.format,
            shard_size=args.shard_size,
            workers=args.workers,
            progress=advance,
        )
    out = console()
    again = f", {outcome.resumed:,} of them were there already" if outcome.resumed else ""
    parts = f"{outcome.shards:,} shard" + "s" * (outcome.shards > 1)
    out.print(f"{outcome.records:,} records in {parts}{again}")
    place = folder / (WRITERS[args.format].joined or "")
    out.print(f"{megabytes(outcome.bytes)} in {place}", soft_wrap=True)
    for kind, number in outcome.bad.items():
        out.print(f"{number:,} bad: {kind} (see {folder / BAD})", soft_wrap=True)
    return 0
