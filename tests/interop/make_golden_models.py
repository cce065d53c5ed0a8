"""Small random models of other libraries, saved by their own functions, with what they compute.

    python tests/interop/make_golden_models.py

with a Python that has torch, transformers, open_clip and timm (extra `peers`). Every parameter is
random, those too that start at 0 or 1. expected.npz beside each: pixels (b, h, w, 3) as floats,
tokens, pooled vectors of both towers, logits (image by text), gradients of sum(logits * weights)
with respect to pixels and text positions.
"""

import functools
import json
import shutil
import types
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import timm
import torch
import transformers
from open_clip.convert import load_big_vision_weights
from open_clip.push_to_hf_hub import save_for_hf
from open_clip.transformer import LayerNorm, TextTransformer

GOLDEN = Path(__file__).parent / "golden"
MERGES = 86
VOCAB, LENGTH, SIZE = 514 + MERGES, 8, 16
WIDTH, HEADS, DEPTH, PATCH = 32, 2, 2, 8


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Every parameter from a seed: around 1 for norms' weights, around 0 for the rest."""
    draw = torch.Generator().manual_seed(seed)
    for name, x in model.named_parameters():
        noise = torch.randn(x.shape, generator=draw)
        norm = x.dim() == 1 and name.endswith("weight")
        x.data.copy_(1 + 0.3 * noise if norm else noise * (0.1 if x.dim() == 1 else 0.2))
        if "logit_scale" in name:
            x.data.fill_(2.2)
        if "logit_bias" in name:
            x.data.fill_(-3.7)
    for name, x in model.named_buffers():
        if name.endswith("running_mean"):
            x.copy_(0.1 * torch.randn(x.shape, generator=draw))
        if name.endswith("running_var"):
            x.copy_(0.5 + torch.rand(x.shape, generator=draw))


def texts(pad: int) -> torch.Tensor:
    """Begin, words, end, padding; or words, end, padding where padding is 1."""
    draw = np.random.default_rng(5)
    rows = np.full((4, LENGTH), pad, np.int64)
    for row, count in zip(rows, (1, 3, 5, 6), strict=True):
        words = draw.integers(2, VOCAB - 2, count)
        if pad == 0:
            row[: count + 2] = [VOCAB - 2, *words, VOCAB - 1]
        else:
            row[: count + 1] = [*words, 1]
    return torch.from_numpy(rows)


def expect(
    folder: Path,
    image: Any,
    text: Any,
    position: Any,
    scale: Any,
    bias: Any,
    pad: int,
    size: int = SIZE,
) -> None:
    """Writes expected.npz. image, text: inputs -> pooled.   position: parameter of the text."""
    draw = np.random.default_rng(3)
    pixels = torch.tensor(draw.normal(size=(3, 3, size, size)), dtype=torch.float32)
    pixels.requires_grad_(True)
    tokens = texts(pad)
    zimg, ztxt = image(pixels), text(tokens)
    unit = [torch.nn.functional.normalize(z, dim=-1) for z in (zimg, ztxt)]
    logits = scale.exp() * unit[0] @ unit[1].T
    logits = logits if bias is None else logits + bias
    weights = torch.tensor(draw.normal(size=tuple(logits.shape)), dtype=torch.float32)
    (logits * weights).sum().backward()
    found = {
        "pixels": pixels.detach().permute(0, 2, 3, 1),
        "tokens": tokens.to(torch.int32),
        "image": zimg.detach(),
        "text": ztxt.detach(),
        "logits": logits.detach(),
        "weights": weights,
        "by_pixels": pixels.grad.permute(0, 2, 3, 1),
        "by_position": position.grad,
    }
    np.savez(folder / "expected.npz", **{name: x.numpy() for name, x in found.items()})


def pooled(found: Any) -> torch.Tensor:
    """What `get_image_features` and its like return: a tensor, or an output with one."""
    return found if isinstance(found, torch.Tensor) else found.pooler_output


