"""Micro-batches: the numbers of the whole batch, for every kind of objective on every mesh."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parallel.programs import SMALL_TOWER, Case, model
from vlalign.objectives.base import Across, Arrays, Local, Objective, Term, Towers
from vlalign.objectives.contrastive import Clip, SigLip
from vlalign.objectives.momentum import MomentumClip
from vlalign.parallel.mesh import MeshSpec
from vlalign.parallel.micro import in_parts

BATCH = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Both(Objective):
    """A local term with a parameter of its own, other counts than rows, and all kinds of rows."""

    def init(self, rng: jax.Array) -> dict[str, Any]:
        return {"head": jax.random.normal(rng, (SMALL_TOWER["width"], 3), jnp.float32)}

    def local(self, own: Mapping[str, Any], towers: Towers, memory: Any, step: jax.Array) -> Local:
        tokens = towers.encode("text").tokens
        size = jnp.sum((tokens @ own["head"]) ** 2, axis=(1, 2)) * towers.weight
        odd = towers.batch["text"][:, :1] % 2 == 1
        count = jnp.sum(jnp.where(odd[:, 0], towers.weight, 0.0))
        keep = {"odd": odd, "first": towers.batch["text"][:, :2], "size": size}
        return Local(terms={"size": Term(jnp.sum(size), count)}, keep=keep)

    def across(self, own: Mapping[str, Any], kept: Arrays, memory: Any, step: jax.Array) -> Across:
        order = jnp.arange(kept["size"].shape[0], dtype=jnp.float32)  # sees rows out of place
        total = jnp.sum(kept["size"] * order * kept["odd"][:, 0].astype(jnp.float32))
        metrics = {"first": jnp.sum(kept["first"][:, 0] * jnp.arange(len(order), dtype=jnp.int32))}
        return Across({"order": Term(total, jnp.sum(order))}, metrics)


OBJECTIVES: dict[str, dict[str, Objective]] = {
    "clip": {"clip": Clip()},
    "siglip+both": {"siglip": SigLip(), "both": Both(weight=0.01)},
    "momentum": {"momentum": MomentumClip(queue=2 * BATCH)},
}
MESHES = [
    MeshSpec(devices=1),
    MeshSpec(devices=2),
    MeshSpec(data=2, fsdp=2, devices=4),
    MeshSpec(data=8),
    MeshSpec(data=1, fsdp=8),
    MeshSpec(data=2, fsdp=2, tensor=2),
]


def check_equal(cut: dict[str, np.ndarray], whole: dict[str, np.ndarray]) -> None:
    assert cut.keys() == whole.keys()
    for name, value in whole.items():
        scale = max(float(np.abs(value).max(initial=0.0)), 1e-3) if value.dtype.kind == "f" else 0
        np.testing.assert_allclose(cut[name], value, rtol=1e-5, atol=1e-5 * scale, err_msg=name)


def compare(name: str, meshes: list[MeshSpec]) -> None:
    # Token dropping: what is drawn for a row must not depend on the cut.
    case = Case(model(SMALL_TOWER | {"depth": 1}, token_drop=0.5), OBJECTIVES[name], BATCH)
    whole = case.run(MeshSpec(devices=1), 1)
    assert sum(bool(np.any(value)) for key, value in whole.items() if key.startswith("[1]")) > 20
    for spec in meshes:
        check_equal(case.run(spec, 4), whole)


def test_parts_are_the_whole() -> None:
    compare("siglip+both", [MeshSpec(data=2, fsdp=2, devices=4)])


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_parts_are_the_whole_on_every_mesh(name: str) -> None:
    compare(name, MESHES)


def test_rows_come_back_in_order_and_sums_are_over_all() -> None:
    rows = {"a": jnp.arange(16, dtype=jnp.int32), "b": jnp.ones((16, 2), jnp.float32)}

    def f(scale: jax.Array, part: Any) -> Any:
        assert part["a"].shape == (2,)  # 16 rows over data=2 and 4 parts
        return {"n": jnp.sum(part["b"]) * scale}, {"a": part["a"] * 10}

    with jax.set_mesh(MeshSpec(data=2, fsdp=2, devices=4).build()):
        sums, kept = jax.jit(lambda p, x: in_parts(f, p, x, 4))(jnp.float32(3.0), rows)
    assert float(sums["n"]) == 96.0
    np.testing.assert_array_equal(kept["a"], 10 * np.arange(16))
