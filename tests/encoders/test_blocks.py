"""What of the blocks can be chosen: values, parameters, randomness, FLOPs, configuration."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from jax.sharding import PartitionSpec

from vlalign import tree
from vlalign.encoders.attention import AttentionSpec, CrossAttention, attend
from vlalign.encoders.blocks import Block, BlockSpec, Mlp, Stack, hidden_width
from vlalign.encoders.layers import LayerNorm, rms_norm
from vlalign.encoders.positions import Rotary, rotate, sincos_grid
from vlalign.encoders.text import TextTransformer
from vlalign.encoders.vit import ViT
from vlalign.errors import UserError
from vlalign.parallel.mesh import MeshSpec
from vlalign.parallel.rules import AxisRules, axis_names, path_str, tree_shardings

VIT: dict[str, Any] = dict(patch_size=8, width=32, depth=3, heads=4, embed_dim=16)
TEXT: dict[str, Any] = dict(vocab_size=50, width=32, depth=3, heads=4, embed_dim=16)
EVERYTHING = BlockSpec(
    order="branch",
    norm="rms",
    feed_forward="gated",
    bias=False,
    inner_norm=True,
    layer_scale=0.5,
    drop_path=0.5,
    attention=AttentionSpec(
        qkv_bias="no_key", out_bias=False, qk_norm=True, inner_norm=True, rotary=Rotary()
    ),
)
DROP = {"drop": jax.random.key(3)}


def images(count: int = 3) -> jax.Array:
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(0, 256, (count, 32, 32, 3)), jnp.uint8)


def init(module: nn.Module, *inputs: Any) -> Any:
    """Parameters, all of them random: ones with noise, or noise."""
    params = meta.unbox(jax.jit(module.init)(jax.random.key(0), *inputs))
    leaves, kind = jax.tree.flatten(params)
    rng = np.random.default_rng(5)
    noise = [jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves]
    return jax.tree.unflatten(kind, [x + n for x, n in zip(leaves, noise, strict=True)])


def shapes(module: nn.Module, *inputs: Any) -> dict[str, tuple[int, ...]]:
    params = meta.unbox(jax.eval_shape(module.init, jax.random.key(0), *inputs))["params"]
    return {path_str(p): x.shape for p, x in jax.tree_util.tree_flatten_with_path(params)[0]}


def test_parameters_of_every_option() -> None:
    x = jnp.zeros((2, 5, 32))
    block = Block(32, 4, 96, "silu", 1.0, 1e-6, "float32", EVERYTHING)
    assert shapes(block, x, None) == {
        "attn/k_norm/scale": (8,),
        "attn/norm/scale": (4, 8),
        "attn/out/kernel": (4, 8, 32),
        "attn/q_norm/scale": (8,),
        "attn/qkv/bias": (2, 4, 8),
        "attn/qkv/kernel": (32, 3, 4, 8),
        "ln_1/scale": (32,),
        "ln_2/scale": (32,),
        "ls_1/scale": (32,),
        "ls_2/scale": (32,),
        "mlp/down/kernel": (96, 32),
        "mlp/gate/kernel": (32, 96),
        "mlp/norm/scale": (96,),
        "mlp/up/kernel": (32, 96),
    }
    plain = shapes(Block(32, 4, 96, "gelu", 1.0, 1e-6, "float32"), x, None)
    names = [f"{part}/{leaf}" for part in ("attn/qkv", "attn/out") for leaf in ("kernel", "bias")]
    names += [f"mlp/{part}/{leaf}" for part in ("up", "down") for leaf in ("kernel", "bias")]
    assert set(plain) == {*names, *(f"ln_{i}/{n}" for i in (1, 2) for n in ("scale", "bias"))}


def test_scanned_unrolled_and_rematerialised_are_equal_with_everything_on() -> None:
    base = ViT(**(VIT | dict(depth=2)), activation="silu", block=EVERYTHING, token_drop=0.5)
    params = init(base, images())

    def value(model: ViT) -> Any:
        def loss(p: Any) -> jax.Array:
            out: Any = model.apply(p, images(), train=True, rngs=DROP)
            return jnp.sum(out.pooled**2)

        return jax.jit(jax.value_and_grad(loss))(params)

    got, wanted = value(base.clone(scan=False, remat="minimal")), value(base)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_half_precision_is_close_with_everything_on() -> None:
    full = ViT(**VIT, activation="silu", block=EVERYTHING)
    params = init(full, images())
    a, b = (
        jax.jit(model.apply)(params, images()).pooled
        for model in (full, full.clone(dtype="bfloat16"))
    )
    assert b.dtype == jnp.float32
    np.testing.assert_allclose(a, b, atol=0.05 * float(jnp.abs(a).max()))


def test_a_mesh_changes_nothing_with_everything_on() -> None:
    model = ViT(**(VIT | dict(depth=2)), activation="silu", block=EVERYTHING)
    params = init(model, images())
    names = axis_names(jax.eval_shape(model.init, jax.random.key(0), images()))
    mesh = MeshSpec(data=2, fsdp=2, tensor=2).build()
    placed = jax.device_put(params, tree_shardings(params, names, AxisRules(whole_below=1), mesh))
    qkv = placed["params"]["transformer"]["blocks"]["attn"]["norm"]["scale"]
    assert qkv.sharding.spec == PartitionSpec(None, "tensor", "fsdp")

    def loss(params: Any, x: jax.Array) -> jax.Array:
        out: Any = model.apply(params, x, train=True, rngs=DROP)
        return jnp.sum(out.pooled**2)

    wanted = jax.jit(jax.value_and_grad(loss))(params, images(4))
    with jax.set_mesh(mesh):
        got = jax.jit(jax.value_and_grad(loss))(placed, images(4))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_rms_norm_is_its_formula(rng: np.random.Generator) -> None:
    x, scale = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(4, 5))
    wanted = x / np.sqrt((x**2).mean(axis=(2, 3), keepdims=True) + 1e-3) * scale
    got = rms_norm(jnp.asarray(x, jnp.float32), jnp.asarray(scale, jnp.float32), 1e-3)
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_a_norm_of_several_axes_is_that_of_them_flattened(rng: np.random.Generator) -> None:
    x = jnp.asarray(rng.normal(size=(2, 3, 4, 5)), jnp.float32)
    norm = LayerNorm(axes=("heads", "head_dim"))
    params = init(norm, x)
    flat = {"params": {k: v.reshape(-1) for k, v in params["params"].items()}}
    wanted = LayerNorm(axes=("mlp",)).apply(flat, x.reshape(2, 3, 20))
    np.testing.assert_allclose(norm.apply(params, x), wanted.reshape(x.shape), atol=1e-6)  # type: ignore[union-attr]


@pytest.mark.parametrize("order", ["pre", "post", "branch"])
def test_order_is_where_the_norm_stands(order: Any) -> None:
    x = jax.random.normal(jax.random.key(1), (2, 5, 32))
    block = Block(32, 4, 64, "gelu", 1.0, 1e-6, "float32", BlockSpec(order=order, layer_scale=0.5))
    params = init(block, x, None)["params"]

    def norm(number: int, x: jax.Array) -> Any:
        return LayerNorm().apply({"params": params[f"ln_{number}"]}, x)

    def mlp(x: jax.Array) -> Any:
        return Mlp(32, 64, "gelu").apply({"params": params["mlp"]}, x)

    def attention(x: jax.Array) -> jax.Array:
        qkv, out = params["attn"]["qkv"], params["attn"]["out"]
        q, k, v = np.einsum("bld,dphk->pblhk", x, qkv["kernel"]) + np.asarray(qkv["bias"]).reshape(
            3, 1, 1, 4, 8
        )
        y = attend(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), None)
        return jnp.asarray(np.einsum("blhk,hkd->bld", y, out["kernel"]) + np.asarray(out["bias"]))

    for number, branch in ((1, attention), (2, mlp)):
        scale = params[f"ls_{number}"]["scale"][None, None]
        if order == "pre":
            x = x + branch(norm(number, x)) * scale
        elif order == "post":
            x = norm(number, x + branch(x) * scale)
        else:
            x = x + norm(number, branch(x)) * scale
    got: Any = block.apply({"params": params}, jax.random.normal(jax.random.key(1), x.shape), None)
    np.testing.assert_allclose(got[0], x, atol=1e-5)


def test_gated_feed_forward_is_its_formula(rng: np.random.Generator) -> None:
    x = jnp.asarray(rng.normal(size=(7, 8)), jnp.float32)
    spec = BlockSpec(feed_forward="gated", inner_norm=True)
    mlp = Mlp(8, 12, "silu", spec=spec, epsilon=1e-3)
    params = init(mlp, x)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, float), params["params"])

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ p[name]["kernel"] + p[name]["bias"]

    gate = linear("gate", np.asarray(x))
    hidden = gate / (1 + np.exp(-gate)) * linear("up", np.asarray(x))
    hidden = hidden - hidden.mean(1, keepdims=True)
    hidden = hidden / np.sqrt((hidden**2).mean(1, keepdims=True) + 1e-3)
    hidden = hidden * p["norm"]["scale"] + p["norm"]["bias"]
    np.testing.assert_allclose(mlp.apply(params, x), linear("down", hidden), atol=1e-5)


def test_a_dropped_branch_is_left_out_and_a_kept_one_is_scaled_up() -> None:
    stack = Stack(32, 2, 4, 64, block=BlockSpec(drop_path=0.75))
    x = jax.random.normal(jax.random.key(1), (64, 5, 32))
    params = init(stack, x)
    out: Any = stack.apply(params, x, train=True, rngs=DROP)
    # The first block never loses a branch. Of the last, each row is one of four sums.
    first = jax.tree.map(lambda leaf: leaf[0], params["params"]["blocks"])
    last = jax.tree.map(lambda leaf: leaf[1], params["params"]["blocks"])
    block = Block(32, 4, 64, "gelu", 0.5, 1e-6, "float32")
    x, _ = block.apply({"params": first}, x, None)  # type: ignore[misc]
    rows = {}
    for keep in ((0.0, 0.0), (0.0, 4.0), (4.0, 0.0), (4.0, 4.0)):
        factors = jnp.broadcast_to(jnp.asarray(keep)[:, None], (2, 64))
        y: Any = block.apply({"params": last}, x, None, None, factors)
        rows[keep] = np.abs(np.asarray(y[0]) - np.asarray(out)).max(axis=(1, 2)) < 1e-4
    counts = {keep: int(same.sum()) for keep, same in rows.items()}
    assert sum(counts.values()) == 64
    assert counts[0.0, 0.0] > counts[4.0, 4.0]
    kept = counts[0.0, 4.0] + counts[4.0, 0.0] + 2 * counts[4.0, 4.0]
    assert 18 <= kept <= 48  # 32 of 128 are expected


@pytest.mark.parametrize("tower", ["image", "text"])
def test_stochastic_depth_is_the_same_however_the_batch_is_cut(tower: str) -> None:
    block = BlockSpec(drop_path=0.5)
    model: Any = (
        ViT(**VIT, block=block) if tower == "image" else TextTransformer(**TEXT, block=block)
    )
    x = images(6) if tower == "image" else jnp.arange(1, 43, dtype=jnp.int32).reshape(6, 7)
    params = init(model, x)
    whole = model.apply(params, x, train=True, rngs=DROP).pooled
    rows = jnp.asarray([1, 4], jnp.int32)
    part = model.apply(params, x[rows], train=True, rows=rows, rngs=DROP).pooled
    np.testing.assert_allclose(part, whole[rows], atol=1e-5)
    still = model.apply(params, x).pooled
    assert float(jnp.abs(still - whole).max()) > 1e-2
    np.testing.assert_allclose(model.apply(params, x).pooled, still)


def test_rotary_tables_are_the_published_angles() -> None:
    angles = Rotary(reference=16).angles((2, 4), 8)
    assert angles.shape == (8, 4)
    # Place (1, 3): row 1 of 2 is 8 of 16, column 3 of 4 is 12 of 16; bands 1 and 1 / 100.
    np.testing.assert_allclose(angles[7], [8.0, 0.08, 12.0, 0.12], rtol=1e-6)
    centred = Rotary(base=100.0, coordinates="centred").angles((2, 4), 8)
    row, column = np.pi, 2 * np.pi * 0.75
    np.testing.assert_allclose(centred[7], [row, row / 10, column, column / 10], rtol=1e-6)
    np.testing.assert_allclose(Rotary().angles((3,), 4)[2], [2.0, 0.02], rtol=1e-6)
    swapped = Rotary(first=1, order="columns").angles((2, 4), 8)
    np.testing.assert_allclose(swapped[7], [4.0, 0.04, 2.0, 0.02], rtol=1e-6)


@pytest.mark.parametrize("layout", ["pairs", "halves"])
def test_turned_products_depend_on_the_distance_alone(layout: Any) -> None:
    q, k = (jax.random.normal(jax.random.key(i), (1, 1, 1, 8)) for i in (0, 1))
    turns = Rotary(layout=layout).tables((9,), 8)
    turned = [rotate(jnp.broadcast_to(x, (1, 9, 1, 8)), turns, layout)[0, :, 0] for x in (q, k)]
    products = turned[0] @ turned[1].T
    for step in range(-3, 4):
        line = np.diagonal(products, step)
        np.testing.assert_allclose(line, line[0], atol=1e-5)
    assert float(jnp.abs(products[0, 1] - products[0, 2])) > 1e-3


def test_prefix_is_not_turned() -> None:
    cos, sin = Rotary().tables((2, 3), 8, prefix=2)
    assert cos.shape == sin.shape == (1, 8, 4)
    x = jax.random.normal(jax.random.key(0), (2, 8, 3, 8))
    turned = rotate(x, (cos, sin), "halves")
    np.testing.assert_array_equal(turned[:, :2], x[:, :2])
    assert float(jnp.abs(turned[:, 3:] - x[:, 3:]).min(axis=(0, 2, 3)).max()) > 0


def test_dropped_patches_take_their_places_with_them() -> None:
    # Of a patch that stays alone, the place must not depend on which others went: attention over
    # the same kept patches, computed by hand from the whole image.
    model = ViT(**VIT, position="none", token_drop=0.5, block=EVERYTHING, activation="silu")
    model = model.clone(block=dataclasses.replace(EVERYTHING, drop_path=0.0))
    params = init(model, images())
    kept = model.apply(params, 3, 16, None, method="_kept", rngs=DROP)
    cos, sin = model.apply(params, (4, 4), kept, method="_turns")
    whole: Any = Rotary().tables((4, 4), 8, prefix=1)
    for row in range(3):
        np.testing.assert_array_equal(cos[row, 1:], whole[0][0, 1 + np.asarray(kept[row])])
        np.testing.assert_array_equal(sin[row, 1:], whole[1][0, 1 + np.asarray(kept[row])])
        np.testing.assert_array_equal(cos[row, 0], 1.0)
    trained: Any = model.apply(params, images(), train=True, rngs=DROP)
    assert trained.tokens.shape == (3, 9, 32)


def test_sines_and_cosines_tell_places_apart() -> None:
    table = sincos_grid((3, 5), 16)
    assert table.shape == (15, 16)
    assert len(np.unique(table.round(5), axis=0)) == 15
    np.testing.assert_allclose(table[7, :4], np.sin(2 * 10000.0 ** -(np.arange(4) / 4)), atol=1e-6)


def test_text_takes_rotary_positions() -> None:
    model = TextTransformer(**TEXT, block=BlockSpec(attention=AttentionSpec(rotary=Rotary())))
    ids = jnp.asarray([[3, 4, 5, 6], [4, 3, 5, 6]], jnp.int32)
    params = init(model, ids)
    params["params"]["position"] = jnp.zeros_like(params["params"]["position"])
    pooled = model.apply(params, ids).pooled  # type: ignore[union-attr]
    assert float(jnp.abs(pooled[0] - pooled[1]).max()) > 1e-3


@pytest.mark.parametrize("rows", [1, 3])
def test_cross_attention_sees_the_other_sequence(rows: int) -> None:
    layer = CrossAttention(heads=4)
    x = jax.random.normal(jax.random.key(0), (rows, 2, 32))
    seen = jax.random.normal(jax.random.key(1), (3, 5, 24))
    mask = jnp.asarray([1, 1, 1, 0, 0], bool)[None, None, None]
    params = init(layer, x, seen)
    assert set(params["params"]) == {"query", "kv", "out"}
    got: Any = layer.apply(params, x, seen, mask)
    assert got.shape == (3, 2, 32)
    changed: Any = layer.apply(params, x, seen.at[:, 3:].add(1.0), mask)
    np.testing.assert_allclose(changed, got, atol=1e-5)
    p = jax.tree.map(np.asarray, params["params"])
    q = np.einsum("bld,dhk->blhk", x, p["query"]["kernel"]) + p["query"]["bias"]
    bias = p["kv"]["bias"].reshape(2, 1, 1, 4, 8)
    k, v = np.einsum("bsc,cphk->pbshk", seen, p["kv"]["kernel"]) + bias
    q = np.broadcast_to(q, (3, *q.shape[1:]))
    scores = np.where(mask, np.einsum("blhk,bshk->bhls", q, k) / 8**0.5, -np.inf)
    out = np.einsum("bhls,bshk->blhk", jax.nn.softmax(scores), v)
    wanted = np.einsum("blhk,hkd->bld", out, p["out"]["kernel"]) + p["out"]["bias"]
    np.testing.assert_allclose(got, wanted, atol=1e-4)


@pytest.mark.parametrize(
    "module",
    [
        ViT(**VIT, activation="silu", block=EVERYTHING, registers=3, pool="mean", class_token=True),
        ViT(**VIT, block=BlockSpec(order="post"), position="sincos", bias=True),
        TextTransformer(**TEXT, activation="silu", block=EVERYTHING, pool="first"),
    ],
)
def test_flops_agree_with_the_compiler(module: Any) -> None:
    # Wide enough that what is not a matrix product is a small part.
    module = module.clone(width=256, heads=4, scan=False)
    x = images(1) if isinstance(module, ViT) else jnp.ones((1, 10), jnp.int32)
    params = init(module, x)
    compiled = jax.jit(lambda p, x: module.apply(p, x).pooled).lower(params, x).compile()
    assert module.flops(x.shape[1:]) == pytest.approx(compiled.cost_analysis()["flops"], rel=0.05)


def test_gated_flops_are_those_of_three_maps() -> None:
    plain = Stack(32, 2, 4, 96, parent=None)
    gated = Stack(32, 2, 4, 96, block=BlockSpec(feed_forward="gated"), parent=None)
    assert gated.flops(10) - plain.flops(10) == 2 * (2 * 10 * 32 * 96)


def test_a_specification_is_configuration() -> None:
    model = ViT(block=EVERYTHING)
    text = tree.dumps(model)
    assert "block.attention.rotary.layout = 'pairs'\n" in text
    assert "block.order = 'branch'\n" in text
    assert tree.loads(text) == model
    changed = tree.override(ViT(), ["block.attention.qk_norm=true", "block.layer_scale=0.1"])
    assert changed.block == BlockSpec(layer_scale=0.1, attention=AttentionSpec(qk_norm=True))
    assert hash(changed) == hash(ViT(block=changed.block))
    # Texts from before there was one still load.
    old = "".join(line for line in text.splitlines(True) if not line.startswith("block"))
    assert tree.loads(old) == ViT()


@pytest.mark.parametrize(
    ("width", "ratio", "hidden"),
    [
        (1152, 4304 / 1152, 4304),
        (1536, 4096 / 1536, 4096),
        (1024, 8 / 3, 2730),
        (768, 8 / 3, 2048),
        (1408, 6144 / 1408, 6144),
    ],
)
def test_hidden_width_of_published_towers(width: int, ratio: float, hidden: int) -> None:
    assert hidden_width(width, ratio) == hidden


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match=r"drop_path=1.0"):
        BlockSpec(drop_path=1.0)
    x = jnp.zeros((1, 4, 32))
    rotary = BlockSpec(attention=AttentionSpec(rotary=Rotary()))
    with pytest.raises(UserError, match="places"):
        jax.eval_shape(Stack(32, 1, 4, 64, block=rotary).init, jax.random.key(0), x)
    with pytest.raises(UserError, match="multiple of 4; width / heads is 6"):
        Rotary().tables((2, 2), 6)
    with pytest.raises(UserError, match="of coordinates"):
        Rotary(coordinates="centred", first=1)
    for wrong in (dict(pool="map", pool_heads=5), dict(pool_heads=4)):
        with pytest.raises(UserError, match="pool_heads"):
            shapes(ViT(**VIT, **wrong), images())
    with pytest.raises(UserError, match="in fours"):
        sincos_grid((2, 2), 6)
    with pytest.raises(UserError, match="embed_dim"):
        shapes(ViT(**(VIT | dict(embed_dim=None)), bias=True), images())
    with pytest.raises(UserError, match="eot_id"):
        shapes(TextTransformer(**TEXT, pool="eot_id"), jnp.ones((1, 4), jnp.int32))
