"""Converted models compute what the libraries that saved them compute (make_golden_models.py)."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlalign.errors import UserError
from vlalign.interop.bundle import Bundle
from vlalign.interop.convert import KINDS, Kind, check_same, load, save
from vlalign.interop.numerics import tower_differences

GOLDEN = Path(__file__).parent / "golden"
MODELS = {name: name for name in ("hf_clip", "hf_siglip", "open_clip")}
MODELS |= {name: name for name in ("open_clip_custom", "open_clip_resnet")}
MODELS |= {"openai": "openai/openai.pt", "big_vision": "big_vision/siglip.npz"}
TOLERANCE = 1e-4


def outputs(bundle: Bundle, found: Any) -> dict[str, Any]:
    """Pooled vectors, logits and the two gradients, as `expect` of the golden script has them."""
    tokens, weights = jnp.asarray(found["tokens"]), jnp.asarray(found["weights"])

    def logits(pixels: jax.Array, text: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        zimg = bundle.model["image"].apply({"params": bundle.params["image"]}, pixels).pooled
        ztxt = bundle.model["text"].apply({"params": text}, tokens).pooled
        unit = [z / jnp.linalg.norm(z, axis=-1, keepdims=True) for z in (zimg, ztxt)]
        assert bundle.logit_scale is not None
        scale = jnp.exp(jnp.float32(bundle.logit_scale))
        bias = jnp.float32(bundle.logit_bias or 0.0)
        scores = scale * unit[0] @ unit[1].T + bias
        return jnp.sum(scores * weights), {"image": zimg, "text": ztxt, "logits": scores}

    arguments = jnp.asarray(found["pixels"]), bundle.params["text"]
    slopes, values = jax.jit(jax.grad(logits, argnums=(0, 1), has_aux=True))(*arguments)
    return values | {"by_pixels": slopes[0], "by_position": slopes[1]["position"]}


@pytest.fixture(scope="module", params=sorted(MODELS))
def model(request: pytest.FixtureRequest) -> tuple[str, Bundle]:
    return request.param, load(str(GOLDEN / MODELS[request.param]), tokenizer="none")


def test_values_and_gradients_are_those_of_the_library(model: tuple[str, Bundle]) -> None:
    name, bundle = model
    found = np.load(GOLDEN / name / "expected.npz")
    for key, value in outputs(bundle, found).items():
        np.testing.assert_allclose(value, found[key], rtol=0, atol=TOLERANCE, err_msg=key)


def test_every_parameter_is_used(model: tuple[str, Bundle]) -> None:
    """A parameter that moves moves some output: none was read into a place that nothing reads."""
    name, bundle = model
    found = np.load(GOLDEN / name / "expected.npz")
    draw = np.random.default_rng(0)
    for tower, field in (("image", "pixels"), ("text", "tokens")):
        module, inputs = bundle.model[tower], jnp.asarray(found[field])

        @jax.jit
        def pooled(params: Any, module: Any = module, inputs: jax.Array = inputs) -> jax.Array:
            return module.apply({"params": params}, inputs).pooled

        paths, tree = jax.tree_util.tree_flatten_with_path(bundle.params[tower])
        for index, (path, leaf) in enumerate(paths):
            if jax.tree_util.keystr(path) == "['pool']['key']['bias']":
                continue  # it adds the same to all scores, and a softmax does not see that
            leaves = [other for _, other in paths]
            leaves[index] = leaf + 0.1 * draw.normal(size=leaf.shape).astype(np.float32)
            moved = pooled(jax.tree.unflatten(tree, leaves))
            assert np.abs(moved - found[tower]).max() > 1e-4, jax.tree_util.keystr(path)


FITS = {
    "hf_clip": ("vlalign", "hf", "open_clip"),
    "hf_siglip": ("vlalign", "hf"),
    "open_clip": ("vlalign", "hf", "open_clip"),
    "open_clip_custom": ("vlalign", "open_clip"),
    "open_clip_resnet": ("vlalign",),
    "openai": ("vlalign", "hf", "open_clip"),
    "big_vision": ("vlalign",),
}


@pytest.mark.parametrize("kind", KINDS)
def test_written_and_read_again_it_is_the_same(
    kind: Kind, model: tuple[str, Bundle], tmp_path: Path
) -> None:
    name, bundle = model
    out = tmp_path / "out"
    if kind not in FITS[name]:
        with pytest.raises(UserError, match=r"cannot hold this model|(is|are) written from a ViT"):
            save(out, bundle, kind)
        assert list(tmp_path.iterdir()) == []
        return
    save(out, bundle, kind)
    assert check_same(out, bundle) > 10_000
    again = load(str(out), tokenizer="none")
    for tower in ("image", "text"):
        assert tower_differences(bundle.model[tower], again.model[tower]) == []
