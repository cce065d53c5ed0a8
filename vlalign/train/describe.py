"""What a person wants to know of a compiled step: parameters, mesh, memory, FLOPs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import numpy as np

from vlalign.train.assemble import Assembly

if TYPE_CHECKING:
    from vlalign.experiment import Experiment


def describe_compiled(
    parts: Assembly, compiled: jax.stages.Compiled, flops: int, seconds: float
) -> str:
    """Parameters, mesh, memory and FLOPs of the compiled step, for a person."""
    sizes = [int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(parts.plan.shapes.params)]
    memory = compiled.memory_analysis()
    mesh = " x ".join(f"{axis}={size}" for axis, size in parts.mesh.shape.items())
    text = f"{sum(sizes):,} parameters on {mesh} ({jax.devices()[0].device_kind}); "
    if memory is not None:
        state = memory.argument_size_in_bytes / 2**20
        text += f"per device {state:.0f} MiB state and batch, "
        text += f"{memory.temp_size_in_bytes / 2**20:.0f} MiB temporary; "
    return text + f"{flops / 1e9:.1f} GFLOP a step; compiled in {seconds:.1f} s"


def step_flops(experiment: Experiment, example: Mapping[str, np.ndarray]) -> int:
    """FLOPs of the matrix products of all towers in one step: forward, and backward twice that.

    example: batch field -> array of the right shape behind the leading axis.
    """
    forward = sum(
        module.flops(example[name].shape[1:], train=True)
        for name, module in experiment.model.items()
    )
    return 3 * forward * experiment.data.batch_size
