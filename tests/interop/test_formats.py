"""Configurations of other libraries: what is mapped, what is left aside, what is refused."""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlalign.data.preprocess import Preprocess, big_vision
from vlalign.data.tokenizer import Bpe
from vlalign.errors import UserError
from vlalign.interop.convert import load, save
from vlalign.interop.formats.hugging_face_config import parse as parse_hf
from vlalign.interop.formats.open_clip_config import parse as parse_open_clip

GOLDEN = Path(__file__).parent / "golden"
Change = Callable[[dict[str, Any]], None]


def _json(name: str, file: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / name / file).read_text())
    return found


def open_clip(**model: Any) -> dict[str, Any]:
    config = _json("open_clip", "open_clip_config.json")
    for key, value in model.items():
        part, _, field = key.partition("__")
        if field:
            config["model_cfg"][part][field] = value
        else:
            config["model_cfg"][part] = value
    return config


def test_open_clip_defaults_are_openai_s() -> None:
    found = parse_open_clip(open_clip(quick_gelu=False), "here")
    assert (found.image.activation, found.image.epsilon) == ("gelu", 1e-5)
    assert (found.image.pool, found.image.pre_norm, found.image.patch_bias) == (
        "class",
        True,
        False,
    )
    assert (found.text.pool, found.text.causal, found.text.mask_padding) == ("largest", True, False)
    assert found.preprocess.mean == found.image.pixel_mean == (0.4, 0.5, 0.6)
    assert (found.preprocess.interpolation, found.preprocess.resize_mode) == ("bilinear", "squash")
    plain = parse_open_clip({"model_cfg": {"embed_dim": 8}}, "here")
    assert plain.preprocess == Preprocess(size=224)
    assert (plain.image.width, plain.image.depth, plain.image.heads) == (768, 12, 12)
    assert (plain.text.vocab_size, plain.text.width, plain.context_length) == (49408, 512, 77)


