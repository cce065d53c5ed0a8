"""Writes golden/naflex_*: SigLIP 2's NaFlex of transformers at random weights, and its processor.

Run with a Python that has transformers 5.23 and torchvision:

    python tests/encoders/make_golden_naflex.py

naflex_model.npz holds the image tower's parameters by their names (param/NAME), `patches`
(b, n, p) and `shapes` (b, 2), `pooled`, `tokens` where they are no padding, and gradients of
sum(wave * pooled) + sum(wave * tokens), wave being cos(0, 1, ...) in the array's shape: of the
patches (grad_patches) and of the parameters `LOOKED_AT` (grad/NAME).
naflex_processor.npz holds, for images `image_i` (h, w, 3) uint8, what the processor makes of them
(`patches_i`, as numbers of 0..255), and `grids`: height, width, patch size, budget, and the rows
and columns it chooses.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from safetensors.torch import load_file
from transformers.models.siglip2.image_processing_siglip2 import (
    get_image_size_for_max_num_patches,
)

GOLDEN = Path(__file__).parent / "golden"
LOOKED_AT = (
    "embeddings.position_embedding.weight",
    "embeddings.patch_embedding.weight",
    "encoder.layers.1.self_attn.k_proj.weight",
    "head.probe",
)
# Grids larger and smaller than that of the positions (4 x 4), and of one side alone.
SHAPES = ((3, 6), (2, 2), (1, 18), (9, 2), (4, 4))


def randomise(model: torch.nn.Module) -> None:
    """Random values for everything; scales of norms are near 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim > 1 and "position" not in name and "probe" not in name:
                p.copy_(noise / p.shape[1] ** 0.5)
            elif "norm" in name and name.endswith("weight"):
                p.copy_(1 + 0.3 * noise)
            else:
                p.copy_(0.5 * noise)


def wave(x: torch.Tensor) -> torch.Tensor:
    return torch.cos(torch.arange(x.numel(), dtype=torch.float32)).reshape(x.shape)


def model() -> dict[str, np.ndarray]:
    config = hf.Siglip2VisionConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        patch_size=4,
        num_patches=16,
    )
    tower = hf.Siglip2VisionModel(config).eval()
    randomise(tower)
    n = 18
    patches = torch.randn(len(SHAPES), n, 48, generator=torch.Generator().manual_seed(1))
    counts = torch.tensor([rows * columns for rows, columns in SHAPES])
    real = torch.arange(n)[None] < counts[:, None]
    patches = (patches * real[..., None]).requires_grad_()
    out = tower(patches, real.int(), torch.tensor(SHAPES))
    pooled, tokens = out.pooler_output, out.last_hidden_state * real[..., None]
    ((wave(pooled) * pooled).sum() + (wave(tokens) * tokens).sum()).backward()
    with tempfile.TemporaryDirectory() as folder:
        tower.save_pretrained(folder)
        arrays = {f"param/{k}": v for k, v in load_file(f"{folder}/model.safetensors").items()}
    looked_at = {n: p for n, p in tower.named_parameters() if n.endswith(LOOKED_AT)}
    arrays |= {f"grad/{n}": p.grad for n, p in looked_at.items()}
    arrays |= dict(patches=patches, grad_patches=patches.grad, pooled=pooled, tokens=tokens)
    numbers = {key: value.detach().numpy() for key, value in arrays.items()}
    return numbers | {"shapes": np.array(SHAPES, np.int32)}


def processor() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {}
    processor = hf.Siglip2ImageProcessor(patch_size=8, max_num_patches=12)
    for index, (height, width) in enumerate(((41, 60), (90, 23), (5, 9))):
        # Smooth: rounding apart, resizers agree there.
        y, x = np.mgrid[:height, :width]
        waves = [np.sin(y / 7 + c) * np.cos(x / 5 - c) for c in range(3)]
        image = (127 + 100 * np.stack(waves, axis=-1) + rng.normal(0, 5, (height, width, 3))).clip(
            0, 255
        )
        arrays[f"image_{index}"] = image.astype(np.uint8)
        out = processor(
            images=[image.astype(np.uint8)], return_tensors="np", input_data_format="channels_last"
        )
        mask = out["pixel_attention_mask"][0].astype(bool)
        arrays[f"patches_{index}"] = (out["pixel_values"][0][mask] * 0.5 + 0.5) * 255
        arrays[f"shapes_{index}"] = out["spatial_shapes"]
    grids = []
    for _ in range(3000):
        height, width = (int(2 ** rng.uniform(0, 12)) for _ in range(2))
        patch, budget = int(rng.choice([14, 16])), int(rng.choice([16, 100, 256, 576, 1024]))
        found = get_image_size_for_max_num_patches(height, width, patch, budget)
        grids.append((height, width, patch, budget, found[0] // patch, found[1] // patch))
    return arrays | {"grids": np.array(grids, np.int32)}


def main() -> None:
    for name, arrays in {"model": model(), "processor": processor()}.items():
        path = GOLDEN / f"naflex_{name}.npz"
        np.savez_compressed(path, **arrays)
        print(
            f"{path.name}: {path.stat().st_size / 1024:.0f} KiB",
            {k: v.shape for k, v in arrays.items() if "/" not in k},
        )


if __name__ == "__main__":
    main()
