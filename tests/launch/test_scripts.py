"""The scripts of launch/: lint, options, what they would run, and how they go on after an end."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))
NEEDED: dict[str, dict[str, str]] = {
    "local.sh": {},
    "slurm.sbatch": {},
    "tpu_vm.sh": {"ZONE": "us-east5-b", "BUCKET": "runs"},
    "gke.sh": {"IMAGE": "registry/vlalign:1", "BUCKET": "runs"},
    "xpk.sh": {"CLUSTER": "c", "ZONE": "us-east5-b", "IMAGE": "registry/vlalign:1", "STORAGE": "s"},
}
# Arguments that a careless script would break.
TRAIN = (
    "my config",
    "--run-dir",
    "runs/a b",
    "--set",
    'name="it\'s" $HOME & \\ @NAME@ *',
    "--quiet",
)
PLAIN = ("emoji_clip", "--run-dir", "runs/a")
# What vlalign does when it is told to stop: it saves, and ends with 0.
SAVES = """
import signal
def save(number, frame):
    (here / "saved").write_text("")
    sys.exit(0)
if name in ("vlalign", "srun"):
    signal.signal(signal.SIGTERM, save)
    (here / "ready").write_text("")
    time.sleep(100)
"""


def dry_run(machine: Any, script: str, *arguments: str, **variables: str) -> str:
    """What a script would run; fails if it ran anything."""
    ended = machine.run(script, "--dry-run", *arguments, **NEEDED[script], **variables)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert machine.calls() == []
    out: str = ended.stdout
    return out


def words(line: str) -> list[str]:
    """A line of bash as the words that bash makes of it."""
    found = subprocess.run(
        ["bash", "-c", 'eval "set -- $1"; printf "%s\\0" "$@"', "bash", line.split(" # ")[0]],
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.split("\0")[:-1]


def test_all_scripts_are_here() -> None:
    assert set(SCRIPTS) == set(NEEDED)
    assert all(os.access(LAUNCH / name, os.X_OK) for name in SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck(script: str) -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    command = [str(shellcheck), "--shell=bash", "--enable=quote-safe-variables", script]
    found = subprocess.run(command, cwd=LAUNCH, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_options(machine: Any, script: str) -> None:
    helped = machine.run(script, "--help")
    assert helped.returncode == 0
    assert f"launch/{script} [--dry-run] CONFIG --run-dir RUN" in helped.stdout
    assert not any(line.startswith("#") for line in helped.stdout.splitlines())
    for name in NEEDED[script]:
        assert f"  {name} " in helped.stdout
    for arguments, says in [
        (("--dryrun", *PLAIN), "unknown option --dryrun"),
        ((), "no CONFIG"),
        (("emoji_clip",), "no --run-dir"),
    ]:
        ended = machine.run(script, *arguments, **NEEDED[script])
        assert ended.returncode == 2
        assert f"{script}: error: {says}" in ended.stderr
    for name in NEEDED[script]:
        ended = machine.run(script, *PLAIN, **NEEDED[script] | {name: ""})
        assert ended.returncode == 2
        assert f"{name} is not set" in ended.stderr
    assert machine.calls() == []


@pytest.mark.parametrize(
    ("script", "variable", "value"),
    [
        ("local.sh", "PROCESSES", "0"),
        ("local.sh", "RESTARTS", "often"),
        ("slurm.sbatch", "NODES", "0"),
        ("slurm.sbatch", "GPUS", "-1"),
        ("tpu_vm.sh", "SLICES", "0"),
        ("tpu_vm.sh", "SPOT", "yes"),
        ("gke.sh", "NAME", "My_Run"),
        ("gke.sh", "HOSTS", "0"),
        ("gke.sh", "ACCELERATOR", "gpu"),
        ("xpk.sh", "SLICES", "two"),
    ],
)
def test_wrong_values(machine: Any, script: str, variable: str, value: str) -> None:
    ended = machine.run(script, *PLAIN, **NEEDED[script] | {variable: value})
    assert ended.returncode == 2
    assert f"{variable}={value}" in ended.stderr
    assert machine.calls() == []


def test_local_dry_run(machine: Any) -> None:
    *lines, _ = dry_run(machine, "local.sh", *TRAIN, PROCESSES="3").splitlines()
    stated = ["JAX_COORDINATOR_ADDRESS=127.0.0.1:PORT", "JAX_NUM_PROCESSES=3"]
    assert [words(line.removesuffix(" &")) for line in lines] == [
        [
            *("env", *stated, f"JAX_PROCESS_ID={i}", f"JAX_LOCAL_DEVICE_IDS={i}"),
            *("vlalign", "train", *TRAIN),
        ]
        for i in range(3)
    ]


def test_slurm_dry_run(machine: Any) -> None:
    submit, _, step = dry_run(machine, "slurm.sbatch", *TRAIN, NODES="4", PARTITION="a").split(
        "\n"
    )[:3]
    assert words(submit) == [
        *("sbatch", "--nodes=4", "--cpus-per-task=8", "--time=24:00:00", "--signal=B:TERM@300"),
        *("--ntasks-per-node=8", "--gpus-per-node=8", "--partition=a"),
        *(str(LAUNCH / "slurm.sbatch"), *TRAIN),
    ]
    assert words(step) == [
        *("srun", "--kill-on-bad-exit=1", "--cpus-per-task=8", "vlalign", "train", *TRAIN)
    ]
    submit = dry_run(machine, "slurm.sbatch", *PLAIN, GPUS="0", ACCOUNT="me").split("\n")[0]
    assert words(submit)[5:7] == ["--ntasks-per-node=1", "--account=me"]


def test_slurm_submits_itself(machine: Any) -> None:
    assert machine.run("slurm.sbatch", *TRAIN).returncode == 0
    assert [call[0] for call in machine.calls()] == ["sbatch"]
    assert machine.calls()[0][-len(TRAIN) :] == list(TRAIN)


@pytest.mark.parametrize(
    ("code", "restarts", "ends", "requeued"),
    [(0, 0, 0, False), (2, 0, 2, False), (1, 0, 0, True), (137, 19, 0, True), (1, 20, 1, False)],
)
def test_slurm_goes_back_into_the_queue(
    machine: Any, code: int, restarts: int, ends: int, requeued: bool
) -> None:
    machine.behave(f"sys.exit({code} if name == 'srun' else 0)")
    inside = {"SLURM_JOB_ID": "71", "SLURM_RESTART_COUNT": str(restarts)}
    ended = machine.run("slurm.sbatch", *PLAIN, **inside)
    assert ended.returncode == ends, ended.stderr
    step, *rest = machine.calls()
    assert step[:4] == ["srun", "--kill-on-bad-exit=1", "--cpus-per-task=8", "vlalign"]
    assert rest == ([["scontrol", "requeue", "71"]] if requeued else [])


def test_slurm_before_the_time_limit(
    machine: Any, wait_for: Callable[[Callable[[], bool]], None]
) -> None:
    """SLURM signals the batch script alone; here scancel's stand-in reaches the step."""
    machine.behave(
        SAVES.replace(
            'if name in ("vlalign", "srun"):',
            'if name == "srun":\n    (here / "pid").write_text(str(os.getpid()))',
        )
        + "if name == 'scancel': os.kill(int((here / 'pid').read_text()), 15)\n"
    )
    job = machine.start("slurm.sbatch", *PLAIN, SLURM_JOB_ID="71")
    wait_for((machine.bin / "ready").exists)
    job.send_signal(signal.SIGTERM)
    _, err = job.communicate(timeout=120)
    assert (machine.bin / "saved").exists()
    assert machine.calls()[1:] == [
        ["scancel", "--signal=TERM", "71"],
        ["scontrol", "requeue", "71"],
    ]
    assert "stopped before the time limit; back into the queue" in err


