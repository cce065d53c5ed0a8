"""Convert a model: from open_clip, Hugging Face or big_vision, and to open_clip or Hugging Face.

IN is a directory (open_clip_config.json, config.json, vlalign's own model.txt), a file of weights
(.safetensors, .pt, .bin, OpenAI's TorchScript archives, big_vision's .npz), or hf://org/name, which
is looked for in the hub's local cache first. Nothing in a file is executed. OUT is a new directory.

vlalign's own form (--to vlalign) holds towers, parameters, preprocessing and tokenizer with their
sha256 sums.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

DTYPES = ("float32", "float16", "bfloat16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("source", metavar="IN", help="directory, file, or hf://org/name")
    parser.add_argument("out", metavar="OUT", type=Path, help="the directory to make")
    parser.add_argument(
        "--to",
        choices=("vlalign", "open_clip", "hf"),
        default="vlalign",
        help="what to write (default: vlalign)",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="of the written parameters; less than float32 rounds them (default: float32)",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="configuration of a lone file of weights: open_clip_config.json or a model's JSON",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="the vocabulary, where it does not lie beside the weights; `none` leaves it out",
    )
    parser.add_argument(
        "--allow-module",
        action="append",
        default=[],
        metavar="MODULE",
        dest="allow_modules",
        help="module of your own whose classes a model.txt may use; looked for here first",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="read OUT again and compare every parameter bit by bit (with --dtype float32)",
    )


def run(args: argparse.Namespace) -> int:
    """Reads, writes, reports."""
    from vlalign.errors import UserError
    from vlalign.interop.convert import check_same, load, save

    if args.check and args.dtype != "float32":
        raise UserError(f"--check compares bits, which --dtype {args.dtype} rounds: leave one out")
    tokenizer: Any = args.tokenizer
    if tokenizer is not None and tokenizer != "none":
        tokenizer = Path(tokenizer)
    if args.allow_modules:
        sys.path.insert(0, os.getcwd())
    trust = tuple(args.allow_modules)
    bundle = load(args.source, config=args.config, tokenizer=tokenizer, trust=trust)
    print(f"read {bundle.origin}")
    for line in _counts(bundle):
        print(f"  {line}")
    notes = (*bundle.notes, *save(args.out, bundle, args.to, dtype=args.dtype))
    for note in notes:
        print(f"  note: {note}")
    print(f"wrote {args.out} ({args.to}, {args.dtype})")
    if args.check:
        print(
            f"checked: {check_same(args.out, bundle, trust=trust):,} numbers came back bit by bit"
        )
    return 0


def _counts(bundle: Any) -> list[str]:
    """Lines on towers, preprocessing, tokenizer and scale."""
    import math

    import jax

    lines = []
    for name, module in bundle.model.items():
        leaves = jax.tree.leaves(bundle.params[name])
        size = sum(leaf.size for leaf in leaves)
        depth = module.depth if hasattr(module, "depth") else sum(module.depths)
        kind = f"{type(module).__name__}, {depth} layers of width {module.width}"
        lines.append(f"{name}: {kind}; {size:,} parameters in {len(leaves)} arrays")
    view = bundle.preprocess
    lines.append(f"images: {view.size} pixels, {view.resize_mode}, {view.interpolation}")
    words = "none" if bundle.tokenizer is None else f"{bundle.tokenizer.vocab_size:,} tokens"
    lines.append(f"texts: {bundle.context_length} tokens; tokenizer: {words}")
    if bundle.logit_scale is not None:
        bias = "" if bundle.logit_bias is None else f", bias {bundle.logit_bias:.3f}"
        lines.append(f"logits: scale {math.exp(bundle.logit_scale):.3f}{bias}")
    return lines
