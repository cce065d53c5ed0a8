"""Several processes as one run: who they are, how they find each other, how they end together.

jax's coordination service (a thread of process 0) watches all of them. A process that is killed is
missed after `heartbeat_s`, and jax then aborts the others, also where they hang in a collective. A
process that raises inside `together()` says so to the others, which end within seconds. So a
launcher sees every process end, and starts all again.
"""

import atexit
import contextlib
import dataclasses
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from vlalign.errors import UserError
from vlalign.parallel.notes import Notes, process_id, service

_POLL_S = 2.0
_FAILED, _ENDS = "failed", "ends"  # where a process notes that it failed, or ends with another
_ONE_GPU_EACH = ("srun", "mpirun")
_over = threading.Event()  # this process ends, by its own will or failure


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes of one run. None: jax's own detection finds it.

    coordinator: HOST:PORT, where process 0 listens.   processes: how many there are.
    process: which of them this is, from 0.   launcher: who said so, for messages.
    """

    coordinator: str | None
    processes: int | None
    process: int | None
    launcher: str


def find_cluster(
    environ: Mapping[str, str],
    *,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> Cluster | None:
    """The cluster that this process was started in; None if it is alone.

    The arguments (of the command line) win; then JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID (or an indexed Job's JOB_COMPLETION_INDEX); then the variables of srun, Open MPI
    and multi-host TPUs on GKE. A TPU VM says nothing in its environment: `coordinator="auto"` lets
    jax ask it.

    Raises UserError for facts that are incomplete or contradict each other.
    """
    if coordinator == "auto" and processes is None and process is None:
        return Cluster(None, None, None, "jax's detection")
    flags = {"--coordinator": coordinator, "--processes": processes, "--process-id": process}
    if any(value is not None for value in flags.values()):
        return _stated(flags, "the command line")
    launched = _launched(environ)
    address = environ.get("JAX_COORDINATOR_ADDRESS")
    if launched is not None and address and "JAX_NUM_PROCESSES" not in environ:
        return dataclasses.replace(launched, coordinator=_checked_address(address))
    names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    if address or any(name in environ for name in names):
        index = "JAX_PROCESS_ID" if "JAX_PROCESS_ID" in environ else "JOB_COMPLETION_INDEX"
        facts = {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": _number(environ, "JAX_NUM_PROCESSES"),
            "JAX_PROCESS_ID": _number(environ, index),
        }
        return _stated(facts, "the environment")
    return launched


def _stated(facts: Mapping[str, str | int | None], source: str) -> Cluster | None:
    """A cluster from three facts, in the order coordinator, processes, process."""
    missing = [name for name, value in facts.items() if value is None]
    if missing:
        given = ", ".join(f"{k}={v}" for k, v in facts.items() if v is not None)
        raise UserError(
            f"{source} gives {given}, but not {' and '.join(missing)}: several processes need all "
            "three (the address of process 0, how many there are, which of them this is)"
        )
    address, processes, process = facts.values()
    _, count_name, index_name = facts
    assert isinstance(processes, int)
    assert isinstance(process, int)
    if processes < 1:
        raise UserError(f"{count_name}={processes}: at least 1")
    if not 0 <= process < processes:
        raise UserError(
            f"{index_name}={process}: of {processes} processes it must be 0 to {processes - 1}"
        )
    coordinator = _checked_address(str(address))
    return Cluster(coordinator, processes, process, source) if processes > 1 else None


def _checked_address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"coordinator {text!r}: expected HOST:PORT, for example node-0:8476")
    return text


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name)
    if text is None:
        return None
    if not text.isdecimal():
        raise UserError(f"{name}={text!r} in the environment: expected a number")
    return int(text)


def _launched(environ: Mapping[str, str]) -> Cluster | None:
    """What a launcher that jax knows has set; None if there is none, or one process."""
    srun = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    if all(name in environ for name in srun):
        count = _number(environ, "SLURM_NTASKS")
        found = Cluster(None, count, _number(environ, "SLURM_PROCID"), _ONE_GPU_EACH[0])
    elif "OMPI_COMM_WORLD_SIZE" in environ:
        count = _number(environ, "OMPI_COMM_WORLD_SIZE")
        found = Cluster(None, count, _number(environ, "OMPI_COMM_WORLD_RANK"), _ONE_GPU_EACH[1])
    elif "TPU_WORKER_HOSTNAMES" in environ:
        slices = _number(environ, "MEGASCALE_NUM_SLICES") or 1
        count = slices * len(environ["TPU_WORKER_HOSTNAMES"].split(","))
        found = Cluster(None, None, None, "the TPU's environment")
    else:
        return None
    return found if count is not None and count > 1 else None


def join(cluster: Cluster, *, timeout_s: int = 300, heartbeat_s: int = 60) -> None:
    """Makes this process one of the cluster's. Before anything asks jax for devices.

    On CPU the collectives are gloo's. At the end of the program it waits for the others; inside
    `together()` failures end all. Called again it does nothing.
    timeout_s: how long the processes may take to come together.
    heartbeat_s: a process that was not heard of for so long is lost, and the others end (SIGABRT).

    Raises UserError if the coordinator cannot be found or reached in time. If it was reached but
    others did not come, the process ends with exit code 1: jax's wait cannot be interrupted.
    """
    if jax.distributed.is_initialized():
        return
    if getattr(jax.config, "jax_cpu_collectives_implementation", None) in (None, "none"):
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # jax's own watch for preemption would swallow every SIGTERM; the loop listens for it itself.
    jax.config.update("jax_enable_preemption_service", False)
    # jax gives each task of srun and mpirun one GPU. With all stated there is nothing to detect,
    # and a process has all the devices that it sees.
    detect = cluster.coordinator is None or cluster.launcher in _ONE_GPU_EACH
    deadline = time.monotonic() + timeout_s
    if cluster.coordinator is not None:
        if cluster.process == 0:
            _check_free(cluster.coordinator)
        else:
            _wait_for(cluster.coordinator, deadline, timeout_s)
    timer = threading.Timer(deadline - time.monotonic(), _nobody_came, (cluster, timeout_s))
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            cluster.coordinator,
            cluster.processes,
            cluster.process,
            cluster_detection_method=None if detect else "deactivate",
            initialization_timeout=timeout_s + 60,  # its end is an abort: ours comes first
            heartbeat_timeout_seconds=heartbeat_s,
            shutdown_timeout_seconds=3600,  # process 0 may write a report while the others wait
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"{_name(cluster)} cannot join ({cluster.launcher}): {error}. If jax cannot find the "
            "others, state --coordinator HOST:PORT --processes N --process-id I"
        ) from error
    finally:
        timer.cancel()
    _watch_failures()


def _name(cluster: Cluster) -> str:
    of = "" if cluster.processes is None else f" of {cluster.processes}"
    return f"process {'?' if cluster.process is None else cluster.process}{of}"


def _check_free(address: str) -> None:
    """Raises UserError if something listens at our port already. jax may crash on it."""
    port, both = int(address.rpartition(":")[2]), socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen at {address} ({error}): is another run on this host? Give "
            "all processes another port"
        ) from error


def _wait_for(address: str, deadline: float, timeout_s: int) -> None:
    """Returns when something listens at `address`. jax itself would abort the process instead."""
    host, _, port = address.rpartition(":")
    while True:
        left = deadline - time.monotonic()
        try:
            socket.create_connection((host.strip("[]"), int(port)), max(left, 0.1)).close()
            return
        except OSError as error:
            if left < 1:
                raise UserError(
                    f"no coordinator at {address} within {timeout_s} s ({error}). Check that "
                    "process 0 runs on that host and was started with the same address, that the "
                    "name resolves here, and that no firewall closes the port"
                ) from error
            time.sleep(min(1.0, left))


def _nobody_came(cluster: Cluster, timeout_s: int) -> NoReturn:
    at = cluster.coordinator or "the address that jax found"
    _end(
        f"vlalign: {_name(cluster)} waited {timeout_s} s at {at}, and not all of the others "
        "came. Check that all were started, with the same coordinator and number of processes and "
        "each with another process id; that process 0 runs on the coordinator's host; and that no "
        "proxy variable (http_proxy) stands in the way",
        code=1,  # perhaps they were only late: a launcher may try again
    )


def _end(message: str, *, code: int) -> NoReturn:
    """Ends the process from any thread, whatever the main thread hangs in."""
    print(message, end="\n" if message else "", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)


def process() -> int:
    """Which of the processes this is, from 0."""
    return jax.process_index()


def processes() -> int:
    """How many processes run together. Raises UserError on a TPU slice that did not join."""
    count = jax.process_count()
    if count > 1 and not jax.distributed.is_initialized():
        raise UserError(
            f"this host is one of {count} of a TPU slice, and the processes have not joined: "
            "start the same command on every host with --coordinator auto"
        )
    return count


def is_main() -> bool:
    """Whether this is process 0: the one that prints and writes what is written once."""
    return process() == 0


def barrier(name: str) -> None:
    """Returns when all processes have called it with this name."""
    if processes() > 1:
        multihost_utils.sync_global_devices(name)


def anyone(flag: bool) -> bool:
    """Whether any process says yes; all must ask."""
    if processes() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def broadcast_text(text: str | None) -> str:
    """Process 0's text, in every process; what the others pass is not looked at.

    Raises UserError if process 0 has none.
    """
    if is_main() and text is None:
        raise UserError("process 0 has no text to give to the others")
    if processes() == 1:
        assert text is not None
        return text
    data = np.frombuffer((text or "").encode("utf-8"), np.uint8) if is_main() else np.zeros(0, "u1")
    size = int(multihost_utils.broadcast_one_to_all(np.int32(data.size)))
    padded = np.resize(data, size) if is_main() else np.zeros(size, np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))).decode("utf-8")


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Inside, an error of one process ends all: the others say whose it was and exit with its code.

    Without it they would hang in their next collective, and the failed process at its exit, until
    each has waited for the other. The error goes on to the caller, as ever.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if jax.distributed.is_initialized():
            _over.set()
            number = process_id()
            interrupted = isinstance(error, KeyboardInterrupt)
            code = 2 if isinstance(error, UserError) else 130 if interrupted else 1  # the CLI's
            text = f"process {number} ({socket.gethostname()}) failed: {type(error).__name__}"
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # process 0 may be gone
                Notes().put(f"{_FAILED}/{number}", f"{code} {text}: {error}")
            atexit.register(_leave_failed, code)
        raise


def _leave_failed(code: int) -> NoReturn:
    """The exit of a process that failed: not through jax's, which waits for all the others.

    It gives them time to read why. Who does not answer is what made a collective fail here.
    """
    time.sleep(_time_to_read())
    with contextlib.suppress(jax.errors.JaxRuntimeError, AttributeError):
        answered = Notes().all(_FAILED) | Notes().all(_ENDS)
        numbers = {int(key.rpartition("/")[2]) for key in answered}
        for lost in sorted(set(range(service().num_processes)) - numbers):
            print(f"vlalign: process {lost} does not answer: killed?", file=sys.stderr)
    _end("", code=code)


def _time_to_read() -> float:
    """Seconds in which all have looked at the board. Process 0, where it is, leaves last."""
    return (2 if process_id() else 4) * _POLL_S


def _watch_failures() -> None:
    """A thread that ends this process when another has put up that it failed."""
    notes = Notes()

    def watch() -> None:
        while not _over.wait(_POLL_S):
            try:
                failed = notes.all(_FAILED)
            except jax.errors.JaxRuntimeError:  # process 0 is gone: jax itself ends this one
                return
            if failed and not _over.is_set():
                notes.put(f"{_ENDS}/{process_id()}", "")
                time.sleep(_time_to_read() - 2 * _POLL_S)
                code, _, text = next(iter(failed.values())).partition(" ")
                _end(f"vlalign: {text}\nthis process ends too", code=int(code))

    thread = threading.Thread(target=watch, name="vlalign-failures", daemon=True)
    thread.start()

    def stop() -> None:
        _over.set()
        thread.join()

    # A thread that is inside jax while the interpreter goes would crash it. Exit functions run last
    # first, so this comes before jax's own.
    atexit.register(stop)