def test_tpu_vm_dry_run(machine: Any) -> None:
    lines = dry_run(machine, "tpu_vm.sh", *TRAIN, SLICES="2", SPOT="1", PROJECT="p").splitlines()
    create, describe, setup, train, delete = map(words, lines)
    queue = ["gcloud", "compute", "tpus", "queued-resources"]
    name = ["vlalign", "--zone=us-east5-b", "--project=p"]
    assert create == [
        *(*queue, "create", *name, "--node-count=2", "--node-prefix=vlalign"),
        *("--accelerator-type=v6e-16", "--runtime-version=v2-alpha-tpuv6e", "--spot"),
    ]
    assert describe == [*queue, "describe", *name, "--format=value(state.state)"]
    assert delete == [*queue, "delete", *name, "--force", "--quiet"]
    for line in (setup, train):
        assert line[:-1] == [*queue, "ssh", *name, "--node=all", "--worker=all"]
    assert "'vlalign[tpu]'" in setup[-1]
    assert "gcsfuse --implicit-dirs 'runs' ~/runs" in setup[-1]
    one = dry_run(machine, "tpu_vm.sh", *TRAIN).splitlines()[0]
    assert "--node-id=vlalign" in words(one)


# gcloud: each `describe` shows the next of the states, each training ends with the next code.
QUEUE = """
if name == "gcloud":
    def following(kind):
        path = here / kind
        first, *rest = path.read_text().split(",")
        path.write_text(",".join(rest or [first]))
        return first
    verb = sys.argv[4]
    if verb == "describe":
        print(following("states"))
    if verb == "ssh" and "vlalign train" in sys.argv[-1] and "pkill" not in sys.argv[-1]:
        sys.exit(int(following("codes")))
"""


