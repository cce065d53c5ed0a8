"""Writes golden/conv_*: convolutional towers of open_clip and timm at random weights.

Run with a Python that has open_clip 3.3 and timm 1.0:

    python tests/encoders/make_golden_conv.py [NAME ...]

Each .npz holds the tower's own parameters (rounded to float16, which is what they are here), an
image (b, h, w, 3), `pooled`, `tokens`, and the gradient with respect to the pixels of
sum(pooled * pooled_by) + sum(tokens * tokens_by). conv_counts.json holds the FLOPs of the published
sizes, by torch's own counter, and how many numbers their parameters and statistics are.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import timm
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from timm.models import vision_transformer_hybrid as hybrid
from timm.models.vision_transformer import VisionTransformer
from timm.models.vitamin import VitCfg, VitConvCfg
from torch.utils.flop_counter import FlopCounterMode

GOLDEN = Path(__file__).parent / "golden"
Model = torch.nn.Module
Outputs = tuple[torch.Tensor, torch.Tensor]


def places(grid: torch.Tensor) -> torch.Tensor:
    """(b, c, h, w) -> (b, h*w, c)."""
    return grid.flatten(2).transpose(1, 2)


def timm_tower(
    name: str, outputs: int, proj: str | None, pool: str, sizes: dict[str, Any]
) -> TimmModel:
    """open_clip's tower around a timm model of other sizes."""
    original = timm.create_model
    timm.create_model = lambda *args, **kwargs: original(*args, **kwargs, **sizes)
    try:
        return TimmModel(name, outputs, pool=pool, proj=proj)
    finally:
        timm.create_model = original


def resnet() -> tuple[Model, Callable[..., Outputs], tuple[int, int]]:
    model = ModifiedResNet([1, 2, 4, 2], output_dim=16, heads=4, image_size=64, width=4)

    def run(x: torch.Tensor) -> Outputs:
        grid = model.layer4(model.layer3(model.layer2(model.layer1(model.stem(x)))))
        return model.attnpool(grid), places(grid)

    return model, run, (64, 64)


def convnext(proj: str, eps: float) -> tuple[Model, Callable[..., Outputs], tuple[int, int]]:
    sizes = {"depths": (1, 2, 3, 1), "dims": (8, 16, 24, 32), "norm_eps": eps}
    model = timm_tower("convnext_base", 12, proj, "", sizes)

    def run(x: torch.Tensor) -> Outputs:
        grid = model.trunk.forward_features(x)
        return model.head(model.trunk.forward_head(grid)), places(model.trunk.head.norm(grid))

    return model, run, (64, 96)


def vitamin(positions: bool) -> tuple[Model, Callable[..., Outputs], tuple[int, int]]:
    conv = VitConvCfg(norm_layer="layernorm2d", norm_eps=1e-6)
    embed = VitCfg((8, 16, 32), (2, 4, 1), stem_width=8, conv_cfg=conv, head_type="1d")
    name = "vitamin_small_224" if positions else "vitamin_xlarge_256"
    sizes = {"embed_cfg": embed, "embed_dim": 32, "depth": 3, "num_heads": 4, "img_size": 64}
    model = timm_tower(name, 12, "linear", "", sizes)

    def run(x: torch.Tensor) -> Outputs:
        tokens = model.trunk.forward_features(x)
        return model.head(model.trunk.forward_head(tokens)), model.trunk.fc_norm(tokens)

    return model, run, (64, 64)


def mobileclip_b() -> tuple[Model, Callable[..., Outputs], tuple[int, int]]:
    stem = hybrid.ConvStem(
        channels=(8, 8, 32),
        stride=(4, 2, 2),
        kernel_size=(4, 2, 2),
        padding=0,
        act_layer=torch.nn.GELU,
    )
    model = hybrid._create_vision_transformer_hybrid(
        "vit_base_mci_224",
        backbone=stem,
        embed_args={"proj": False},
        **{"embed_dim": 32, "depth": 3, "num_heads": 4, "no_embed_class": True},
        **{"img_size": 64, "num_classes": 12, "global_pool": "token"},
    )

    def run(x: torch.Tensor) -> Outputs:
        tokens = model.forward_features(x)
        return model.forward_head(tokens), tokens

    return model, run, (64, 64)


def fastvit(name: str) -> tuple[Model, Callable[..., Outputs], tuple[int, int]]:
    if name == "fastvit_mci3":
        sizes: dict[str, Any] = {"layers": (1, 1, 3, 1, 2), "embed_dims": (8, 8, 16, 32, 32)}
        shape = (128, 64)
    else:
        sizes = {"layers": (1, 2, 3, 2), "embed_dims": (8, 16, 32, 64)}
        shape = (64, 96)
    model = timm_tower(name, 12, None, "avg", sizes)

    def run(x: torch.Tensor) -> Outputs:
        grid = model.trunk.forward_features(x)
        return model.head(model.trunk.forward_head(grid)), places(grid)

    return model, run, shape


