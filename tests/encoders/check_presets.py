"""Presets' image towers at their published widths against open_clip's, by hand: two steps.

    PEERS tests/encoders/check_presets.py make DIR
    python tests/encoders/check_presets.py check DIR

PEERS is a Python that has open_clip, timm and torch. Stages and stacks are cut to a block or two,
all parameters are random. Configurations that open_clip's own towers are made from are compared by
test_presets.py; these are the ones that stand in code. Ends with code 1 if an output is off.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

TOLERANCE = 1e-4  # of the outputs' standard deviation
# Name -> what is cut, in timm's fields and in ours.
_BLOCKS = ({"depth": 2}, {"depth": 2})
_FOUR = ({"layers": (1, 1, 1, 1)}, {"depths": (1, 1, 1, 1)})
_FIVE = ({"layers": (1, 1, 1, 1, 1)}, {"depths": (1, 1, 1, 1, 1)})
_STAGES = ({"depths": (1, 1, 1, 1)}, {"depths": (1, 1, 1, 1)})
_MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "EVA01-g-14": _BLOCKS,
    "EVA02-B-16": _BLOCKS,
    "EVA02-L-14-336": _BLOCKS,
    "EVA02-E-14": _BLOCKS,
    "PE-Core-T-16-384": _BLOCKS,
    "PE-Core-B-16": _BLOCKS,
    "PE-Core-L-14-336": _BLOCKS,
    "ViTamin-S": _BLOCKS,
    "ViTamin-B": _BLOCKS,
    "ViTamin-L2-336": _BLOCKS,
    "ViTamin-XL-384": _BLOCKS,
    "MobileCLIP-B": _BLOCKS,
    "MobileCLIP2-L-14": _BLOCKS,
    "MobileCLIP-S1": _FOUR,
    "MobileCLIP-S2": _FOUR,
    "MobileCLIP2-S0": _FOUR,
    "MobileCLIP2-S3": _FIVE,
    "MobileCLIP2-S4": _FIVE,
    "convnext_tiny": _STAGES,
    "convnext_large_d": _STAGES,
    "convnext_xxlarge": _STAGES,
}


def make(folder: Path, names: list[str]) -> None:
    """Each model's image tower with random parameters, and what it computes."""
    import open_clip
    import timm
    import torch
    from make_golden_conv import randomise
    from make_golden_presets import SIZES
    from open_clip.model import _build_vision_tower

    original = timm.create_model
    for name in names:
        cut = _MODELS[name][0]
        timm.create_model = lambda *args, cut=cut, **options: original(*args, **options, **cut)
        config = open_clip.get_model_config(name)
        tower = _build_vision_tower(config["embed_dim"], config["vision_cfg"])
        tower.eval().requires_grad_(False)
        rng = np.random.default_rng(0)
        # What no norm holds back would grow from block to block.
        randomise(tower, rng, gain=1.0 if "layers" in cut else 2.0)
        size = SIZES.get(name, config["vision_cfg"]["image_size"])
        images = rng.normal(size=(1, size, size, 3)).astype(np.float32)
        pooled = tower(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
        state = {f"param/{key}": value.numpy() for key, value in tower.state_dict().items()}
        np.savez(folder / f"{name}.npz", images=images, pooled=pooled, **state)
        print(f"{name}: outputs of standard deviation {pooled.std():.3f}", flush=True)


def check(folder: Path, names: list[str]) -> None:
    """The presets' towers with those parameters, and how far their outputs are."""
    import jax

    from tests.encoders.originals import parameters, part
    from vlalign.encoders.convnext import ConvNext
    from vlalign.encoders.fastvit import FastVit
    from vlalign.encoders.hybrid import HybridViT
    from vlalign.encoders.presets import preset
    from vlalign.interop.names import convnext, eva, fastvit, hybrid
    from vlalign.interop.names.batch_norm import COUNTERS
    from vlalign.interop.rows import Table, under

    tables = {ConvNext: convnext, FastVit: fastvit, HybridViT: hybrid}
    wrong = 0
    for name in names:
        with np.load(folder / f"{name}.npz") as file:
            arrays = dict(file)
        tower: Any = preset(name).image.clone(**_MODELS[name][1])
        if type(tower) in tables:
            rows = tables[type(tower)].image_rows(tower)
        else:
            rows = under(eva.image_rows(tower), "", "trunk.")
        theirs = part(arrays, "param/")
        params = parameters(tower, Table(rows, COUNTERS), theirs, arrays["images"])
        pooled = jax.jit(tower.apply)({"params": params}, arrays["images"]).pooled
        off = np.abs(np.asarray(pooled) - arrays["pooled"]).max() / arrays["pooled"].std()
        wrong += not off < TOLERANCE
        print(f"{name}: {off:.1e}", flush=True)
    sys.exit(min(wrong, 1))


if __name__ == "__main__":
    step, where, *some = sys.argv[1:]
    {"make": make, "check": check}[step](Path(where), some or [*_MODELS])
