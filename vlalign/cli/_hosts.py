"""Arguments by which a command joins a cluster: one process a host, or one an accelerator."""

import argparse
import os

from vlalign.errors import UserError


def add_host_arguments(parser: argparse.ArgumentParser) -> None:
    """--coordinator, --processes, --process-id; without them the environment decides. Also
    --join-timeout.
    """
    group = parser.add_argument_group(
        "several processes", "srun, mpirun, GKE and launch/ say all this in the environment"
    )
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="where process 0 listens; auto: jax asks the machine (TPU VMs)",
    )
    group.add_argument("--processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process-id", type=int, metavar="I", help="which this is, 0 to N-1")
    group.add_argument(
        "--join-timeout",
        type=int,
        metavar="SECONDS",
        help="how long they wait for each other at the start (default: 300 with --coordinator, "
        "else 1800)",
    )


def join_hosts(args: argparse.Namespace) -> None:
    """Joins the cluster of the arguments or the environment; alone it does nothing.

    Before jax is asked for devices. Raises UserError as `find_cluster` and `join` do.
    """
    from vlalign.parallel.hosts import find_cluster, join

    # A cluster may give its machines minutes apart; somebody at a keyboard mistypes addresses.
    timeout = 1800 if args.coordinator is None else 300
    if args.join_timeout is not None:
        if args.join_timeout < 1:
            raise UserError(f"--join-timeout {args.join_timeout}: at least 1 second")
        timeout = args.join_timeout
    cluster = find_cluster(
        os.environ,
        coordinator=args.coordinator,
        processes=args.processes,
        process=args.process_id,
    )
    if cluster is not None:
        join(cluster, timeout_s=timeout)
