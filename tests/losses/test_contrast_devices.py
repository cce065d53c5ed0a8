"""The contrastive losses on a mesh: same numbers, only the expected collectives, linear memory."""

import math
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vlalign.losses.contrast import sigmoid_contrast, softmax_contrast


def mesh_of(data, fsdp=1, tensor=1):
    devices = jax.devices()[: data * fsdp * tensor]
    axes = (AxisType.Auto,) * 3
    names = ("data", "fsdp", "tensor")
    return jax.make_mesh((data, fsdp, tensor), names, axis_types=axes, devices=devices)


@pytest.mark.parametrize(
    ("sizes", "route", "block_size"),
    [
        ((4, 2, 1), "ring", 2),
        ((2, 2, 2), "gather", 5),
    ],
)
def test_values_and_gradients(case, sizes, route, block_size, reference_of, check_close):
    arrays, given, expected = reference_of(case, 24, 16, 20.0)
    mesh = mesh_of(*sizes)
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        arrays = arrays | {side: jax.device_put(arrays[side], rows) for side in "xy"}
        found = case.found(arrays, given, route=route, block_size=block_size, mesh=sizes)
    check_close(found, expected)


@pytest.mark.parametrize("route", ["gather", "ring"])
@pytest.mark.parametrize("name", ["softmax", "albef", "sigmoid"])
def test_two_devices_of_one_tile(name, route, make_case, reference_of, check_close):
    distilled = name == "albef"
    case = make_case(
        name, sigmoid=name == "sigmoid", teacher=distilled, extra=13 if distilled else 0
    )
    arrays, given, expected = reference_of(case, 24, 16, 20.0)
    with jax.set_mesh(mesh_of(2)):
        check_close(case.found(arrays, given, route=route, mesh=(2,)), expected)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 1, 4)])
def test_a_mesh_that_does_not_cut_the_batch(sizes, make_case, reference_of, check_close):
    case = make_case("softmax")
    arrays, given, expected = reference_of(case, 24, 16, 20.0)
    with jax.set_mesh(mesh_of(*sizes)):
        check_close(case.found(arrays, given, block_size=8, mesh=sizes), expected)


def test_without_jit_on_a_mesh(make_case, reference_of):
    case = make_case("softmax")
    arrays, given, expected = reference_of(case, 24, 16, 20.0)
    with jax.set_mesh(mesh_of(2)):
        value = case.ours(arrays, given, block_size=8).mean
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)


def test_metrics_on_a_mesh():
    x = np.eye(8, dtype=np.float32)
    y = x[[0, 1, 3, 2, 4, 5, 6, 7]]
    group = np.asarray([0, 1, 2, 2, 4, 5, 6, 7], np.int32)
    with jax.set_mesh(mesh_of(4)):
        for route in ("gather", "ring"):
            loss = softmax_contrast(x, y, logit_scale=3.0, block_size=3, route=route)
            means = loss.metric_means()
            assert means["accuracy_rows"] == means["accuracy_columns"] == 6 / 8
            grouped = sigmoid_contrast(
                x, y, logit_scale=3.0, logit_bias=0.0, group_b=group, route=route
            )
            means = grouped.metric_means()
            assert means["accuracy_rows"] == means["accuracy_columns"] == 1.0


def test_batch_that_does_not_divide():
    x = np.eye(6, dtype=np.float32)
    with (
        jax.set_mesh(mesh_of(2, 2)),
        pytest.raises(ValueError, match=r"6 does not divide.*data=2 x fsdp=2.*multiple of 4"),
    ):
        softmax_contrast(x, x, logit_scale=1.0)


def test_inside_shard_map_is_an_error():
    x = np.eye(4, dtype=np.float32)
    place = PartitionSpec("data")
    with jax.set_mesh(mesh_of(2)):
        step = jax.shard_map(
            lambda a: softmax_contrast(a, a, logit_scale=1.0).sum,
            in_specs=place,
            out_specs=PartitionSpec(),
        )
        with pytest.raises(ValueError, match="outside shard_map"):
            step(x)


