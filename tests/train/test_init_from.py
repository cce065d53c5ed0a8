"""`train.init_from` a pre-trained model: its numbers here, or a refusal that says what to set."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from vlalign.data.captions import CaptionView
from vlalign.data.pipeline import Data
from vlalign.data.preprocess import siglip
from vlalign.data.sources import MemorySource
from vlalign.data.tokenizer import Bpe
from vlalign.errors import UserError
from vlalign.experiment import Experiment
from vlalign.interop.bundle import Bundle, save_bundle
from vlalign.objectives.contrastive import Clip, SigLip
from vlalign.objectives.momentum import MomentumClip
from vlalign.parallel.mesh import MeshSpec
from vlalign.runs import open_run, prepare_run
from vlalign.train.assemble import assemble
from vlalign.train.checkpoint import Checkpoints
from vlalign.train.config import Train
from vlalign.train.loop import train
from vlalign.train.optimizer import Optimizer
from vlalign.train.schedule import Constant
from vlalign.train.start import Start, find_start

Make = Callable[..., Experiment]
SCALE = 9.0


@pytest.fixture(scope="module")
def tune(pairs: MemorySource, tiny: Make) -> Make:
    """A fine-tuning of all pairs at once, with the preprocessing of a published model."""

    def make(source: Path | str, train: dict[str, Any] | None = None, **parts: Any) -> Experiment:
        data = Data(
            source=pairs,
            views={"image": siglip(16), "text": CaptionView(template=0.0)},
            tokenizer=Bpe(vocab_size=300, length=12),
            batch_size=24,
        )
        loop = Train(steps=2, log_every=1, save_every=2, init_from=str(source), **(train or {}))
        optimizer = Optimizer(learning_rate=1e-3, schedule=Constant())
        defaults = {"data": data, "train": loop, "evals": {}, "optimizer": optimizer}
        return tiny(**defaults | parts)

    return make


@pytest.fixture(scope="module")
def bundle(tune: Make) -> Bundle:
    """A CLIP with towers and vocabulary of the experiment; its parameters are of another seed."""
    experiment = tune("nowhere", seed=17)
    tokenizer = experiment.data.fit_tokenizer()
    params = assemble(experiment, tokenizer).plan.create(17).params
    return Bundle(
        model=dict(experiment.model),
        params={name: jax.tree.map(np.asarray, params[name]) for name in experiment.model},
        preprocess=siglip(16),
        tokenizer=tokenizer,
        context_length=12,
        logit_scale=float(np.log(SCALE)),
        logit_bias=None,
        origin="a tiny CLIP",
    )


@pytest.fixture(scope="module")
def source(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    save_bundle(path, bundle)
    return path


def embeddings(bundle: Bundle, pairs: MemorySource) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of all pairs, from the bundle alone."""
    assert bundle.tokenizer is not None
    records = [pairs[place] for place in range(len(pairs))]
    inputs = {
        "image": np.stack([bundle.preprocess.evaluate(record.image) for record in records]),
        "text": bundle.tokenizer.encode([record.captions[0].text for record in records])[0],
    }
    towers: dict[str, Any] = dict(bundle.model)
    found = [
        np.asarray(towers[name].apply({"params": bundle.params[name]}, x).pooled, np.float64)
        for name, x in inputs.items()
    ]
    zimg, ztxt = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in found)
    return zimg, ztxt


def start(experiment: Experiment, tmp_path: Path) -> Start:
    parts = assemble(experiment, experiment.data.fit_tokenizer())
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    try:
        return find_start(experiment, parts, checkpoints)
    finally:
        checkpoints.close()


