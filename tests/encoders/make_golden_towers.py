"""Writes golden/image_* and golden/text_*: transformer towers of others at random weights.

Run with a Python that has open_clip 3.3, timm 1.0 and transformers 5.23:

    python tests/encoders/make_golden_towers.py [NAME ...]

Each .npz holds the tower's own parameters by their names in its files, the input (pixels
(b, h, w, 3) or ids (b, l)), `pooled` and `tokens`, and gradients of sum(wave * pooled) +
sum(wave * tokens), where wave is cos(0, 1, ...) in the array's shape: of the pixels, or of the text
parameters in `LOOKED_AT`.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import transformers as hf
from open_clip.timm_model import TimmModel
from open_clip.transformer import QuickGELU, TextTransformer, VisionTransformer
from safetensors.torch import load_file

GOLDEN = Path(__file__).parent / "golden"
# Text parameters whose gradients are stored, by the end of their names.
LOOKED_AT = (
    "token_embedding.weight",
    "resblocks.1.attn.in_proj_weight",
    "layers.1.self_attn.k_proj.weight",
)
Model = torch.nn.Module
Run = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
Case = tuple[Model, Run, Any]


def randomise(model: Model, fixed: tuple[str, ...] = ()) -> None:
    """Random values for everything: matrices keep the scale of what goes through.

    fixed: parameters that are computed and keep their values.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if name in fixed:
                continue
            scales = ("norm", "ln_", "ls_", "gamma", "lambda1", "layer_scale")
            if (
                p.ndim > 1
                and "embed" not in name
                and "token" not in name
                and not name.endswith("proj")
            ):
                p.copy_(noise / p[0].numel() ** 0.5)
            elif p.ndim > 1:
                p.copy_(0.3 * noise)
            elif any(part in name for part in scales) and not name.endswith("bias"):
                p.copy_(1 + 0.3 * noise)
            else:
                p.copy_(0.3 * noise)


def wave(x: torch.Tensor) -> torch.Tensor:
    return torch.cos(torch.arange(x.numel(), dtype=torch.float32)).reshape(x.shape)


def open_clip_image(**options: Any) -> Case:
    sizes = dict(image_size=16, patch_size=4, width=24, layers=2, heads=3, mlp_ratio=2.0)
    model = VisionTransformer(**sizes, output_dim=16, output_tokens=True, **options)
    randomise(model, ("positional_embedding",) if "pos_embed_type" in options else ())

    def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return model(x)

    return model, run, (16, 16)


def hf_clip_image() -> Case:
    config = hf.CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=40,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=16,
        patch_size=4,
    )
    model = hf.CLIPVisionModelWithProjection(config)
    randomise(model)

    def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Theirs normalises the class token alone.
        out = model(x)
        norm = next(m for name, m in model.named_modules() if name.endswith("post_layernorm"))
        return out.image_embeds, norm(out.last_hidden_state)

    return model, run, (16, 16)


_SIGLIP: dict[str, Any] = dict(
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=3,
    patch_size=4,
)


def siglip_image(shape: tuple[int, int] = (16, 16)) -> Case:
    model = hf.SiglipVisionModel(hf.SiglipVisionConfig(**_SIGLIP, image_size=16))
    randomise(model)

    def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = model(x, interpolate_pos_encoding=True)
        return out.pooler_output, out.last_hidden_state

    return model, run, shape


def siglip2_image() -> Case:
    """The form of any resolution, at one that is not that of its positions."""
    model = hf.Siglip2VisionModel(hf.Siglip2VisionConfig(**_SIGLIP, num_patches=16))
    randomise(model)
    rows, columns = 3, 6

    def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        b = len(x)
        patches = x.permute(0, 2, 3, 1).reshape(b, rows, 4, columns, 4, 3)
        patches = patches.transpose(2, 3).reshape(b, rows * columns, 48)
        mask = torch.ones(b, rows * columns, dtype=torch.int32)
        out = model(patches, mask, torch.tensor([[rows, columns]] * b))
        return out.pooler_output, out.last_hidden_state

    return model, run, (rows * 4, columns * 4)


