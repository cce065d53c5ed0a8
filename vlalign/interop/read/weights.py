"""Any file of weights, by what is in it: its tensors by name."""

import dataclasses
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from vlalign.errors import UserError
from vlalign.interop.hows import Array
from vlalign.interop.read.torch_zip import TorchFile

_MOST_INDEX = 1 << 28
_SAFE = frozenset({"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"})


@dataclasses.dataclass(frozen=True)
class Weights:
    """tensors: name -> array, read when asked for.   notes: what was left aside, for people."""

    tensors: Mapping[str, Array]
    notes: tuple[str, ...] = ()


def read_weights(path: Path) -> Weights:
    """The tensors of a file: safetensors (or the index of several), PyTorch, TorchScript, `.npz`.

    Told by its content, not by its name; nothing of it is executed. Raises UserError if it is
    damaged or is something else.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if start[:2] == b"PK":
        return _of_zip(path)
    if path.name.endswith(".index.json"):
        return Weights(_Shards(path))
    if start[8:9] == b"{":
        return Weights(_Safe(path))
    raise UserError(f"{path} is {_what(start)}")


def _what(start: bytes) -> str:
    if start[:1] == b"\x80":
        return (
            "a pickle outside of a zip file, as PyTorch wrote before 1.6; it is a program, and is "
            "not run here. Where you trust it: safetensors.torch.save_file(torch.load(FILE, "
            "weights_only=True), NEW)"
        )
    if start[:4] == b"\x89HDF":
        return "HDF5 (Keras); weights are read from safetensors, PyTorch and npz files"
    if start.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the file: fetch it with `git lfs pull`"
    if not start:
        return "empty"
    return "neither safetensors, nor a zip file of PyTorch or numpy: damaged, or of another format"


def _of_zip(path: Path) -> Weights:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path} is damaged or cut short ({error})") from error
    if names and all(name.endswith(".npy") for name in names):
        return Weights(_Npz(path, names))
    torch = TorchFile(path)
    beside = f"left aside in {path.name}: {', '.join(torch.beside)}"
    return Weights(torch, (beside,) if torch.beside else ())


class _Safe(Mapping[str, Array]):
    """The tensors of a safetensors file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file: Any = safetensors.safe_open(path, framework="np")
            self._names = list(self._file.keys())
            kinds = {name: self._file.get_slice(name).get_dtype() for name in self._names}
        except Exception as error:  # the library's own, and the system's
            raise UserError(f"{path} is no safetensors file, or is cut short ({error})") from error
        odd = [f"{name} is {kind}" for name, kind in kinds.items() if kind not in _SAFE]
        if odd:
            raise UserError(f"{path}: {', '.join(odd[:10])}; quantised weights are not read")

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise KeyError(name)
        array: Array = self._file.get_tensor(name)
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class _Shards(Mapping[str, Array]):
    """The tensors of several files (safetensors, PyTorch), by the index beside them."""

    def __init__(self, path: Path) -> None:
        places = _weight_map(path)
        self._files = {
            name: read_weights(path.parent / name).tensors for name in set(places.values())
        }
        self._places = places
        indexed = set(places)
        found = {name for file in self._files.values() for name in file}
        wrong = [f"{name} is in no file" for name in sorted(indexed - found)]
        wrong += [f"{name} is not in the index" for name in sorted(found - indexed)]
        wrong += [f"{n} is not in {p}" for n, p in places.items() if n not in self._files[p]]
        if wrong:
            raise UserError(f"{path} does not fit its files: {'; '.join(wrong[:10])}")

    def __getitem__(self, name: str) -> Array:
        return self._files[self._places[name]][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _weight_map(path: Path) -> dict[str, str]:
    try:
        if path.stat().st_size > _MOST_INDEX:
            raise ValueError("it is too long")
        places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if not isinstance(places, dict) or not places:
            raise ValueError("weight_map is empty")
        for name in places.values():
            if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
                raise ValueError(f"{name!r} is not the name of a file beside it")
            if name.endswith(".index.json"):
                raise ValueError(f"{name} is an index itself")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not an index of weights: {error}") from error
    return places


class _Npz(Mapping[str, Array]):
    """The arrays of a numpy `.npz`; bfloat16, which numpy keeps as 2 bytes without a name, too."""

    def __init__(self, path: Path, names: list[str]) -> None:
        self.path = path
        self._names = [name.removesuffix(".npy") for name in names]

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise KeyError(name)
        try:
            self._check_size(f"{name}.npy")
            with np.load(self.path, allow_pickle=False) as file:
                array: Array = file[name]
        except UserError:
            raise
        except Exception as error:  # of a damaged file anything may be true
            raise UserError(f"{self.path}: {name} is damaged ({error})") from error
        return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array

    def _check_size(self, member: str) -> None:
        """Before numpy makes room: the header must not promise more than the file has."""
        with zipfile.ZipFile(self.path) as archive, archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0}
            shape, _, dtype = read.get(version, np.lib.format.read_array_header_2_0)(file)
            size = int(np.prod(shape, dtype=object)) * dtype.itemsize
            if file.tell() + size != archive.getinfo(member).file_size:
                raise ValueError(f"{shape} {dtype} is not what it holds")

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
