"""The towers: shapes, poolings, masks, scan against unrolled, remat, FLOPs, dropping, dtype."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from vlalign.encoders.text import TextTransformer
from vlalign.encoders.vit import ViT
from vlalign.errors import UserError

VIT: dict[str, Any] = dict(patch_size=8, width=32, depth=3, heads=4, embed_dim=16)
TEXT: dict[str, Any] = dict(vocab_size=50, width=32, depth=3, heads=4, embed_dim=16)


def images(count: int = 3, size: int = 32) -> jax.Array:
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(0, 256, (count, size, size, 3)), jnp.uint8)


def tokens(*lengths: int, total: int = 10) -> jax.Array:
    rng = np.random.default_rng(1)
    rows = [np.r_[rng.integers(1, 50, n), np.zeros(total - n, int)] for n in lengths]
    return jnp.asarray(np.stack(rows), jnp.int32)


def init(module: nn.Module, x: jax.Array) -> Any:
    return meta.unbox(jax.jit(module.init)(jax.random.key(0), x))


def run(module: nn.Module, *inputs: Any, **options: Any) -> Any:
    return jax.jit(module.apply, static_argnames="train")(*inputs, **options)


@pytest.mark.parametrize("pool", ["class", "mean", "map"])
@pytest.mark.parametrize("registers", [0, 2])
def test_vit_shapes_and_parameters_are_float32(pool: Any, registers: int) -> None:
    model = ViT(**VIT, pool=pool, registers=registers)
    params = init(model, images())
    out = run(model, params, images())
    length = 16 + registers + (pool == "class")
    assert out.pooled.shape == (3, 16)
    assert out.tokens.shape == (3, length, 32)
    assert out.mask.shape == (3, length)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("remat", ["none", "full"])
def test_scanned_unrolled_and_rematerialised_are_equal(remat: Any) -> None:
    base = ViT(**VIT)
    params = init(base, images())

    def value(model: ViT) -> Any:
        def loss(p: Any) -> jax.Array:
            return jnp.sum(model.apply(p, images()).pooled ** 2)

        return jax.jit(jax.value_and_grad(loss))(params)

    wanted = value(base)
    for scan in (True, False):
        model = ViT(**VIT, scan=scan, remat=remat)
        assert jax.tree.structure(init(model, images())) == jax.tree.structure(params)
        got = value(model)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_uint8_and_normalised_pixels_agree() -> None:
    model = ViT(**VIT, pixel_mean=(0.1, 0.2, 0.3), pixel_std=(0.4, 0.5, 0.6))
    params = init(model, images())
    mean, std = np.array([0.1, 0.2, 0.3], "f"), np.array([0.4, 0.5, 0.6], "f")
    floats = jnp.asarray((np.asarray(images(), "f") / 255 - mean) / std)
    np.testing.assert_allclose(
        run(model, params, images()).pooled, run(model, params, floats).pooled, atol=1e-5
    )


def test_patches_are_cut_row_by_row() -> None:
    image = np.zeros((1, 16, 16, 3), np.float32)
    image[0, :8, 8:] = 1.0  # the second patch of the first row
    patches = ViT(**VIT)._patches(jnp.asarray(image))
    np.testing.assert_array_equal(np.asarray(patches).sum(axis=2), [[0, 192, 0, 0]])


def test_token_drop_keeps_a_part_and_is_the_same_however_the_batch_is_cut() -> None:
    model = ViT(**VIT, pool="mean", token_drop=0.5)
    params = init(model, images(4))
    rngs = {"drop": jax.random.key(3)}
    whole = run(model, params, images(4), train=True, rngs=rngs)
    assert whole.tokens.shape == (4, 8, 32)
    rows = jnp.asarray([1, 3], jnp.int32)
    part = run(model, params, images(4)[rows], train=True, rows=rows, rngs=rngs)
    np.testing.assert_allclose(part.pooled, whole.pooled[rows], atol=1e-6)
    assert run(model, params, images(4)).tokens.shape == (4, 16, 32)


@pytest.mark.parametrize("pool", ["eot", "mean", "map"])
@pytest.mark.parametrize("causal", [True, False])
def test_text_ignores_padding(pool: Any, causal: bool) -> None:
    model = TextTransformer(**TEXT, pool=pool, causal=causal)
    long = tokens(6, 3, total=10)
    params = init(model, long)
    out = run(model, params, long)
    # Whatever stands in a padded place's embedding must not matter: shift the padding token's row.
    changed = jax.tree.map(lambda x: x, params)
    changed["params"]["token"] = params["params"]["token"].at[0].add(5.0)
    np.testing.assert_allclose(out.pooled, run(model, changed, long).pooled, atol=1e-6)
    np.testing.assert_array_equal(out.mask.sum(axis=1), [6, 3])


def test_causal_text_does_not_see_ahead() -> None:
    model = TextTransformer(**TEXT, causal=True)
    a = tokens(8, total=8)
    b = a.at[0, 5].set((a[0, 5] + 1) % 49 + 1)
    params = init(model, a)
    before, after = run(model, params, a).tokens, run(model, params, b).tokens
    np.testing.assert_allclose(before[0, :5], after[0, :5], atol=1e-6)
    assert float(jnp.abs(before[0, 5:] - after[0, 5:]).max()) > 1e-3


def test_last_pooling_needs_padding_to_be_seen() -> None:
    with pytest.raises(UserError, match="mask_padding"):
        init(TextTransformer(**TEXT, pool="last"), tokens(3))
    model = TextTransformer(**TEXT, pool="last", mask_padding=False, causal=False)
    assert run(model, init(model, tokens(3)), tokens(3)).pooled.shape == (1, 16)


@pytest.mark.parametrize(
    "module",
    [
        ViT(**VIT),
        ViT(**VIT, pool="map"),
        TextTransformer(**TEXT),
        TextTransformer(**TEXT, pool="map"),
    ],
)
def test_flops_agree_with_the_compiler(module: Any) -> None:
    # Wide enough that what is not a matrix product is a small part.
    module = module.clone(width=256, heads=4, scan=False)
    x = images(1) if isinstance(module, ViT) else tokens(10)
    params = init(module, x)
    compiled = jax.jit(lambda p, x: module.apply(p, x).pooled).lower(params, x).compile()
    assert module.flops(x.shape[1:]) == pytest.approx(compiled.cost_analysis()["flops"], rel=0.05)


def test_bfloat16_computes_close_and_pools_in_float32() -> None:
    full, half = ViT(**VIT), ViT(**VIT, dtype="bfloat16")
    params = init(full, images())
    a, b = run(full, params, images()).pooled, run(half, params, images()).pooled
    assert b.dtype == jnp.float32
    np.testing.assert_allclose(a, b, atol=0.05 * float(jnp.abs(a).max()))


@pytest.mark.parametrize(
    ("module", "x", "says"),
    [
        (ViT(**{**VIT, "heads": 5}), images(), "heads=5"),
        (ViT(**VIT), images(size=30), "patch_size=8"),
        (ViT(**VIT, token_drop=1.0), images(), "token_drop"),
        (TextTransformer(**{**TEXT, "heads": 5}), tokens(3), "divide"),
    ],
)
def test_bad_sizes_are_named(module: nn.Module, x: jax.Array, says: str) -> None:
    with pytest.raises(UserError, match=says):
        init(module, x)


def test_pixels_right_and_below_that_fill_no_patch_are_not_read() -> None:
    module, uneven = ViT(**VIT), ViT(**VIT, uneven="crop")
    pixels = images(size=30)
    params = init(module, pixels[:, :24, :24])
    whole = run(module, params, pixels[:, :24, :24])
    np.testing.assert_array_equal(run(uneven, params, pixels).tokens, whole.tokens)
    assert uneven.flops((30, 30, 3)) == module.flops((24, 24, 3))
    with pytest.raises(UserError, match="7x30 pixels does not divide"):
        uneven.grid(7, 30)
