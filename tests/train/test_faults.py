"""What may go wrong in a run, and how it goes on."""

import dataclasses
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlalign.data.crops import RandomResizedCrop
from vlalign.errors import UserError
from vlalign.experiment import Experiment
from vlalign.objectives.base import Across, Term
from vlalign.objectives.contrastive import Clip
from vlalign.parallel.hosts import Notes
from vlalign.parallel.mesh import MeshSpec
from vlalign.runs import open_run, prepare_run
from vlalign.train import loop
from vlalign.train.account import Account, Diary
from vlalign.train.checkpoint import CheckpointFailed, Checkpoints
from vlalign.train.config import Train
from vlalign.train.feed import Feed, local_rows
from vlalign.train.step import signals
from vlalign.train.watchdog import STALLED, Watchdog

Make = Callable[..., Experiment]


def train(experiment: Experiment, run_dir: Path) -> loop.Outcome:
    prepare_run(experiment, run_dir)
    return loop.train(experiment, run_dir, quiet=True)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def params(run_dir: Path) -> Any:
    return open_run(run_dir, allow_modules=("tests",)).params


def losses_of(run_dir: Path) -> list[float | None]:
    return [row["loss"] for row in lines(run_dir / "metrics.jsonl") if "loss" in row]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Marked:
    """A view of a float that is NaN for one record."""

    bad: str

    def __call__(self, record: Any, rng: np.random.Generator) -> np.ndarray:
        return np.float32(np.nan if record.key == self.bad else 0.0)

    def example(self) -> np.ndarray:
        return np.zeros((), np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Poisoned(Clip):
    """CLIP whose loss takes up the field `mark`."""

    def local(self, own: Any, towers: Any, memory: Any, step: Any) -> Any:
        out = super().local(own, towers, memory, step)
        return dataclasses.replace(out, keep=out.keep | {"mark": towers.batch["mark"]})

    def across(self, own: Any, kept: Any, memory: Any, step: Any) -> Across:
        out = super().across(own, kept, memory, step)
        poison = Term(jnp.sum(kept["mark"]), jnp.ones((), jnp.float32))
        return dataclasses.replace(out, terms={**out.terms, "mark": poison})


def poisoned(tiny: Make, **config: Any) -> Experiment:
    base = tiny()
    views = {**base.data.views, "mark": Marked(bad="r3")}
    settings = {"steps": 12, "log_every": 1, "save_every": 2, **config}
    data = dataclasses.replace(base.data, views=views, batch_size=4)
    return tiny(data=data, objectives={"clip": Poisoned()}, evals={}, train=Train(**settings))


def test_bad_data_is_left_out_after_a_rewind(tiny: Make, tmp_path: Path) -> None:
    # 24 records, 4 a batch: r3 comes once in each 6 batches.
    experiment = poisoned(tiny, on_nan="rewind")
    assert train(experiment, tmp_path / "a").finished
    rewinds = [row for row in lines(tmp_path / "a/events.jsonl") if row["event"] == "rewind"]
    assert len(rewinds) >= 2
    assert all(row["skipped"] >= 1 for row in rewinds)
    losses = losses_of(tmp_path / "a")
    assert len(losses) == 12
    assert all(loss is not None for loss in losses)

    # Killed in the middle, it takes the same way to the same bits.
    real, calls = Feed.next, []

    def killed(self: Feed) -> Any:
        calls.append(1)
        if len(calls) in (5, 11):
            raise KeyboardInterrupt
        return real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Feed, "next", killed)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                train(experiment, tmp_path / "b")
        assert train(experiment, tmp_path / "b").finished
    one, other = (params(tmp_path / name) for name in "ab")
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert losses == losses_of(tmp_path / "b")


def test_too_many_rewinds_stop_the_run(tiny: Make, tmp_path: Path) -> None:
    never_saved = poisoned(tiny, on_nan="rewind", max_rewinds=2, save_every=100, steps=40)
    with pytest.raises(loop.Diverged, match="after 2 rewinds without a checkpoint"):
        train(never_saved, tmp_path)


def test_without_rewinds_it_stops_and_says_how(tiny: Make, tmp_path: Path) -> None:
    with pytest.raises(loop.Diverged, match=r"train\.on_nan=rewind would leave out"):
        train(poisoned(tiny), tmp_path)


