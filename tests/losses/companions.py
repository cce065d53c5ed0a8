"""What every companion loss is held to: a float64 twin, any mesh, left-out rows, bfloat16."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vlalign.losses.loss import Loss

Arrays = dict[str, Any]
Found = tuple[Any, Arrays]


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def weights(rng: np.random.Generator, batch: int) -> np.ndarray:
    """Some 0, some not 1."""
    weight = rng.choice(np.asarray([0.0, 0.5, 1.0, 3.0], np.float32), size=batch)
    weight[:3] = 1.0, 0.0, 0.5
    return weight


def mesh_of(devices: int) -> jax.sharding.Mesh:
    sizes = {2: (2, 1, 1), 8: (4, 2, 1)}[devices]
    names, axes = ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3
    return jax.make_mesh(sizes, names, axis_types=axes, devices=jax.devices()[:devices])


@dataclasses.dataclass(eq=False)
class Case:
    """A loss with its inputs, as float32, integer and bool numpy arrays.

    ours, twin: take `arrays` and `given` as keywords. The twin gives the published value, in
    float64, of those rows alone that are not left out.
    arrays: what gets gradients. given: what does not; `given["weight"]` is the rows' weight.
    All have the batch as their first axis but those that `whole` names.
    still: arrays that get no gradient by contract.
    """

    name: str
    ours: Callable[..., Loss]
    twin: Callable[..., jax.Array]
    arrays: Arrays
    given: Arrays
    whole: tuple[str, ...] = ()
    still: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._step = jax.jit(jax.value_and_grad(lambda a, g: self.ours(**a, **g).mean))

    def found(self, arrays: Arrays, given: Arrays, devices: int = 1) -> Found:
        """Value and gradients of ours, the batch cut over so many devices."""
        if devices == 1:
            return jax.tree.map(np.asarray, self._step(arrays, given))
        mesh = mesh_of(devices)
        with jax.set_mesh(mesh):
            cut = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
            rest = NamedSharding(mesh, PartitionSpec())

            def put(some: Arrays) -> Arrays:
                places = {k: rest if k in self.whole else cut for k in some}
                return {k: jax.device_put(a, places[k]) for k, a in some.items()}

            return jax.tree.map(np.asarray, self._step(put(arrays), put(given)))

    @functools.cached_property
    def exact(self) -> Found:
        """What is expected of the case's own inputs."""
        return self.expected(self.arrays)

    def expected(self, arrays: Arrays) -> Found:
        """Value and gradients of the twin."""
        keep = np.flatnonzero(self.given["weight"])

        def cut(some: Arrays) -> Arrays:
            return {k: a if k in self.whole else a[keep] for k, a in some.items()}

        def wide(some: Arrays) -> Arrays:
            floats = {k: a.dtype == np.float32 for k, a in some.items()}
            return {k: a.astype(np.float64) if floats[k] else a for k, a in some.items()}

        with jax.enable_x64(True):
            given = wide(cut(self.given))
            step = jax.jit(jax.value_and_grad(lambda a: self.twin(**cut(a), **given)))
            return jax.tree.map(np.asarray, step(wide(arrays)))

    def spoiled(self, garbage: float) -> tuple[Arrays, Arrays]:
        """The inputs with garbage in all left-out rows."""
        out = self.given["weight"] == 0

        def spoil(some: Arrays) -> Arrays:
            copies = {k: np.array(a) for k, a in some.items()}
            for name in copies.keys() - {"weight", *self.whole}:
                a = copies[name]
                a[out] = garbage if a.dtype == np.float32 else np.iinfo(np.int8).max
            return copies

        return spoil(self.arrays), spoil(self.given)


def check_close(found: Found, expected: Found, tolerance: float = 1e-5) -> None:
    """Value and all gradients found agree, relative to each array's largest entry."""
    pairs = {"value": (found[0], expected[0])}
    pairs |= {name: (grad, expected[1][name]) for name, grad in found[1].items()}
    for name, (a, b) in pairs.items():
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.all(np.isfinite(a)), name
        assert np.all(np.isfinite(b)), name
        error, size = np.max(np.abs(a - b)), np.max(np.abs(b))
        assert error <= tolerance * size, (name, error, size)


class Companion:
    """The tests of every case in `cases`; a subclass of it is collected as `Test...`."""

    cases: ClassVar[tuple[Case, ...]]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "case" in metafunc.fixturenames:
            cases = type(self).cases
            metafunc.parametrize("case", cases, ids=[case.name for case in cases])

    @pytest.mark.parametrize("devices", [1, 2, 8])
    def test_values_and_gradients(self, case: Case, devices: int) -> None:
        value, grads = case.found(case.arrays, case.given, devices)
        exact_value, exact_grads = case.exact
        for name, grad in exact_grads.items():
            assert np.any(grad) == (name not in case.still), name
            if name in case.still:
                np.testing.assert_array_equal(grads.pop(name), 0.0)
        check_close((value, grads), (exact_value, exact_grads))

    def test_left_out_rows_change_nothing_to_the_bit(self, case: Case) -> None:
        out = case.given["weight"] == 0
        assert out.any()
        first = case.found(case.arrays, case.given)
        for garbage, zero in ((np.nan, 0.0), (3e38, 0.0), (1.0, np.nan), (1.0, -1.0)):
            arrays, given = case.spoiled(garbage)
            given["weight"][out] = zero
            again = case.found(arrays, given)
            jax.tree.map(np.testing.assert_array_equal, again, first)
        for name in first[1].keys() - set(case.whole):
            np.testing.assert_array_equal(first[1][name][out], 0.0)

    def test_weights_have_no_unit(self, case: Case) -> None:
        heavier = case.given | {"weight": 8.0 * case.given["weight"]}
        check_close(case.found(case.arrays, heavier), case.found(case.arrays, case.given))

    def test_all_rows_left_out(self, case: Case) -> None:
        nothing = case.given | {"weight": np.zeros_like(case.given["weight"])}
        holes = {
            k: a if k in case.whole else np.full_like(a, np.nan) for k, a in case.arrays.items()
        }
        for arrays in (case.arrays, holes):
            value, grads = case.found(arrays, nothing)
            assert value == 0
            for name, grad in grads.items():
                np.testing.assert_array_equal(grad, 0.0, err_msg=name)

    def test_bfloat16(self, case: Case) -> None:
        low = {k: jnp.asarray(a, jnp.bfloat16) for k, a in case.arrays.items()}
        value, grads = case.found(low, case.given)
        assert value.dtype == np.float32
        assert all(grad.dtype == jnp.bfloat16 for grad in grads.values())
        exact = {k: np.asarray(a, np.float32) for k, a in low.items()}
        check_close((value, grads), case.expected(exact), tolerance=1e-2)

    def test_float64(self, case: Case) -> None:
        with jax.enable_x64(True):
            arrays = {k: a.astype(np.float64) for k, a in case.arrays.items()}
            value, grads = case.found(arrays, case.given)
        assert {a.dtype for a in (value, *grads.values())} == {np.dtype(np.float64)}
        check_close((value, grads), case.exact, tolerance=1e-10)
