"""The fused kernels of TPU, run here as plain operations, against the attention they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlalign.encoders import fused
from vlalign.encoders.attention import attend
from vlalign.parallel.constraint import mapped_over
from vlalign.parallel.mesh import MeshSpec

Arrays = tuple[jax.Array, ...]


def drawn(b: int, l: int, s: int, h: int, k: int, dtype: str = "float32") -> Arrays:
    draws = np.random.default_rng(l + s + k)
    shapes = ((b, l, h, k), (b, s, h, k), (b, s, h, k), (b, l, h, k))
    return tuple(jnp.asarray(2 * draws.normal(size=shape), dtype) for shape in shapes)


def values_and_derivatives(function: object, arrays: Arrays) -> Arrays:
    *inputs, by_out = arrays
    out, derive = jax.vjp(function, *inputs)  # type: ignore[arg-type]
    return out, *derive(by_out)


def kernel(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return fused.fused_attend(q, k, v, interpret=True)


def plain(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return attend(q, k, v, None)


@pytest.mark.parametrize(
    ("b", "l", "s", "h", "k"),
    [
        (2, 16, 16, 4, 64),  # two groups of two heads
        (1, 9, 9, 3, 72),  # no group of heads fills the lanes
        (2, 1, 21, 2, 128),  # a probe looks at tokens
        (1, 130, 130, 1, 8),
    ],
)
def test_values_and_derivatives(b: int, l: int, s: int, h: int, k: int) -> None:
    arrays = drawn(b, l, s, h, k)
    wanted = values_and_derivatives(plain, arrays)
    for found, right in zip(values_and_derivatives(kernel, arrays), wanted, strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-4)


def test_bfloat16_is_rounded_as_the_plain_form_is() -> None:
    arrays = drawn(2, 32, 32, 2, 64, "bfloat16")
    exact = values_and_derivatives(plain, tuple(x.astype(jnp.float32) for x in arrays))
    for found, right in zip(values_and_derivatives(kernel, arrays), exact, strict=True):
        assert found.dtype == jnp.bfloat16
        error = jnp.linalg.norm((found.astype(jnp.float32) - right).ravel())
        assert error < 0.01 * jnp.linalg.norm(right.ravel())


def test_large_scores_do_not_overflow() -> None:
    q, k, v, _ = drawn(1, 8, 8, 1, 128)
    # Scores of some thousands, of which float32 keeps three digits behind the point.
    np.testing.assert_allclose(kernel(60 * q, k, v), plain(60 * q, k, v), rtol=0, atol=3e-3)


@pytest.mark.parametrize("spec", [MeshSpec(), MeshSpec(data=2, fsdp=2, tensor=2)], ids=str)
def test_every_device_has_its_own_rows_and_heads(spec: MeshSpec) -> None:
    arrays = drawn(8, 16, 16, 4, 32)
    wanted = values_and_derivatives(plain, arrays)
    with jax.set_mesh(spec.build()):
        step = jax.jit(lambda *arrays: values_and_derivatives(kernel, arrays))
        program = step.lower(*arrays).compile().as_text()
        for found, right in zip(step(*arrays), wanted, strict=True):
            np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-4)
    assert program is not None
    assert "all-reduce" not in program


def test_copies_over_an_axis_map_the_kernels_too() -> None:
    """As micro-batches do it (`parallel/micro.py`)."""
    arrays = tuple(x.reshape(2, 4, *x.shape[1:]) for x in drawn(8, 16, 16, 4, 32))
    wanted = jax.vmap(lambda *arrays: values_and_derivatives(plain, arrays))(*arrays)

    def one(*arrays: jax.Array) -> Arrays:
        with mapped_over("data"):
            return values_and_derivatives(kernel, arrays)

    with jax.set_mesh(MeshSpec(data=2, fsdp=2, tensor=2).build()):
        found = jax.jit(jax.vmap(one, spmd_axis_name="data"))(*arrays)
    for mine, right in zip(found, wanted, strict=True):
        np.testing.assert_allclose(mine, right, rtol=1e-4, atol=1e-4)


def test_a_batch_that_does_not_divide_is_whole_on_every_device() -> None:
    arrays = drawn(3, 16, 16, 3, 32)
    with jax.set_mesh(MeshSpec(data=2, fsdp=2, tensor=2).build()):
        found = jax.jit(kernel)(*arrays[:3])
    np.testing.assert_allclose(found, plain(*arrays[:3]), rtol=1e-4, atol=1e-4)


def test_elsewhere_than_on_tpu_and_with_a_mask_it_does_not_apply(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    q, k, *_ = drawn(1, 256, 256, 1, 64)
    with jax.set_mesh(MeshSpec().build()):
        assert not fused.applies(q, k, None)
    assert not fused.applies(q, k, None)  # nor without a mesh
    monkeypatch.setattr(fused, "_on_tpu", lambda: True)
    assert fused.applies(q, k, None)
    assert not fused.applies(q, k, jnp.ones((1, 1, 256, 256), bool))
    assert not fused.applies(q[:, :64], k, None)