@pytest.mark.parametrize(
    ("states", "codes", "does", "ends"),
    [
        (",ACTIVE", "0", ["create", "setup", "train", "delete"], 0),
        ("ACTIVE", "0", ["setup", "train", "delete"], 0),
        ("ACTIVE", "1,0", ["setup", "train", "setup", "train", "delete"], 0),
        (
            "ACTIVE,SUSPENDED,,ACTIVE",
            "255,0",
            ["setup", "train", "delete", "create", "setup", "train", "delete"],
            0,
        ),
        ("ACTIVE", "2", ["setup", "train"], 2),
        ("ACTIVE", "1", ["setup", "train", "setup", "train"], 1),
    ],
)
def test_tpu_vm_goes_on(machine: Any, states: str, codes: str, does: list[str], ends: int) -> None:
    machine.behave(QUEUE)
    machine.program("sleep", "#!/bin/sh\n")
    (machine.bin / "states").write_text(states)
    (machine.bin / "codes").write_text(codes)
    ended = machine.run("tpu_vm.sh", *PLAIN, **NEEDED["tpu_vm.sh"], RESTARTS="1")
    assert ended.returncode == ends, ended.stderr
    verbs = [
        call[4] if call[4] != "ssh" else "setup" if "gcsfuse" in call[-1] else "train"
        for call in machine.calls()
        if call[4] != "describe"
    ]
    assert verbs == does
    assert ("The TPU still costs" in ended.stderr) == (ends != 0)


