"""Checks this installation: versions, devices, memory, disk, and one step of training.

Prints what it finds, or everything as JSON with --json, to be attached to a bug report.
The exit code is 1 when something is wrong; its line says what, and what to do.
"""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlalign.cli import _machine
from vlalign.cli._configs import find_config
from vlalign.versions import versions

MIN_DISK_BYTES = 1 << 30  # a run of a shipped configuration stays below

# Overrides that make the shipped experiment a matter of seconds.
SHRUNKEN = (
    "optimizer.schedule.warmup=0",
    "train.steps=1",
    "train.micro_batches=1",
    "model.image.depth=1",
    "model.text.depth=1",
    "data.workers=0",
)

# What shows that a machine has an accelerator, and the extra with which jax sees it.
_ACCELERATORS = {"/dev/nvidia0": "cuda13", "/dev/accel0": "tpu", "/dev/vfio/0": "tpu"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check.

    check: its name
    ok: whether all is well
    detail: what was found; if not ok, also what to do
    """

    check: str
    ok: bool
    detail: str


class Problem(Exception):
    """What a check found wrong, with the remedy."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `vlalign doctor`."""
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Runs every check; 1 if one of them found a problem."""
    findings = [examine(name, check) for name, check in CHECKS.items()]
    facts: dict[str, Any] = {"versions": versions(), "machine": _machine.machine()}
    devices_ok = all(finding.ok for finding in findings if finding.check == "devices")
    facts["devices"] = _machine.devices() if devices_ok else []
    if args.json:
        facts["checks"] = [dataclasses.asdict(finding) for finding in findings]
        print(json.dumps(facts, indent=2))
    else:
        print(_as_text(facts, findings))
    return 0 if all(finding.ok for finding in findings) else 1


def examine(name: str, check: Callable[[], str]) -> Finding:
    """Runs `check`; whatever it raises is its finding."""
    try:
        return Finding(check=name, ok=True, detail=check())
    except Problem as problem:
        return Finding(check=name, ok=False, detail=str(problem))
    except Exception as error:  # a broken driver or library may raise anything
        return Finding(check=name, ok=False, detail=f"{type(error).__name__}: {error}")


def check_packages() -> str:
    """Every library that decides results is installed."""
    missing = [name for name, version in versions().items() if version is None]
    if missing:
        raise Problem(f"not installed: {', '.join(missing)}; run `pip install vlalign` again")
    return "all there"


def check_devices() -> str:
    """jax starts, and uses the accelerator if there is one."""
    rows = _machine.devices()
    platforms = sorted({row["platform"] for row in rows})
    seen = f"{len(rows)} of platform {', '.join(platforms)}"
    for path, extra in _ACCELERATORS.items():
        if platforms == ["cpu"] and Path(path).exists():
            raise Problem(
                f"this machine has {path}, but jax sees {seen}: "
                f"pip install 'vlalign[{extra}]', and do not set JAX_PLATFORMS=cpu"
            )
    return seen


def check_disk() -> str:
    """There is room for a run in the current directory."""
    free = _machine.machine()["disk_free_bytes"]
    if free < MIN_DISK_BYTES:
        raise Problem(
            f"{_gib(free)} free here, a run may need {_gib(MIN_DISK_BYTES)}; "
            "make room, or choose another place with --run-dir"
        )
    return f"{_gib(free)} free"


def check_compilation() -> str:
    """jax compiles a product of matrices for its first device, and its result is right."""
    import jax
    import numpy as np

    left, right = np.random.default_rng(0).normal(size=(2, 64, 64)).astype(np.float32)
    product = jax.jit(lambda a, b: jax.numpy.matmul(a, b, precision="highest"))(left, right)
    error = float(np.abs(np.asarray(product) - left @ right).max())
    if not error < 1e-3:
        raise Problem(f"a product of matrices is wrong by {error:g}: driver or hardware?")
    return f"compiled and right to {error:.0e}"


def check_training() -> str:
    """A shrunken shipped experiment trains a step, saves, and is opened again."""
    import jax
    import numpy as np

    from vlalign import tree
    from vlalign.experiment import load_config
    from vlalign.runs import open_run, prepare_run
    from vlalign.train.loop import train

    rows = 4 * jax.device_count()
    overrides = (*SHRUNKEN, f"data.batch_size={rows}")
    experiment = tree.override(load_config(find_config(None)), overrides)
    experiment = dataclasses.replace(experiment, evals={})
    with tempfile.TemporaryDirectory() as folder:
        prepare_run(experiment, Path(folder))
        train(experiment, Path(folder), quiet=True)
        run = open_run(folder)
        embedding = run.embed("text", run.tools.tokens(["a red heart"]))
    norm = float(np.linalg.norm(embedding))
    if not abs(norm - 1) < 1e-3:
        raise Problem(f"the embedding of a trained model has norm {norm}, and it should have 1")
    return f"a step of batch {rows}, its checkpoint and an embedding are sound"


CHECKS: dict[str, Callable[[], str]] = {
    "packages": check_packages,
    "devices": check_devices,
    "disk": check_disk,
    "compilation": check_compilation,
    "training": check_training,
}


def _as_text(facts: dict[str, Any], findings: list[Finding]) -> str:
    lines = ["versions"]
    lines += [f"  {name:<18}{value or 'MISSING'}" for name, value in facts["versions"].items()]
    lines += ["machine"]
    for name, value in facts["machine"].items():
        shown = _gib(value) if name.endswith("_bytes") else value
        lines.append(f"  {name.removesuffix('_bytes'):<18}{shown}")
    lines += ["devices"]
    for device in facts["devices"]:
        size = device["memory_bytes"]
        room = f", {_gib(size)}" if size else ", the machine's memory"
        lines.append(f"  {device['platform']}:{device['id']:<14}{device['kind']}{room}")
    lines += ["checks"]
    for finding in findings:
        lines.append(f"  {'ok' if finding.ok else 'FAILED':<8}{finding.check}: {finding.detail}")
    return "\n".join(lines)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