def hugging_face(folder: Path, kind: str) -> None:
    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": DEPTH}
    sizes |= {"num_attention_heads": HEADS}
    words = sizes | {"vocab_size": VOCAB, "max_position_embeddings": LENGTH}
    pixels = sizes | {"image_size": SIZE, "patch_size": PATCH}
    square = {"height": SIZE, "width": SIZE}
    if kind == "clip":
        words |= {"bos_token_id": VOCAB - 2, "eos_token_id": VOCAB - 1, "pad_token_id": 1}
        config = transformers.CLIPConfig(
            text_config=words | {"hidden_act": "gelu"},
            vision_config=pixels | {"hidden_act": "gelu"},
            projection_dim=24,
        )
        model = transformers.CLIPModel(config)
        view = transformers.CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=square)
    else:
        words |= {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 1, "projection_size": WIDTH}
        config = transformers.SiglipConfig(text_config=words, vision_config=pixels)
        model = transformers.SiglipModel(config)
        view = transformers.SiglipImageProcessor(size=square)
    randomise(model, seed=len(kind))
    model.eval().save_pretrained(folder)
    view.save_pretrained(folder)
    expect(
        folder,
        lambda x: pooled(model.get_image_features(pixel_values=x)),
        lambda x: pooled(model.get_text_features(input_ids=x)),
        model.text_model.embeddings.position_embedding.weight,
        model.logit_scale,
        getattr(model, "logit_bias", None),
        pad=0 if kind == "clip" else 1,
    )


def clip_vocabulary(folder: Path) -> None:
    """CLIP's tokenizer with few merges, as transformers saves it, and what it makes of texts."""
    from open_clip.tokenizer import SimpleTokenizer, default_bpe

    whole = SimpleTokenizer(default_bpe())
    merges = list(whole.bpe_ranks)[:MERGES]
    tokens = [*list(whole.encoder)[:512], *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    made = transformers.CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, merges=merges
    )
    made.save_pretrained(folder)
    sentences = ["a cat", "the Dog's toy!", "two  birds in a tree"]
    ids = [made(s).input_ids for s in sentences]
    (folder / "tokens.json").write_text(json.dumps(dict(zip(sentences, ids, strict=True))))


class NoTokenizer:
    """open_clip wants one to save; CLIP's is part of it."""

    def save_pretrained(self, folder: Path) -> None:
        del folder


def open_clip_model(folder: Path, form: str) -> None:
    vision: dict[str, Any] = {"image_size": SIZE, "layers": DEPTH, "width": WIDTH}
    vision |= {"patch_size": PATCH, "head_width": WIDTH // HEADS}
    words: dict[str, Any] = {"context_length": LENGTH, "vocab_size": VOCAB, "width": 24}
    words |= {"heads": 3, "layers": DEPTH}
    config: dict[str, Any] = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": words}
    if form in ("quick", "resnet"):
        config["quick_gelu"] = True
    if form == "resnet":
        del vision["patch_size"]
        vision |= {"layers": [2, 1, 1, 2], "width": 4, "head_width": 32, "image_size": 64}
    if form == "custom":  # CLIPA's image tower, and what else a configuration can ask for
        vision |= {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True}
        vision |= {"pos_embed_type": "sin_cos_2d", "ls_init_value": 0.1, "mlp_ratio": 3.0}
        vision |= {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-6}}
        words |= {"no_causal_mask": True, "pool_type": "last", "proj_bias": True, "pad_id": 1}
        config |= {"init_logit_bias": -10, "custom_text": True}
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    model = kind(**config).eval()
    randomise(model, seed=len(form))
    model.visual.image_mean, model.visual.image_std = (0.4, 0.5, 0.6), (0.3, 0.2, 0.1)
    model.visual.preprocess_cfg = {"interpolation": "bilinear", "resize_mode": "squash"}
    if kind is open_clip.CustomTextCLIP:
        config["custom_text"] = True
    custom = form == "custom"
    save_for_hf(model, NoTokenizer(), config, str(folder), safe_serialization=not custom)
    position = model.text.positional_embedding if custom else model.positional_embedding
    scale, bias, size = model.logit_scale, model.logit_bias, vision["image_size"]
    towers = model.encode_image, model.encode_text
    expect(folder, *towers, position, scale, bias, int(custom), size=size)


