"""The reader of compiled programs, on programs whose numbers are known."""

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vlalign.plan.collectives import Collective, collectives
from vlalign.plan.costs import products, traffic
from vlalign.plan.hlo import Array, Program, arrays
from vlalign.plan.target import topology

tpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not here")
Shape = tuple[int, ...]


def compiled(function: Callable[..., Any], *inputs: tuple[Shape, str], device: Any = None) -> Any:
    sharding = None if device is None else jax.sharding.SingleDeviceSharding(device)
    shapes = [jax.ShapeDtypeStruct(s, jnp.dtype(t), sharding=sharding) for s, t in inputs]
    return jax.jit(function).lower(*shapes).compile()


def flops(done: Any) -> int:
    program = Program(done.as_text())
    return sum(run.times * products(program, run.instruction) for run in program.runs)


def moved(done: Any) -> int:
    program = Program(done.as_text())
    return sum(run.times * traffic(program, run.instruction) for run in program.runs)


def scanned(x: jax.Array, w_ldd: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w_ldd)[0]


def nested(x: jax.Array, w_ldd: jax.Array) -> jax.Array:
    return jax.lax.fori_loop(0, 3, lambda _, x: scanned(x, w_ldd), x)


def convolution(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, w, (2, 1), ((1, 1), (2, 0)), rhs_dilation=(1, 2))


@pytest.mark.parametrize(
    ("function", "inputs", "expected"),
    [
        (jnp.matmul, [(16, 24), (24, 40)], 2 * 16 * 24 * 40),
        (scanned, [(8, 32), (5, 32, 32)], 5 * 2 * 8 * 32 * 32),
        (nested, [(8, 32), (5, 32, 32)], 3 * 5 * 2 * 8 * 32 * 32),
        (lambda x, y: jnp.einsum("bhlk,bhsk->bhls", x, y), [(2, 3, 8, 16)] * 2, 2 * 6 * 64 * 16),
    ],
)
def test_operations_are_counted_as_often_as_they_run(
    function: Callable[..., Any], inputs: list[Shape], expected: int
) -> None:
    assert flops(compiled(function, *((shape, "float32") for shape in inputs))) == expected


def brute_pairs(size: int, kernel: int, out: int, stride: int, low: int, dilate: int) -> int:
    places = (o * stride + k * dilate - low for o in range(out) for k in range(kernel))
    return sum(0 <= place < size for place in places)


def test_padding_of_a_convolution_is_no_work() -> None:
    done = compiled(convolution, ((2, 3, 9, 8), "float32"), ((4, 3, 3, 2), "float32"))
    rows, columns = brute_pairs(9, 3, 5, 2, 1, 1), brute_pairs(8, 2, 8, 1, 2, 2)
    assert flops(done) == 2 * 2 * 3 * 4 * rows * columns


def test_a_slice_of_a_stack_is_read_and_not_the_stack() -> None:
    layers, rows, width = 64, 8, 64
    done = compiled(scanned, ((rows, width), "float32"), ((layers, width, width), "float32"))
    stack = layers * width * width * 4
    # Over all loops the stack once, or three times where slices are copied first; not 64 times.
    assert stack <= moved(done) <= 4 * stack


def test_arrays_of_a_shape_and_their_padding() -> None:
    found = arrays("(f32[3,5]{1,0:T(8,128)}, /*index=1*/bf16[4,200]{0,1:T(8,128)(2,1)S(1)}, u32[])")
    assert [(a.dtype, a.sizes) for a in found] == [("f32", (3, 5)), ("bf16", (4, 200)), ("u32", ())]
    assert [a.bytes for a in found] == [60, 1600, 4]
    assert found[0].in_memory == 8 * 128 * 4
    assert found[1].in_memory == 0  # kept on the chip
    # The innermost dimension is the first of the layout: 4 becomes 128, 200 stays (25 x 8).
    assert Array("bf16", (4, 200), "0,1:T(8,128)(2,1)").in_memory == 128 * 200 * 2
    assert Array("f32", (1000,), "0:T(1024)").in_memory == 4096
    assert Array("pred", (7,)).bytes == 7
    assert Array("f8e4m3fn", (6,)).bytes == 6


@pytest.fixture
def mesh() -> Mesh:
    return jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)


