"""Mesh and axis rules: right layouts, and errors that say what to change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vlalign.errors import UserError
from vlalign.parallel.constraint import batch_axes, mapped_over, shard_batch, whole
from vlalign.parallel.mesh import MeshSpec, batch_shards, check_batch
from vlalign.parallel.rules import AxisRules, check_sharded, tree_shardings


def test_mesh_takes_all_devices() -> None:
    mesh = MeshSpec(fsdp=2).build()
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    assert batch_shards(mesh) == 8
    assert MeshSpec(devices=2).build().size == 2


@pytest.mark.parametrize(
    "spec",
    [
        MeshSpec(data=3),
        MeshSpec(data=-1, fsdp=-1),
        MeshSpec(data=1, fsdp=1),
        MeshSpec(data=0),
        MeshSpec(data=-1, fsdp=3),
        MeshSpec(devices=9),
    ],
)
def test_mesh_that_does_not_fit_is_an_error(spec: MeshSpec) -> None:
    with pytest.raises(UserError, match="mesh"):
        spec.build()


def test_batch_that_does_not_divide_names_the_nearest_sizes() -> None:
    with pytest.raises(UserError, match=r"data.batch_size=30.*24.*32"):
        check_batch(30, MeshSpec().build(), where="data.batch_size")


def test_spec_follows_the_rules_and_leaves_axes_of_size_one_whole() -> None:
    mesh = MeshSpec(data=2, fsdp=2, tensor=2).build()
    rules = AxisRules(embed="fsdp")
    spec = rules.spec("w", (3, 8, 4, 6), ("layers", "embed", "heads", "head_dim"), mesh)
    assert spec == PartitionSpec(None, "fsdp", "tensor", None)
    one = MeshSpec().build()
    assert rules.spec("w", (7, 5), ("embed", "mlp"), one) == PartitionSpec(None, None)


@pytest.mark.parametrize(
    ("names", "shape", "cut"),
    [
        (("embed", "mlp"), (192, 768), (None, "fsdp")),  # the largest
        (("embed", "mlp"), (768, 770), ("fsdp", None)),  # the largest that divides
        (("embed", "joint"), (512, 512), ("fsdp", None)),  # of equal ones the first
        (("layers", "embed", "mlp"), (10**6, 64, 256), (None, None, "fsdp")),  # layers never
        (("layers", "mlp"), (64, 3072), (None, None)),  # small, a layer at a time
        (("vocab",), (32_000,), ("fsdp",)),  # a vector, but a large one
        ((None, None), (64, 512), (None, "fsdp")),  # no names: nothing big stays whole
    ],
)
def test_fsdp_cuts_the_largest_axis_that_divides(
    names: tuple[str | None, ...], shape: tuple[int, ...], cut: tuple[str | None, ...]
) -> None:
    mesh = MeshSpec(data=2, fsdp=4).build()
    assert AxisRules().spec("w", shape, names, mesh) == PartitionSpec(*cut)


def test_fsdp_takes_what_tensor_and_the_table_leave() -> None:
    mesh = MeshSpec(data=2, fsdp=2, tensor=2).build()
    names, shape = ("embed", "mlp"), (192, 768)
    assert AxisRules().spec("w", shape, names, mesh) == PartitionSpec("fsdp", "tensor")
    assert AxisRules(embed=None).spec("w", shape, names, mesh) == PartitionSpec(None, "tensor")
    both = AxisRules(mlp="fsdp").spec("w", shape, names, mesh)
    assert both == PartitionSpec(None, "fsdp")
    small = AxisRules(whole_below=192 * 768 + 1).spec("w", shape, names, mesh)
    assert small == PartitionSpec(None, "tensor")


@pytest.mark.parametrize(
    ("rules", "names", "shape", "says"),
    [
        (AxisRules(), ("embed", "mlp"), (8, 7), "size 7 does not divide.*rules.mlp=none"),
        (AxisRules(embed="tensor"), ("embed", "mlp"), (8, 8), "cut two of its axes.*'tensor'"),
        (
            AxisRules(),
            ("embed", "joint"),
            (511, 513),
            "none of 'embed' of size 511, 'joint' of size 513 divides.*'fsdp' of size 2.*262144",
        ),
        (AxisRules(), ("embd", "mlp"), (8, 8), "no rule.*nearest: embed"),
    ],
)
def test_layouts_that_cannot_be_are_errors(
    rules: AxisRules, names: tuple[str, ...], shape: tuple[int, ...], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        rules.spec("image/kernel", shape, names, MeshSpec(data=2, fsdp=2, tensor=2).build())


def test_followers_of_a_parameter_lie_like_it() -> None:
    mesh = MeshSpec(fsdp=8, data=1).build()
    names = {"image/kernel": ("embed", "mlp"), "image/bias": ("mlp",)}
    leaf = jax.ShapeDtypeStruct((8, 4), jnp.float32)
    bias = jax.ShapeDtypeStruct((4,), jnp.float32)
    tree = {
        "params": {"image": {"kernel": leaf, "bias": bias}},
        "opt_state": ({"mu": {"image": {"kernel": leaf, "bias": bias}}},),
        "count": jax.ShapeDtypeStruct((), jnp.int32),
    }
    found = tree_shardings(tree, names, AxisRules(whole_below=8), mesh)
    assert found["params"]["image"]["kernel"].spec == PartitionSpec("fsdp", None)
    assert found["opt_state"][0]["mu"]["image"]["kernel"].spec == PartitionSpec("fsdp", None)
    assert found["opt_state"][0]["mu"]["image"]["bias"].spec == PartitionSpec(None)
    assert found["count"].spec == PartitionSpec()


def test_parameters_that_stayed_whole_are_found() -> None:
    mesh = MeshSpec(fsdp=8, data=1).build()
    zeros = np.zeros((256, 256), "f")
    whole = jax.device_put(zeros, NamedSharding(mesh, PartitionSpec("data")))
    cut = jax.device_put(zeros, NamedSharding(mesh, PartitionSpec(None, ("fsdp", "tensor"))))
    check_sharded({"a": cut}, mesh)
    check_sharded({"small": jax.device_put(zeros[0], NamedSharding(mesh, PartitionSpec()))}, mesh)
    with pytest.raises(UserError, match=r"50%.*'b'"):
        check_sharded({"a": cut, "b": whole}, mesh)
    check_sharded({"b": whole}, MeshSpec().build())


def test_constraint_changes_layout_never_values() -> None:
    x = jnp.arange(16.0, dtype=jnp.float32).reshape(8, 2)
    assert shard_batch(x) is x
    mesh = MeshSpec(data=4, fsdp=2).build()
    with jax.set_mesh(mesh):
        y = jax.jit(shard_batch)(x)
        odd = jax.jit(shard_batch)(x[:3])
    assert y.sharding.shard_shape(y.shape) == (1, 2)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(odd, x[:3])


def test_constraint_leaves_out_axes_that_are_mapped() -> None:
    x = jnp.arange(16.0, dtype=jnp.float32).reshape(8, 2)
    mesh = MeshSpec(data=4, fsdp=2).build()
    rows = PartitionSpec("data")
    with jax.set_mesh(mesh):
        assert batch_axes() == ("data", "fsdp")
        with mapped_over("data"):
            assert batch_axes() == ("fsdp",)
        assert batch_axes() == ("data", "fsdp")
        manual = jax.shard_map(
            shard_batch, axis_names={"data"}, in_specs=(rows,), out_specs=rows, check_vma=False
        )
        y = jax.jit(manual)(x)
        table = jax.jit(whole, in_shardings=NamedSharding(mesh, PartitionSpec("fsdp")))(x)
    np.testing.assert_array_equal(y, x)
    assert table.sharding.is_fully_replicated
    assert batch_axes() == ()
