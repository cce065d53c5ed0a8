"""Print an experiment: its tree, its parameters and how they lie on the mesh, its FLOPs.

Nothing is trained and no parameter is made; with --devices the mesh is laid over simulated devices.
"""

import argparse
from typing import Any

from vlalign.cli._configs import add_config_arguments, find_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Prints tree, parameter table and FLOPs."""
    from vlalign.cli._devices import simulate

    simulate(args.devices)
    from vlalign import tree
    from vlalign.experiment import load_config
    from vlalign.train.assemble import assemble

    experiment = tree.override(load_config(find_config(args.config)), args.overrides)
    print(tree.dumps(experiment))
    parts = assemble(experiment, experiment.data.fit_tokenizer())
    print(parameter_table(parts.plan))
    _print_flops(experiment, parts)
    return 0


def parameter_table(plan: Any) -> str:
    """Lines path, shape, dtype, sharding, bytes, bytes a device; the last is the sum."""
    import jax
    import numpy as np

    from vlalign.parallel.rules import path_str

    rows = [("path", "shape", "dtype", "sharding", "bytes", "bytes/device")]
    shapes = jax.tree_util.tree_flatten_with_path(plan.shapes.params)[0]
    shardings = jax.tree.leaves(plan.shardings.params)
    total = own = 0
    for (path, leaf), sharding in zip(shapes, shardings, strict=True):
        size = int(np.prod(leaf.shape)) * leaf.dtype.itemsize
        part = int(np.prod(sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        total, own = total + size, own + part
        cut = ", ".join("-" if axis is None else str(axis) for axis in sharding.spec) or "-"
        shape, dtype = str(leaf.shape), str(leaf.dtype)
        rows.append((path_str(path), shape, dtype, f"({cut})", f"{size:,}", f"{part:,}"))
    rows.append(("sum", f"{total // 4:,} parameters", "", "", f"{total:,}", f"{own:,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column > 3 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _print_flops(experiment: Any, parts: Any) -> None:
    for name, module in experiment.model.items():
        shape = parts.example[name].shape[1:]
        flops = module.flops(shape)
        print(f"\n{name}: {flops / 1e6:,.1f} MFLOP forward for one input of shape {shape}")
    from vlalign.train.describe import step_flops

    step = step_flops(experiment, parts.example)
    print(f"step: {step / 1e9:,.1f} GFLOP (forward and backward, matrix products only)")
