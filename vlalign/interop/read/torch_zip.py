"""PyTorch's files (`.pt`, `.pth`, `.bin`) and TorchScript archives: zip files of numbers."""

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from vlalign.errors import UserError
from vlalign.interop.hows import Array
from vlalign.interop.read.pickles import ScriptModule, Storage, Tensor, read_pickle

_STORAGES: dict[str, Any] = {
    "Double": np.float64,
    "Float": np.float32,
    "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
    "Untyped": np.uint8,
}
_MOST_PICKLE = 1 << 28  # the description of tensors; the largest known has a few MB
_MOST_ATTRIBUTES = 1_000_000
_LONGEST_NAME = 2_000
# Where a training file keeps its weights, and what it then has beside them.
_STATES = ("state_dict", "model_state_dict", "model")


class TorchFile(Mapping[str, Array]):
    """Tensors by name, each read from the file when it is asked for.

    beside: names of what the file has beside them (`epoch`, `optimizer`), and which is left.
    """

    def __init__(self, path: Path) -> None:
        """Raises UserError if the file is damaged, or says anything but where tensors lie."""
        self.path = path
        self._root, self._big = _layout(path)
        data = _read(path, f"{self._root}data.pkl", _MOST_PICKLE)
        found = read_pickle(data, f"{path} (data.pkl)")
        self._tensors, self.beside = _tensors(found, path)
        self._last: tuple[Storage, Array] | None = None

    def __getitem__(self, name: str) -> Array:
        """The tensor; UserError if its part of the file is damaged."""
        return self._array(name, self._tensors[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def _array(self, name: str, tensor: Tensor) -> Array:
        numbers, where = self._numbers(tensor), f"{self.path}, {name}"
        shape, strides = tensor.shape, tensor.strides
        size = int(np.prod(shape, dtype=object))
        if len(shape) != len(strides) or min((*shape, *strides, tensor.offset, 0)) < 0:
            raise UserError(f"{where}: shape {shape} with strides {strides} is none")
        if size == 0:
            return np.zeros(shape, numbers.dtype)
        last = tensor.offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if last >= len(numbers) or size > len(numbers):
            raise UserError(f"{where}: {shape} of a storage of {len(numbers):,} numbers")
        step = numbers.itemsize
        return np.lib.stride_tricks.as_strided(
            numbers[tensor.offset :], shape, [s * step for s in strides], writeable=False
        )

    def _numbers(self, tensor: Tensor) -> Array:
        """The tensor's whole storage; the last one is kept, as views of one often follow."""
        storage = tensor.storage
        if self._last is None or self._last[0] != storage:
            dtype = np.dtype(_STORAGES[storage.kind])
            data = _read(
                self.path, f"{self._root}data/{storage.key}", storage.length * dtype.itemsize
            )
            if len(data) != storage.length * dtype.itemsize:
                raise UserError(f"{self.path}: data/{storage.key} is cut short")
            self._last = storage, np.frombuffer(data, dtype)
        numbers = self._last[1]
        if tensor.dtype is not None:
            wanted = np.dtype(getattr(ml_dtypes, tensor.dtype, tensor.dtype))
            if len(numbers) % wanted.itemsize:
                raise UserError(f"{self.path}: data/{storage.key} is not of {tensor.dtype}")
            numbers = numbers.view(wanted)
        if self._big:  # by their bytes: numpy does not swap the dtypes of ml_dtypes
            numbers = numbers.view(f"u{numbers.itemsize}").byteswap().view(numbers.dtype)
        return numbers


def _tensors(found: Any, path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Name -> tensor, of a state_dict, a training file or a TorchScript module; what is beside."""
    if isinstance(found, ScriptModule):
        return _of_script(found, path), ()
    beside: tuple[str, ...] = ()
    if isinstance(found, dict):
        inner = [name for name in _STATES if isinstance(found.get(name), dict)]
        if len(inner) > 1:
            raise UserError(f"{path} has weights in {' and in '.join(inner)}: which are meant?")
        if inner:
            beside = tuple(sorted(str(name) for name in found if name != inner[0]))
            found = found[inner[0]]
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path} holds a {type(found).__name__}, not tensors by name")
    wrong = [str(name) for name, value in found.items() if not isinstance(value, Tensor)]
    if wrong:
        raise UserError(
            f"{path}: no tensors, but other things: {', '.join(wrong[:10])}; weights are looked "
            f"for at the top and in {', '.join(_STATES)}"
        )
    return {str(name): value for name, value in found.items()}, beside


def _of_script(root: ScriptModule, path: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    waiting, count = [("", root)], 0
    while waiting:
        prefix, module = waiting.pop()
        count += len(module.attributes)
        if count > _MOST_ATTRIBUTES or len(prefix) > _LONGEST_NAME:
            raise UserError(f"{path} has modules without end")
        for name, value in module.attributes.items():
            if isinstance(value, ScriptModule):
                waiting.append((f"{prefix}{name}.", value))
            elif isinstance(value, Tensor):
                found[f"{prefix}{name}"] = value
    return found


def _layout(path: Path) -> tuple[str, bool]:
    """The folder that all of the archive is in, and whether its numbers are big-endian."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path} is damaged or cut short ({error})") from error
    roots = [name.removesuffix("data.pkl") for name in names if name.endswith("data.pkl")]
    roots = [root for root in roots if root.count("/") <= 1]
    if len(roots) != 1:
        raise UserError(f"{path} is a zip file, but none of PyTorch: it has {len(roots)} data.pkl")
    order = b"little"
    if f"{roots[0]}byteorder" in names:
        order = _read(path, f"{roots[0]}byteorder", 16)
    if order not in (b"little", b"big"):
        raise UserError(f"{path}: byteorder is {order!r}")
    return roots[0], order == b"big"


def _read(path: Path, name: str, most: int) -> bytes:
    """A file of the archive, its checksum checked. Raises UserError if it has more than `most`."""
    try:
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(name)
            if info.file_size > most:
                raise UserError(f"{path}: {name} has {info.file_size:,} bytes, expected {most:,}")
            with archive.open(info) as file:
                return file.read()
    except KeyError as error:
        raise UserError(f"{path} is cut short: it has no {name}") from error
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError) as error:
        raise UserError(f"{path}: {name} is damaged ({error})") from error
    except (RuntimeError, zlib.error, OverflowError) as error:  # encrypted; bad deflate
        raise UserError(f"{path}: {name} cannot be read ({error})") from error