def compiled(loss, batch, dim, mesh=None, **options):
    """The program of value and all gradients for a batch cut over the mesh."""

    def mean(x, y, scale, bias):
        extra = {"logit_bias": bias} if loss is sigmoid_contrast else {}
        return loss(x, y, logit_scale=scale, **extra, **options).mean

    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    place = None if mesh is None else NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    z = jax.ShapeDtypeStruct((batch, dim), jnp.float32, sharding=place)
    step = jax.jit(jax.value_and_grad(mean, (0, 1, 2, 3)))
    return step.lower(z, z, scalar, scalar).compile()


def computations(program):
    """The instructions of each computation of a compiled program, by name."""
    found, name = {}, None
    for line in program.as_text().splitlines():
        if line and not line.startswith((" ", "}")):
            name = re.match(r"(?:ENTRY )?%?([\w.\-]+)", line)[1]
            found[name] = []
        elif name and line.startswith(" "):
            found[name].append(line)
    return found


def float32_sizes(text):
    """Number of elements of every float32 array that a text mentions."""
    shapes = re.findall(r"f32\[([\d,]*)\]", text)
    return [math.prod(int(n) for n in shape.split(",") if n) for shape in shapes]


def large_collectives(program, elements):
    """Collectives that move at least so many elements, by kind; and those inside a loop's body."""
    everything = computations(program)
    text = "\n".join(line for lines in everything.values() for line in lines)
    bodies = set(re.findall(r"body=%?([\w.\-]+)", text))
    kinds = r" (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
    total, inside = Counter(), Counter()
    for name, lines in everything.items():
        for line in lines:
            if not (kind := re.search(kinds, line)):
                continue
            if max(float32_sizes(line[: kind.start()]), default=0) >= elements:
                total[kind[1]] += 1
                inside[kind[1]] += name in bodies
    return dict(total), {kind: n for kind, n in inside.items() if n}


@pytest.mark.parametrize("loss", [softmax_contrast, sigmoid_contrast])
def test_collectives_of_the_gather_path(loss):
    """Over each of two axes columns are gathered once each way, gradients scattered once."""
    mesh = mesh_of(4, 2)
    with jax.set_mesh(mesh):
        program = compiled(loss, 512, 32, mesh, block_size=64)
    total, inside = large_collectives(program, 64 * 32)
    assert total.pop("all-gather") in (2, 4)  # half, where the compiler reuses the first
    assert total == {"reduce-scatter": 2}
    assert inside == {}
    assert large_collectives(program, 1)[1] == {}


def test_collectives_of_the_ring_path():
    mesh = mesh_of(8)
    with jax.set_mesh(mesh):
        program = compiled(softmax_contrast, 512, 32, mesh, block_size=64, route="ring")
    total, _ = large_collectives(program, 64 * 32)
    # Columns forward and back, their gradients behind them, and those once more to come home.
    assert total == {"collective-permute": 4}
    assert max(float32_sizes(program.as_text())) < 512 * 32


@pytest.mark.parametrize("loss", [softmax_contrast, sigmoid_contrast])
@pytest.mark.parametrize("devices", [1, 8])
def test_memory_is_linear_in_the_batch(loss, devices):
    batches, dim, block_size = (2048, 8192), 64, 256
    options = {"block_size": block_size}
    if devices == 1:
        programs = [compiled(loss, batch, dim, **options) for batch in batches]
    else:
        mesh = mesh_of(devices)
        with jax.set_mesh(mesh):
            programs = [compiled(loss, batch, dim, mesh, **options) for batch in batches]
    small, large = (p.memory_analysis().temp_size_in_bytes for p in programs)
    tile, embeddings = 4 * block_size**2, 4 * batches[1] * dim
    assert large < 5 * embeddings + 8 * tile
    assert large - small < 5 * 0.75 * embeddings
