"""Files by path or URL: find, list, stat, read a range; local disks and whatever fsspec reaches.

Reads retry with exponential backoff and then stop with a `UserError`: a store that fails for an
hour is no reason to train on holes. A local read is one `pread` on a file kept open.
"""

import contextlib
import errno
import functools
import hashlib
import logging
import os
import posixpath
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from vlalign.data.record import BadRecord
from vlalign.errors import UserError

T = TypeVar("T")

_LOG = logging.getLogger(__name__)
ATTEMPTS = 6
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds
_OPEN_FILES = 256
_MAX_EXPANSION = 10_000_000  # paths that one pattern may stand for
_BRACE = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:(//|:)")
NOT_A_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
# These do not get better by waiting. (Stores raise classes of their own for what does.)
_FINAL = (PermissionError, ImportError, NotImplementedError, TypeError, ValueError)
_FINAL_ERRNO = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENOSPC, errno.EROFS)
_JITTER = random.Random()  # not the global generator, which is the caller's


def retried(action: Callable[[], T], what: str) -> T:
    """The result of `action`, tried up to `ATTEMPTS` times with waits that double, with jitter.

    Raises UserError when all have failed, or at once when waiting cannot help; NOT_A_FILE passes
    through, for the caller knows whether that is a record's or the user's mistake.
    """
    wait = FIRST_WAIT
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except (UserError, *NOT_A_FILE):
            raise
        except Exception as error:
            final = isinstance(error, _FINAL) or getattr(error, "errno", None) in _FINAL_ERRNO
            if final or attempt == ATTEMPTS:
                tries = "" if final else f" ({ATTEMPTS} attempts)"
                raise UserError(f"cannot {what}{tries}: {_said(error)}") from error
            pause = min(wait, LONGEST_WAIT) * _JITTER.uniform(0.5, 1.5)
            _LOG.warning(
                "cannot %s: %s; attempt %d of %d, next in %.1f s",
                *(what, _said(error), attempt, ATTEMPTS, pause),
            )
            time.sleep(pause)
            wait *= 2
    raise AssertionError("unreachable")


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def is_local(path: str) -> bool:
    """Whether `path` is a plain path of this machine, not a URL."""
    return not _SCHEME.match(path)


def _remote(path: str) -> tuple[Any, str]:
    """The file system of a URL and the path in it."""
    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise UserError(f"cannot open {path}: {error}") from error


def normal(path: str) -> str:
    """`path` as the rest of this module takes it: file:// URLs become plain local paths."""
    return str(_remote(path)[1]) if path.startswith(("file:", "local:")) else path


def size(path: str) -> int:
    """Size of a file in bytes; one of NOT_A_FILE if there is none, UserError if it cannot tell."""
    if is_local(path):
        return retried(lambda: os.stat(path).st_size, f"stat {path}")
    file_system, inner = _remote(path)
    found = retried(lambda: file_system.info(inner), f"stat {path}")
    if found.get("size") is None:
        raise UserError(f"cannot read {path} at random: the store does not tell its size")
    return int(found["size"])


def sizes(paths: Iterable[str]) -> list[int]:
    """Sizes of files in bytes, one listing a remote folder; UserError names the missing ones."""
    paths = list(paths)
    known: dict[str, int] = {}
    for folder in {posixpath.dirname(path) for path in paths if not is_local(path)}:
        file_system, inner = _remote(folder)
        # A store without listings, or an empty folder: each file is asked for itself, below.
        with contextlib.suppress(FileNotFoundError, UserError):
            for item in retried(
                functools.partial(file_system.ls, inner, detail=True), f"list {folder}"
            ):
                if item.get("size") is not None:
                    known[f"{folder}/{posixpath.basename(item['name'])}"] = int(item["size"])
    found, missing = [], []
    for path in paths:
        try:
            found.append(known[path] if path in known else size(path))
        except NOT_A_FILE:
            missing.append(path)
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise UserError(f"{len(missing)} of {len(paths)} files do not exist: {shown}")
    return found


def exists(path: str) -> bool:
    """Whether there is a file or a folder of this name."""
    if is_local(path):
        return os.path.exists(path)
    file_system, inner = _remote(path)
    return retried(lambda: bool(file_system.exists(inner)), f"stat {path}")


