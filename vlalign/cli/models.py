"""List published models that `vlalign.encoders.presets.preset(NAME)` gives, or print one.

    vlalign models                       all of them, by families
    vlalign models ViT-L-14              its whole configuration, a value a line
    vlalign models --json                for programs

Parameters are in millions, without the scale and bias of the logits and without the stored
statistics of BatchNorm; GFLOPs are those of matrix products and convolutions in one forward pass of
one image or one text. Nothing is made or fetched: all is counted in the programs.
"""

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlalign.encoders.presets.base import Preset

HEAD = (
    *("name", "family", "pixels", "tokens", "image M", "text M"),
    *("image GFLOPs", "text GFLOPs"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="one model, as a whole")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints."""
    import jax

    # Nothing is computed; without this, jax would look for a TPU.
    jax.config.update("jax_platforms", "cpu")
    from vlalign import tree
    from vlalign.encoders.presets import names, preset

    if args.name:
        found = preset(args.name)
        about = describe(args.name, found)
        if args.json:
            print(json.dumps(about | {"configuration": tree.dumps(found)}, indent=1))
        else:
            print(tree.dumps(found))
            print("\n".join(_parts(about)))
    elif args.json:
        print(json.dumps([describe(name, preset(name)) for name in names()], indent=1))
    else:
        for line in table():
            print(line, flush=True)  # counting all of them takes a while
    return 0


def describe(name: str, found: "Preset") -> dict[str, Any]:
    """A model in plain values."""
    import dataclasses

    from vlalign.encoders.presets import names
    from vlalign.encoders.presets.cost import costs

    inner = ("image", "text", "decoder")
    own = {f.name: getattr(found, f.name) for f in dataclasses.fields(found) if f.name not in inner}
    parts = {part: dataclasses.asdict(cost) for part, cost in costs(found).items()}
    own |= {"mean": found.mean, "std": found.std}
    return {"name": name, "family": names()[name], **own, **parts}


def table() -> Iterator[str]:
    """The lines of the list, as a Markdown table."""
    from vlalign.encoders.presets import FAMILIES, preset

    first = [*map(len, HEAD)]
    first[0] = max(len(name) for presets in FAMILIES.values() for name in presets)
    first[1] = max(map(len, FAMILIES))

    def line(cells: tuple[str, ...]) -> str:
        placed = [
            cell.rjust(width) if place > 1 else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(cells, first, strict=True))
        ]
        return f"| {' | '.join(placed)} |"

    yield line(HEAD)
    yield line(tuple("-" * (width - 1) + ":-"[place < 2] for place, width in enumerate(first)))
    for presets in FAMILIES.values():
        for name in presets:
            yield line(_row(describe(name, preset(name))))


def _row(about: dict[str, Any]) -> tuple[str, ...]:
    image, text = about["image"], about["text"]
    return (
        about["name"],
        about["family"],
        str(about["image_size"]),
        str(about["context_length"]),
        *(f"{tower['parameters'] / 1e6:,.2f}" for tower in (image, text)),
        *(f"{tower['flops'] / 1e9:,.2f}" for tower in (image, text)),
    )


def _parts(about: dict[str, Any]) -> Iterator[str]:
    for part in ("image", "text", "decoder"):
        if part in about:
            cost = about[part]
            kept = f" and {cost['statistics']:,} statistics" if cost["statistics"] else ""
            numbers = f"{cost['parameters']:,} parameters{kept}"
            yield f"{part}: {numbers}, {cost['flops'] / 1e9:,.2f} GFLOPs"