def big_vision_arrays() -> dict[str, np.ndarray]:
    draw, d, h, m = np.random.default_rng(11), WIDTH, HEADS, 3 * WIDTH
    found: dict[str, np.ndarray] = {}

    def put(name: str, *shape: int) -> None:
        found[f"params/{name}"] = (draw.normal(size=shape) * 0.2).astype(np.float32)

    def norm(name: str, *lead: int) -> None:
        put(f"{name}/scale", *lead, d)
        found[f"params/{name}/scale"] += 1
        put(f"{name}/bias", *lead, d)

    def attention(name: str, *lead: int) -> None:
        for part in ("query", "key", "value"):
            put(f"{name}/{part}/kernel", *lead, d, h, d // h)
            put(f"{name}/{part}/bias", *lead, h, d // h)
        put(f"{name}/out/kernel", *lead, h, d // h, d)
        put(f"{name}/out/bias", *lead, d)

    def mlp(name: str, *lead: int) -> None:
        for dense, (i, o) in (("Dense_0", (d, m)), ("Dense_1", (m, d))):
            put(f"{name}/{dense}/kernel", *lead, i, o)
            put(f"{name}/{dense}/bias", *lead, o)

    def block(name: str, *lead: int) -> None:
        norm(f"{name}/LayerNorm_0", *lead)
        attention(f"{name}/MultiHeadDotProductAttention_0", *lead)
        norm(f"{name}/LayerNorm_1", *lead)
        mlp(f"{name}/MlpBlock_0", *lead)

    put("img/embedding/kernel", PATCH, PATCH, 3, d)
    put("img/embedding/bias", d)
    put("img/pos_embedding", 1, (SIZE // PATCH) ** 2, d)
    block("img/Transformer/encoderblock", DEPTH)  # scanned
    norm("img/Transformer/encoder_norm")
    put("img/MAPHead_0/probe", 1, 1, d)
    attention("img/MAPHead_0/MultiHeadDotProductAttention_0")
    norm("img/MAPHead_0/LayerNorm_0")
    mlp("img/MAPHead_0/MlpBlock_0")
    put("txt/Embed_0/embedding", VOCAB, d)
    put("txt/pos_embedding", 1, LENGTH, d)
    for layer in range(DEPTH):
        block(f"txt/Encoder_0/encoderblock_{layer}")
    norm("txt/Encoder_0/encoder_norm")
    put("txt/head/kernel", d, d)
    put("txt/head/bias", d)
    found["params/t"] = np.full((1,), 2.2, np.float32)
    found["params/b"] = np.full((1,), -3.7, np.float32)
    return found


def big_vision(folder: Path) -> None:
    """An npz as big_vision writes it, read by open_clip's converter of SigLIP."""
    folder.mkdir()
    np.savez(folder / "siglip.npz", **big_vision_arrays())
    act = functools.partial(torch.nn.GELU, approximate="tanh")
    trunk = timm.models.vision_transformer.VisionTransformer(
        img_size=SIZE,
        patch_size=PATCH,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        mlp_ratio=3,
        num_classes=0,
        class_token=False,
        global_pool="map",
        act_layer=act,
    )
    text = TextTransformer(
        context_length=LENGTH,
        vocab_size=VOCAB,
        width=WIDTH,
        heads=HEADS,
        layers=DEPTH,
        mlp_ratio=3,
        output_dim=WIDTH,
        no_causal_mask=True,
        pool_type="last",
        proj_bias=True,
        act_layer=act,
        norm_layer=functools.partial(LayerNorm, eps=1e-6),
    )
    scale, bias = (torch.nn.Parameter(torch.zeros(())) for _ in range(2))
    whole = types.SimpleNamespace(
        visual=types.SimpleNamespace(trunk=trunk), text=text, logit_scale=scale, logit_bias=bias
    )
    with torch.no_grad():
        load_big_vision_weights(whole, str(folder / "siglip.npz"))
    expect(folder, trunk.eval(), text.eval(), text.positional_embedding, scale, bias, 1)


def main() -> None:
    torch.manual_seed(0)
    names = ("hf_clip", "hf_siglip", "open_clip", "open_clip_custom", "open_clip_resnet")
    for name in (*names, "big_vision"):
        shutil.rmtree(GOLDEN / name, ignore_errors=True)
    GOLDEN.mkdir(exist_ok=True)
    hugging_face(GOLDEN / "hf_clip", "clip")
    clip_vocabulary(GOLDEN / "hf_clip")
    hugging_face(GOLDEN / "hf_siglip", "siglip")
    open_clip_model(GOLDEN / "open_clip", "quick")
    open_clip_model(GOLDEN / "open_clip_custom", "custom")
    open_clip_model(GOLDEN / "open_clip_resnet", "resnet")
    big_vision(GOLDEN / "big_vision")


if __name__ == "__main__":
    main()
