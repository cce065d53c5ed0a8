"""What accelerators can do by their makers' account: operations, memory, links. Numbers only.

Sources. TPU: Google Cloud's pages of each generation (peak, memory, bandwidth, interconnect), which
give the interconnect of a chip as the sum of its links. NVIDIA: the data sheets of each product;
peak is of dense bfloat16 products (T4: float16, it has no bfloat16), a data sheet's "with sparsity"
halved. Interconnect is one way: a data sheet's NVLink figure, which adds both, is halved.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator.

    name: short, as in a topology (`v5e`).   peak_flops: of bfloat16 matrix products, operations/s.
    memory: bytes.   bandwidth: of that memory, bytes/s.   link: bytes/s that one link to another
    chip carries one way.   links: of one chip.   clock: Hz of a TPU's cores, from peak and the
    operations of its matrix units a cycle; 0 where no compiler counts in cycles.
    """

    name: str
    peak_flops: float
    memory: int
    bandwidth: float
    link: float
    links: int
    clock: float = 0.0


_GIB = 2**30
_GB = 10**9

_TPUS = {
    "TPU v4": Chip("v4", 275e12, 32 * _GIB, 1228e9, 50e9, 6, 1.05e9),
    "TPU v5e": Chip("v5e", 197e12, 16 * _GIB, 819e9, 50e9, 4, 1.5e9),
    "TPU v5p": Chip("v5p", 459e12, 95 * _GIB, 2765e9, 100e9, 6, 1.75e9),
    "TPU v6e": Chip("v6e", 918e12, 32 * _GIB, 1640e9, 100e9, 4, 1.75e9),
}
# jax names some by what they were called inside.
_OTHER_NAMES = {"TPU v5 lite": "TPU v5e", "TPU v5": "TPU v5p", "TPU v6 lite": "TPU v6e"}

_NVIDIA = {
    "NVIDIA A100-SXM4-40GB": Chip("A100-40GB", 312e12, 40 * _GB, 1555e9, 25e9, 12),
    "NVIDIA A100-SXM4-80GB": Chip("A100-80GB", 312e12, 80 * _GB, 2039e9, 25e9, 12),
    "NVIDIA A100-PCIE-40GB": Chip("A100-PCIe-40GB", 312e12, 40 * _GB, 1555e9, 32e9, 1),
    "NVIDIA A100 80GB PCIe": Chip("A100-PCIe-80GB", 312e12, 80 * _GB, 1935e9, 32e9, 1),
    "NVIDIA H100 80GB HBM3": Chip("H100", 989.4e12, 80 * _GB, 3350e9, 25e9, 18),
    "NVIDIA H100 PCIe": Chip("H100-PCIe", 756e12, 80 * _GB, 2000e9, 64e9, 1),
    "NVIDIA H200": Chip("H200", 989.4e12, 141 * _GB, 4800e9, 25e9, 18),
    "NVIDIA L4": Chip("L4", 121e12, 24 * _GB, 300e9, 32e9, 1),
    "NVIDIA L40S": Chip("L40S", 362e12, 48 * _GB, 864e9, 32e9, 1),
    "Tesla T4": Chip("T4", 65e12, 16 * _GB, 320e9, 16e9, 1),
}


def chip_of(device_kind: str) -> Chip | None:
    """The row of a jax `device_kind` (`TPU v5 lite`, `NVIDIA H100 80GB HBM3`), or None."""
    name = _OTHER_NAMES.get(device_kind, device_kind)
    return _TPUS.get(name) or _NVIDIA.get(name)


def tpu(generation: str) -> Chip | None:
    """The row of a TPU by its short name (`v5e`), or None."""
    return _TPUS.get(f"TPU {generation}")


def tpu_generations() -> list[str]:
    """Short names of the TPUs in the table."""
    return [chip.name for chip in _TPUS.values()]
