"""What the compiled step sends between devices, with micro-batches and without."""

import functools
import importlib.util

import jax
import numpy as np
import pytest

from tests.parallel.programs import (
    BATCH,
    LENGTH,
    SMALL_TOWER,
    Collective,
    clip,
    collectives,
    tpu_devices,
)
from vlalign.parallel.mesh import MeshSpec

PARTS = 4
MESHES = {
    "data=8": MeshSpec(data=8),
    "data=2,fsdp=4": MeshSpec(data=2, fsdp=4),
    "data=2,fsdp=2,tensor=2": MeshSpec(data=2, fsdp=2, tensor=2),
}
WHERE = [
    "cpu",
    pytest.param(
        "tpu",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("libtpu") is None, reason="needs libtpu to compile for a pod"
        ),
    ),
]


@functools.cache
def found(where: str, mesh: str, parts: int) -> list[Collective]:
    devices = tpu_devices("v5e:2x4") if where == "tpu" else jax.devices()
    return collectives(clip().compiled(MESHES[mesh].build(devices), parts).as_text())


def crosses_data(one: Collective, mesh: str) -> bool:
    """Whether devices of two places on `data` are in one group: those are the outermost."""
    inner = MESHES[mesh].fsdp * MESHES[mesh].tensor
    place = one.groups // inner
    return bool(np.any(place != place[:, :1]))


def block(parts: int, mesh: str) -> int:
    """Elements of one block's activations on one device: what must never be sent."""
    rows = BATCH // (MESHES[mesh].data * MESHES[mesh].fsdp) // parts
    return int(rows * LENGTH * SMALL_TOWER["width"])


@pytest.mark.parametrize("where", WHERE)
def test_the_loop_over_micro_batches_sends_nothing_on_data_parallel_meshes(where: str) -> None:
    assert [one.line for one in found(where, "data=8", PARTS) if one.loops] == []


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("mesh", MESHES)
def test_nothing_crosses_data_within_a_loop_over_micro_batches(where: str, mesh: str) -> None:
    inside = [one for one in found(where, mesh, PARTS) if one.loops]
    assert [one.line for one in inside if crosses_data(one, mesh)] == []
    if MESHES[mesh].fsdp > 1:  # weights are gathered: the loop is the right one
        assert any(one.kind == "all-gather" for one in inside)


def test_the_whole_batch_reduces_layer_by_layer_so_the_test_above_can_fail() -> None:
    inside = [one for one in found("cpu", "data=8", 1) if one.loops]
    assert any(one.kind == "all-reduce" and crosses_data(one, "data=8") for one in inside)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("parts", [1, PARTS])
def test_every_gradient_is_summed_over_data_once(where: str, parts: int) -> None:
    case = clip()
    size = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(case.shapes))
    depth = SMALL_TOWER["depth"]  # a loop over the layers runs so often
    all_ = found(where, "data=8", parts)
    summed = sum(sum(one.sizes) * depth**one.loops for one in all_ if one.kind == "all-reduce")
    embeddings = 4 * BATCH * SMALL_TOWER["embed_dim"]  # of the loss, and its rows' statistics
    assert size <= summed <= size + embeddings
    assert {one.kind for one in all_} <= {"all-reduce", "all-gather", "reduce-scatter"}


@pytest.mark.parametrize("parts", [1, PARTS])
@pytest.mark.parametrize("mesh", ["data=8", "data=2,fsdp=4"])
def test_activations_stay_where_they_are(mesh: str, parts: int) -> None:
    """FSDP gathers weights: no array as large as a block's activations is sent within a loop."""
    for one in found("cpu", mesh, parts):
        if one.loops or one.kind == "all-reduce":
            assert max(one.sizes) < block(parts, mesh), one.line


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("mesh", ["data=8", "data=2,fsdp=4"])
def test_cutting_the_batch_moves_no_row(where: str, mesh: str) -> None:
    moving = ("all-to-all", "collective-permute")
    assert [one.line for one in found(where, mesh, PARTS) if one.kind in moving] == []
