"""An index of tar shards: where each sample lies, so that it is read at random, never unpacked.

The index has 16 bytes a sample, mapped from a file. Each shard becomes a part file (`tar_scan`), so
that an interrupted build goes on where it was; the parts joined are the index.
"""

import bisect
import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import logging
import multiprocessing
import os
import posixpath
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlalign.data import storage
from vlalign.data.formats import index_file
from vlalign.data.formats.tar_scan import ENTRY, Shard, scan, text_hash
from vlalign.errors import UserError

Progress = Callable[[int, int], None]

_LOG = logging.getLogger(__name__)
_KIND = "tar shards 1"
_LOG_EVERY = 10.0  # seconds


class TarIndex:
    """The samples of tar shards, in order.

    folder: what the shards' names are below; entries (n,) of dtype `ENTRY`.
    """

    def __init__(self, folder: str, shards: tuple[Shard, ...], entries: NDArray[Any]) -> None:
        self.folder = folder
        self.shards = shards
        self.entries = entries
        self._starts = list(itertools.accumulate((s.samples for s in shards), initial=0))[:-1]

    def __len__(self) -> int:
        return len(self.entries)

    def locate(self, index: int) -> tuple[str, int, int, int]:
        """Name of the shard of a sample, first byte, number of bytes, index in `PROBLEMS`."""
        offset, span, problem = self.entries[index].item()
        return self.shards[bisect.bisect_right(self._starts, index) - 1].name, offset, span, problem

    def problems(self) -> dict[str, int]:
        """Kind -> how often, over all shards; "unreadable shard" counts shards cut or damaged."""
        total: collections.Counter[str] = collections.Counter()
        for shard in self.shards:
            total.update(shard.problems)
        return dict(sorted(total.items()))

    def report(self) -> list[str]:
        """One line for each thing that was found wrong, the first few of each shard."""
        return [f"{shard.name}: {note}" for shard in self.shards for note in shard.notes]

    def fingerprint(self) -> str:
        """sha256 over the shards' digests: names, offsets and sizes of members, no times."""
        return text_hash("\n".join(shard.digest for shard in self.shards))


def _write(path: str, shards: tuple[Shard, ...], parts: Iterator[NDArray[Any]]) -> None:
    header = {
        "kind": _KIND,
        "count": sum(shard.samples for shard in shards),
        "shards": [dataclasses.asdict(shard) for shard in shards],
    }
    index_file.write(path, header, parts)


def _read(path: str) -> tuple[tuple[Shard, ...], NDArray[Any]]:
    header, entries = index_file.read(path, _KIND, ENTRY)
    try:
        shards = tuple(Shard(**{**s, "notes": tuple(s["notes"])}) for s in header["shards"])
        if sum(shard.samples for shard in shards) != len(entries):
            raise index_file.BadIndex(f"{path}: its shards are not its entries")
    except (KeyError, TypeError) as error:
        raise index_file.BadIndex(f"{path} is damaged: {error}") from error
    return shards, entries


def _try_read(path: str) -> tuple[tuple[Shard, ...], NDArray[Any]]:
    try:
        return _read(storage.local_copy(path))
    except (FileNotFoundError, index_file.BadIndex):
        return (), np.zeros(0, ENTRY)


def index_path(shards: tuple[str, ...], folder: str | None = None) -> str:
    """Where the index of these shards is kept.

    folder: a folder or URL for it; None: beside the shards, or if nothing can be written there in
    `storage.cache_folder()`.
    """
    root = storage.common_folder(shards)
    names = "\n".join(shard.removeprefix(root) for shard in shards)
    beside = folder is None and storage.is_local(root or ".") and os.access(root or ".", os.W_OK)
    # Beside the shards it moves with them; elsewhere other corpora may have the same names.
    tag = text_hash(names if beside else f"{root}\n{names}")[:16]
    where = root if beside else folder or str(storage.cache_folder() / "indexes")
    return storage.join(where, f".vlalign-{tag}.index")


