"""Where a vocabulary file lies: a path, a directory, or a directory of the Hugging Face cache."""

import gzip
import importlib.util
import zlib
from collections.abc import Sequence
from pathlib import Path

from vlalign.errors import UserError

_MOST_BYTES = 1 << 28  # no vocabulary is that long; an endless gzip is


def find_file(path: str, names: Sequence[str]) -> Path:
    """The file `path`, or the first of `names` in the directory `path`.

    A directory of the cache (models--org--name, with snapshots/REVISION/ in it) stands for the
    snapshot that refs/main names, or for its only one. Raises UserError that says what was sought.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return place
    if not place.is_dir():
        raise UserError(f"no such file or directory: {path}")
    folder = _snapshot(place) if (place / "snapshots").is_dir() else place
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} holds none of {', '.join(names)}")


def _snapshot(place: Path) -> Path:
    main = place / "refs" / "main"
    if main.is_file():
        named = place / "snapshots" / main.read_text(encoding="utf-8", errors="replace").strip()
        if named.is_dir() and named.parent == place / "snapshots":
            return named
    found = sorted(folder for folder in (place / "snapshots").iterdir() if folder.is_dir())
    if len(found) != 1:
        names = ", ".join(folder.name for folder in found) or "none"
        raise UserError(f"{place}: which snapshot is meant? Name one of snapshots/: {names}")
    return found[0]


def package_folder(name: str) -> str | None:
    """The folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(name)
    places = spec.submodule_search_locations if spec else None
    return next(iter(places), None) if places else None


def read_bytes(path: Path) -> bytes:
    """A file's content, unpacked if it is gzip; UserError if it cannot be read or is too long."""
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if packed else open(path, "rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if len(data) > _MOST_BYTES:
        raise UserError(f"{path} is longer than {_MOST_BYTES >> 20} MiB: not a vocabulary")
    return data