def found_in(
    mesh: Mesh, function: Callable[..., Any], spec: PartitionSpec, shape: Shape, **options: Any
) -> list[Collective]:
    """Collectives of `function` under a shard_map of one float32 argument."""
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=spec, out_specs=options.pop("out", spec), check_vma=False
    )
    argument = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
    text = jax.jit(mapped).lower(argument).compile().as_text()
    return list(collectives(Program(text), devices=mesh.size, **options))


WHOLE, CUT = PartitionSpec(), PartitionSpec("a")


def test_an_all_reduce(mesh: Mesh) -> None:
    (one,) = found_in(mesh, lambda x: jax.lax.psum(x, "a"), WHOLE, (16, 32))
    assert (one.kind, one.bytes, one.group, one.times, one.depth) == ("all-reduce", 2048, 4, 1, 0)
    assert one.wire == 2 * 3 / 4 * 2048
    assert not one.across


def test_an_all_gather(mesh: Mesh) -> None:
    (one,) = found_in(
        mesh, lambda x: jax.lax.all_gather(x, "a", tiled=True), CUT, (16, 32), out=WHOLE
    )
    assert (one.kind, one.bytes, one.group) == ("all-gather", 2048, 4)
    assert one.wire == 3 / 4 * 2048


def test_a_reduce_scatter(mesh: Mesh) -> None:
    (one,) = found_in(
        mesh, lambda x: jax.lax.psum_scatter(x, "a", tiled=True), WHOLE, (16, 32), out=CUT
    )
    assert (one.kind, one.bytes, one.group) == ("reduce-scatter", 2048, 4)
    assert one.wire == 3 / 4 * 2048


def test_an_all_to_all_and_a_permutation(mesh: Mesh) -> None:
    (one,) = found_in(mesh, lambda x: jax.lax.all_to_all(x, "a", 1, 0, tiled=True), CUT, (16, 32))
    assert (one.kind, one.group) == ("all-to-all", 4)
    assert one.wire == 3 / 4 * 4 * 32 * 4
    pairs = [(i, (i + 1) % 4) for i in range(4)]
    (one,) = found_in(mesh, lambda x: jax.lax.ppermute(x, "a", pairs), CUT, (16, 32))
    assert (one.kind, one.wire) == ("collective-permute", 4 * 32 * 4)


def test_a_collective_in_a_loop_counts_as_often_as_it_runs(mesh: Mesh) -> None:
    def looped(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 7, lambda _, x: jax.lax.psum(jnp.sin(x), "a"), x)

    (one,) = found_in(mesh, looped, WHOLE, (16, 32))
    assert (one.times, one.depth, one.bytes) == (7, 1, 2048)


def test_what_crosses_slices_is_told(mesh: Mesh) -> None:
    inner = found_in(mesh, lambda x: jax.lax.psum(x, "b"), WHOLE, (8,), slices=4)
    outer = found_in(mesh, lambda x: jax.lax.psum(x, "a"), WHOLE, (8,), slices=4)
    assert [one.across for one in (*inner, *outer)] == [False, True]


HEAD = "HloModule m\n\nENTRY %main (x: f32[8]) -> f32[8] {\n  %x = f32[8]{0} parameter(0)\n"


@pytest.mark.parametrize(
    ("written", "group", "across"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 4, False),
        ("[2,4]<=[8]", 4, False),
        ("[4,2]<=[2,4]T(1,0)", 2, True),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", 4, False),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", 2, True),
        ("mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}", 4, False),
        ("mesh['axis_0'=8] {'axis_0':(2)4}", 4, False),
        ("mesh['axis_0'=8] {'axis_0':(1)2}", 2, True),
        ("{}", 8, True),
    ],
)
def test_groups_however_they_are_written(written: str, group: int, across: bool) -> None:
    line = (
        f"  ROOT %r = f32[8]{{0}} all-reduce(%x), channel_id=1, replica_groups={written}, a=b\n}}"
    )
    (one,) = collectives(Program(HEAD + line), devices=8, slices=2)
    assert (one.group, one.across) == (group, across)


