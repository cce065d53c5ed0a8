"""What all formats do alike: from a configuration and tensors to a `Bundle`, and the way back."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import flax.linen as nn

from vlalign.data.preprocess import Preprocess
from vlalign.data.tokenizers.base import TextTokenizer
from vlalign.errors import UserError
from vlalign.interop.bundle import Bundle, from_flat, shapes_of
from vlalign.interop.numerics import tower_differences
from vlalign.interop.read.weights import Weights
from vlalign.interop.rows import Table, import_params

_SCALARS = ("logit_scale", "logit_bias")


def weights_file(path: Path, names: tuple[str, ...]) -> Path:
    """The first of these files of weights, or its index of several. Raises UserError if none is."""
    for name in names:
        for file in (path / name, path / f"{name}.index.json"):
            if file.is_file():
                return file
    raise UserError(f"{path} has no weights: none of {', '.join(names)}, nor an index of them")


def build(
    model: Mapping[str, nn.Module],
    table: Table,
    weights: Weights,
    *,
    preprocess: Preprocess,
    tokenizer: TextTokenizer | None,
    context_length: int,
    origin: str,
    aside: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> Bundle:
    """The model of towers and a file of tensors, by the table of their names.

    aside: settings that have no say in the numbers.   notes: of the format, for people.
    Raises UserError for everything that does not fit.
    """
    shapes = shapes_of(model, preprocess.size, context_length)
    named = {path for row in table.rows for path in row.paths}
    shapes |= {name: () for name in _SCALARS if name in named}
    flat = import_params(table, weights.tensors, shapes)
    scale, bias = (float(flat[name]) if name in flat else None for name in _SCALARS)
    if aside:
        notes = (*notes, f"settings without a say in the numbers: {', '.join(aside)}")
    return Bundle(
        model=model,
        params=from_flat(flat, model),
        preprocess=preprocess,
        tokenizer=tokenizer,
        context_length=context_length,
        logit_scale=scale,
        logit_bias=bias,
        origin=origin,
        notes=(*notes, *weights.notes),
    )


class Towers(Protocol):
    """What reading a configuration gives."""

    @property
    def image(self) -> nn.Module: ...
    @property
    def text(self) -> nn.Module: ...
    @property
    def preprocess(self) -> Preprocess: ...


def check_says(bundle: Bundle, read: Callable[[], Towers], name: str) -> None:
    """Raises UserError where a configuration to be written says less than the model is.

    read: reads it.   name: of the library that it is for.
    """
    try:
        back = read()
    except UserError as error:
        raise UserError(f"{name} cannot hold this model: {error}") from error
    lines = [
        f"model.{tower}.{field} is {ours}, and would come back as {theirs}"
        for tower in ("image", "text")
        for field, ours, theirs in tower_differences(bundle.model[tower], getattr(back, tower))
    ]
    ours, theirs = (dataclasses.asdict(p) for p in (bundle.preprocess, back.preprocess))
    lines += [
        f"preprocess.{field} is {ours[field]}, and would come back as {theirs[field]}"
        for field in ours
        if ours[field] != theirs[field] and field != "max_pixels"
    ]
    if lines:
        raise UserError(f"{name} cannot hold this model:\n  " + "\n  ".join(lines))