def test_pictures_grow_during_a_run(tiny: Make, tmp_path: Path) -> None:
    base = tiny()
    crops = RandomResizedCrop(size=16)
    pixels = {f"pixel_{name}": tuple(crops.spec()[name]) for name in ("mean", "std")}
    model = {**base.model, "image": base.model["image"].clone(**pixels)}
    views = {**base.data.views, "image": crops}
    data = dataclasses.replace(base.data, views=views, sizes=((0, 8), (3, 16)))
    experiment = tiny(data=data, model=model, train=Train(steps=6, log_every=1, save_every=2))
    assert train(experiment, tmp_path / "a").finished
    rate = [
        row["tflops_per_s_per_device"]
        for row in lines(tmp_path / "a/metrics.jsonl")
        if "loss" in row
    ]
    assert len(rate) == 6
    short = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, steps=6))
    with pytest.MonkeyPatch.context() as patch:
        real, calls = Feed.next, []

        def killed(self: Feed) -> Any:
            calls.append(1)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return real(self)

        patch.setattr(Feed, "next", killed)
        with pytest.raises(KeyboardInterrupt):
            train(short, tmp_path / "b")
    assert train(short, tmp_path / "b").finished
    one, other = (params(tmp_path / name) for name in "ab")
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_checkpoint_that_cannot_be_written_stops_the_run(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tiny(train=Train(steps=6, log_every=1, save_every=2), evals={})
    real = Checkpoints._checked

    def full(self: Checkpoints, action: Any, *args: Any, **kwargs: Any) -> None:
        def fails(*a: Any, **k: Any) -> None:
            if args and args[0] == 4:
                raise OSError(28, "No space left on device")
            action(*a, **k)

        real(self, fails, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_checked", full)
        with pytest.raises(
            CheckpointFailed, match=r"No space left.*those of steps \[2\] are whole"
        ):
            train(experiment, tmp_path)
    assert train(experiment, tmp_path).finished


def test_the_watchdog_says_who_is_behind_and_ends_the_process(
    capfd: pytest.CaptureFixture[str],
) -> None:
    notes, codes = Notes(), []
    other = {"host": "node-7", "step": 3, "doing": "waiting for data", "time": time.time() - 60}
    notes.put("beat/1", json.dumps(other))
    with Watchdog(0.2, notes, 0, stop=codes.append) as dog:
        dog.beat(5, "in the step")
        until = time.monotonic() + 20
        while not codes and time.monotonic() < until:
            time.sleep(0.05)
    assert codes == [STALLED]
    said = capfd.readouterr().err
    behind = re.search(r"process 1 on node-7: step 3, waiting for data, for 6\d s\n", said)
    ahead = re.search(r"process 0 on \S+: step 5, in the step", said)
    assert behind is not None
    assert ahead is not None
    assert behind.start() < ahead.start()  # who is furthest behind comes first
    assert "test_faults.py" in said  # the stack of the thread that hangs


def test_a_watchdog_that_hears_the_loop_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    codes: list[int] = []
    with Watchdog(2.0, Notes(), 0, stop=codes.append) as dog:
        for step in range(30):
            dog.beat(step, "in the step")
            time.sleep(0.1)
        dog.beat(30, "compiling", limited=False)
        time.sleep(3.0)
    assert codes == []
    assert "watchdog" not in capfd.readouterr().err


def test_every_second_is_on_one_account(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 50.0
    monkeypatch.setattr("vlalign.train.account.time.perf_counter", lambda: now)
    account = Account(started=now - 2.0)
    with account.spend("outer"):
        now += 0.5
        with account.spend("inner"):
            now += 1.0
        now += 0.25
    now += 0.125
    assert account.seconds() == {"imports": 2.0, "outer": 0.75, "inner": 1.0, "other": 0.125}
    assert account.line() == "imports 2.0 s, inner 1.0 s, outer 0.8 s, other 0.1 s"


def test_a_torn_line_of_the_diary_harms_no_other(tmp_path: Path) -> None:
    Diary(tmp_path).note("start", step=0)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"time": 1, "li')
    Diary(tmp_path).note("start", step=3)
    kept = (tmp_path / "events.jsonl").read_text().splitlines()
    assert len(kept) == 3
    assert json.loads(kept[0])["step"] == 0
    assert json.loads(kept[2])["step"] == 3
    assert json.loads(kept[0])["life"] != json.loads(kept[2])["life"]


@pytest.mark.parametrize("spec", [MeshSpec(), MeshSpec(data=2, fsdp=2, tensor=2)], ids=str)
def test_the_feed_gives_every_device_its_rows(spec: MeshSpec, rng: np.random.Generator) -> None:
    mesh = spec.build()
    rows = local_rows(mesh, 16)
    assert rows == tuple(range(16))  # one process has all the devices
    whole = rng.normal(size=(16, 3)).astype(np.float32)
    feed = Feed(iter([{"x": whole}]), mesh, rows, 16)
    placed = feed.next()["x"]
    np.testing.assert_array_equal(np.asarray(placed), whole)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    assert placed.sharding.shard_shape(placed.shape) == (16 // shards, 3)


def test_one_host_that_is_asked_to_stop_is_heard_by_all() -> None:
    mesh = MeshSpec().build()
    told = signals(mesh, 7, stop=True)
    assert bool(jnp.any(told["stop"]))
    assert int(told["number"]) == 7
    assert not bool(jnp.any(signals(mesh, 7)["stop"]))


def test_settings_out_of_range_are_named() -> None:
    with pytest.raises(UserError, match="stall_s"):
        Train(stall_s=0)
    with pytest.raises(UserError, match="max_rewinds"):
        Train(max_rewinds=-1)