def last_hidden(model: Model, shape: tuple[int, int]) -> Case:
    randomise(model)

    def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = model(x)
        return out.pooler_output, out.last_hidden_state

    return model, run, shape


_DINO: dict[str, Any] = dict(
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    image_size=16,
    patch_size=4,
)


def dinov2(shape: tuple[int, int]) -> Case:
    return last_hidden(hf.Dinov2Model(hf.Dinov2Config(**_DINO, mlp_ratio=2)), shape)


def dinov2_registers(shape: tuple[int, int]) -> Case:
    config = hf.Dinov2WithRegistersConfig(
        **_DINO, mlp_ratio=2, num_register_tokens=2, use_swiglu_ffn=True
    )
    return last_hidden(hf.Dinov2WithRegistersModel(config), shape)


def dinov3(**options: Any) -> Case:
    config = hf.DINOv3ViTConfig(
        **(_DINO | dict(num_attention_heads=2)),
        intermediate_size=40,
        num_register_tokens=2,
        **options,
    )
    return last_hidden(hf.DINOv3ViTModel(config), (12, 20))


def eva(name: str, pool: str = "token", **sizes: Any) -> Case:
    """open_clip's tower around a timm model of other sizes."""
    sizes = dict(embed_dim=24, depth=2, num_heads=2, img_size=(12, 20), patch_size=4) | sizes
    original = timm.create_model
    timm.create_model = lambda *args, **kwargs: original(*args, **kwargs, **sizes)
    try:
        model = TimmModel(name, 16, pool=pool, proj=None)
    finally:
        timm.create_model = original
    randomise(model)

    def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = model.trunk.forward_features(x)
        return model.trunk.forward_head(tokens), tokens

    return model, run, sizes["img_size"]


def ids(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int64)


# The largest id (49) stands before other tokens, once twice, and 0 is padding.
TEXT = ids([3, 7, 49, 4, 0, 0], [5, 49, 11, 49, 2, 8], [9, 8, 7, 6, 5, 49])


def open_clip_text(tokens: torch.Tensor = TEXT, **options: Any) -> Case:
    sizes = dict(context_length=6, vocab_size=50, width=24, heads=3, layers=2, mlp_ratio=2.0)
    model = TextTransformer(**sizes, output_dim=16, output_tokens=True, **options)
    randomise(model)
    return model, lambda x: model(x), tokens


def hf_clip_text(eos: int) -> Case:
    config = hf.CLIPTextConfig(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=40,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=6,
        eos_token_id=eos,
    )
    model = hf.CLIPTextModelWithProjection(config)
    randomise(model)

    def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = model(x)
        return out.text_embeds, out.last_hidden_state

    return model, run, TEXT


def siglip_text(model_class: Any, config_class: Any) -> Case:
    sizes = {key: value for key, value in _SIGLIP.items() if key != "patch_size"}
    config = config_class(
        **sizes, vocab_size=50, max_position_embeddings=6, projection_size=16, pad_token_id=1
    )
    model = model_class(config)
    randomise(model)

    def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = model(x)
        return out.pooler_output, out.last_hidden_state

    return model, run, ids([3, 7, 49, 4, 1, 1], [5, 49, 11, 1, 1, 1])


