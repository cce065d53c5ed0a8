"""Write the embeddings of a run's evaluation data to a Parquet file.

    vlalign embed RUN --out FILE.parquet
    vlalign embed CONFIG --model hf://org/name --out FILE.parquet    by a pre-trained model

One row an image and one a caption: source, key, kind (image or text), caption_kind, language, text,
group, embedding (float32, unit length). The file's metadata names the run, the step and the
fingerprints of model, tokenizer and preprocessing. Nothing is held in memory but one chunk.
"""

import argparse
from pathlib import Path

from vlalign.cli._run import add_model_arguments, add_run_arguments, open_any
from vlalign.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add_run_arguments(parser)
    add_model_arguments(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE.parquet", help="the file to write"
    )
    parser.add_argument(
        "--source-of",
        metavar="EVALUATOR",
        action="append",
        help="only the records of this evaluator; repeatable (default: of all, each source once)",
    )
    parser.add_argument(
        "--chunk",
        type=int,
        default=1024,
        metavar="N",
        help="records read, embedded and written at once (default: 1024)",
    )


def run(args: argparse.Namespace) -> int:
    """Embeds and writes; prints how many rows, and how many records were left out."""
    if args.chunk < 1:
        raise UserError(f"--chunk {args.chunk}: at least 1")
    if not args.out.parent.is_dir():
        raise UserError(f"--out {args.out}: there is no folder {args.out.parent}")
    if args.out.is_dir():
        raise UserError(f"--out {args.out} is a folder: name a file in it")
    from rich import progress
    from rich.console import Console

    from vlalign.evals.run import fingerprints
    from vlalign.evals.search import sources
    from vlalign.evals.table_file import write_embeddings

    opened = open_any(args)
    chosen = sources(opened.experiment.evals, args.source_of)
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("records, ETA"),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("embedding", total=sum(map(len, chosen.values())))
        written = write_embeddings(
            args.out,
            chosen,
            opened.tools,
            opened.embed,
            metadata=fingerprints(opened),
            chunk=args.chunk,
            advance=lambda records: bar.advance(task, records),
        )
    print(f"wrote {args.out}: {written.images:,} images, {written.texts:,} texts")
    for kind, count in sorted(written.problems.items()):
        print(f"left out {count:,} records: {kind}")
    return 0
