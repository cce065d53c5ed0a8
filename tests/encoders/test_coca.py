"""CoCa against open_clip at the same random weights.

The golden files are written by make_golden_coca.py.
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
from vlalign.encoders.coca import CocaImage, CocaText
from vlalign.encoders.decoder import CaptionDecoder
from vlalign.encoders.flops import program_flops
from vlalign.encoders.generate import Sampling, generate
from vlalign.encoders.vit import ViT
from vlalign.errors import UserError
from vlalign.interop.names import coca as names
from vlalign.interop.rows import Table, export_params

TRUNK = ViT(
    patch_size=4,
    width=24,
    depth=2,
    heads=3,
    pre_norm=True,
    patch_bias=False,
    final_norm="none",
    epsilon=1e-5,
)
IMAGE = CocaImage(trunk=TRUNK, queries=5, heads=2, embed_dim=16)
TEXT = CocaText(
    vocab_size=60, length=8, width=16, depth=2, heads=2, embed_dim=16, padding="shifted"
)
DECODER = CaptionDecoder(vocab_size=60, width=16, depth=2, heads=2)
END = 48


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return golden("coca_model")


@pytest.fixture(scope="module")
def params(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    theirs = part(arrays, "param/")
    logit_scale = theirs.pop("logit_scale")
    assert logit_scale.shape == ()
    towers = {
        "visual.": (IMAGE, names.image_rows(IMAGE), (arrays["pixels"],)),
        "text.": (TEXT, names.text_rows(TEXT), (arrays["ids"],)),
        "text_decoder.": (
            DECODER,
            names.decoder_rows(),
            (arrays["text_tokens"], arrays["image_tokens"]),
        ),
    }
    made = [
        parameters(tower, Table(rows), part(theirs, prefix), *inputs)
        for prefix, (tower, rows, inputs) in towers.items()
    ]
    return dict(zip(("image", "text", "decoder"), made, strict=True))


def forward(params: dict[str, Any], pixels: Any, ids: Any, **clones: Any) -> dict[str, jax.Array]:
    image = IMAGE.apply({"params": params["image"]}, pixels)
    text = TEXT.clone(**clones).apply({"params": params["text"]}, ids)
    decoder = DECODER.clone(**clones)
    logits = decoder.apply({"params": params["decoder"]}, text.tokens, image.tokens)
    return dict(
        image=image.pooled,
        image_tokens=image.tokens,
        text=text.pooled,
        text_tokens=text.tokens,
        logits=logits,
    )


def total(params: Any, pixels: Any, ids: Any, **clones: Any) -> Any:
    outputs = forward(params, pixels, ids, **clones)
    return sum(jnp.sum(wave(out) * out) for out in outputs.values()), outputs


def test_outputs_and_gradients_are_open_clips(
    arrays: dict[str, np.ndarray], params: dict[str, Any]
) -> None:
    slope = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
    (grads, pixels_by), outputs = slope(params, arrays["pixels"], arrays["ids"])
    for name, out in outputs.items():
        assert np.std(arrays[name]) > 0.2
        np.testing.assert_allclose(out, arrays[name], rtol=0, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(pixels_by, arrays["grad_pixels"], rtol=0, atol=1e-4)
    grads = grads | {"logit_scale": jnp.zeros(())}
    check_gradients(names.table(IMAGE, TEXT), grads, arrays, least=9)


def test_the_table_leads_there_and_back(
    arrays: dict[str, np.ndarray], params: dict[str, Any]
) -> None:
    theirs = part(arrays, "param/")
    ours = flat(params) | {"logit_scale": theirs["logit_scale"]}
    back = export_params(names.table(IMAGE, TEXT), ours)
    assert back.keys() == theirs.keys()
    for key, value in back.items():
        if key.endswith(("class_embedding", "visual.positional_embedding")):
            continue  # open_clip adds the two; ours is the sum
        np.testing.assert_array_equal(value, theirs[key], err_msg=key)


@pytest.mark.parametrize("pool", ["parallel", "cascade"])
def test_a_pooler_for_the_pooled_output_is_open_clips(pool: Any) -> None:
    arrays = golden(f"coca_{pool}")
    trunk = TRUNK.clone(width=16, heads=2, mlp_ratio=2.0, final_norm="tokens")
    tower = IMAGE.clone(trunk=trunk, pool=pool, heads=4)
    rows = names.image_rows(tower)
    params = parameters(tower, Table(rows), part(arrays, "param/"), arrays["pixels"])

    def run(pixels: Any) -> Any:
        out = tower.apply({"params": params}, pixels)
        summed = jnp.sum(wave(out.pooled) * out.pooled)
        return summed + jnp.sum(wave(out.tokens) * out.tokens), out

    slope, out = jax.jit(jax.grad(run, has_aux=True))(arrays["pixels"])
    np.testing.assert_allclose(out.pooled, arrays["image"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(out.tokens, arrays["image_tokens"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(slope, arrays["grad_pixels"], rtol=0, atol=1e-4)
    assert out.mask.shape == (2, 5)
    counted = program_flops(tower.apply, {"params": params}, arrays["pixels"][:1])
    assert tower.flops((12, 12, 3)) == counted


def test_padding_is_seen_by_nobody_where_it_is_exact(
    arrays: dict[str, np.ndarray], params: dict[str, Any]
) -> None:
    ids = arrays["ids"][:1, :5]  # no padding
    longer = np.pad(ids, ((0, 0), (0, 3)))

    def pooled(padding: Any) -> Any:
        run = jax.jit(TEXT.clone(padding=padding).apply)
        longer_at = run({"params": at_the_end}, longer).pooled
        return longer_at, run({"params": params["text"]}, ids).pooled

    # The class token's position is that behind the row.
    position = np.array(params["text"]["position"])
    position[8] = position[5]
    at_the_end = params["text"] | {"position": position}
    longer_at, short = pooled("exact")
    np.testing.assert_allclose(longer_at, short, atol=1e-5)
    longer_at, short = pooled("shifted")
    assert np.abs(longer_at - short).max() > 0.01


def test_unrolled_and_rematerialised_are_equal(
    arrays: dict[str, np.ndarray], params: dict[str, Any]
) -> None:
    def run(**clones: Any) -> Any:
        slope = jax.grad(lambda *args: total(*args, **clones)[0])
        return jax.jit(slope)(params, arrays["pixels"], arrays["ids"])

    base = run()
    for clones in (dict(scan=False), dict(remat="full")):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), run(**clones), base)


def captions(params: Any, image: Any, prompt: Any, **options: Any) -> Any:
    options = dict(end_id=END, length=8) | options
    key = options.pop("key", None)
    run = jax.jit(lambda *args: generate(TEXT, DECODER, *args[:3], key=args[3], **options))
    return np.asarray(run(params, image, prompt, key))


def test_greedy_captions_are_open_clips(
    arrays: dict[str, np.ndarray], params: dict[str, Any]
) -> None:
    ids, image = arrays["ids"], arrays["image_tokens"]
    np.testing.assert_array_equal(captions(params, image, ids[:, :1]), arrays["captions"])
    np.testing.assert_array_equal(captions(params, image, ids[:, :3]), arrays["prompted"])
    assert {0, END} <= set(arrays["captions"].ravel())


def test_remembering_is_equal_to_reading_all_again(
    arrays: dict[str, np.ndarray], params: dict[str, Any]
) -> None:
    """Each token is the most likely one of a decoder without a cache over what stands before it."""
    ids, image = arrays["ids"], arrays["image_tokens"]
    found = captions(params, image, ids[:, :2], end_id=60, length=8)  # no token has this id
    text = TEXT.apply({"params": params["text"]}, np.where(found < 60, found, 0))
    logits = DECODER.apply({"params": params["decoder"]}, text.tokens, image)
    np.testing.assert_array_equal(np.argmax(logits, axis=2)[:, 1:6], found[:, 2:7])


def test_padding_of_the_image_is_not_seen(
    arrays: dict[str, np.ndarray], params: dict[str, Any]
) -> None:
    ids, image = arrays["ids"], arrays["image_tokens"]
    padded = np.concatenate([image, np.full_like(image[:, :2], 7.0)], axis=1)
    mask = np.arange(padded.shape[1])[None] < np.array([[image.shape[1]]] * 3)
    decoder, text = {"params": params["decoder"]}, arrays["text_tokens"]
    logits = jax.jit(DECODER.apply)(decoder, text, padded, mask)
    np.testing.assert_allclose(logits, arrays["logits"], atol=1e-4)
    found = captions(params, padded, ids[:, :1], image_mask_bs=mask)
    np.testing.assert_array_equal(found, arrays["captions"])


def test_captions_are_no_shorter_than_told(
    arrays: dict[str, np.ndarray], params: dict[str, Any]
) -> None:
    prompt = arrays["ids"][:, :3]
    found = captions(params, arrays["image_tokens"], prompt, shortest=6)
    assert (arrays["prompted"][:, 3] == END).any()  # left alone some would end here
    assert not (found[:, :6] == END).any()


def test_sampling_follows_the_probabilities() -> None:
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    many = jnp.broadcast_to(logits, (4000, 4))

    def shares(**options: Any) -> np.ndarray:
        drawn = Sampling(**{"temperature": 1.0, **options})(many, jax.random.key(0))
        return np.bincount(drawn, minlength=4) / len(many)

    np.testing.assert_allclose(shares(), [0.5, 0.3, 0.15, 0.05], atol=0.03)
    np.testing.assert_allclose(shares(top_k=2), [0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_allclose(shares(top_p=0.6), [0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_allclose(shares(top_p=0.4), [1, 0, 0, 0])
    halved = np.array([0.5, 0.3, 0.15, 0.05]) ** 2
    np.testing.assert_allclose(shares(temperature=0.5), halved / halved.sum(), atol=0.03)


def test_sampled_captions_depend_on_the_key_alone(
    arrays: dict[str, np.ndarray], params: dict[str, Any]
) -> None:
    image, prompt = arrays["image_tokens"], arrays["ids"][:, :1]
    options = dict(sampling=Sampling(temperature=2.0, top_k=20))
    one, same, other = (
        captions(params, image, prompt, key=jax.random.key(seed), **options) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(length=9), r"length=9 with a prompt of 2.*length=8"),
        (dict(length=2), r"length=2 with a prompt of 2"),
        (dict(sampling=Sampling(temperature=1.0)), r"needs a key"),
    ],
)
def test_captions_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        captions({}, jnp.zeros((1, 4, 16)), jnp.ones((1, 2), jnp.int32), **options)


@pytest.mark.parametrize(
    "options",
    [
        dict(temperature=-1.0),
        dict(top_k=3),
        dict(temperature=1.0, top_k=0),
        dict(temperature=1.0, top_p=0.0),
    ],
)
def test_sampling_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="Sampling"):
        Sampling(**options)


def test_towers_that_do_not_fit_are_refused(arrays: dict[str, np.ndarray]) -> None:
    key, ids = jax.random.key(0), jnp.ones((1, 9), jnp.int32)
    with pytest.raises(UserError, match=r"texts of 9 tokens"):
        TEXT.init(key, ids)
    with pytest.raises(UserError, match=r"CocaText width=16 does not divide into heads=3"):
        TEXT.clone(heads=3).init(key, ids)
    with pytest.raises(UserError, match=r"CaptionDecoder width=16 does not divide into heads=3"):
        DECODER.clone(heads=3).init(key, jnp.ones((1, 2, 16)), jnp.ones((1, 2, 16)))
    with pytest.raises(UserError, match=r"embed_dim=16 does not divide into heads=3"):
        IMAGE.clone(heads=3).init(key, arrays["pixels"])
    with pytest.raises(UserError, match=r'wants of its trunk.*final_norm="tokens"'):
        IMAGE.clone(pool="cascade").init(key, arrays["pixels"])


def test_flops_are_those_of_the_program(
    arrays: dict[str, np.ndarray], params: dict[str, Any]
) -> None:
    tokens, image = arrays["text_tokens"][:1], arrays["image_tokens"][:1]
    for tower, name, inputs, shape in (
        (IMAGE, "image", (arrays["pixels"][:1],), (12, 12, 3)),
        (TEXT, "text", (arrays["ids"][:1],), (8,)),
        (DECODER, "decoder", (tokens, image), (8, 4, 16)),
    ):
        counted = program_flops(tower.apply, {"params": params[name]}, *inputs)
        assert tower.flops(shape) == counted, name


def test_a_step_of_generation_is_one_token_of_work(
    arrays: dict[str, np.ndarray], params: dict[str, Any]
) -> None:
    """All projections of a step are for one token; the image's keys and values are there."""

    def flops(length: int) -> int:
        args = params, arrays["image_tokens"][:1], arrays["ids"][:1, :1]
        run = lambda *args: generate(TEXT, DECODER, *args, end_id=END, length=length)  # noqa: E731
        return program_flops(run, *args)

    # The whole of `length` tokens is read once, then the loop, counted once, reads one.
    first = TEXT.flops((7,)) - 2 * 16**2 + DECODER.flops((8, 4, 16))
    step = DECODER.flops((1, 0, 16)) + TEXT.flops((0,)) - 2 * 16**2
    seen = 2 * (4 * 7 * 16 * 2 + 4 * 4 * 16)  # scores and values, of text twice and of the image
    assert flops(8) == first + step + seen


