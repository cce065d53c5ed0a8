"""What a plan is for: TPU slices that are not there, simulated CPU devices, or those at hand."""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Sequence
from typing import Any

import jax

from vlalign.errors import UserError, nearest
from vlalign.parallel.chips import Chip, chip_of, tpu, tpu_generations

# Dimensions of a slice's torus.
_DIMENSIONS = {"v4": 3, "v5p": 3, "v5e": 2, "v6e": 2}


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to compile for.

    name: as in `v5e:16x16` or `8 CPU devices`.   devices: jax devices, real or of a topology only.
    slices: into how many parts they fall that share no fast links.   chip: None if unknown.
    """

    name: str
    devices: tuple[Any, ...]
    slices: int
    chip: Chip | None


def topology(name: str, slices: int = 1) -> Target:
    """TPU slices by topology, `v5e:16x16` or `v5p:4x4x8`; none has to be there, libtpu has.

    Raises UserError for a topology that there is not, and without libtpu.
    """
    chip, sizes = _parse(name)
    if slices < 1:
        raise UserError(f"--slices {slices}: at least 1")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "planning for TPUs needs libtpu (and no TPU): pip install 'vlalign[tpu]'; "
            "--devices N plans for simulated CPU devices without it"
        )
    # libtpu: do not ask for a machine's metadata, nor for the one lock of a real TPU.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-256")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    from jax.experimental import topologies

    options: dict[str, Any] = {}
    if chip.name == "v4":
        options["chip_config_name"] = "megacore"  # both cores of a chip as one device, as jax runs
    if sizes == [1, 1]:
        options["chips_per_host_bounds"] = (1, 1, 1)
    if slices > 1:
        options["num_slices"] = slices
    try:
        found = topologies.get_topology_desc(name, "tpu", **options).devices
    except Exception as error:  # jaxlib raises its own, of a changing name
        raise UserError(f"libtpu has no topology {name!r}: {str(error)[:300]}") from error
    label = f"{slices} x {name}" if slices > 1 else name
    return Target(label, tuple(found), slices, chip)


def _parse(name: str) -> tuple[Chip, list[int]]:
    found = re.fullmatch(r"([A-Za-z0-9]+):(\d+(?:x\d+)*)", name)
    if found is None:
        raise UserError(f"topology {name!r}: written as in v5e:16x16 or v5p:4x4x8")
    chip = tpu(found[1])
    if chip is None:
        hint = nearest(found[1], tpu_generations())
        raise UserError(f"topology {name!r}: no TPU {found[1]!r} is known{hint}")
    sizes = [int(size) for size in found[2].split("x")]
    wanted = _DIMENSIONS[chip.name]
    if len(sizes) != wanted or min(sizes) < 1:
        example = f"{chip.name}:" + "x".join(["4"] * wanted)
        raise UserError(f"topology {name!r}: a {chip.name} has {wanted} dimensions, as {example}")
    return chip, sizes


def here(devices: Sequence[jax.Device] | None = None) -> Target:
    """The devices at hand: real ones, or simulated CPU devices."""
    found = tuple(jax.devices() if devices is None else devices)
    kind = found[0].device_kind
    name = "simulated CPU" if found[0].platform == "cpu" else kind
    return Target(f"{len(found)} {name} devices", found, 1, chip_of(kind))
