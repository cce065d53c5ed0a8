"""What the instructions of a compiled program cost: operations of products, bytes of main memory.

Operations are multiplications and additions of matrix products and convolutions, with the products
that a convolution's padding and dilation leave out not counted, and of kernels as they say of
themselves. Bytes are those read from and written to main memory: what stays on the chip is free, of
a slice only the slice moves, and what is updated in place moves by its update.
"""

import functools
import re

import numpy as np

from vlalign.plan.collectives import KINDS
from vlalign.plan.hlo import Array, Instruction, Program

# They move nothing: names for what is there already, control, or the end of what began elsewhere.
_FREE = frozenset(
    {
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
        *("while", "conditional", "call", "async-start", "async-update", "async-done"),
        *("partition-id", "replica-id", "opt-barrier", "domain", "add-dependency"),
    }
)
_SLICES = ("dynamic-slice", "slice", "gather")


def products(program: Program, one: Instruction) -> int:
    """Multiplications and additions of the products in one execution of an instruction."""
    if one.opcode == "fusion":
        return sum(products(program, inner) for inner in program.inside(one))
    if one.opcode == "custom-call":
        found = re.search(r'"cost_estimate":\{"flops":"(\d+)"', one.rest)
        return int(found[1]) if found else 0
    if one.opcode == "dot":
        left = program.named[one.operands[0]].results[0]
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]+)\}", one.rest)
        axes = [int(axis) for axis in contracted[1].split(",")] if contracted else []
        return 2 * one.results[0].elements * int(np.prod([left.sizes[axis] for axis in axes]))
    if one.opcode == "convolution":
        left, right = (program.named[name].results[0] for name in one.operands[:2])
        return _convolution(one, left, right)
    return 0


def _convolution(one: Instruction, left: Array, right: Array) -> int:
    """2 x batch x output features x input features x pairs of places that really meet."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.rest)
    if labels is None:
        return 0
    inputs, kernel, output = labels[1], labels[2], labels[3]
    out = one.results[0]
    total = 2 * out.sizes[output.index("b")] * out.sizes[output.index("f")]
    total *= right.sizes[kernel.index("i")]
    groups = re.search(r"batch_group_count=(\d+)", one.rest)
    total //= int(groups[1]) if groups else 1
    window = _window(one.rest)
    for place, axis in enumerate(sorted(set(output) - {"b", "f"})):
        total *= _pairs(
            left.sizes[inputs.index(axis)],
            right.sizes[kernel.index(axis)],
            out.sizes[output.index(axis)],
            *(window[name][place] for name in ("stride", "pad", "lhs_dilate", "rhs_dilate")),
        )
    return total


def _window(rest: str) -> dict[str, list[int]]:
    """Attributes of a convolution's window, one number for each spatial axis (of `pad` the low)."""
    found = re.search(r"window=\{([^}]*)\}", rest)
    written = dict(part.split("=") for part in found[1].split()) if found else {}
    rank = len(written.get("size", "").split("x"))
    usual = {"stride": "1", "pad": "0_0", "lhs_dilate": "1", "rhs_dilate": "1"}
    values = {name: written.get(name, "x".join([text] * rank)) for name, text in usual.items()}
    return {name: [int(t.split("_")[0]) for t in v.split("x")] for name, v in values.items()}


@functools.lru_cache(maxsize=4096)
def _pairs(
    size: int, kernel: int, out: int, stride: int, pad: int, lhs_dilate: int, rhs_dilate: int
) -> int:
    """How many pairs (output place, kernel place) fall on an element, along one spatial axis."""
    places = np.arange(out)[:, None] * stride + np.arange(kernel)[None] * rhs_dilate - pad
    inside = (places >= 0) & (places <= (size - 1) * lhs_dilate) & (places % lhs_dilate == 0)
    return int(inside.sum())


