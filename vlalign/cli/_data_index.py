"""Index tar shards, so that training and inspection read them at random without unpacking.

    vlalign data index 'shards/{000..099}.tar'
    vlalign data index shards/ --index indexes/

Only the headers of the archives are read. The index has 16 bytes a sample and stands beside the
shards, or where nothing can be written there in the cache ($VLALIGN_CACHE, ~/.cache/vlalign); name
the folder that --index names in the configuration too. Interrupted, the same command goes on where
it was. Training builds a missing index by itself: this command only does it ahead, and tells what
is wrong with the shards.
"""

import argparse

from vlalign.cli._data_source import add_workers, check_least, console, progress_bar, shown
from vlalign.errors import UserError

_NOTES = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the action."""
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="tar files or URLs in the order of the source, `{000..099}` and `*` stand for many, "
        "a folder for all .tar files in it",
    )
    parser.add_argument("--index", metavar="DIR", help="where to keep it (default: beside them)")
    add_workers(parser)


def run(args: argparse.Namespace) -> int:
    """Builds the index and prints what it holds; 1 if shards are damaged."""
    from rich.filesize import decimal

    from vlalign.data.formats import tar_index

    check_least(args, workers=0)
    shards = tar_shards(args.paths)
    with progress_bar() as bar:
        task = bar.add_task("MB", total=None)
        index = tar_index.open_index(
            shards,
            args.index,
            progress=lambda done, total: bar.update(
                task, completed=done // 1_000_000, total=total // 1_000_000
            ),
            workers=max(1, args.workers),
            processes=args.workers > 0,
        )
    out = console()
    size = decimal(sum(shard.size for shard in index.shards))
    out.print(f"{len(index):,} samples in {len(index.shards):,} shards of {size}")
    out.print(f"index {tar_index.index_path(shards, args.index)}", soft_wrap=True)
    problems = index.problems()
    for kind, count in problems.items():
        out.print(f"{count:,} {kind}")
    for line in index.report()[:_NOTES]:
        out.print(f"  {shown(line)}", soft_wrap=True)
    return 1 if "unreadable shard" in problems else 0


def tar_shards(paths: list[str]) -> tuple[str, ...]:
    """The tar files that PATHs stand for, in their order; those of a folder by name."""
    from vlalign.data import storage

    found: list[str] = []
    for path in storage.expand(paths):
        if not storage.is_folder(path):
            found.append(path)
            continue
        inside = [name for name, _ in storage.walk(path) if name.endswith(".tar")]
        if not inside:
            raise UserError(f"{path}: no .tar file in this folder")
        found += [storage.join(path, name) for name in inside]
    return tuple(found)
