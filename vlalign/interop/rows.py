"""Tables of names: which of our parameters is which of their tensors, readable both ways.

A table is data. `ours` is a path in our tree, `theirs` a name in their file; `{i}` in theirs is the
number of a layer, and such tensors are the layers of one of our stacked parameters. Applying a
table is strict: whatever is missing, unknown or of another shape is listed, all of it at once.
"""

import dataclasses
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from vlalign.errors import UserError
from vlalign.interop.hows import Array, Arrays, How, Same, Shape, Shapes, sizes

_FLOATS = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
_LAYER = "{i}"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table: our parameter(s), their tensor(s), and how one becomes the other.

    ours: path(s) in our tree, `image/transformer/blocks/attn/qkv/kernel`.
    theirs: name(s) in their file; with `{i}` (then in all of them) our leading axis is the layers.
    """

    ours: str | tuple[str, ...]
    theirs: str | tuple[str, ...]
    how: How = Same()

    @property
    def paths(self) -> tuple[str, ...]:
        """Our paths."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    @property
    def names(self) -> tuple[str, ...]:
        """Their names, `{i}` and all."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs

    @property
    def stacked(self) -> bool:
        """Whether our leading axis is the layers that they number."""
        return any(_LAYER in name for name in self.names)

    def under(self, ours: str, theirs: str) -> "Row":
        """The row with prefixes: `row.under("image/", "visual.")`."""
        paths = tuple(ours + path for path in self.paths)
        return Row(paths, tuple(theirs + name for name in self.names), self.how)


@dataclasses.dataclass(frozen=True)
class Unused:
    """A tensor that stands in files and says nothing of the model: a buffer of 0, 1, 2, ...

    name: its name, or a pattern with `*`.   write: what their loaders want to find there, if so.
    """

    name: str
    write: Array | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """All names of one kind of file.

    rows: what carries the weights.   unused: what is known and carries nothing.
    wrappers: prefixes that all names of a file may have in front (`module.` of torch's DDP).
    """

    rows: tuple[Row, ...]
    unused: tuple[Unused, ...] = ()
    wrappers: tuple[str, ...] = ("module.", "_orig_mod.")


def under(rows: Iterable[Row], ours: str, theirs: str) -> tuple[Row, ...]:
    """All rows with prefixes: `under(rows, "image/", "visual.")`."""
    return tuple(row.under(ours, theirs) for row in rows)


def unwrapped(table: Table, names: Iterable[str]) -> dict[str, str]:
    """Plain name -> name in the file, without the wrappers that all of the names have in front."""
    plain = {name: name for name in names}
    found: str | None = ""
    while found is not None and plain:
        found = next((w for w in table.wrappers if all(n.startswith(w) for n in plain)), None)
        if found is not None:
            plain = {name.removeprefix(found): file for name, file in plain.items()}
    return plain


def import_params(
    table: Table, tensors: Mapping[str, Array], shapes: Mapping[str, Shape]
) -> dict[str, Array]:
    """Their tensors as our parameters: path -> float32 array.

    tensors: name -> array, read one at a time; float32, float16 or bfloat16.
    shapes: path -> shape of all our parameters.
    Raises UserError listing everything that does not fit.
    """
    files = unwrapped(table, tensors)
    found: dict[str, Array] = {}
    wrong = _Problems()
    for row in table.rows:
        _import_row(row, tensors, files, shapes, found, wrong)
    known = {name for row in table.rows for name in _row_names(row, shapes)}
    for name in sorted(files.keys() - known):
        if not any(fnmatch.fnmatchcase(name, unused.name) for unused in table.unused):
            wrong.unknown.append(name)
    rowless = shapes.keys() - {path for row in table.rows for path in row.paths}
    wrong.rowless.extend(sorted(rowless))
    wrong.raise_any()
    return found


def _import_row(
    row: Row,
    tensors: Mapping[str, Array],
    files: Mapping[str, str],
    shapes: Mapping[str, Shape],
    found: dict[str, Array],
    wrong: "_Problems",
) -> None:
    absent = [path for path in row.paths if path not in shapes]
    if absent:
        wrong.unwanted.extend(absent)
        return
    ours = _layer_shapes(row, shapes)
    wanted = row.how.shapes(ours)
    layers: list[Arrays] = []
    for names in _layers(row, shapes):
        missing = [name for name in names if name not in files]
        wrong.missing.extend(missing)
        if missing:
            continue
        theirs = tuple(tensors[files[name]] for name in names)
        if not _fits(theirs, wanted, names, wrong):
            continue
        arrays = tuple(
            np.asarray(x, np.float32).reshape(s) for x, s in zip(theirs, wanted, strict=True)
        )
        layers.append(row.how.into(arrays, ours))
    if wrong.empty():
        for path, arrays in zip(row.paths, zip(*layers, strict=True), strict=True):
            one = np.stack(arrays) if row.stacked else arrays[0]
            found[path] = np.ascontiguousarray(one).reshape(shapes[path])


def _fits(theirs: Arrays, wanted: Shapes, names: Sequence[str], wrong: "_Problems") -> bool:
    fits = len(theirs) == len(wanted)
    if not fits:
        wrong.shapes.append(f"{', '.join(names)}: {len(names)} tensors, {len(wanted)} wanted")
    for name, tensor, shape in zip(names, theirs, wanted, strict=False):
        if tensor.dtype not in _FLOATS:
            kind = "it is quantised or no weight" if tensor.dtype.kind != "f" else "save as float32"
            wrong.shapes.append(f"{name}: {tensor.dtype}; {kind}")
            fits = False
        # One number is one number: files have scalars as [] and as [1].
        elif tensor.shape != shape and not tensor.size == np.prod(shape, dtype=int) == 1:
            wrong.shapes.append(
                f"{name}: {sizes([tensor.shape])} in the file, {sizes([shape])} wanted"
            )
            fits = False
    return fits


def export_params(table: Table, params: Mapping[str, Array]) -> dict[str, Array]:
    """Our parameters (path -> array) as their tensors: name -> array of the same dtype.

    Raises UserError if a row's parameter is not there, or a parameter has no row.
    """
    wanted = {path for row in table.rows for path in row.paths}
    wrong = _Problems()
    wrong.unwanted.extend(sorted(wanted - params.keys()))
    wrong.rowless.extend(sorted(params.keys() - wanted))
    wrong.raise_any()
    tensors: dict[str, Array] = {u.name: u.write for u in table.unused if u.write is not None}
    shapes = {path: array.shape for path, array in params.items()}
    for row in table.rows:
        for index, names in enumerate(_layers(row, shapes)):
            ours = tuple(params[path][index] if row.stacked else params[path] for path in row.paths)
            theirs = row.how.out(ours)
            for name, array in zip(names, theirs, strict=True):
                tensors[name] = np.ascontiguousarray(array).reshape(array.shape)
    return tensors


def _layer_shapes(row: Row, shapes: Mapping[str, Shape]) -> Shapes:
    return tuple(shapes[path][1:] if row.stacked else shapes[path] for path in row.paths)


def _layers(row: Row, shapes: Mapping[str, Shape]) -> list[tuple[str, ...]]:
    """Their names, layer by layer."""
    count = shapes[row.paths[0]][0] if row.stacked else 1
    return [tuple(name.replace(_LAYER, str(i)) for name in row.names) for i in range(count)]


def _row_names(row: Row, shapes: Mapping[str, Shape]) -> list[str]:
    if row.paths[0] not in shapes:
        return []
    return [name for names in _layers(row, shapes) for name in names]


@dataclasses.dataclass
class _Problems:
    """What does not fit, in five lists."""

    missing: list[str] = dataclasses.field(default_factory=list)
    unknown: list[str] = dataclasses.field(default_factory=list)
    shapes: list[str] = dataclasses.field(default_factory=list)
    rowless: list[str] = dataclasses.field(default_factory=list)
    unwanted: list[str] = dataclasses.field(default_factory=list)

    def empty(self) -> bool:
        return not any(vars(self).values())

    def raise_any(self) -> None:
        headings = {
            "missing": "missing in the file",
            "unknown": "in the file and not known",
            "shapes": "of another shape or kind",
            "rowless": "of our parameters that the table has no row for",
            "unwanted": "of the table's parameters that the model does not have",
        }
        lines = []
        for kind, heading in headings.items():
            names = getattr(self, kind)
            if names:
                shown = folded(names) if kind != "shapes" else names
                lines.append(f"{len(names)} {heading}:\n    " + "\n    ".join(shown))
        if lines:
            raise UserError("the weights do not fit the model\n  " + "\n  ".join(lines))


def folded(names: Iterable[str]) -> list[str]:
    """Names that differ in their first number alone as one: `blocks.{0..11}.weight`."""
    groups: dict[tuple[str, str], list[int]] = {}
    plain = []
    for name in dict.fromkeys(names):
        found = re.search(r"\d+", name)
        if found:
            groups.setdefault((name[: found.start()], name[found.end() :]), []).append(
                int(found.group())
            )
        else:
            plain.append(name)
    for (before, after), numbers in groups.items():
        plain.append(f"{before}{_ranges(sorted(numbers))}{after}")
    return sorted(plain)


def _ranges(numbers: list[int]) -> str:
    runs: list[list[Any]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    if len(numbers) == 1:
        return str(numbers[0])
    return "{" + ",".join(f"{a}..{b}" if a != b else str(a) for a, b in runs) + "}"