TOWERS: dict[str, Callable[[], tuple[Model, Callable[..., Outputs], tuple[int, int]]]] = {
    "resnet": resnet,
    "convnext_linear": lambda: convnext("linear", 1e-6),
    "convnext_mlp": lambda: convnext("mlp", 1e-2),
    "vitamin": lambda: vitamin(True),
    "vitamin_xl": lambda: vitamin(False),
    "mobileclip_b": mobileclip_b,
    "fastvit_mci0": lambda: fastvit("fastvit_mci0"),
    "fastvit_mci3": lambda: fastvit("fastvit_mci3"),
}
PUBLISHED = {
    "RN50": 224,
    "RN50x4": 288,
    "convnext_base_w": 256,
    "convnext_large_d": 256,
    "convnext_xxlarge": 256,
    "ViTamin-S": 224,
    "ViTamin-L": 224,
    "ViTamin-XL-256": 256,
    "MobileCLIP-B": 224,
    "MobileCLIP2-S0": 256,
    "MobileCLIP-S1": 256,
    "MobileCLIP-S2": 256,
    "MobileCLIP2-S3": 256,
}


def randomise(model: Model, rng: np.random.Generator, gain: float) -> None:
    """Every parameter and statistic at random, none at a value that hides it."""
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        noise = rng.normal(size=tuple(tensor.shape))
        kind = name.rpartition(".")[2]
        if kind == "running_var":
            value = 0.5 + np.abs(noise)
        elif kind == "weight" and tensor.ndim == 1:
            value = 1 + 0.2 * noise
        elif kind == "weight":
            value = noise * gain / np.sqrt(np.prod(tensor.shape[1:]))
        else:
            value = 0.3 * noise
        tensor.copy_(torch.tensor(value.astype(np.float16).astype(np.float32)))


def _weighted(outputs: Outputs, by: list[np.ndarray]) -> torch.Tensor:
    sums = [(y * torch.tensor(one)).sum() for y, one in zip(outputs, by, strict=True)]
    return sums[0] + sums[1]


def _check_slope(
    total: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, slope: torch.Tensor
) -> None:
    """Raises if a gradient disagrees with differences along a line.

    torch 2.14 on CPU gives wrong ones, without a word, for some grouped convolutions of images
    whose memory has the channels first; those made here have them last.
    """
    line = torch.randn_like(x)
    with torch.no_grad():
        difference = (total(x + 1e-5 * line) - total(x - 1e-5 * line)) / 2e-5
    torch.testing.assert_close((slope * line).sum(), difference, rtol=1e-4, atol=1e-6)


def write(name: str) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model, run, shape = TOWERS[name]()
    model.eval()
    with torch.no_grad():
        # What no norm holds back would grow from block to block.
        randomise(model, rng, gain=1.0 if name.startswith(("resnet", "fastvit")) else 2.0)
    model.double()
    images = rng.normal(size=(1, *shape, 3)).astype(np.float16)
    x = torch.tensor(images.astype(np.float64)).permute(0, 3, 1, 2).requires_grad_()
    pooled, tokens = run(x)
    torch.testing.assert_close(pooled, model(x))
    by = [rng.normal(size=tuple(y.shape)) for y in (pooled, tokens)]
    (slope,) = torch.autograd.grad(_weighted((pooled, tokens), by), x)
    _check_slope(lambda x: _weighted(run(x), by), x, slope)
    # Such weights of the sum that the gradient is of the order of 1, and errors in it are seen.
    factor = 2.0 ** np.round(-np.log2(slope.numpy().std()))
    by = [one * factor for one in by]
    slope = slope * factor
    # open_clip has timm's models under `trunk`, beside a head of its own.
    trunk = "trunk." if isinstance(model, VisionTransformer) else ""
    parameters = {
        f"param/{trunk}{key}": value.numpy().astype(np.float16)
        for key, value in model.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    np.savez_compressed(
        GOLDEN / f"conv_{name}.npz",
        images=images,
        pooled=pooled.detach().numpy().astype(np.float32),
        tokens=tokens.detach().numpy().astype(np.float32),
        pooled_by=by[0].astype(np.float32),
        tokens_by=by[1].astype(np.float32),
        pixels_by=slope.permute(0, 2, 3, 1).numpy().astype(np.float32),
        **parameters,
    )
    spread = [float(y.detach().std()) for y in (pooled, tokens, slope)]
    print(name, sum(p.numel() for p in model.parameters()), "spread", spread)


def counts(name: str, size: int) -> dict[str, int]:
    """FLOPs and numbers (parameters and statistics) of open_clip's image tower of this name."""
    with torch.device("meta"):
        model = open_clip.create_model(name, device="meta").visual
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, size, size, device="meta"))
    numbers = sum(
        value.numel()
        for key, value in model.state_dict().items()
        if not key.endswith("num_batches_tracked")
    )
    return {"size": size, "flops": counter.get_total_flops(), "numbers": numbers}


def main() -> None:
    """Writes what the arguments name, or everything."""
    GOLDEN.mkdir(exist_ok=True)
    names = sys.argv[1:] or [*TOWERS, "counts"]
    for name in names:
        if name == "counts":
            table = {one: counts(one, size) for one, size in PUBLISHED.items()}
            (GOLDEN / "conv_counts.json").write_text(json.dumps(table, indent=1) + "\n")
            print(table)
        else:
            write(name)


if __name__ == "__main__":
    main()
