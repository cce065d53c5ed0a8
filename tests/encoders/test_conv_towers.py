"""Convolutional towers by themselves: parts, forms of one computation, randomness, errors."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from vlalign import tree
from vlalign.encoders import fastvit
from vlalign.encoders.convnext import ConvNext
from vlalign.encoders.convolution import Conv, average_pool, keep_factors
from vlalign.encoders.fastvit import FastVit
from vlalign.encoders.hybrid import HybridViT
from vlalign.encoders.norms import BatchNorm
from vlalign.encoders.resnet import AttentionPool, ResNet
from vlalign.encoders.stems import MbConvSpec, PatchSpec
from vlalign.errors import UserError
from vlalign.parallel.mesh import MeshSpec
from vlalign.parallel.rules import AxisRules, axis_names, tree_shardings

HYBRID: dict[str, Any] = dict(width=32, depth=3, heads=4, embed_dim=8)
TOWERS: dict[str, Any] = {
    "resnet": ResNet(depths=(1, 1, 2, 4), width=4, heads=4, embed_dim=8),
    "convnext": ConvNext(
        depths=(1, 1, 3, 2), widths=(8, 8, 16, 16), embed_dim=8, head="mlp", layer_scale=0.5
    ),
    "vitamin": HybridViT(MbConvSpec(start=8, widths=(8, 16), depths=(1, 4)), **HYBRID),
    "mobileclip_b": HybridViT(PatchSpec(inner=8), **HYBRID, feed_forward="mlp", pool="class"),
    "fastvit": FastVit(
        depths=(3, 2),
        widths=(8, 64),
        mixers=("convolution", "attention"),
        squeeze=(False, True),
        embed_dim=8,
        layer_scale=0.5,
    ),
}
STRIDES = {"resnet": 32, "convnext": 32, "vitamin": 16, "mobileclip_b": 16, "fastvit": 8}
each = pytest.mark.parametrize("name", TOWERS)


def images(count: int = 2, height: int = 64, width: int = 64) -> jax.Array:
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(0, 256, (count, height, width, 3)), jnp.uint8)


def randomised(boxed: Any) -> Any:
    """Parameters at random, statistics too: at the start many are 0 or 1."""
    rng = np.random.default_rng(1)

    def draw(path: Any, leaf: jax.Array) -> jax.Array:
        noise = rng.normal(size=leaf.shape)
        kind = path[-1].key
        if kind == "kernel":
            fan_in = np.prod(leaf.shape[leaf.ndim > 4 : -1])
            return jnp.asarray(noise / np.sqrt(fan_in), jnp.float32)
        value = {"scale": 1 + 0.2 * noise, "var": 0.5 + np.abs(noise)}.get(kind, 0.2 * noise)
        return jnp.asarray(value, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, meta.unbox(boxed))


def boxed(module: nn.Module, x: jax.Array) -> Any:
    return jax.eval_shape(module.init, jax.random.key(0), x)


def init(module: nn.Module, x: jax.Array) -> Any:
    return randomised(boxed(module, x))


@functools.cache
def parameters(name: str) -> Any:
    """Of a tower, for images of 64x64."""
    return init(TOWERS[name], images())


@functools.cache
def program(module: nn.Module) -> Any:
    return jax.jit(module.apply, static_argnames="train")


def run(module: nn.Module, *inputs: Any, **options: Any) -> Any:
    return program(module)(*inputs, **options)


@each
def test_shapes_dtypes_and_pixels_of_another_size(name: str) -> None:
    tower, params = TOWERS[name], parameters(name)
    x = images(2, 64, 96)
    out = run(tower, params, x)
    length = 64 * 96 // STRIDES[name] ** 2 + (name == "mobileclip_b")
    assert out.pooled.shape == (2, 8)
    assert out.tokens.shape[:2] == out.mask.shape == (2, length)
    assert out.pooled.dtype == out.tokens.dtype == jnp.float32
    mean, std = (np.asarray(v, "f") for v in (tower.pixel_mean, tower.pixel_std))
    floats = jnp.asarray((np.asarray(x, "f") / 255 - mean) / std)
    np.testing.assert_allclose(out.pooled, run(tower, params, floats).pooled, atol=1e-4)


@each
def test_at_the_start_outputs_are_of_the_order_of_1(name: str) -> None:
    tower = TOWERS[name]
    params = meta.unbox(jax.jit(tower.init)(jax.random.key(0), images()))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    pooled = run(tower, params, images()).pooled
    assert 1e-3 < float(jnp.std(pooled)) < 10


@each
def test_scanned_is_unrolled_and_rematerialised_and_statistics_stand_still(name: str) -> None:
    params = parameters(name)

    def slopes(tower: Any) -> Any:
        def loss(p: Any) -> jax.Array:
            return jnp.mean(tower.apply(p, images()).pooled ** 2)

        return jax.tree_util.tree_flatten_with_path(jax.jit(jax.grad(loss))(params))[0]

    wanted = slopes(TOWERS[name])
    got = slopes(TOWERS[name].clone(scan=False, remat="full"))
    for (path, a), (_, b) in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.abs(b).max()))
        still = path[-1].key in ("mean", "var")
        assert bool(jnp.any(a != 0)) != still, jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", ["convnext", "vitamin", "fastvit"])
def test_stochastic_depth_is_the_same_however_the_batch_is_cut(name: str) -> None:
    tower = TOWERS[name].clone(drop_path=0.6)
    params, x = parameters(name), images()
    rngs = {"drop": jax.random.key(3)}
    whole = run(tower, params, x, train=True, rngs=rngs).pooled
    rows = jnp.asarray([1], jnp.int32)
    part = run(tower, params, x[rows], train=True, rows=rows, rngs=rngs).pooled
    np.testing.assert_allclose(part, whole[rows], atol=1e-4)
    other = run(tower, params, x, train=True, rngs={"drop": jax.random.key(4)}).pooled
    assert float(jnp.abs(whole - other).max()) > 1e-3
    evaluated = run(TOWERS[name], params, x).pooled
    assert float(jnp.abs(whole - evaluated).max()) > 1e-3


def test_stochastic_depth_grows_to_its_rate_and_keeps_the_mean() -> None:
    rows = jnp.arange(4000, dtype=jnp.int32)
    first, last = keep_factors(jax.random.key(0), rows, 0.5, (1, 2), branches=2)
    assert first.shape == (1, 2, 4000)
    assert last.shape == (2, 2, 4000)
    np.testing.assert_array_equal(first, 1.0)
    dropped = np.mean(np.asarray(last) == 0, axis=2)
    np.testing.assert_allclose(dropped, [[0.25, 0.25], [0.5, 0.5]], atol=0.03)
    np.testing.assert_allclose(np.mean(last, axis=2), 1.0, atol=0.06)
    assert np.any(last[1, 0] != last[1, 1])


@each
def test_bfloat16_computes_close(name: str) -> None:
    full, params = TOWERS[name], parameters(name)
    a, b = run(full, params, images()), run(full.clone(dtype="bfloat16"), params, images())
    assert b.pooled.dtype == b.tokens.dtype == jnp.float32
    np.testing.assert_allclose(a.pooled, b.pooled, atol=0.1 * float(jnp.abs(a.pooled).max()))


@each
def test_sharded_over_every_axis_of_a_mesh(name: str) -> None:
    tower, params, x = TOWERS[name], parameters(name), images(4)
    mesh = MeshSpec(data=2, fsdp=2, tensor=2).build()
    names = axis_names(boxed(tower, x))
    shardings = tree_shardings(params, names, AxisRules(whole_below=300), mesh)
    cut = {axis for s in jax.tree.leaves(shardings) for axis in s.spec if axis is not None}
    assert "fsdp" in cut
    assert "tensor" in cut
    wanted = run(tower, params, x).pooled
    with jax.set_mesh(mesh):
        found = run(tower, jax.device_put(params, shardings), x).pooled
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@each
def test_configuration_goes_to_text_and_back(name: str) -> None:
    tower = TOWERS[name]
    assert tree.loads(tree.dumps({"image": tower})) == {"image": tower}


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 0])
def test_convolution_pads_both_sides_alike(stride: int, groups: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 6, 8, 2)).astype("f")
    conv = Conv(4, 3, stride, groups)
    params = init(conv, jnp.asarray(x))
    kernel, bias = (np.asarray(params["params"][k]) for k in ("kernel", "bias"))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    wanted = np.zeros((1, 6 // stride, 8 // stride, 4))
    for o in range(4):
        inputs = (0, 1) if groups == 1 else (o // 2,)
        for place in np.ndindex(*wanted.shape[1:3]):
            top, left = place[0] * stride, place[1] * stride
            square = padded[0, top : top + 3, left : left + 3, list(inputs)]
            wanted[0, *place, o] = np.sum(square.transpose(1, 2, 0) * kernel[:, :, :, o]) + bias[o]
    np.testing.assert_allclose(run(conv, params, jnp.asarray(x)), wanted, atol=1e-5)


def test_batch_norm_and_average_pool_are_their_formulas() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 6, 3)), jnp.float32)
    norm = BatchNorm(epsilon=0.1)
    params = init(norm, x)
    p = {key: np.asarray(value) for key, value in params["params"].items()}
    wanted = (np.asarray(x) - p["mean"]) / np.sqrt(p["var"] + 0.1) * p["scale"] + p["bias"]
    np.testing.assert_allclose(norm.apply(params, x), wanted, atol=1e-5)
    assert norm.apply(params, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    pooled = average_pool(x, 2)
    assert pooled.shape == (2, 2, 3, 3)
    np.testing.assert_allclose(pooled[1, 0, 2], np.asarray(x)[1, :2, 4:].mean((0, 1)), atol=1e-6)


def test_attention_pool_resizes_all_positions_but_the_mean_s() -> None:
    pool = AttentionPool(2, 8, "float32")
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 6, 4)), jnp.float32)
    params = init(pool, x)
    even = params["params"]["position"].at[1:].set(0.3)

    def pooled(position: jax.Array) -> jax.Array:
        return run(pool, {"params": {**params["params"], "position": position}}, x)

    # A grid of equal positions stays one; the mean's own is another.
    np.testing.assert_allclose(pooled(even[:5]), pooled(even), atol=1e-5)
    assert float(jnp.abs(pooled(even) - pooled(even.at[0].set(0.3))).max()) > 1e-2
    with pytest.raises(UserError, match="3 positions are not a grid of 1x1"):
        pooled(even[:4])


@each
def test_flops_say_what_a_larger_image_costs(name: str) -> None:
    tower = TOWERS[name].clone(scan=False)
    small, large = tower.flops((64, 64, 3)), tower.flops((128, 128, 3), train=True)
    assert 3.8 < large / small < 6
    assert TOWERS[name].flops((64, 64, 3)) == small
    assert TOWERS[name].clone(remat="full").flops((64, 64, 3)) == small


def test_merging_twice_is_an_error() -> None:
    params = jax.eval_shape(fastvit.merge, parameters("fastvit")["params"])
    with pytest.raises(UserError, match="merged already"):
        fastvit.merge(params)


FASTVIT: dict[str, Any] = dict(depths=(1, 1), widths=(8, 32), squeeze=(False, False))


@pytest.mark.parametrize(
    ("module", "x", "says"),
    [
        (TOWERS["resnet"], images(1, 64, 48), "64x48 pixels does not divide .* 32"),
        (TOWERS["convnext"], images(1, 33, 64), "33x64"),
        (TOWERS["vitamin"], images(1, 64, 56), "stride of 16"),
        (TOWERS["fastvit"], images(1, 64, 20), "stride of 8"),
        (TOWERS["resnet"].clone(heads=5), images(), "5 heads"),
        (TOWERS["vitamin"].clone(heads=5), images(), "heads=5"),
        (TOWERS["convnext"].clone(kernel=4), images(), "kernel=4 must be odd"),
        (TOWERS["convnext"].clone(drop_path=1.0), images(), "drop_path=1.0"),
        (TOWERS["fastvit"].clone(drop_path=-0.1), images(), "drop_path=-0.1"),
        (TOWERS["vitamin"].clone(drop_path=1.5), images(), "drop_path=1.5"),
        (TOWERS["resnet"].clone(remat="ful"), images(), "nearest: full"),
        (FastVit(**FASTVIT, mixers=("convolution",)), images(), "the same stages"),
        (FastVit(**FASTVIT, mixers=("convolution", "pool")), images(), "'pool'"),
        (
            FastVit(**{**FASTVIT, "widths": (8, 24)}, mixers=("convolution", "attention")),
            images(),
            "24 channels do not divide into heads of 32",
        ),
        (Conv(4, 2), jnp.ones((1, 4, 4, 2)), "kernel=2 is even"),
        (Conv(4, 3, 2), jnp.ones((1, 5, 4, 2)), "5x4 places"),
        (Conv(4, 3, groups=3), jnp.ones((1, 4, 4, 2)), "groups=3"),
        (Conv(4), jnp.ones((4, 4, 2)), r"takes \(b, h, w, c\)"),
    ],
)
def test_bad_sizes_are_named(module: nn.Module, x: jax.Array, says: str) -> None:
    with pytest.raises(UserError, match=says):
        boxed(module, x)