def open_index(
    shards: tuple[str, ...],
    folder: str | None = None,
    *,
    progress: Progress | None = None,
    workers: int = 0,
    processes: bool = False,
) -> TarIndex:
    """The index of tar shards, built now if there is none or for the shards that changed size.

    shards: paths or URLs, no patterns. folder: see `index_path`. progress: called with bytes of
    shards done and of all. workers: shards at once, 0: one a core. processes: workers are processes
    (needs a main module that can be imported), not threads.
    Raises UserError for missing and doubly named shards, and if storage fails.
    """
    if not shards:
        raise UserError("no tar shards: name some, such as data/{000..010}.tar")
    if len(set(shards)) < len(shards):
        twice = next(s for s, n in collections.Counter(shards).items() if n > 1)
        raise UserError(f"shard {twice} is named twice: each sample would come twice an epoch")
    root = storage.common_folder(shards)
    sizes = dict(zip(shards, storage.sizes(shards), strict=True))
    names = {path: path[len(root) :].lstrip("/") if root != "/" else path[1:] for path in shards}
    path = index_path(shards, folder)
    old, entries = _try_read(path)
    wanted = [(names[shard], sizes[shard]) for shard in shards]
    if not old or [(shard.name, shard.size) for shard in old] != wanted:
        jobs = [(shard, sizes[shard], names[shard]) for shard in shards]
        _build(path, jobs, _slices(old, entries), progress, workers, processes)
        old, entries = _read(storage.local_copy(path))
    return TarIndex(root, old, entries)


Job = tuple[str, int, str]  # path, bytes, name
Slices = dict[tuple[str, int], tuple[Shard, NDArray[Any]]]


def _slices(shards: tuple[Shard, ...], entries: NDArray[Any]) -> Slices:
    ends = itertools.accumulate(shard.samples for shard in shards)
    return {
        (shard.name, shard.size): (shard, entries[end - shard.samples : end])
        for shard, end in zip(shards, ends, strict=True)
    }


def _build(
    path: str,
    jobs: list[Job],
    known: Slices,
    progress: Progress | None,
    workers: int,
    processes: bool,
) -> None:
    tag = text_hash(path)[:16]
    folder = f"{path}.parts" if storage.is_local(path) else f"{storage.cache_folder()}/parts/{tag}"
    todo = [job for job in jobs if (job[2], job[1]) not in known]
    total = sum(size for _, size, _ in todo)
    _LOG.info("indexing %d tar shards, %.1f GB, into %s", len(todo), total / 1e9, path)
    started = logged = time.monotonic()
    done = 0
    workers = min(workers or os.cpu_count() or 1, len(todo)) or 1
    with _pool(workers, processes) as pool:
        running = {pool.submit(_part, folder, job): job for job in todo}
        try:
            for future in concurrent.futures.as_completed(running):
                future.result()
                done += running[future][1]
                if progress:
                    progress(done, total)
                elif time.monotonic() > logged + _LOG_EVERY:
                    logged = time.monotonic()
                    _LOG.info("indexed %.0f%% of %d tar shards", 100 * done / total, len(todo))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise

    def found(job: Job) -> tuple[Shard, NDArray[Any]]:
        return known.get((job[2], job[1])) or _loaded(folder, job)

    shards = tuple(found(job)[0] for job in jobs)
    _write(path, shards, (found(job)[1] for job in jobs))
    _clear(folder, todo)
    seconds = time.monotonic() - started
    _LOG.info("indexed %d samples in %.1f s", sum(shard.samples for shard in shards), seconds)


def _pool(workers: int, processes: bool) -> concurrent.futures.Executor:
    if processes:
        spawn = multiprocessing.get_context("spawn")  # a fork of a threaded process may hang
        return concurrent.futures.ProcessPoolExecutor(workers, mp_context=spawn)
    return concurrent.futures.ThreadPoolExecutor(workers)


def _clear(folder: str, jobs: list[Job]) -> None:
    """Remove the parts; those of other hosts, which may build the same index, stay."""
    with contextlib.suppress(OSError):
        for job in jobs:
            os.unlink(_part_path(folder, job))
        os.rmdir(folder)


def _part_path(folder: str, job: Job) -> str:
    tag = text_hash(f"{job[0]}\0{job[1]}")[:24]
    return posixpath.join(folder, f"{tag}.part")


def _part(folder: str, job: Job) -> None:
    """Leave the part file of one shard, unless an interrupted build has left it already."""
    if not os.path.exists(_part_path(folder, job)):
        shard, entries = scan(*job)
        _write(_part_path(folder, job), (shard,), iter((entries,)))


def _loaded(folder: str, job: Job) -> tuple[Shard, NDArray[Any]]:
    try:
        (shard,), entries = _read(_part_path(folder, job))
    except (FileNotFoundError, ValueError):  # another build of the same index has cleared up
        return scan(*job)
    return shard, entries
