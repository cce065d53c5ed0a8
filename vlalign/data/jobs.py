"""Independent pieces of work in worker processes: results in order, memory bounded, nobody left."""

import collections
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from vlalign.errors import UserError

C = TypeVar("C")
J = TypeVar("J")
R = TypeVar("R")

_AHEAD = 2  # pieces a worker: one in hand, one waiting


def run_jobs(
    work: Callable[[C, J], R], shared: C, jobs: Iterable[J], *, workers: int
) -> Iterator[R]:
    """`work(shared, job)` of every job, in the order of the jobs; workers=0: in this process.

    work: a function of a module, called in a spawned process. shared is pickled once a worker;
    jobs and results are pickled too. At most two jobs a worker are ahead of the one waited for.
    Raises what `work` raises, and UserError if a worker process dies.
    """
    if workers < 0:
        raise UserError(f"workers={workers}: 0 (this process) or more")
    if workers == 0:
        yield from (work(shared, job) for job in jobs)
        return
    # Spawned, not forked: the readers of sources have threads, which a fork would cut off.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_settle, initargs=(shared,))
    pending: collections.deque[Future[R]] = collections.deque()
    rest = iter(jobs)
    try:
        pending.extend(pool.submit(_call, work, job) for job in islice(rest, _AHEAD * workers))
        while pending:
            done = pending.popleft().result()
            pending.extend(pool.submit(_call, work, job) for job in islice(rest, 1))
            yield done
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process died: it was killed, or the machine is out of memory; try again "
            "with fewer workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_shared: Any = None  # of this worker process


def _call(work: Callable[[Any, J], R], job: J) -> R:
    return work(_shared, job)


def _settle(shared: Any) -> None:
    """Leave Ctrl-C to the parent, and do not outlive it: a killed parent can tell nobody."""
    global _shared
    _shared = shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def pieces(count: int, size: int) -> Iterator[range]:
    """0..count-1 as consecutive ranges of `size`; the last one may be shorter."""
    return (range(start, min(start + size, count)) for start in range(0, count, size))
