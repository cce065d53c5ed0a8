"""The loop: it learns, resumes exactly, keeps its order, and says what is wrong."""

import dataclasses
import json
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from vlalign.data.crops import RandomResizedCrop
from vlalign.data.sources import MemorySource
from vlalign.encoders.text import TextTransformer
from vlalign.errors import UserError
from vlalign.evals.base import Estimate
from vlalign.experiment import Experiment
from vlalign.objectives.contrastive import Clip
from vlalign.parallel.mesh import MeshSpec
from vlalign.runs import open_run, prepare_run
from vlalign.train import loop, programs
from vlalign.train.checkpoint import Checkpoints
from vlalign.train.config import Train
from vlalign.train.feed import Feed, local_rows
from vlalign.train.optimizer import Optimizer
from vlalign.train.schedule import Constant

Make = Callable[..., Experiment]


def train(experiment: Experiment, run_dir: Path) -> loop.Outcome:
    prepare_run(experiment, run_dir)
    return loop.train(experiment, run_dir, quiet=True)


def rows(run_dir: Path) -> list[dict[str, Any]]:
    text = (run_dir / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def params(run_dir: Path) -> dict[str, Any]:
    return open_run(run_dir).params


def assert_equal_bits(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_it_learns_evaluates_and_leaves_a_run(tiny: Make, tmp_path: Path) -> None:
    fast = Optimizer(learning_rate=3e-3, schedule=Constant(warmup=5))
    experiment = tiny(train=Train(steps=60, log_every=20, save_every=50), optimizer=fast)
    assert train(experiment, tmp_path) == loop.Outcome(step=60, finished=True)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"config.txt", "tokenizer.json", "preprocess.json", "versions.json"}
    assert names >= {"metrics.jsonl", "tensorboard", "checkpoints", "evals.json"}
    run = open_run(tmp_path)
    assert run.experiment == experiment
    last = rows(tmp_path)[-1]
    assert last["eval/retrieval/t2i_recall@5"] > 0.5  # chance: 5 / 24
    losses = [row["loss"] for row in rows(tmp_path) if "loss" in row]
    assert losses[-1] < 0.2 * losses[0]
    assert {"samples_per_s", "learning_rate", "grad_norm"} <= rows(tmp_path)[0].keys()


def test_stopped_and_resumed_is_bitwise_the_same(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tiny(train=Train(steps=9, log_every=1, save_every=4, ema=0.9))
    train(experiment, tmp_path / "straight")

    real = loop.Feed.next
    calls = []

    def killed(self: loop.Feed) -> Any:
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Feed, "next", killed)
        with pytest.raises(KeyboardInterrupt):
            train(experiment, tmp_path / "broken")
    train(experiment, tmp_path / "broken")
    assert_equal_bits(params(tmp_path / "straight"), params(tmp_path / "broken"))
    kept = [
        [(r["step"], r.get("loss")) for r in rows(tmp_path / n)] for n in ("straight", "broken")
    ]
    assert kept[0] == kept[1]


def test_a_signal_saves_and_stops(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.Feed.next
    calls = []

    def interrupted(self: loop.Feed) -> Any:
        calls.append(1)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGTERM)
        return real(self)

    monkeypatch.setattr(loop.Feed, "next", interrupted)
    experiment = tiny(train=Train(steps=9, log_every=1, save_every=100))
    assert train(experiment, tmp_path) == loop.Outcome(step=4, finished=False)
    assert (tmp_path / "checkpoints" / "4").is_dir()
    assert train(experiment, tmp_path) == loop.Outcome(step=9, finished=True)


def test_a_finished_run_is_left_alone(tiny: Make, tmp_path: Path) -> None:
    train(tiny(), tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    assert train(tiny(), tmp_path).finished
    assert (tmp_path / "metrics.jsonl").read_text() == before


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noted:
    """An evaluator that notes when it is called."""

    every: int = 2

    def prepare(self, tools: Any) -> None:
        return None

    def evaluate(self, prepared: None, embed: Any) -> dict[str, Estimate]:
        EVENTS.append("eval")
        return {"x": Estimate.exact(1.0, 1)}


EVENTS: list[str] = []


def test_the_order_of_the_loop(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    EVENTS.clear()

    def note(owner: Any, name: str, event: str) -> None:
        real = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            EVENTS.append(event)
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)

    note(Checkpoints, "restore_newest", "restore")
    note(programs, "compile_step", "compile")
    note(loop.Feed, "next", "batch")
    note(Checkpoints, "save", "save")
    note(loop.MetricWriter, "write", "log")
    experiment = tiny(evals={"noted": Noted()}, train=Train(steps=4, log_every=1, save_every=2))
    loop.train(experiment, tmp_path, quiet=True)
    wanted = [
        *("restore", "compile"),
        *("batch", "batch", "log"),  # the first step's metrics are written after the second batch
        *("log", "eval", "log", "save", "batch"),
        *("batch", "log"),
        *("log", "eval", "log", "save"),
    ]
    assert wanted == EVENTS


def test_a_loss_that_is_not_finite_stops_with_the_state_before_it(
    tiny: Make, tmp_path: Path
) -> None:
    wild = Optimizer(learning_rate=1e38, schedule=Constant(), clip_norm=None)
    experiment = tiny(optimizer=wild, train=Train(steps=50, log_every=1, save_every=100))
    with pytest.raises(loop.Diverged, match="is not finite") as caught:
        train(experiment, tmp_path)
    step = int(re.findall(r"\(step (\d+)\)", str(caught.value))[0])
    assert (tmp_path / "checkpoints" / str(step)).is_dir()
    assert rows(tmp_path)[-1]["step"] == step + 1


def test_own_checkpoint_wins_over_init_from(tiny: Make, tmp_path: Path) -> None:
    train(tiny(), tmp_path / "first")
    start = Train(steps=1, init_from=str(tmp_path / "first"), save_every=1)
    still = Optimizer(learning_rate=0.0, weight_decay=0.0)
    second = tiny(train=start, optimizer=still, seed=5)
    train(second, tmp_path / "second")
    assert_equal_bits(params(tmp_path / "first"), params(tmp_path / "second"))
    train(tiny(seed=7), tmp_path / "first2")
    assert train(second, tmp_path / "second").finished  # init_from was not looked at again
    with pytest.raises(UserError, match="no checkpoint below"):
        train(tiny(train=Train(steps=1, init_from="nowhere")), tmp_path / "third")


def test_init_from_other_shapes_lists_them(tiny: Make, tmp_path: Path) -> None:
    train(tiny(), tmp_path / "first")
    other = dict(tiny().model)
    other["text"] = TextTransformer(vocab_size=320, width=32, depth=3, heads=4, embed_dim=16)
    experiment = tiny(model=other, train=Train(steps=1, init_from=str(tmp_path / "first")))
    with pytest.raises(UserError, match="of another shape: params/text/transformer"):
        train(experiment, tmp_path / "second")


def test_a_truncated_checkpoint_is_set_aside_and_the_run_goes_on(
    tiny: Make, tmp_path: Path
) -> None:
    experiment = tiny()
    train(experiment, tmp_path / "run")
    whole = params(tmp_path / "run")
    for file in (tmp_path / "run" / "checkpoints" / "6" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match="cannot be read"):
        open_run(tmp_path / "run")
    assert train(experiment, tmp_path / "run").finished
    assert_equal_bits(whole, params(tmp_path / "run"))
    assert len(list((tmp_path / "run" / "checkpoints-unreadable").iterdir())) == 1


def test_a_run_directory_of_another_configuration_is_refused(tiny: Make, tmp_path: Path) -> None:
    prepare_run(tiny(seed=1), tmp_path)
    train(tiny(), tmp_path)  # nothing was trained with the other seed: it may be changed
    with pytest.raises(UserError, match="seed: 0 -> 3"):
        prepare_run(tiny(seed=3), tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="no run directory"):
        prepare_run(tiny(), tmp_path / "other")


def test_changed_data_is_refused_on_resume(
    tiny: Make, pairs: MemorySource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tiny()
    train(experiment, tmp_path)
    monkeypatch.setattr(MemorySource, "fingerprint", lambda self: "changed")
    with pytest.raises(UserError, match="another data"):
        train(experiment, tmp_path)


def test_too_many_bad_rows_stop_the_run(tiny: Make, pairs: MemorySource, tmp_path: Path) -> None:
    broken = tuple(dataclasses.replace(r, image=b"no image") for r in pairs.records[:12])
    source = MemorySource(records=broken + pairs.records[12:])
    experiment = tiny()
    data = dataclasses.replace(experiment.data, source=source)
    long = Train(steps=200, save_every=100)
    with pytest.raises(UserError, match=r"train.max_bad_share=0.1"):
        train(tiny(data=data, train=long, evals={}), tmp_path / "a")
    some = dataclasses.replace(
        experiment.data, source=MemorySource(records=broken[:1] + pairs.records[1:])
    )
    assert train(tiny(data=some), tmp_path / "b").finished
    assert any(name.startswith("rows/") for row in rows(tmp_path / "b") for name in row)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"mesh": MeshSpec(data=3)}, "does not cover 8"),
        ({"objectives": {"clip": Clip()}, "train": Train(micro_batches=3)}, "micro-batches"),
        ({"mesh": MeshSpec(), "train": Train(micro_batches=4)}, "does not divide over the mesh"),
    ],
)
def test_sizes_that_do_not_fit_are_named(
    tiny: Make, tmp_path: Path, parts: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        train(tiny(**parts), tmp_path)


def test_pixels_prepared_for_another_normalisation_are_named(tiny: Make, tmp_path: Path) -> None:
    base = tiny()
    views = {**base.data.views, "image": RandomResizedCrop(size=16)}
    crops = tiny(data=dataclasses.replace(base.data, views=views))
    with pytest.raises(UserError, match=r"model\.image\.pixel_mean=\(0\.5, 0\.5, 0\.5\), but"):
        train(crops, tmp_path / "a")
    spec = views["image"].spec()
    pixels = {f"pixel_{name}": tuple(spec[name]) for name in ("mean", "std")}
    model = {**base.model, "image": base.model["image"].clone(**pixels)}
    assert train(dataclasses.replace(crops, model=model), tmp_path / "b").finished


def test_waiting_for_data_is_logged_as_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("vlalign.train.feed.time.perf_counter", lambda: now)

    def slow() -> Iterator[dict[str, np.ndarray]]:
        nonlocal now
        while True:
            now += 3.0
            yield {"weight": np.ones(2, np.float32), "index": np.zeros(2, np.int32)}

    mesh = jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"), devices=jax.devices()[:1])
    feed = Feed(slow(), mesh, local_rows(mesh, 2), 2)
    assert feed.next().keys() == {"weight"}
    now += 2.0
    feed.next()
    assert feed.waited == 6.0
    assert feed.wait_share() == pytest.approx(6.0 / 8.0)
    now += 1.0
    assert feed.wait_share() == 0.0


def test_a_tower_without_a_view_and_a_small_vocabulary_are_named(
    tiny: Make, tmp_path: Path
) -> None:
    model = dict(tiny().model)
    small = {**model, "text": model["text"].clone(vocab_size=10)}
    with pytest.raises(UserError, match="vocab_size=10 is below"):
        train(tiny(model=small), tmp_path / "a")
    with pytest.raises(UserError, match=r"model\.sound: no data view"):
        train(tiny(model={**model, "sound": model["image"]}), tmp_path / "b")
