"""Look at data, count it, convert it, index it, measure how fast it comes, build it.

    vlalign data inspect photos/               a page with a sample: images, captions, what is wrong
    vlalign data stats 'shards/{000..099}.tar' everything counted
    vlalign data convert shards/ records/ --format arrayrecord
    vlalign data bench my_config.py            samples/s, and what limits them

A PATH is a file, a folder, a pattern or a URL that vlalign can open: tar shards, Parquet, CSV, TSV,
JSONL, ArrayRecord, a TFDS folder, a folder of images; or `emoji`, the embedded data set.
`vlalign data ACTION --help` describes an action, with an example.
"""

import argparse
import importlib
import inspect

ACTIONS = {
    "inspect": "a page with a sample of the records: images, captions, what is wrong",
    "stats": "count everything: sizes, formats, captions, duplicates, bad records",
    "convert": "between formats, in parallel, resumable",
    "index": "index tar shards, so that training reads them at random",
    "bench": "samples/s of a configuration's input, and which stage limits it",
    "build": "build a data set from its public sources",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the actions: ACTION is the module `_data_ACTION`, its docstring is its help."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, line in ACTIONS.items():
        module = importlib.import_module(f"vlalign.cli._data_{name}")
        description = inspect.cleandoc(module.__doc__ or "")
        action = actions.add_parser(name, help=line, description=description)
        module.add_arguments(action)
        action.set_defaults(run_action=module.run)


def run(args: argparse.Namespace) -> int:
    """Runs the chosen action."""
    code: int = args.run_action(args)
    return code
