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


def path_of(kind: Any, dtype: Any, steps: int = 30) -> tuple[np.ndarray, Any]:
    """Parameters along a noisy way down a quadratic, and the last state."""
    names = {"kernel": ("embed", "mlp"), "bias": ("mlp",)}
    rng = np.random.default_rng(0)
    draw = lambda: {  # noqa: E731
        "kernel": jnp.asarray(rng.normal(size=(8, 16)), jnp.float32),
        "bias": jnp.asarray(rng.normal(size=16), jnp.float32),
    }
    params, found = draw(), []
    optimizer = Optimizer(
        kind=kind,
        learning_rate=0.01,
        weight_decay=0.0,
        schedule=Constant(),
        moment_dtype=dtype,
    )
    with jax.numpy_dtype_promotion("standard"):
        tx = optimizer.build(names, steps)
        state, update = tx.init(params), jax.jit(tx.update)
        for _ in range(steps):
            grads = jax.tree.map(lambda x, n: x + n, params, draw())
            updates, state = update(grads, state, params)
            assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {np.dtype("float32")}
            params = optax.apply_updates(params, updates)
            found.append(np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)]))
    return np.asarray(found), state


def moments(state: Any, *names: str) -> list[jax.Array]:
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    named = [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]
    return [leaf for path, leaf in named if any(f".{name}" in path for name in names)]


@pytest.mark.parametrize("kind", ["adamw", "lion", "sgd", "muon"])
def test_a_bfloat16_moment_is_half_the_bytes_and_nearly_the_same_way(kind: str) -> None:
    wide, wide_state = path_of(kind, "float32")
    narrow, state = path_of(kind, "bfloat16")
    first, before = moments(state, "mu[", "trace["), moments(wide_state, "mu[", "trace[")
    assert {leaf.dtype for leaf in first} == {jnp.dtype("bfloat16")}
    assert all(leaf.dtype == np.float32 for leaf in moments(state, "nu["))
    assert 2 * sum(leaf.nbytes for leaf in first) == sum(leaf.nbytes for leaf in before) > 0
    assert not np.array_equal(wide, narrow)
    way = float(np.abs(wide[-1] - wide[0]).mean())
    assert float(np.abs(narrow[-1] - wide[-1]).mean()) < 0.03 * way


def test_a_bfloat16_moment_is_rounded_only_where_it_is_stored() -> None:
    """Two steps of SGD by hand: product and sum in float32, what is stored between them rounded."""
    optimizer = Optimizer(
        kind="sgd",
        learning_rate=1.0,
        weight_decay=0.0,
        clip_norm=None,
        schedule=Constant(),
        moment_dtype="bfloat16",
    )
    first, second = 1.2345678, 0.3456789
    with jax.numpy_dtype_promotion("standard"):
        tx = optimizer.build({"w": ("mlp",)}, 10)
        params = {"w": jnp.zeros((1,), jnp.float32)}
        _, state = tx.update({"w": jnp.full((1,), first, jnp.float32)}, tx.init(params), params)
        updates, _ = tx.update({"w": jnp.full((1,), second, jnp.float32)}, state, params)
    stored = float(jnp.bfloat16(first))
    assert stored != pytest.approx(first, rel=1e-4)
    assert -float(updates["w"][0]) == pytest.approx(second + 0.9 * stored, rel=1e-6)


@pytest.mark.slow
def test_a_run_with_bfloat16_moments_resumes_to_the_same_bits(tiny: Make, tmp_path: Path) -> None:
    def final(name: str, *ends: int) -> list[np.ndarray]:
        for steps in ends:
            optimizer = Optimizer(schedule=Constant(), moment_dtype="bfloat16")
            config = Train(steps=steps, save_every=2)
            train(tiny(optimizer=optimizer, train=config, evals={}), tmp_path / name, quiet=True)
        return [np.asarray(leaf) for leaf in jax.tree.leaves(open_run(tmp_path / name).params)]

    for name in ("straight", "resumed"):
        prepare_run(tiny(evals={}), tmp_path / name)
    for a, b in zip(final("straight", 4), final("resumed", 2, 4), strict=True):
        np.testing.assert_array_equal(a, b)


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
