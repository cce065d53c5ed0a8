"""One of several processes: `python _one_process.py ADDRESS PROCESSES PROCESS CASE`.

It prints what it found as lines of JSON; test_hosts.py reads them.
"""

import json
import os
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vlalign.errors import UserError
from vlalign.parallel import hosts

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 1)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

HEARTBEAT_S = 10
LONG_TEXT = "naïve 字 🙂\n" * 200_000


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def total() -> float:
    """The sum over all processes of their number plus one, computed by one program on all."""
    mesh = jax.make_mesh((hosts.processes(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    mine = np.full((1,), hosts.process() + 1, np.float32)
    x = jax.make_array_from_process_local_data(rows, mine)
    return float(jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))(x))


def work() -> None:
    """Everything that processes do together."""
    number, count = hosts.process(), hosts.processes()
    notes = hosts.Notes()
    notes.put(f"step/{number}", "old")
    notes.put(f"step/{number}", f"{number} is here")
    if hosts.is_main():
        time.sleep(0.5)
        notes.put("slow/0", "written before the barrier")
    hosts.barrier("all have written")
    short = hosts.broadcast_text(f"text of {number}")
    long = hosts.broadcast_text(LONG_TEXT if number == 0 else None)
    empty = hosts.broadcast_text("" if number == 0 else "not mine")
    say(
        process=number,
        processes=count,
        main=hosts.is_main(),
        total=total(),
        anyone=[hosts.anyone(number == count - 1), hosts.anyone(False)],
        steps=notes.all("step"),
        slow=notes.all("slow"),
        none=notes.all("nothing"),
        text=short,
        long=long == LONG_TEXT,
        empty=empty,
    )


def hang() -> None:
    """All in a collective that never ends, but the last, which is killed there."""
    total()
    say(process=hosts.process(), ready=True)
    if hosts.process() == hosts.processes() - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def lose() -> None:
    """All in collectives, until SIGTERM ends the last: gloo sees the lost connection."""
    with hosts.together():
        total()
        if hosts.process() == hosts.processes() - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        while True:
            total()


def fail(kind: type[Exception], number: int) -> None:
    """All in a barrier, but one, which raises."""
    with hosts.together():
        total()
        if hosts.process() == number:
            raise kind("the disk is full")
        hosts.barrier("never")


def main() -> None:
    address, count, number, case = sys.argv[1:]
    cluster = hosts.find_cluster({}, coordinator=address, processes=int(count), process=int(number))
    if cluster is not None:
        try:
            timeout_s = 4 if case == "lonely" else 60
            hosts.join(cluster, timeout_s=timeout_s, heartbeat_s=HEARTBEAT_S)
            hosts.join(cluster)  # again: nothing
        except UserError as error:
            say(error=str(error))
            sys.exit(2)
    {
        "work": work,
        "hang": hang,
        "lose": lose,
        "fail": lambda: fail(OSError, hosts.processes() - 1),
        "fail-main": lambda: fail(UserError, 0),
    }[case]()


main()
