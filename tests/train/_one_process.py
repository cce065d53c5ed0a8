"""One of several processes that train.

`python _one_process.py ADDRESS PROCESSES PROCESS DEVICES CONFIG RUN_DIR`. CONFIG is an experiment
as text; the process has DEVICES simulated devices.
"""

import sys
from pathlib import Path

import jax

from vlalign.experiment import load_text
from vlalign.parallel import hosts
from vlalign.runs import prepare_run
from vlalign.train.loop import train


def main() -> None:
    """Joins the others and trains."""
    address, processes, process, devices, config, run_dir = sys.argv[1:]
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", int(devices))
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    cluster = hosts.Cluster(address, int(processes), int(process), "a test")
    hosts.join(cluster, timeout_s=120, heartbeat_s=10)
    with hosts.together():
        experiment = load_text(Path(config))
        if hosts.is_main():
            prepare_run(experiment, Path(run_dir))
        hosts.barrier("run directory")
        train(experiment, Path(run_dir))


if __name__ == "__main__":
    main()