def is_folder(path: str) -> bool:
    """Whether `path` is a folder."""
    if is_local(path):
        return os.path.isdir(path)
    file_system, inner = _remote(path)
    return retried(lambda: bool(file_system.isdir(inner)), f"stat {path}")


def walk(folder: str) -> Iterator[tuple[str, int]]:
    """(name below `folder`, size) of every file in it and in its subfolders, sorted by name."""
    if is_local(folder):
        yield from _walk_local(folder, "")
        return
    file_system, inner = _remote(folder)
    found = retried(lambda: file_system.find(inner, detail=True), f"list {folder}")
    root = inner.rstrip("/") + "/"
    for name in sorted(found):
        yield name.removeprefix(root), int(found[name].get("size") or 0)


def _walk_local(folder: str, below: str) -> Iterator[tuple[str, int]]:
    with retried(lambda: os.scandir(os.path.join(folder, below)), f"list {folder}") as entries:
        # As sorted by full name: "a.png" stands before "a/b.png", so a folder sorts with its "/".
        items = sorted((entry.name + "/" * entry.is_dir(), entry) for entry in entries)
    for name, entry in items:
        if entry.is_dir():
            # A link to a folder above would never end.
            if not entry.is_symlink():
                yield from _walk_local(folder, below + name)
        elif entry.is_file():
            yield below + name, entry.stat().st_size


