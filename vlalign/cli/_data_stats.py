"""Count all records of a source: sizes, formats, captions, languages, duplicates, bad records.

    vlalign data stats photos/
    vlalign data stats 'shards/{000..099}.tar' --json stats.json --workers 16

Memory does not grow with the source: sizes are counted in bins of 6 %, duplicates by 64-bit hashes,
of which 4 million are kept for images, for texts and for keys; beyond that many different ones the
number of copies is an estimate from a sample of the values. Images are judged by their headers;
with --decode each one is decoded, which finds damage further behind.
"""

import argparse
import json
from pathlib import Path

from vlalign.cli._data_source import (
    PATH_HELP,
    add_workers,
    check_least,
    console,
    open_path,
    progress_bar,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the action."""
    parser.add_argument("path", metavar="PATH", help=PATH_HELP)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to this file")
    parser.add_argument("--decode", action="store_true", help="decode every image")
    add_workers(parser)


def run(args: argparse.Namespace) -> int:
    """Counts, prints, writes the JSON."""
    from vlalign.cli._data_tables import overview
    from vlalign.data.stats import stats
    from vlalign.evals.results import write_atomically

    check_least(args, workers=0)
    source = open_path(args.path)
    with progress_bar() as bar:
        task = bar.add_task("records", total=len(source))
        summary = stats(
            source,
            workers=args.workers,
            whole=args.decode,
            progress=lambda records: bar.advance(task, records),
        )
    document = summary.as_json()
    if args.json:
        write_atomically(args.json, json.dumps(document, indent=1, ensure_ascii=True) + "\n")
    out = console()
    for table in overview(document):
        out.print(table)
    return 0
