"""A file of a JSON header and one flat array: what an index is kept in. Plain data, no pickle.

`VLIX1` + newline, uint64 length of the header, the header (UTF-8), zeros up to 64 bytes, the array.
The array is mapped, not read: an index of any length opens at once and costs no memory.
"""

import json
import mmap
import os
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlalign.data import storage

_MAGIC = b"VLIX1\n"
_HEAD = struct.Struct("<6sQ")
_ALIGN = 64


class BadIndex(ValueError):
    """An index file that is damaged or of another format; it is built anew."""


def header_bytes(header: Mapping[str, Any]) -> bytes:
    """The bytes of an index file before its array."""
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    head = _HEAD.pack(_MAGIC, len(text)) + text
    return head + bytes(-len(head) % _ALIGN)


def write(path: str, header: Mapping[str, Any], parts: Iterable[NDArray[Any]]) -> None:
    """Write an index file whose array is the parts one after the other; it appears when complete.

    Raises UserError if it cannot be written.
    """

    def chunks() -> Iterable[bytes]:
        yield header_bytes(header)
        for part in parts:
            yield part.tobytes()

    storage.write_atomic(path, chunks())


def read(path: str, kind: str, dtype: np.dtype[Any]) -> tuple[dict[str, Any], NDArray[Any]]:
    """The header of an index file and its array, mapped read-only.

    kind: the header's "kind". Raises BadIndex, and FileNotFoundError.
    """
    with open(path, "rb") as file:
        total = os.fstat(file.fileno()).st_size
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size or not head.startswith(_MAGIC):
            raise BadIndex(f"{path} is no index")
        _, length = _HEAD.unpack(head)
        if length > total:
            raise BadIndex(f"{path} is cut off")
        try:
            header = json.loads(file.read(length))
            count = int(header["count"])
            if header["kind"] != kind or count < 0:
                raise BadIndex(f"{path} is an index of {header['kind']!r}, not {kind!r}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise BadIndex(f"{path} is damaged: {error}") from error
        start = -(-(_HEAD.size + length) // _ALIGN) * _ALIGN
        if total != start + count * dtype.itemsize:
            raise BadIndex(f"{path} is cut off")
        if not count:
            return header, np.zeros(0, dtype)
        # Not numpy.memmap, whose every access costs microseconds.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return header, np.frombuffer(mapped, dtype, count, start)