def test_the_published_size_has_its_number_of_parameters() -> None:
    """253,560,065 are those of open_clip's coca_ViT-B-32, one of them its logit_scale."""
    key, ids = jax.random.key(0), jnp.ones((1, 8), jnp.int32)
    made = [
        jax.eval_shape(CocaImage().init, key, jnp.ones((1, 224, 224, 3))),
        jax.eval_shape(CocaText().init, key, ids),
        jax.eval_shape(CaptionDecoder().init, key, jnp.ones((1, 8, 512)), jnp.ones((1, 8, 512))),
    ]
    # Of theirs the position of the class token of the image is a parameter.
    assert sum(leaf.size for leaf in jax.tree.leaves(made)) + 1 + 768 == 253_560_065


@pytest.mark.parametrize("name", ["image", "text", "decoder"])
def test_devices_that_share_it_give_the_same(name: str, rng: np.random.Generator) -> None:
    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    if name == "image":
        check_on_a_mesh(IMAGE.clone(trunk=TRUNK.clone(heads=4), queries=6), normal(8, 12, 12, 3))
    elif name == "text":
        check_on_a_mesh(TEXT, rng.integers(0, 60, (8, 6)).astype(np.int32))
    else:
        check_on_a_mesh(DECODER, normal(8, 6, 16), normal(8, 5, 16))