def manifest(machine: Any, *arguments: str, **variables: str) -> Any:
    """The JobSet that gke.sh would create."""
    text = dry_run(machine, "gke.sh", *arguments, **variables)
    first, *lines, last = text.splitlines()
    assert (first, last) == ("kubectl create --filename=- <<'YAML'", "YAML")
    found = yaml.safe_load("\n".join(lines))
    schema = json.loads(Path(__file__).with_name("jobset.schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(found, schema)
    return found


def pods(jobset: Any) -> tuple[Any, Any, Any]:
    """Its Job, the pods' specification, and their container."""
    (workers,) = jobset["spec"]["replicatedJobs"]
    pod = workers["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return workers, pod, container


def test_gke_with_tpus(machine: Any) -> None:
    jobset = manifest(machine, *TRAIN, NAME="run-1", SLICES="2", HOSTS="8", GRACE="90")
    workers, pod, container = pods(jobset)
    assert jobset["metadata"]["name"] == "run-1"
    assert "exclusive-topology" in str(jobset["metadata"]["annotations"])
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 20
    job = workers["template"]["spec"]
    assert (workers["replicas"], job["parallelism"], job["completions"]) == (2, 8, 8)
    assert job["backoffLimit"] == 0
    assert pod["terminationGracePeriodSeconds"] == 90
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    assert container["args"] == ["train", *TRAIN]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["env"] == []


def test_gke_with_gpus(machine: Any) -> None:
    from vlalign.parallel.hosts import Cluster, find_cluster

    gpus = {"ACCELERATOR": "nvidia-h100-80gb", "CHIPS": "8", "NAME": "r"}
    _, pod, container = pods(manifest(machine, *PLAIN, **gpus))
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    environ = {entry["name"]: entry["value"] for entry in container["env"]}
    found = find_cluster(environ | {"JOB_COMPLETION_INDEX": "3"})
    assert found == Cluster("r-workers-0-0.r:8476", 4, 3, "the environment")
    ended = machine.run("gke.sh", *PLAIN, **NEEDED["gke.sh"], **gpus, SLICES="2")
    assert "set HOSTS" in ended.stderr


def test_gke_creates_what_it_showed(machine: Any) -> None:
    shown = manifest(machine, *TRAIN)
    machine.behave("(here / 'stdin').write_text(sys.stdin.read())")
    assert machine.run("gke.sh", *TRAIN, **NEEDED["gke.sh"]).returncode == 0
    assert machine.calls() == [["kubectl", "create", "--filename=-"]]
    assert yaml.safe_load((machine.bin / "stdin").read_text()) == shown


def test_the_schema_knows_a_typing_error(machine: Any) -> None:
    schema = json.loads(Path(__file__).with_name("jobset.schema.json").read_text())
    jobset = manifest(machine, *PLAIN)
    jobset["spec"]["failurePolicy"]["maxRestart"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxRestart"):
        jsonschema.validate(jobset, schema)


def test_xpk_dry_run(machine: Any) -> None:
    line = dry_run(machine, "xpk.sh", *PLAIN, SLICES="2", PROJECT="p")
    assert len(line.splitlines()) == 1
    found = words(line)
    command = next(word for word in found if word.startswith("--command="))
    assert "\n" not in command
    assert [word for word in found if word != command] == [
        *("xpk", "workload", "create", "--workload=vlalign", "--cluster=c", "--zone=us-east5-b"),
        *("--tpu-type=v6e-16", "--num-slices=2", "--docker-image=registry/vlalign:1"),
        *("--storage=s", "--priority=medium", "--max-restarts=20", "--restart-on-exit-codes=1"),
        *("--termination-grace-period-seconds=120", "--project=p"),
    ]


def on_host(machine: Any, kind: str) -> list[str]:
    """What a host of the cluster executes, here with the stand-in for vlalign."""
    if kind == "gke.sh":
        _, _, container = pods(manifest(machine, *TRAIN))
        return [*container["command"], *container["args"]]
    line = dry_run(machine, kind, *TRAIN).splitlines()[3 if kind == "tpu_vm.sh" else 0]
    found = next(word for word in words(line) if word.startswith("--command="))
    command = found.removeprefix("--command=")
    if kind == "xpk.sh":  # as xpk 1.9 puts it into the container
        sigterm = "_sigterm() (kill -SIGTERM $! 2>/dev/null;); trap _sigterm SIGTERM; "
        loop = "while kill -0 $PID 2>/dev/null; do sleep 0.1; done; wait $PID; exit $?"
        command = f"{sigterm}({command}) & PID=$!; {loop}"
    else:  # as `gcloud ... ssh` does
        (machine.path / "vlalign").mkdir()
        (machine.path / "vlalign" / "bin").symlink_to(machine.bin)
    return ["bash", "-c", command]


@pytest.mark.parametrize("kind", ["gke.sh", "tpu_vm.sh", "xpk.sh"])
@pytest.mark.parametrize("code", [0, 1, 2, 134])
def test_hosts_run_the_training_command(machine: Any, kind: str, code: int) -> None:
    command = on_host(machine, kind)
    machine.behave(f"sys.exit({code})")
    assert machine.run(command).returncode == code
    extra = ["--coordinator", "auto"] if kind == "tpu_vm.sh" else []
    assert machine.calls() == [["vlalign", "train", *TRAIN, *extra]]


@pytest.mark.parametrize("kind", ["gke.sh", "tpu_vm.sh", "xpk.sh"])
def test_hosts_save_at_sigterm_and_do_not_look_finished(
    machine: Any, kind: str, wait_for: Callable[[Callable[[], bool]], None]
) -> None:
    command = on_host(machine, kind)
    machine.behave(SAVES)
    host = machine.start(command)
    wait_for((machine.bin / "ready").exists)
    host.send_signal(signal.SIGTERM)
    host.communicate(timeout=120)
    assert (machine.bin / "saved").exists()
    assert host.returncode == 143


def test_documented(machine: Any) -> None:
    """Each script has its row in docs/launch.md, and its example there is a command it accepts."""
    text = (LAUNCH.parent / "docs" / "launch.md").read_text()
    for script in SCRIPTS:
        assert f"[{script}](../launch/{script})" in text
    examples = [
        line
        for line in text.replace("\\\n", " ").splitlines()
        if "launch/" in line and "--run-dir" in line
    ]
    assert len(examples) >= len(SCRIPTS)
    for line in examples:
        given = shlex.split(line)
        start = next(i for i, word in enumerate(given) if word.startswith("launch/"))
        variables = dict(word.split("=", 1) for word in given[:start])
        script = given[start].removeprefix("launch/")
        ended = machine.run(script, "--dry-run", *given[start + 1 :], **variables)
        assert ended.returncode == 0, ended.stderr
    assert machine.calls() == []