CASES: dict[str, Callable[[], Case]] = {
    "image_clip": lambda: open_clip_image(act_layer=QuickGELU),
    "image_clip_layer_scale": lambda: open_clip_image(ls_init_value=0.1),
    "image_clip_average": lambda: open_clip_image(pool_type="avg"),
    "image_clipa": lambda: open_clip_image(
        no_ln_pre=True, pos_embed_type="sin_cos_2d", pool_type="avg", final_ln_after_pool=True
    ),
    "image_clip_qk_norm": lambda: open_clip_image(block_type="custom", qk_norm=True),
    "image_clip_hf": hf_clip_image,
    "image_siglip": siglip_image,
    "image_siglip_resized": lambda: siglip_image((12, 24)),
    "image_siglip2": siglip2_image,
    "image_dinov2": lambda: dinov2((16, 16)),
    "image_dinov2_resized": lambda: dinov2((12, 24)),
    "image_dinov2_registers": lambda: dinov2_registers((12, 24)),
    "image_dinov3": dinov3,
    "image_dinov3_gated": lambda: dinov3(
        use_gated_mlp=True, hidden_act="silu", query_bias=False, value_bias=False
    ),
    "image_eva02": lambda: eva("eva02_base_patch16_clip_224"),
    "image_eva02_mean": lambda: eva("eva02_base_patch16_clip_224", "avg"),
    "image_eva02_post": lambda: eva("eva02_enormous_patch14_clip_224", mlp_ratio=2.0),
    "image_pe": lambda: eva(
        "vit_pe_core_base_patch16_224",
        "map",
        img_size=(16, 16),
        mlp_ratio=2.0,
        attn_pool_mlp_ratio=2.0,
        attn_pool_num_heads=3,
        ref_feat_shape=(6, 6),
    ),
    "image_eva01": lambda: eva("eva_giant_patch14_clip_224", mlp_ratio=2.0),
    "text_clip": open_clip_text,
    "text_clip_both_ways": lambda: open_clip_text(
        no_causal_mask=True, act_layer=QuickGELU, ls_init_value=0.1
    ),
    "text_clip_masked": lambda: open_clip_text(
        no_causal_mask=True, use_pad_mask=True, pool_type="first", proj_bias=True
    ),
    "text_clip_eos": lambda: open_clip_text(pool_type="eos", eos_id=49),
    "text_clip_hf_old": lambda: hf_clip_text(2),
    "text_clip_hf": lambda: hf_clip_text(49),
    "text_siglip": lambda: siglip_text(hf.SiglipTextModel, hf.SiglipTextConfig),
    "text_siglip2": lambda: siglip_text(hf.Siglip2TextModel, hf.Siglip2TextConfig),
}


def in_files(model: Model) -> dict[str, torch.Tensor]:
    """Parameters by their names in files, which transformers changes on reading and writing."""
    if not isinstance(model, hf.PreTrainedModel):
        return dict(model.named_parameters())
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(f"{folder}/model.safetensors")


def stored(name: str) -> dict[str, np.ndarray]:
    """Everything that the golden file of a case holds."""
    model, run, what = CASES[name]()
    model = model.eval().float()
    looked_at = {n: p for n, p in model.named_parameters() if n.endswith(LOOKED_AT)}
    if isinstance(what, torch.Tensor):
        x, extra = what, {"ids": what.numpy().astype(np.int32)}
    else:
        x = torch.randn(2, 3, *what, generator=torch.Generator().manual_seed(1)).requires_grad_()
        extra = {"pixels": x.detach().permute(0, 2, 3, 1).numpy()}
    pooled, tokens = run(x)
    ((pooled * wave(pooled)).sum() + (tokens * wave(tokens)).sum()).backward()
    if isinstance(what, torch.Tensor):
        extra |= {f"grad/{n}": p.grad.numpy() for n, p in looked_at.items()}
        assert looked_at
    else:
        extra["grad"] = x.grad.permute(0, 2, 3, 1).numpy()
    params = {f"param/{name}": p.detach().numpy() for name, p in in_files(model).items()}
    return params | extra | {"pooled": pooled.detach().numpy(), "tokens": tokens.detach().numpy()}


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for name in sys.argv[1:] or CASES:
        arrays = stored(name)
        np.savez_compressed(GOLDEN / f"{name}.npz", **arrays)
        size = (GOLDEN / f"{name}.npz").stat().st_size
        print(f"{name}: {size / 1024:.0f} KiB, pooled {np.abs(arrays['pooled']).max():.1f}")


if __name__ == "__main__":
    main()