@pytest.mark.parametrize("mesh", [MeshSpec(devices=1), MeshSpec(data=2, fsdp=4)])
def test_the_first_loss_is_that_of_the_model(
    mesh: MeshSpec, tune: Make, source: Path, bundle: Bundle, pairs: MemorySource, tmp_path: Path
) -> None:
    experiment = tune(source, mesh=mesh)
    prepare_run(experiment, tmp_path)
    assert train(experiment, tmp_path, quiet=True).finished
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    losses = [row["loss"] for row in map(json.loads, lines) if "loss" in row]
    zimg, ztxt = embeddings(bundle, pairs)
    logits = SCALE * zimg @ ztxt.T
    both = [np.log(np.exp(x).sum(axis=1)) - np.diagonal(x) for x in (logits, logits.T)]
    assert losses[0] == pytest.approx(np.mean(both), abs=2e-5)
    assert losses[1] != losses[0]
    assert open_run(tmp_path).step == 2


def test_everything_of_the_model_is_taken_over(
    tune: Make, source: Path, bundle: Bundle, tmp_path: Path
) -> None:
    objectives = {"clip": Clip(), "siglip": SigLip(), "momentum": MomentumClip()}
    found = start(tune(source, train={"ema": 0.9}, objectives=objectives), tmp_path)
    assert found.step == 0
    assert found.origin == "starting from image, text, logit_scale of a tiny CLIP"
    own = found.state.params["objectives"]
    assert [float(own[name]["logit_scale"]) for name in objectives] == [
        pytest.approx(2.1972246)
    ] * 3
    assert float(own["siglip"]["logit_bias"]) == -10
    towers = {name: found.state.params[name] for name in bundle.model}
    copies = [towers, {n: found.state.ema[n] for n in towers}]
    copies.append(found.state.memory["momentum"]["towers"])
    for copy in copies:
        assert jax.tree.structure(copy) == jax.tree.structure(dict(bundle.params))
        jax.tree.map(np.testing.assert_array_equal, copy, dict(bundle.params))


def test_a_bias_is_taken_over(tune: Make, bundle: Bundle, tmp_path: Path) -> None:
    save_bundle(tmp_path / "model", dataclasses.replace(bundle, logit_bias=-3.0))
    found = start(tune(tmp_path / "model", objectives={"siglip": SigLip()}), tmp_path)
    assert float(found.state.params["objectives"]["siglip"]["logit_bias"]) == -3
    assert "logit_scale, logit_bias of" in found.origin


def test_what_differs_is_named(tune: Make, source: Path, tmp_path: Path) -> None:
    model = dict(tune(source).model)
    model["image"] = model["image"].clone(activation="quick_gelu")
    with pytest.raises(UserError, match=r"model\.image\.activation is 'quick_gelu': set it to 'g"):
        start(tune(source, model=model), tmp_path)
    low = {"clip": Clip(logit_scale_max=5.0)}
    with pytest.raises(UserError, match=r"train\.init_from=.*(?s:.*)would cut the learned scale 9"):
        start(tune(source, objectives=low), tmp_path)
    data = dataclasses.replace(tune(source).data, tokenizer=Bpe(vocab_size=280, length=12))
    with pytest.raises(UserError, match=r"data\.tokenizer is another one"):
        start(tune(source, data=data), tmp_path)
    foreign = Path(__file__).parents[1] / "interop" / "golden" / "hf_siglip"  # without vocabulary
    with pytest.raises(UserError, match=r"no tokenizer: (?s:.*)an option of `vlalign convert`"):
        start(tune(foreign), tmp_path)
    with pytest.raises(UserError, match=r"is no model: it has neither model\.txt"):
        start(tune(source.parent), tmp_path)


def test_other_towers_begin_at_the_seed(tune: Make, bundle: Bundle, tmp_path: Path) -> None:
    half = dataclasses.replace(
        bundle,
        model={"image": bundle.model["image"]},
        params={"image": bundle.params["image"]},
        tokenizer=None,
    )
    save_bundle(tmp_path / "half", half)
    found = start(tune(tmp_path / "half", seed=3), tmp_path)
    assert found.origin.endswith("image, logit_scale of a tiny CLIP; text from seed 3")