def test_open_clip_settings_of_training_are_left_aside_by_name() -> None:
    found = parse_open_clip(open_clip(vision_cfg__patch_dropout=0.5, init_logit_scale=3.0), "here")
    assert {"patch_dropout", "init_logit_scale"} <= set(found.aside)
    assert found.image.token_drop == 0.0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vision_cfg__qk_norm": True}, "here, model_cfg, vision_cfg: qk_norm = True; the towers"),
        ({"vision_cfg__timm_model_name": "vit_b"}, "towers of timm are not read"),
        ({"vision_cfg__layers": [3, 4, 6]}, "four counts of a ResNet's bottlenecks"),
        ({"vision_cfg__attentional_pool": True}, "attentional_pool = True"),
        ({"vision_cfg__pool_type": "max"}, "pool_type = 'max' is not known"),
        ({"vision_cfg__new_trick": 1}, "does not know what these do.*new_trick = 1"),
        ({"vision_cfg__width": "32"}, "width = '32' is not of type int"),
        ({"vision_cfg__width": True}, "width = True is not of type int"),
        ({"vision_cfg__patch_size": [8, 16]}, "patch_size = \\[8, 16\\]: one whole number"),
        ({"vision_cfg__act_kwargs": {"approximate": "x"}, "quick_gelu": False}, "approximate"),
        ({"vision_cfg__norm_kwargs": {"bias": False}}, "bias = False"),
        ({"text_cfg__embed_cls": True}, "embed_cls = True"),
        ({"text_cfg__hf_model_name": "roberta"}, "such towers are not read"),
        ({"multimodal_cfg": {"width": 3}}, "does not know what these do.*multimodal_cfg"),
        ({"embed_dim": 0}, "embed_dim = 0 must be a whole number above 0"),
    ],
)
def test_open_clip_settings_that_change_numbers_are_refused(
    changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        parse_open_clip(open_clip(**changes), "here")


def _changed(name: str, change: Change) -> tuple[dict[str, Any], dict[str, Any]]:
    files = {
        "config": _json(name, "config.json"),
        "pixels": _json(name, "preprocessor_config.json"),
    }
    change(files)
    return files["config"], files["pixels"]


def test_hugging_face_defaults_are_those_of_its_classes() -> None:
    clip = parse_hf({"model_type": "clip"}, None, "here")
    assert (clip.image.activation, clip.image.epsilon) == ("quick_gelu", 1e-5)
    assert (clip.image.patch_size, clip.text.vocab_size, clip.context_length) == (32, 49408, 77)
    assert (clip.text.pool, clip.text.eot_id, clip.image.embed_dim) == ("eot_id", 49407, 512)
    assert clip.notes == (
        "here has no preprocessor_config.json: images are prepared as is usual for clip",
    )
    siglip = parse_hf({"model_type": "siglip"}, None, "here")
    assert (siglip.image.activation, siglip.image.epsilon) == ("gelu_tanh", 1e-6)
    assert (siglip.image.pool, siglip.image.patch_size, siglip.context_length) == ("map", 16, 64)
    assert (siglip.text.pool, siglip.text.causal, siglip.text.embed_dim) == ("last", False, 768)
    assert siglip.preprocess.resize_mode == "squash"


def test_hugging_face_files_of_old() -> None:
    """2 as the end token means the largest id; `text_config_dict` wins; sizes are numbers."""
    config = {
        "model_type": "clip",
        "text_config": {"eos_token_id": 2, "hidden_size": 512},
        "vision_config": {"hidden_size": 768},
        "vision_config_dict": {"hidden_size": 1024, "patch_size": 14, "num_hidden_layers": 24},
        "text_config_dict": None,
        "num_beams": 1,
        "return_dict": True,
    }
    pixels = {"size": 224, "crop_size": 224, "resample": 3, "feature_extractor_type": "x"}
    found = parse_hf(config, pixels, "here")
    assert (found.text.pool, found.text.eot_id) == ("largest", None)
    assert (found.image.width, found.image.patch_size, found.image.depth) == (1024, 14, 24)
    assert found.preprocess == Preprocess(size=224)
    assert {"num_beams", "return_dict", "feature_extractor_type"} <= set(found.aside)
    (note,) = found.notes
    assert note.startswith("vision_config_dict stands for vision_config, as with transformers")
    assert note.endswith("there also: hidden_size")
    # What transformers 5.23 does: CLIPConfig(text_config={"hidden_act": "gelu"},
    # text_config_dict={}).text_config.hidden_act is "quick_gelu".
    config = {"model_type": "clip", "text_config": {"hidden_act": "gelu"}, "text_config_dict": {}}
    assert parse_hf(config, None, "here").text.activation == "quick_gelu"
    config["text_config"] = {"new_trick": 1}
    with pytest.raises(UserError, match=r"text_config_dict: vlalign does not know.*new_trick"):
        parse_hf(config, None, "here")


def _set(part: str, key: str, value: Any) -> Change:
    return lambda files: files["config"][part].update({key: value})


def _pixel(**values: Any) -> Change:
    return lambda files: files["pixels"].update(values)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("hf_clip", lambda f: f["config"].update(model_type="siglip2"), "SigLIP 2 of any image"),
        ("hf_clip", lambda f: f["config"].update(model_type="bart"), "model_type = 'bart'"),
        ("hf_clip", lambda f: f["config"].update(rope_theta=1.0), "does not know.*rope_theta"),
        (
            "hf_clip",
            _set("vision_config", "hidden_act", "relu"),
            "hidden_act = 'relu' is not known",
        ),
        ("hf_clip", _set("vision_config", "num_channels", 1), "num_channels = 1; the towers"),
        ("hf_clip", _set("vision_config", "image_size", [16, 32]), "image_size = \\[16, 32\\]"),
        ("hf_clip", _set("text_config", "use_bidirectional", True), "use_bidirectional = True"),
        ("hf_siglip", _set("vision_config", "vision_use_head", False), "vision_use_head = False"),
        ("hf_clip", _pixel(size={"shortest_edge": 18}), "known are the short side of 16 pixels"),
        ("hf_clip", _pixel(crop_size={"height": 12, "width": 12}), "crop_size = "),
        ("hf_clip", _pixel(do_normalize=False), "do_normalize = False"),
        ("hf_clip", _pixel(resample=0), "resample = 0; the towers"),
        ("hf_clip", _pixel(rescale_factor=1.0), "rescale_factor = 1.0"),
        ("hf_clip", _pixel(image_mean=[0.5]), "three numbers, one a channel"),
        ("hf_clip", _pixel(do_pad=True), "does not know what these do.*do_pad"),
    ],
)
def test_hugging_face_settings_that_change_numbers_are_refused(
    name: str, change: Change, said: str
) -> None:
    config, pixels = _changed(name, change)
    with pytest.raises(UserError, match=said):
        parse_hf(config, pixels, "here")


