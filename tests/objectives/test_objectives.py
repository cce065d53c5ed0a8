"""The contract of objectives, on hand-made numbers: terms, memory, where gradients flow."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from vlalign.encoders.text import TextTransformer
from vlalign.encoders.vit import ViT
from vlalign.errors import UserError
from vlalign.objectives.base import Objective, Term, Towers, normalize
from vlalign.objectives.contrastive import Clip, SigLip
from vlalign.objectives.momentum import MomentumClip
from vlalign.objectives.total import total_loss

MODEL: dict[str, Any] = {
    "image": ViT(patch_size=8, width=16, depth=1, heads=2, embed_dim=8),
    "text": TextTransformer(vocab_size=30, width=16, depth=1, heads=2, embed_dim=8),
}
B = 6


def batch(rows: int = B) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (rows, 16, 16, 3)), jnp.uint8),
        "text": jnp.asarray(rng.integers(1, 30, (rows, 5)), jnp.int32),
        "weight": jnp.ones((rows,), jnp.float32),
    }


def setup(**objectives: Objective) -> tuple[dict[str, Any], dict[str, Any]]:
    key, first = jax.random.key(0), batch()
    params = {
        name: meta.unbox(jax.jit(module.init)({"params": key}, first[name])["params"])
        for name, module in MODEL.items()
    }
    memory = {name: o.init_memory(params, B) for name, o in objectives.items()}
    own = {name: o.init(key) for name, o in objectives.items()}
    return {**params, "objectives": own}, memory


def run(params: Any, memory: Any, data: Any, step: int = 0, **objectives: Objective) -> Any:
    compiled = _compiled(tuple(objectives.items()))
    return compiled(params, memory, data, jax.random.key(1), jnp.int32(step))


@functools.cache
def _compiled(objectives: tuple[tuple[str, Objective], ...]) -> Any:
    return jax.jit(functools.partial(total_loss, MODEL, dict(objectives)))


def unit(x: jax.Array) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def log_softmax(x: np.ndarray) -> np.ndarray:
    return (
        x
        - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True))
        - x.max(1, keepdims=True)
    )


def embeddings(params: Any, data: Any) -> tuple[np.ndarray, np.ndarray]:
    apply = {name: jax.jit(module.apply) for name, module in MODEL.items()}
    out = [unit(apply[n]({"params": params[n]}, data[n]).pooled) for n in ("image", "text")]
    return out[0], out[1]


def test_clip_is_the_published_formula() -> None:
    params, memory = setup(clip=Clip(logit_scale_init=5.0))
    loss, (metrics, _) = run(params, memory, batch(), clip=Clip(logit_scale_init=5.0))
    zimg, ztxt = embeddings(params, batch())
    logits = 5.0 * zimg @ ztxt.T
    wanted = -0.5 * (np.diag(log_softmax(logits)).mean() + np.diag(log_softmax(logits.T)).mean())
    assert float(loss) == pytest.approx(wanted, rel=1e-5)
    assert float(metrics["clip/logit_scale"]) == pytest.approx(5.0)


def test_siglip_is_the_published_formula() -> None:
    siglip = SigLip()
    params, memory = setup(siglip=siglip)
    loss, _ = run(params, memory, batch(), siglip=siglip)
    zimg, ztxt = embeddings(params, batch())
    logits = 10.0 * zimg @ ztxt.T - 10.0
    signs = 2 * np.eye(B) - 1
    assert float(loss) == pytest.approx(np.log1p(np.exp(-signs * logits)).sum() / B, rel=1e-5)


def test_groups_and_duplicates_of_the_batch_reach_the_loss() -> None:
    """With views of these names: equal groups are positives, equal content is no negative."""
    clip, one = Clip(logit_scale_init=5.0), batch()
    params, memory = setup(clip=clip)
    zimg, ztxt = embeddings(params, one)
    logits = 5.0 * zimg @ ztxt.T
    group = np.asarray([0, 0, 2, 3, 4, 5], np.int32)
    same = group[:, None] == group[None]
    target = same / same.sum(1, keepdims=True)
    wanted = -0.5 * sum((target * log_softmax(x)).sum(1).mean() for x in (logits, logits.T))
    loss, _ = run(params, memory, one | {"group": jnp.asarray(group)}, clip=clip)
    assert float(loss) == pytest.approx(wanted, rel=1e-5)
    apart = np.where(same & ~np.eye(B, dtype=bool), -np.inf, logits)
    wanted = -0.5 * sum(np.diag(log_softmax(x)).mean() for x in (apart, apart.T))
    loss, _ = run(params, memory, one | {"duplicate": jnp.asarray(group)}, clip=clip)
    assert float(loss) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("queue", [0, 12])
def test_momentum_targets_are_the_published_formula(queue: int) -> None:
    objective = MomentumClip(queue=queue, alpha=0.4, momentum=0.5, logit_scale_init=5.0)
    params, memory = setup(m=objective)
    shift = lambda x: x * 1.1 + 0.01  # noqa: E731
    online = {**params, "image": jax.tree.map(shift, params["image"])}
    old_towers = memory["m"]["towers"]
    if queue:
        _, (_, memory) = run(params, memory, batch(), m=objective)  # one batch enters the queue
        queued = {n: np.asarray(memory["m"]["queue"][n][:B], np.float64) for n in MODEL}
        assert int(memory["m"]["valid"].sum()) == B
    loss, (_, after) = run(online, memory, batch(), m=objective)
    half = {n: jax.tree.map(lambda a, b: (a + b) / 2, old_towers[n], online[n]) for n in MODEL}
    zimg, ztxt = embeddings(online, batch())
    eimg, etxt = embeddings(half, batch())

    def direction(z: np.ndarray, own: np.ndarray, other: np.ndarray, name: str) -> float:
        columns = np.concatenate([other, queued[name]]) if queue else other
        soft = np.exp(log_softmax(5.0 * own @ columns.T))
        target = 0.6 * np.eye(B, len(columns)) + 0.4 * soft
        return float(-(target * log_softmax(5.0 * z @ columns.T)).sum(1).mean())

    wanted = 0.5 * (direction(zimg, eimg, etxt, "text") + direction(ztxt, etxt, eimg, "image"))
    assert float(loss) == pytest.approx(wanted, rel=2e-5)
    for name in MODEL:
        for a, b in zip(
            jax.tree.leaves(after["m"]["towers"][name]), jax.tree.leaves(half[name]), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_the_queue_is_first_in_first_out_and_leaves_bad_rows_out() -> None:
    objective = MomentumClip(queue=12)
    params, memory = setup(m=objective)
    first = batch()
    bad = {**first, "weight": first["weight"].at[0].set(0.0)}
    _, (_, memory) = run(params, memory, bad, m=objective)
    before = memory["m"]["queue"]["image"][:B]
    _, (_, memory) = run(params, memory, first, m=objective)
    np.testing.assert_array_equal(memory["m"]["queue"]["image"][B:], before)
    assert np.asarray(memory["m"]["valid"]).tolist() == [True] * B + [False] + [True] * (B - 1)
    with pytest.raises(UserError, match=r"multiple of data\.batch_size=6"):
        MomentumClip(queue=8).init_memory(params, 6)


def test_no_gradient_reaches_the_memory_and_all_of_it_the_towers() -> None:
    objective = MomentumClip(queue=12, alpha=0.9)
    params, memory = setup(m=objective)
    _, (_, memory) = run(params, memory, batch(), m=objective)

    def loss(p: Any, towers: Any) -> jax.Array:
        changed = {"m": {**memory["m"], "towers": towers}}
        return run(p, changed, batch(), m=objective)[0]

    for_params, for_memory = jax.grad(loss, argnums=(0, 1))(params, memory["m"]["towers"])
    assert all(float(jnp.abs(leaf).max()) == 0.0 for leaf in jax.tree.leaves(for_memory))
    assert float(jnp.abs(for_params["image"]["proj"]["kernel"]).max()) > 0
    assert float(jnp.abs(for_params["text"]["proj"]["kernel"]).max()) > 0


@pytest.mark.parametrize("objective", [Clip(), SigLip(), MomentumClip(queue=6)])
def test_rows_of_weight_zero_change_nothing(objective: Any) -> None:
    params, memory = setup(o=objective)
    clean = batch()
    dirty = {name: x.copy() for name, x in clean.items()}
    clean["weight"] = dirty["weight"] = clean["weight"].at[2].set(0.0)
    dirty["image"] = dirty["image"].at[2].set(255)
    dirty["text"] = dirty["text"].at[2].set(0)

    def value(data: Any) -> Any:
        return jax.value_and_grad(lambda p: run(p, memory, data, o=objective)[0])(params)

    for a, b in zip(jax.tree.leaves(value(clean)), jax.tree.leaves(value(dirty)), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_a_batch_of_nothing_has_no_loss_and_finite_gradients() -> None:
    params, memory = setup(clip=Clip())
    empty = {**batch(), "weight": jnp.zeros((B,), jnp.float32)}
    loss, grads = jax.value_and_grad(lambda p: run(p, memory, empty, clip=Clip())[0])(params)
    assert float(loss) == 0.0
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(grads))


def test_objectives_add_with_their_weights_and_share_encodings() -> None:
    both = {"a": Clip(weight=2.0), "b": SigLip(weight=0.5)}
    params, memory = setup(**both)
    loss, (metrics, _) = run(params, memory, batch(), **both)
    wanted = 2.0 * float(metrics["a/loss"]) + 0.5 * float(metrics["b/loss"])
    assert float(loss) == pytest.approx(wanted, rel=1e-6)
    towers = Towers(MODEL, params, batch(), jnp.arange(B, dtype=jnp.int32), jax.random.key(0))
    assert towers.encode("image") is towers.encode("image")
    assert towers.encode("image") is not towers.encode_with(params, "other", "image")


def test_unknown_towers_and_views_are_named() -> None:
    params, _ = setup(clip=Clip())
    towers = Towers(MODEL, params, batch(), jnp.arange(B, dtype=jnp.int32), jax.random.key(0))
    with pytest.raises(UserError, match=r"no tower 'txt'.*nearest: text"):
        towers.encode("txt", "text")
    with pytest.raises(UserError, match=r"no view 'imag'.*nearest: image"):
        towers.encode("image", "imag")


def test_the_scale_is_clamped_after_an_update_and_siglips_is_not() -> None:
    high = {"logit_scale": jnp.full((), 9.0, jnp.float32)}
    assert float(jnp.exp(Clip().finish(dict(high))["logit_scale"])) == pytest.approx(100.0)
    assert float(SigLip().finish(dict(high))["logit_scale"]) == 9.0
    assert float(Clip(logit_scale_max=None).finish(dict(high))["logit_scale"]) == 9.0


def test_terms_of_nothing_are_zero() -> None:
    term = Term(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))
    assert float(term.mean) == 0.0
    assert bool(jnp.all(normalize(jnp.zeros((2, 3), jnp.float32)) == 0))
    grad = jax.grad(lambda x: normalize(x).sum())(jnp.zeros((2, 3), jnp.float32))
    assert bool(jnp.all(jnp.isfinite(grad)))
