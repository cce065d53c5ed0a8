"""NaFlex against transformers at the same random weights, and packing against no packing.

The golden files are written by make_golden_naflex.py.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.encoders.originals import (
    check_gradients,
    check_on_a_mesh,
    flat,
    golden,
    parameters,
    part,
    wave,
)
from vlalign.data.naflex import pack
from vlalign.encoders.blocks import BlockSpec
from vlalign.encoders.flops import program_flops
from vlalign.encoders.naflex import NaflexViT, places_of, resize_weights
from vlalign.errors import UserError
from vlalign.interop.names.hugging_face import siglip_image_rows
from vlalign.interop.rows import Table, export_params

TOWER = NaflexViT(patch_size=4, width=24, depth=2, heads=3, mlp_ratio=40 / 24, positions=4)
TABLE = Table(siglip_image_rows(naflex=True))


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return golden("naflex_model")


@pytest.fixture(scope="module")
def params(arrays: dict[str, np.ndarray]) -> Any:
    return parameters(TOWER, TABLE, part(arrays, "param/"), rows_of(arrays))


def rows_of(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"patches": arrays["patches"], "shapes": arrays["shapes"][:, None]}


def test_outputs_and_gradients_are_the_originals(
    arrays: dict[str, np.ndarray], params: Any
) -> None:
    def total(params: Any, patches: Any) -> Any:
        rows = rows_of(arrays) | {"patches": patches}
        out = TOWER.apply({"params": params}, rows)
        tokens = jnp.where(out.mask[..., None], out.tokens, 0.0)
        summed = jnp.sum(wave(out.pooled) * out.pooled) + jnp.sum(wave(tokens) * tokens)
        return summed, (out.pooled, tokens, out.mask)

    run = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
    (grads, patches_by), (pooled, tokens, mask) = run(params, arrays["patches"])
    np.testing.assert_allclose(pooled, arrays["pooled"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(tokens, arrays["tokens"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(patches_by, arrays["grad_patches"], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(mask.sum(axis=1), arrays["shapes"].prod(axis=1))
    check_gradients(TABLE, grads, arrays, least=4)


def test_the_table_leads_there_and_back(arrays: dict[str, np.ndarray], params: Any) -> None:
    theirs = part(arrays, "param/")
    back = export_params(TABLE, flat(params))
    assert back.keys() == theirs.keys()
    for key, value in back.items():
        np.testing.assert_array_equal(value, theirs[key], err_msg=key)


@pytest.mark.parametrize("size", [1, 3, 4, 7, 16, 37])
def test_weights_of_positions_are_those_of_jax_image_resize(size: int) -> None:
    places = jnp.arange(size, dtype=jnp.int32)
    weights = resize_weights(places, jnp.full_like(places, size), 16)
    wanted = jax.image.resize(jnp.eye(16), (size, 16), "linear", antialias=True)
    np.testing.assert_allclose(weights, wanted, atol=1e-5)


def test_places_of_packed_images() -> None:
    shapes = jnp.array([[[2, 2], [1, 3], [0, 0]], [[1, 1], [3, 2], [2, 1]]], jnp.int32)
    found = places_of(shapes, 9)
    np.testing.assert_array_equal(
        found.segment, [[0, 0, 0, 0, 1, 1, 1, 3, 3], [0, 1, 1, 1, 1, 1, 1, 2, 2]]
    )
    np.testing.assert_array_equal(
        found.place[0], [[0, 0], [0, 1], [1, 0], [1, 1], [0, 0], [0, 1], [0, 2], [0, 0], [0, 0]]
    )
    np.testing.assert_array_equal(found.place[1, 1:7, 0], [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(found.real.sum(axis=1), [7, 9])
    np.testing.assert_array_equal(found.fits, [True, True])
    np.testing.assert_array_equal(places_of(shapes, 8).fits, [True, False])


@pytest.mark.parametrize("pool", ["map", "mean"])
def test_packed_is_equal_to_unpacked(pool: Any, rng: np.random.Generator) -> None:
    tower = TOWER.clone(pool=pool, embed_dim=5, bias=True)
    grids = [(3, 4), (2, 2), (1, 5), (4, 3), (1, 1), (2, 5)]
    images = [
        {
            "patches": rng.integers(0, 256, (rows * columns, 48), np.uint8),
            "shapes": np.array([[rows, columns]], np.int32),
        }
        for rows, columns in grids
    ]
    alone = {
        "patches": np.stack(
            [np.pad(i["patches"], ((0, 12 - len(i["patches"])), (0, 0))) for i in images]
        ),
        "shapes": np.stack([i["shapes"] for i in images]),
    }
    rows = pack(images, budget=18, most=3)
    packed = {key: np.stack([row[key] for row in rows]) for key in ("patches", "shapes")}
    assert packed["patches"].shape == (3, 18, 48)
    variables = jax.jit(tower.init)(jax.random.key(0), alone)

    def run(images: Any) -> Any:
        return jax.jit(tower.apply)(variables, images)

    def gradient(images: Any, order: np.ndarray) -> Any:
        def total(variables: Any) -> jax.Array:
            pooled: Any = tower.apply(variables, images).pooled  # type: ignore[union-attr]
            return jnp.sum(wave(pooled[order]) * pooled[order])

        return jax.jit(jax.grad(total))(variables)

    which = np.concatenate([row["which"] for row in rows])
    there = np.flatnonzero(which >= 0)
    order = there[np.argsort(which[there])]  # the place of each image
    out, wanted = run(packed), run(alone)
    assert out.pooled.shape == (9, 5)
    np.testing.assert_allclose(out.pooled[order], wanted.pooled, atol=1e-5)
    assert np.isfinite(out.pooled).all()
    counts = [rows * columns for rows, columns in grids]
    assert int(out.mask.sum()) == sum(counts)
    own = np.concatenate([np.asarray(wanted.tokens[i, : counts[i]]) for i in which[there]])
    np.testing.assert_allclose(np.asarray(out.tokens)[np.asarray(out.mask)], own, atol=1e-5)
    slopes, wanted_slopes = gradient(packed, order), gradient(alone, np.arange(6))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), slopes, wanted_slopes)


def test_padding_changes_nothing(arrays: dict[str, np.ndarray], params: Any) -> None:
    rows = rows_of(arrays)
    longer = rows | {
        "patches": np.pad(rows["patches"], ((0, 0), (0, 5), (0, 0)), constant_values=9.0)
    }
    out = jax.jit(TOWER.apply)({"params": params}, longer)
    np.testing.assert_allclose(out.pooled, arrays["pooled"], atol=1e-4)


def test_bytes_are_normalised_on_the_device(arrays: dict[str, np.ndarray], params: Any) -> None:
    whole = np.random.default_rng(0).integers(0, 256, arrays["patches"].shape, np.uint8)
    tower = TOWER.clone(pixel_mean=(0.1, 0.5, 0.7), pixel_std=(0.2, 0.3, 0.5))
    pixels = whole.reshape(*whole.shape[:2], -1, 3) / np.float32(255)
    ready = (pixels - np.float32([0.1, 0.5, 0.7])) / np.float32([0.2, 0.3, 0.5])
    apply = jax.jit(tower.apply)
    outs = [
        apply({"params": params}, rows_of(arrays) | {"patches": patches}).pooled
        for patches in (whole, ready.reshape(whole.shape).astype(np.float32))
    ]
    np.testing.assert_allclose(*outs, atol=1e-4)


def test_unrolled_rematerialised_and_bfloat16(arrays: dict[str, np.ndarray], params: Any) -> None:
    def pooled(tower: NaflexViT) -> Any:
        return jax.jit(tower.apply)({"params": params}, rows_of(arrays)).pooled

    for tower in (TOWER.clone(scan=False), TOWER.clone(remat="full")):
        np.testing.assert_allclose(pooled(tower), arrays["pooled"], atol=1e-4)
    low = pooled(TOWER.clone(dtype="bfloat16"))
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, arrays["pooled"], atol=0.1)


def test_more_patches_than_a_row_has_are_nan(arrays: dict[str, np.ndarray], params: Any) -> None:
    rows = rows_of(arrays)
    shapes = rows["shapes"].copy()
    shapes[2] = [[4, 5]]
    pooled = TOWER.apply({"params": params}, rows | {"shapes": shapes}).pooled
    np.testing.assert_array_equal(np.isnan(pooled).all(axis=1), [False, False, True, False, False])


@pytest.mark.parametrize(
    ("options", "patches", "shapes", "message"),
    [
        (dict(heads=5), (2, 9, 48), (2, 1, 2), r"width=24 does not divide into heads=5"),
        (dict(bias=True), (2, 9, 48), (2, 1, 2), r"set embed_dim"),
        ({}, (2, 9, 27), (2, 1, 2), r"patches \(rows, patches, 48\), not \(2, 9, 27\)"),
        ({}, (2, 9, 48), (2, 2), r"shapes \(2, images of a row, 2\), not \(2, 2\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    options: dict[str, Any], patches: Any, shapes: Any, message: str
) -> None:
    images = {"patches": jnp.zeros(patches), "shapes": jnp.ones(shapes, jnp.int32)}
    with pytest.raises(UserError, match=message):
        TOWER.clone(**options).init(jax.random.key(0), images)


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("pool", ["map", "mean"])
def test_flops_are_those_of_the_program(images: int, pool: Any) -> None:
    tower = TOWER.clone(pool=pool, embed_dim=7)
    row = {"patches": jnp.zeros((1, 18, 48)), "shapes": jnp.ones((1, images, 2), jnp.int32)}
    variables = jax.eval_shape(tower.init, jax.random.key(0), row)
    assert tower.flops((18, 48), images=images) == program_flops(tower.apply, variables, row)


def test_branches_are_dropped_by_row(arrays: dict[str, np.ndarray], params: Any) -> None:
    tower = TOWER.clone(block=BlockSpec(drop_path=0.9))
    rngs = {"drop": jax.random.key(3)}

    def pooled(places: slice) -> Any:
        images = {key: value[places] for key, value in rows_of(arrays).items()}
        rows = jnp.arange(5, dtype=jnp.int32)[places]
        return tower.apply({"params": params}, images, train=True, rows=rows, rngs=rngs).pooled

    whole = pooled(slice(0, 5))
    assert np.abs(whole - arrays["pooled"]).max() > 0.1
    np.testing.assert_allclose(pooled(slice(3, 5)), whole[3:], atol=1e-5)


def test_the_published_size_has_its_number_of_parameters() -> None:
    """92,930,304 are those of transformers' `Siglip2VisionModel` at its defaults."""
    row = {"patches": jnp.zeros((1, 8, 768)), "shapes": jnp.ones((1, 1, 2), jnp.int32)}
    made = jax.eval_shape(NaflexViT().init, jax.random.key(0), row)
    assert sum(leaf.size for leaf in jax.tree.leaves(made)) == 92_930_304


def test_devices_that_share_it_give_the_same(rng: np.random.Generator) -> None:
    shapes = np.tile(np.array([[[2, 3], [3, 3]]], np.int32), (8, 1, 1))
    row = {"patches": rng.integers(0, 256, (8, 16, 48), np.uint8), "shapes": shapes}
    check_on_a_mesh(TOWER.clone(width=32, heads=4, mlp_ratio=2.0), row)
