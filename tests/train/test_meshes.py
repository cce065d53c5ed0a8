"""One device, eight devices, and any split of the three axes give the same training."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from vlalign.errors import UserError
from vlalign.experiment import Experiment
from vlalign.objectives.contrastive import Clip, SigLip
from vlalign.objectives.momentum import MomentumClip
from vlalign.parallel.mesh import MeshSpec
from vlalign.parallel.rules import AxisRules
from vlalign.runs import prepare_run
from vlalign.train.assemble import assemble, run_tokenizer
from vlalign.train.checkpoint import Checkpoints
from vlalign.train.config import Train
from vlalign.train.loop import train
from vlalign.train.optimizer import Optimizer
from vlalign.train.step import compile_step, make_step, signals

pytestmark = pytest.mark.slow

Make = Callable[..., Experiment]
STEPS = 20
# Matrices of the tiny model are below what is worth cutting; here they are cut.
SMALL = AxisRules(whole_below=512)
MESH = MeshSpec(data=2, fsdp=2, tensor=2)


def losses(experiment: Experiment, run_dir: Path, steps: int = STEPS) -> np.ndarray:
    """Losses of the first steps, without the loop around them."""
    parts = assemble(experiment, run_tokenizer(experiment, run_dir))
    config = experiment.train
    step = make_step(
        experiment.model,
        experiment.objectives,
        experiment.optimizer,
        parts.plan,
        seed=experiment.seed,
        steps=config.steps,
        micro_batches=config.micro_batches,
        ema_decay=config.ema,
    )
    shapes = parts.batch_shapes(experiment.data.batch_size)
    compiled = compile_step(step, parts.plan, parts.mesh, shapes)
    found = []
    with jax.set_mesh(parts.mesh), experiment.data.batches(parts.tokenizer, seed=0) as batches:
        state = parts.plan.create(experiment.seed)
        for number in range(steps):
            batch = next(batches)
            placed = {name: jax.device_put(batch[name], _rows(parts)) for name in shapes}
            state, metrics = compiled(state, placed, signals(parts.mesh, number))
            found.append(float(metrics["loss"]))
    return np.asarray(found)


def _rows(parts: object) -> jax.sharding.Sharding:
    from vlalign.parallel.mesh import batch_sharding

    return batch_sharding(parts.mesh)  # type: ignore[attr-defined]


OBJECTIVES = {
    "clip": {"clip": Clip()},
    "siglip": {"siglip": SigLip()},
    "momentum": {"momentum": MomentumClip(queue=32, alpha_warmup=4)},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_eight_devices_train_like_one(name: str, tiny: Make, tmp_path: Path) -> None:
    parts = {"objectives": OBJECTIVES[name], "train": Train(steps=STEPS)}
    one = losses(tiny(**parts), tmp_path)
    assert one[-1] < one[0]
    eight = losses(tiny(**parts, mesh=MeshSpec()), tmp_path)
    np.testing.assert_allclose(eight, one, rtol=1e-5)


@pytest.mark.parametrize(
    "mesh",
    [
        MeshSpec(data=1, fsdp=8),
        MeshSpec(data=2, fsdp=2, tensor=2),
        MeshSpec(data=4, fsdp=1, tensor=2),
        MeshSpec(data=1, fsdp=1, tensor=4, devices=4),
        MeshSpec(data=2, devices=2),
    ],
    ids=str,
)
def test_any_split_of_the_axes_trains_like_one_device(
    mesh: MeshSpec, tiny: Make, tmp_path: Path
) -> None:
    parts = {"train": Train(steps=STEPS), "rules": SMALL}
    one = losses(tiny(**parts), tmp_path)
    np.testing.assert_allclose(losses(tiny(**parts, mesh=mesh), tmp_path), one, rtol=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(
    "mesh", [MeshSpec(devices=1), MeshSpec(data=2, fsdp=2, devices=4)], ids=str
)
def test_micro_batches_change_nothing(
    name: str, mesh: MeshSpec, tiny: Make, tmp_path: Path
) -> None:
    model = dict(tiny().model)
    model["image"] = model["image"].clone(token_drop=0.5)  # randomness must not depend on the cut
    parts = {"objectives": OBJECTIVES[name], "mesh": mesh, "model": model, "rules": SMALL}
    whole = losses(tiny(**parts, train=Train(steps=8)), tmp_path, 8)
    cut = losses(tiny(**parts, train=Train(steps=8, micro_batches=4)), tmp_path, 8)
    np.testing.assert_allclose(cut, whole, rtol=1e-5)


def test_a_run_goes_on_with_another_number_of_devices(tiny: Make, tmp_path: Path) -> None:
    # Same configuration text, other mesh: what happens when a job is moved to another machine.
    config = Train(steps=6, save_every=3, log_every=1)
    eight = tiny(mesh=MeshSpec(data=-1, fsdp=2), rules=SMALL, train=config, evals={})
    one = tiny(mesh=MeshSpec(devices=1), rules=SMALL, train=config, evals={})
    train(one, tmp_path / "straight", quiet=True)
    first = tiny(rules=SMALL, train=Train(steps=3, save_every=3), evals={})
    train(first, tmp_path / "moved", quiet=True)
    train(eight, tmp_path / "moved", quiet=True)

    def final(name: str) -> list[np.ndarray]:
        parts = assemble(one, run_tokenizer(one, tmp_path / name))
        reader = Checkpoints(tmp_path / name / "checkpoints", read_only=True)
        state, meta = reader.restore(6, parts.plan.abstract())
        reader.close()
        assert meta["position"] == 6 * 16
        return [np.asarray(leaf) for leaf in jax.tree.leaves(state.params)]

    for a, b in zip(final("straight"), final("moved"), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_parameters_optimizer_and_average_are_cut_alike(tiny: Make, tmp_path: Path) -> None:
    mesh = MeshSpec(data=1, fsdp=4, tensor=2)
    experiment = tiny(mesh=mesh, rules=SMALL, train=Train(steps=2, ema=0.9))
    parts = assemble(experiment, run_tokenizer(experiment, tmp_path))
    with jax.set_mesh(parts.mesh):
        state = parts.plan.create(0)
    moments = state.opt_state[1]
    for tree in (state.params, state.ema, moments.mu, moments.nu):
        kernel = tree["image"]["transformer"]["blocks"]["mlp"]["up"]["kernel"]
        assert kernel.sharding.shard_shape(kernel.shape) == (2, 8, 64)


def test_memory_that_copies_parameters_is_cut_as_they_are(tiny: Make, tmp_path: Path) -> None:
    experiment = tiny(mesh=MESH, rules=SMALL, objectives=OBJECTIVES["momentum"])
    plan = assemble(experiment, run_tokenizer(experiment, tmp_path)).plan
    memory, towers = plan.shardings.memory["momentum"], plan.shardings.params
    for name in ("image", "text"):
        assert jax.tree.leaves(memory["towers"][name]) == jax.tree.leaves(towers[name])
    assert memory["queue"]["image"].is_fully_replicated


def test_bfloat16_towers_train_on_eight_devices(tiny: Make, tmp_path: Path) -> None:
    model = {name: module.clone(dtype="bfloat16") for name, module in tiny().model.items()}
    optimizer = Optimizer(learning_rate=1e-3, moment_dtype="bfloat16")
    config = Train(steps=STEPS, micro_batches=2)
    experiment = tiny(mesh=MESH, rules=SMALL, model=model, optimizer=optimizer, train=config)
    found = losses(experiment, tmp_path)
    assert np.isfinite(found).all()
    assert found[-1] < found[0]
    plan = assemble(experiment, run_tokenizer(experiment, tmp_path)).plan
    assert {leaf.dtype for leaf in jax.tree.leaves(plan.shapes.params)} == {np.dtype("float32")}
    inputs = {"image": np.zeros((2, 16, 16, 3), np.uint8), "text": np.ones((2, 12), np.int32)}
    for name, example in inputs.items():
        params = {"params": plan.shapes.params[name]}
        assert jax.eval_shape(model[name].apply, params, example).pooled.dtype == np.float32


def test_rules_that_cut_nothing_are_found(tiny: Make, tmp_path: Path) -> None:
    model = dict(tiny().model)
    model["text"] = model["text"].clone(vocab_size=2048)  # only large ones count
    rules = AxisRules(embed=None, vocab=None)
    experiment = tiny(mesh=MeshSpec(data=1, fsdp=8), model=model, rules=rules)
    prepare_run(experiment, tmp_path)
    with pytest.raises(UserError, match="of the parameter bytes are whole"):
        train(experiment, tmp_path, quiet=True)