def test_hugging_face_hidden_widths_are_exact() -> None:
    from vlalign.encoders.blocks import hidden_width

    parts = {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16}
    config = {"model_type": "siglip", "vision_config": parts, "text_config": parts}
    image = parse_hf(config, None, "here").image
    assert hidden_width(image.width, image.mlp_ratio) == 4304


def test_pixels_that_fill_no_patch_are_not_read() -> None:
    """So400m/14 at 384: 27 patches of 14, and 6 pixels left."""
    for size, uneven in ((378, "error"), (384, "crop")):
        vision = {"patch_size": 14, "image_size": size}
        found = parse_hf({"model_type": "siglip", "vision_config": vision}, None, "here")
        assert (found.preprocess.size, found.image.uneven) == (size, uneven)


def test_big_vision_sizes_are_read_from_shapes() -> None:
    found = load(str(GOLDEN / "big_vision" / "siglip.npz"), tokenizer="none")
    assert found.preprocess == big_vision(16)
    image, text = found.model["image"], found.model["text"]
    assert (image.width, image.depth, image.heads, image.patch_size) == (32, 2, 2, 8)  # type: ignore[attr-defined]
    assert (text.vocab_size, text.embed_dim, found.context_length) == (600, 32, 8)  # type: ignore[attr-defined]
    assert "an npz says no activation" in found.notes[0]


def test_clip_s_tokenizer_beside_the_weights() -> None:
    found = load(str(GOLDEN / "hf_clip")).tokenizer
    assert found is not None
    for text, wanted in _json("hf_clip", "tokens.json").items():
        row = [*wanted[:7], 599] if len(wanted) > 8 else [*wanted, *([0] * (8 - len(wanted)))]
        assert found.encode([text])[0][0].tolist() == row


def test_a_model_without_its_tokenizer_says_how_to_name_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds none of spiece\.model.*--tokenizer FILE"):
        load(str(GOLDEN / "hf_siglip"))
    with pytest.raises(UserError, match=r"cannot read .*absent|no tokenizer: .*absent holds none"):
        load(str(GOLDEN / "hf_siglip"), tokenizer=tmp_path / "absent")
    assert load(str(GOLDEN / "hf_siglip"), tokenizer="none").tokenizer is None


def test_a_tokenizer_that_is_not_clip_s_is_refused(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "hf_clip", tmp_path / "model")
    path = tmp_path / "model" / "tokenizer.json"
    state = json.loads(path.read_text())
    vocab = state["model"]["vocab"]
    first, second = list(vocab)[600 - 88 : 600 - 86]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    path.write_text(json.dumps(state))
    with pytest.raises(UserError, match="other ids than CLIP's"):
        load(str(tmp_path / "model"))


def test_a_directory_or_file_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or directory"):
        load(str(tmp_path / "absent"))
    with pytest.raises(UserError, match=r"is no model: it has neither model\.txt"):
        load(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UserError, match=r"has no weights: none of model\.safetensors"):
        load(str(tmp_path), tokenizer="none")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        load(str(tmp_path))


def test_weights_alone_need_a_configuration(tmp_path: Path) -> None:
    file = GOLDEN / "open_clip" / "open_clip_model.safetensors"
    with pytest.raises(UserError, match=r"no CLIP of OpenAI's.*--config FILE"):
        load(str(file), tokenizer="none")
    config = _json("open_clip", "open_clip_config.json")["model_cfg"]
    (tmp_path / "model.json").write_text(json.dumps(config))
    alone = load(str(file), config=tmp_path / "model.json", tokenizer="none").flat()
    whole = load(str(GOLDEN / "open_clip"), tokenizer="none").flat()
    assert all(alone[name].tobytes() == whole[name].tobytes() for name in whole)