class _File:
    """A local file kept open; closed when the last reader lets go of it, never under a reader."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.close(self.descriptor)


@functools.lru_cache(maxsize=_OPEN_FILES)
def _opened(path: str) -> _File:
    return _File(path)


def forget(path: str) -> None:
    """Close files kept open: `path` was replaced."""
    del path  # the cache cannot let go of one
    _opened.cache_clear()


def read(path: str, offset: int = 0, count: int | None = None) -> bytes:
    """`count` bytes from `offset` (None: to the end); fewer only where the file ends.

    Raises one of NOT_A_FILE, and UserError after retries.
    """
    if offset < 0 or (count is not None and count < 0):
        raise ValueError(f"read of {count} bytes at {offset} of {path}: both are at least 0")
    if is_local(path):
        return retried(lambda: _read_local(path, offset, count), f"read {path}")
    file_system, inner = _remote(path)
    if count is None:
        count = max(size(path) - offset, 0)
    if not count:
        return b""
    data = retried(
        lambda: bytes(file_system.cat_file(inner, start=offset, end=offset + count)),
        f"read {path}",
    )
    if len(data) > count:
        raise UserError(f"cannot read {path} at random: asked for {count} bytes, got {len(data)}")
    return data


def _read_local(path: str, offset: int, count: int | None) -> bytes:
    file = _opened(path)
    if count is None:
        count = max(os.fstat(file.descriptor).st_size - offset, 0)
    data = os.pread(file.descriptor, count, offset)
    if len(data) == count or not data:
        return data
    parts, got = [data], len(data)
    while got < count and (data := os.pread(file.descriptor, count - got, offset + got)):
        parts.append(data)
        got += len(data)
    return b"".join(parts)


def write_atomic(path: str, chunks: Iterable[bytes]) -> None:
    """Write a file that appears under its name only when complete; UserError if it cannot."""
    try:
        if is_local(path):
            _write_local(Path(path), chunks)
            return
        file_system, inner = _remote(path)
        with file_system.open(inner, "wb") as file:  # stores show an object when it is closed
            for chunk in chunks:
                file.write(chunk)
    except OSError as error:
        raise UserError(f"cannot write {path}: {_said(error)}") from error


def _write_local(path: Path, chunks: Iterable[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor, partial = tempfile.mkstemp(".partial", path.name, path.parent)
    except FileNotFoundError:  # somebody else removed the empty folder in between
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(".partial", path.name, path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise


def cache_folder() -> Path:
    """What may be made again: indexes that cannot stand beside their data, plans, programs.

    $VLALIGN_CACHE, or ~/.cache/vlalign.
    """
    named = os.environ.get("VLALIGN_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(named or os.path.join(base, "vlalign"))


def local_copy(path: str) -> str:
    """A local path with the bytes of `path`: itself, or a copy in the cache, new if it changed."""
    if is_local(path):
        return path
    total = size(path)
    file_system, inner = _remote(path)
    version = retried(lambda: file_system.ukey(inner), f"stat {path}")  # size, time, etag, ...
    tag = hashlib.sha256(f"{path} {version}".encode()).hexdigest()[:16]
    copy = cache_folder() / "copies" / f"{tag}-{posixpath.basename(path)}"
    if not copy.is_file() or copy.stat().st_size != total:
        block = 1 << 24
        starts = range(0, total, block)
        write_atomic(str(copy), (read(path, at, min(block, total - at)) for at in starts))
    return str(copy)


def expand(patterns: Iterable[str]) -> tuple[str, ...]:
    """Paths of patterns: `{000..099}` and `{a,b}` in written order, globs sorted.

    Raises UserError for a bad brace and for a glob that matches no file.
    """
    found: list[str] = []
    for pattern in patterns:
        if is_local(pattern) and os.path.exists(pattern):
            found.append(pattern)  # a name may hold brackets
            continue
        for path in _braces(pattern, pattern):
            path = normal(path)
            found.extend(_glob(path) if any(mark in path for mark in "*?[") else [path])
            if len(found) > _MAX_EXPANSION:
                raise UserError(f"{pattern} stands for more than {_MAX_EXPANSION:,} paths")
    return tuple(found)


def _braces(text: str, pattern: str) -> Iterator[str]:
    match = _BRACE.search(text)
    if not match:
        if "{" in text or "}" in text:
            raise UserError(f"{pattern}: unbalanced brace; write {{000..099}} or {{a,b}}")
        yield text
        return
    numbers = _RANGE.fullmatch(match[1])
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        if last < first or last - first >= _MAX_EXPANSION:
            raise UserError(f"{pattern}: {{{match[1]}}} is no range of ascending numbers")
        width = len(numbers[1])
        options: Iterable[str] = (f"{number:0{width}d}" for number in range(first, last + 1))
    elif "," in match[1]:
        options = match[1].split(",")
    else:
        raise UserError(f"{pattern}: {match[0]} is neither a range {{000..099}} nor a list {{a,b}}")
    for option in options:
        yield from _braces(text[: match.start()] + option + text[match.end() :], pattern)


def _glob(pattern: str) -> list[str]:
    if is_local(pattern):
        import glob

        found = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    else:
        file_system, inner = _remote(pattern)
        names = retried(lambda: list(file_system.glob(inner)), f"list {pattern}")
        found = sorted(str(file_system.unstrip_protocol(name)) for name in names)
    if not found:
        raise UserError(f"no file matches {pattern}")
    return found


def common_folder(paths: Iterable[str]) -> str:
    """The deepest folder above all paths; "" if there is none."""
    parts = [posixpath.dirname(path).split("/") for path in paths]
    shared = []
    for steps in zip(*parts, strict=False):
        if len(set(steps)) > 1:
            break
        shared.append(steps[0])
    folder = "/".join(shared)
    return "/" if shared == [""] else "" if folder.endswith(":/") else folder


def join(folder: str, name: str) -> str:
    """`name` below `folder`."""
    return f"{folder.rstrip('/')}/{name}" if folder not in ("", "/") else folder + name


def check_name(name: str) -> str:
    """`name` without a leading "./"; BadRecord("unsafe name") if it could lead out of its root.

    Refused: absolute names, "..", backslashes, drive letters, URLs, control characters, nothing,
    and what no file system holds (over 255 bytes a step or 4,000 in all, lone surrogates).
    """
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    bad = (
        set(name.split("/")) <= {"", "."}
        or name.startswith(("/", "~"))
        or "\\" in name
        or ".." in name.split("/")
        or name[1:2] == ":"
        or bool(_SCHEME.match(name))
        or not name.isprintable()
        or max(map(len, name.encode(errors="replace").split(b"/"))) > 255
        or len(name.encode(errors="replace")) > 4000
    )
    if bad:
        raise BadRecord("unsafe name", repr(name[:200]))
    return name


def below(root: str, name: str) -> str:
    """The path of `name` below `root`; an absolute name is fine if it begins with the root.

    Raises BadRecord("unsafe name").
    """
    inside = root.rstrip("/") + "/"
    return join(root, check_name(name.removeprefix(inside)))