def traffic(program: Program, one: Instruction) -> int:
    """Bytes of main memory that one execution reads and writes."""
    opcode = one.opcode
    if opcode in _FREE or opcode.endswith(("-done", "-update")):
        return 0
    if opcode == "custom-call" and not _is_kernel(one):
        return 0
    if opcode == "fusion":
        return _fusion(program, one)
    operands = [program.named[name] for name in one.operands if name in program.named]
    if opcode.endswith("-start"):  # names its operand again; a slice moves what it keeps
        moved = one.results[1 if opcode.startswith("slice") else 0]
        there = sum(array.in_memory for inner in operands for array in inner.results)
        return moved.in_memory + min(there, max(moved.in_memory, _anywhere(moved)))
    written = sum(array.in_memory for array in one.results)
    if opcode in _SLICES:
        return 2 * written
    if opcode == "dynamic-update-slice":
        return 2 * operands[1].results[0].in_memory
    return written + sum(array.in_memory for inner in operands for array in inner.results)


def _anywhere(array: Array) -> int:
    """Its bytes in main memory, were it there."""
    return Array(array.dtype, array.sizes, re.sub(r"S\(\d+\)", "", array.layout)).in_memory


def _is_kernel(one: Instruction) -> bool:
    """Whether a custom call computes: the others only give names, buffers or hints."""
    return '"cost_estimate"' in one.rest or "tpu_custom_call" in one.rest


def _fusion(program: Program, one: Instruction) -> int:
    total = 0.0
    for place, name in enumerate(one.operands):
        if name in program.named:
            there = sum(array.in_memory for array in program.named[name].results)
            total += there * _share_read(program, _parameter(program, one, place))
    parts = _parts(program, one)
    for place, array in enumerate(one.results):
        share = _share_written(program, parts[place]) if place < len(parts) else 1.0
        total += array.in_memory * share
    return int(total)


def _parameter(program: Program, fusion: Instruction, place: int) -> Instruction:
    inner = program.inside(fusion)
    return next(i for i in inner if i.opcode == "parameter" and i.rest.startswith(f"{place})"))


def _parts(program: Program, fusion: Instruction) -> list[Instruction]:
    """What makes each array of a fusion's result; empty if it does not say."""
    (root,) = (one for one in program.inside(fusion) if one.root)
    if root.opcode != "tuple":
        return [root] if len(fusion.results) == 1 else []
    return [program.named[name] for name in root.operands]


def _share_read(program: Program, node: Instruction) -> float:
    """The share of an array that a fusion reads of it."""
    share = 0.0
    whole = max(1, sum(array.elements for array in node.results))
    for user in program.users(node):
        if user.opcode == "bitcast":
            share += _share_read(program, user)
        elif user.opcode == "fusion":
            places = [i for i, name in enumerate(user.operands) if name == node.name]
            share += sum(_share_read(program, _parameter(program, user, i)) for i in places)
        elif user.opcode in _SLICES and user.operands[0] == node.name:
            share += user.results[0].elements / whole
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == node.name:
            continue  # in place
        elif user.opcode not in ("tuple", "custom-call") and not _is_collective(user):
            return 1.0
    return min(share, 1.0)


def _share_written(program: Program, part: Instruction) -> float:
    """The share of a result that a fusion writes anew."""
    while part.opcode == "bitcast":
        part = program.named[part.operands[0]]
    if part.opcode == "get-tuple-element":
        inner = program.named[part.operands[0]]
        index = re.search(r"index=(\d+)", part.rest)
        parts = _parts(program, inner) if inner.opcode == "fusion" else []
        return _share_written(program, parts[int(index[1])]) if parts and index else 1.0
    if part.opcode == "fusion" and (parts := _parts(program, part)):
        return _share_written(program, parts[0])
    if part.opcode == "dynamic-update-slice":
        update = program.named[part.operands[1]].results[0]
        return update.elements / max(1, part.results[0].elements)
    passed_on = part.opcode in ("parameter", "custom-call") or _is_collective(part)
    return 0.0 if passed_on else 1.0


def _is_collective(one: Instruction) -> bool:
    return one.opcode.removesuffix("-start").removesuffix("-done") in KINDS
