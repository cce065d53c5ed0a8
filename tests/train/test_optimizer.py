"""Groups by path, schedules, freezing: what moves, by how much, and what owns no state."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vlalign.errors import UserError
from vlalign.experiment import Experiment
from vlalign.runs import open_run, prepare_run
from vlalign.train.assemble import assemble, run_tokenizer
from vlalign.train.config import Train
from vlalign.train.loop import train
from vlalign.train.optimizer import Group, Optimizer, merge, split
from vlalign.train.schedule import Constant, Cosine, Rsqrt

Make = Callable[..., Experiment]
NAMES: dict[str, tuple[str | None, ...]] = {
    "image/mlp/kernel": ("layers", "embed", "mlp"),
    "image/mlp/bias": ("layers", "mlp"),
    "text/token": ("vocab", "embed"),
    "objectives/clip/logit_scale": (),
}


def tree(value: float) -> dict[str, Any]:
    full = lambda *shape: jnp.full(shape, value, jnp.float32)  # noqa: E731
    return {
        "image": {"mlp": {"kernel": full(1, 2, 2), "bias": full(1, 2)}},
        "text": {"token": full(3, 2)},
        "objectives": {"clip": {"logit_scale": full()}},
    }


def one_update(optimizer: Optimizer, grads: Any, params: Any) -> Any:
    with jax.numpy_dtype_promotion("standard"):
        tx = optimizer.build(NAMES, 10)
        updates, _ = tx.update(grads, tx.init(params), params)
    return updates


def test_only_matrices_decay() -> None:
    optimizer = Optimizer(learning_rate=0.5, weight_decay=0.1, schedule=Constant())
    updates = one_update(optimizer, tree(0.0), tree(2.0))
    np.testing.assert_allclose(updates["image"]["mlp"]["kernel"], -0.5 * 0.1 * 2.0, rtol=1e-6)
    for leaf in (updates["image"]["mlp"]["bias"], updates["text"]["token"]):
        np.testing.assert_array_equal(leaf, 0.0)
    assert float(updates["objectives"]["clip"]["logit_scale"]) == 0.0


def test_groups_change_rate_and_decay_and_the_first_match_counts() -> None:
    groups = (
        Group(path="image/.*bias", decay=True, learning_rate=10.0),
        Group(path="image/.*", learning_rate=0.1),
    )
    optimizer = Optimizer(
        kind="sgd", b1=0.0, learning_rate=1.0, schedule=Constant(), clip_norm=None, groups=groups
    )
    updates = one_update(optimizer, tree(1.0), tree(2.0))
    np.testing.assert_allclose(updates["image"]["mlp"]["bias"], -10.0 * (1.0 + 0.2), rtol=1e-6)
    np.testing.assert_allclose(updates["image"]["mlp"]["kernel"], -0.1 * (1.0 + 0.2), rtol=1e-6)
    np.testing.assert_allclose(updates["text"]["token"], -1.0, rtol=1e-6)


def test_a_group_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(UserError, match=r"imgae/.*matches no parameter"):
        Optimizer(groups=(Group(path="imgae/.*"),)).build(NAMES, 10)


def test_clipping_bounds_the_gradient() -> None:
    optimizer = Optimizer(
        kind="sgd", b1=0.0, learning_rate=1.0, schedule=Constant(), weight_decay=0.0, clip_norm=0.5
    )
    updates = one_update(optimizer, tree(100.0), tree(0.0))
    np.testing.assert_allclose(float(optax.tree.norm(updates)), 0.5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["adamw", "lion", "sgd", "muon"])
def test_every_kind_goes_down_the_gradient(kind: Any) -> None:
    updates = one_update(Optimizer(kind=kind, schedule=Constant()), tree(1.0), tree(1.0))
    assert all(bool(jnp.all(leaf < 0)) for leaf in jax.tree.leaves(updates))


def test_muon_orthogonalises_matrices_and_leaves_the_rest_to_adam() -> None:
    names = {"up": ("layers", "embed", "mlp"), "out": ("heads", "head_dim", "embed"), "b": ("mlp",)}
    rng = np.random.default_rng(0)
    shapes = {"up": (3, 8, 16), "out": (2, 4, 8), "b": (16,)}
    grads = {n: jnp.asarray(rng.normal(size=shape), jnp.float32) for n, shape in shapes.items()}
    optimizer = Optimizer(
        kind="muon", learning_rate=1.0, weight_decay=0.0, clip_norm=None, schedule=Constant()
    )
    with jax.numpy_dtype_promotion("standard"):
        tx = optimizer.build(names, 10)
        updates, _ = tx.update(grads, tx.init(grads), grads)
    for matrix in (*updates["up"], updates["out"].reshape(8, 8)):
        values = np.linalg.svd(np.asarray(matrix), compute_uv=False)
        wanted = 0.2 * max(matrix.shape) ** 0.5
        assert np.all((values > 0.6 * wanted) & (values < 1.3 * wanted))  # five rough iterations
    np.testing.assert_allclose(np.abs(updates["b"]), 1.0, rtol=1e-3)  # Adam's first step


def rates(schedule: Any, steps: int = 100) -> np.ndarray:
    return np.asarray([float(schedule(jnp.int32(i), steps)) for i in range(steps)])


def test_schedules() -> None:
    cosine = rates(Cosine(warmup=10, final=0.1))
    np.testing.assert_allclose(cosine[:10], np.arange(1, 11) / 10, rtol=1e-6)
    np.testing.assert_allclose(cosine[55], 0.1 + 0.9 * 0.5, atol=1e-6)
    assert cosine[-1] == pytest.approx(0.1, abs=2e-3)
    rsqrt = rates(Rsqrt(warmup=10, timescale=30, cooldown=20))
    np.testing.assert_allclose(rsqrt[40], 0.5**0.5, rtol=1e-6)
    assert rsqrt[-1] == pytest.approx(0.5 * 0.05, rel=1e-1)
    np.testing.assert_array_equal(rates(Constant(warmup=4))[[0, 3, 50]], [0.25, 1.0, 1.0])
    with pytest.raises(UserError, match="warmup=100 must be below"):
        rates(Cosine(warmup=100))


def test_split_and_merge_are_inverse() -> None:
    params = tree(1.0)
    trainable = jax.tree.map(lambda x: x.ndim > 1, params)
    trained, frozen = split(params, trainable)
    assert len(jax.tree.leaves(trained)) + len(jax.tree.leaves(frozen)) == 4
    assert jax.tree.structure(merge(trained, frozen)) == jax.tree.structure(params)


def test_frozen_parameters_do_not_move_and_own_no_state(tiny: Make, tmp_path: Path) -> None:
    optimizer = Optimizer(groups=(Group(path="image/.*", freeze=True),), schedule=Constant())
    experiment = tiny(optimizer=optimizer, train=Train(steps=3))
    parts = assemble(experiment, run_tokenizer(experiment, tmp_path))
    trained = sum(x.size for x in jax.tree.leaves(parts.plan.shapes.params["text"])) + 1
    moments = parts.plan.shapes.opt_state[1].mu
    assert sum(x.size for x in jax.tree.leaves(moments)) == trained
    start = parts.plan.create(experiment.seed).params
    prepare_run(experiment, tmp_path / "run")
    train(experiment, tmp_path / "run", quiet=True)
    end = open_run(tmp_path / "run").params
    for a, b in zip(jax.tree.leaves(start["image"]), jax.tree.leaves(end["image"]), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    moved = [
        bool(np.any(np.asarray(a) != np.asarray(b)))
        for a, b in zip(jax.tree.leaves(start["text"]), jax.tree.leaves(end["text"]), strict=True)
    ]
    assert sum(moved) > len(moved) // 2