def test_a_chain_of_fusions_on_one_channel_is_one_collective() -> None:
    gather = "all-gather(%p), channel_id=3, replica_groups={{0,1}}, dimensions={0}"
    text = f"""HloModule m

%begin (p: f32[4]) -> f32[8] {{
  %p = f32[4]{{0}} parameter(0)
  ROOT %g = f32[8]{{0}} {gather}
}}

%end (q: f32[4]) -> f32[8] {{
  %q = f32[4]{{0}} parameter(0)
  ROOT %h = f32[8]{{0}} {gather.replace("%p", "%q")}
}}

ENTRY %main (x: f32[4]) -> f32[8] {{
  %x = f32[4]{{0}} parameter(0)
  %one = f32[8]{{0}} fusion(%x), kind=kCustom, calls=%begin
  ROOT %two = f32[8]{{0}} fusion(%x), kind=kCustom, calls=%end
}}
"""
    (one,) = collectives(Program(text), devices=2)
    assert (one.kind, one.bytes, one.wire) == ("all-gather", 32, 16.0)


LOOP = """HloModule m

%cond (s: (u32[])) -> pred[] {
  %s = (u32[]) parameter(0)
  %i = u32[] get-tuple-element(%s), index=0
  %n = u32[] constant(8)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%body (t: (u32[])) -> (u32[]) {
  %t = (u32[]) parameter(0)
  %j = u32[] get-tuple-element(%t), index=0
  %step = u32[] constant(STEP)
  %sum = u32[] add(%j, %step)
  ROOT %out = (u32[]) tuple(%sum)
}

ENTRY %main (x: (u32[])) -> (u32[]) {
  %x = (u32[]) parameter(0)
  ROOT %w = (u32[]) while(%x), condition=%cond, body=%body
}
"""


@pytest.mark.parametrize(("step", "trips"), [(1, 8), (2, 4), (3, 3)])
def test_trips_of_a_loop_that_the_compiler_has_unrolled(step: int, trips: int) -> None:
    program = Program(LOOP.replace("STEP", str(step)))
    assert {run.times for run in program.runs if run.depth} == {trips}


def test_a_loop_without_a_bound_is_an_error() -> None:
    text = LOOP.replace("constant(8)", "get-tuple-element(%s), index=0")
    with pytest.raises(ValueError, match="expected one bound"):
        _ = Program(text).runs


def test_of_a_conditional_the_cheapest_branch_counts() -> None:
    def branches(x: jax.Array) -> jax.Array:
        return jax.lax.cond(x[0, 0] > 0, lambda x: x, lambda x: x @ x @ x, x)

    assert flops(compiled(branches, ((16, 16), "float32"))) in (0, 4 * 16**3)


@tpu
def test_a_program_for_a_tpu() -> None:
    device = topology("v5e:2x2").devices[0]
    n, layers = 1024, 5
    inputs = ((n, n), "bfloat16"), ((layers, n, n), "bfloat16")
    done = compiled(scanned, *inputs, device=device)
    program, product = Program(done.as_text()), layers * 2 * n**3
    assert flops(done) == product
    # Cycles are of the matrix units: 4 of 128 x 128, two operations each.
    cycles = product / (4 * 128 * 128 * 2)
    assert cycles <= program.cycles <= 4 * cycles  # tanh takes its part
    assert layers * n * n * 2 <= moved(done) <= 3 * layers * n * n * 2


@tpu
def test_attention_on_a_tpu_is_counted_through_its_strange_convolutions() -> None:
    b, l, h, k = 4, 128, 3, 64

    def attend(q: jax.Array, y: jax.Array) -> jax.Array:
        logits = jnp.einsum("blhk,bshk->bhls", q, y)
        return jnp.einsum("bhls,bshk->blhk", jnp.tanh(logits), y)

    shape = (b, l, h, k)
    device = topology("v5e:2x2").devices[0]
    done = compiled(attend, (shape, "bfloat16"), (shape, "bfloat16"), device=device)
    assert flops(done) == 2 * 2 * math.prod(shape) * l


@tpu
def test_collectives_of_a_tpu() -> None:
    devices = np.array(topology("v5e:2x2").devices)
    mesh = Mesh(devices, ("a",), axis_types=(AxisType.Auto,))
    n = 512
    sharded, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("a",), ()))
    x = jax.ShapeDtypeStruct((n, n), jnp.float32, sharding=sharded)
    w = jax.ShapeDtypeStruct((n, n), jnp.float32, sharding=whole)
    done = jax.jit(lambda x, w: x.T @ x @ w, out_shardings=sharded).lower(x, w).compile()
    found = list(collectives(Program(done.as_text()), devices=4))
    assert {one.kind for one in found} <= {"all-reduce", "reduce-scatter"}
    assert sum(one.bytes for one in found) == n * n * 4
    assert {one.group for one in found} == {4}