def test_weights_of_another_size_are_listed(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "hf_clip", tmp_path / "model")
    config = _json("hf_clip", "config.json")
    config["vision_config"]["num_hidden_layers"] = 3
    config["vision_config"]["image_size"] = 24
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "model" / "preprocessor_config.json").unlink()
    with pytest.raises(UserError) as failure:
        load(str(tmp_path / "model"), tokenizer="none")
    said = str(failure.value)
    assert "16 missing in the file" in said
    assert "vision_model.encoder.layers.2.self_attn.q_proj.weight" in said
    assert "position_embedding.weight: 5x32 in the file, 10x32 wanted" in said


def test_text_towers_apart_and_wrapped_names(tmp_path: Path) -> None:
    """A file of CustomTextCLIP, from a trainer: `module.text.` before the text tower's names."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(GOLDEN / "open_clip", tmp_path / "model")
    path = tmp_path / "model" / "open_clip_model.safetensors"
    own = ("visual.", "logit_")
    tensors = {
        "module." + (name if name.startswith(own) else f"text.{name}"): array
        for name, array in load_file(path).items()
    }
    save_file(tensors, path)
    apart = load(str(tmp_path / "model"), tokenizer="none").flat()
    whole = load(str(GOLDEN / "open_clip"), tokenizer="none").flat()
    assert all(np.array_equal(apart[name], whole[name]) for name in whole)


def test_a_directory_with_both_configurations(tmp_path: Path) -> None:
    """As the hub has many: open_clip's file is read if its weights are there, else the other."""
    model = tmp_path / "model"
    shutil.copytree(GOLDEN / "hf_clip", model)
    shutil.copy(GOLDEN / "open_clip" / "open_clip_config.json", model)
    assert load(str(model), tokenizer="none").preprocess.resize_mode == "shortest"
    shutil.copy(GOLDEN / "open_clip" / "open_clip_model.safetensors", model)
    assert load(str(model), tokenizer="none").preprocess.resize_mode == "squash"


def test_our_own_form_has_its_tokenizer(tmp_path: Path) -> None:
    save(tmp_path / "own", load(str(GOLDEN / "hf_clip")), "vlalign")
    assert load(str(tmp_path / "own")).tokenizer is not None
    assert load(str(tmp_path / "own"), tokenizer="none").tokenizer is None
    with pytest.raises(UserError, match="has its own tokenizer"):
        load(str(tmp_path / "own"), tokenizer=tmp_path)


def test_open_clip_is_written_with_clip_s_tokenizer_alone(tmp_path: Path) -> None:
    model = load(str(GOLDEN / "hf_clip"))
    other = dataclasses.replace(model, tokenizer=Bpe(length=8, vocab_size=300).train(["a cat"]))
    with pytest.raises(UserError, match="own tokenizer is CLIP's, this model has a Tokenizer"):
        save(tmp_path / "out", other, "open_clip")


def _leaves(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to all values of a configuration, the inner ones too."""
    if not isinstance(node, dict):
        return [path]
    return [path, *(leaf for key, value in node.items() for leaf in _leaves(value, (*path, key)))]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)


@pytest.mark.parametrize("name", ["hf_clip", "hf_siglip", "open_clip", "open_clip_custom"])
@given(draw=st.data())
def test_configurations_with_anything_in_them(name: str, draw: st.DataObject) -> None:
    """Read, or refused as the user's: never a failure of another kind."""
    files = ["open_clip_config.json"]
    if name.startswith("hf"):
        files = ["config.json", "preprocessor_config.json"]
    configs: dict[str, Any] = {str(i): _json(name, file) for i, file in enumerate(files)}
    path = draw.draw(st.sampled_from([leaf for leaf in _leaves(configs) if len(leaf) > 1]))
    place = configs
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = draw.draw(JSON)
    with contextlib.suppress(UserError):
        if len(files) == 2:
            parse_hf(configs["0"], configs["1"], "here")
        else:
            parse_open_clip(configs["0"], "here")
