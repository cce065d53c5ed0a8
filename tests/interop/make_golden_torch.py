"""Files of PyTorch of every kind that is read, and what is in them.

    python tests/interop/make_golden_torch.py

with a Python that has torch and open_clip (extra `peers`).
"""

import shutil
import warnings
from pathlib import Path

import numpy as np
import open_clip
import torch
from make_golden_models import GOLDEN, LENGTH, VOCAB, expect, randomise

FOLDER = GOLDEN / "torch"


def tensors() -> dict[str, torch.Tensor]:
    """Dtypes, strides, offsets, shared storages."""
    draw = torch.Generator().manual_seed(0)
    base = torch.randn(6, 8, generator=draw)
    whole = torch.randint(-100, 100, (3, 4), generator=draw)
    return {
        "base": base,
        "transposed": base.t(),
        "middle": base[2:5, 1::2],
        "row": base[4],
        "half": base.half(),
        "bfloat16": base.bfloat16(),
        "bfloat16_transposed": base.bfloat16().t(),
        "double": base.double(),
        "long": whole,
        "int": whole.int(),
        "byte": whole.abs().to(torch.uint8),
        "bool": whole > 0,
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "expanded": torch.arange(5).expand(1, -1),
        "parameter": torch.nn.Parameter(base[:2]),
    }


def training(path: Path) -> None:
    """As open_clip's trainer saves: the weights wrapped by DDP, an optimiser with its moments."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save(
        {"epoch": 3, "name": "x", "state_dict": state, "optimizer": optimizer.state_dict()}, path
    )
    np.savez(path.with_suffix(".npz"), **{name: value.numpy() for name, value in state.items()})


def openai(folder: Path) -> None:
    """A traced CLIP in half precision with the sizes as buffers, as OpenAI's archives are."""
    size, width = 16, 64
    model = open_clip.CLIP(
        embed_dim=24,
        quick_gelu=True,
        vision_cfg={"image_size": size, "layers": 1, "width": width, "patch_size": 8},
        text_cfg={
            "context_length": LENGTH,
            "vocab_size": VOCAB,
            "width": width,
            "heads": 1,
            "layers": 1,
        },
    ).eval()
    randomise(model, seed=9)
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    expect(
        folder,
        model.encode_image,
        model.encode_text,
        model.positional_embedding,
        model.logit_scale,
        None,
        pad=0,
    )
    sizes = {"input_resolution": size, "context_length": LENGTH, "vocab_size": VOCAB}
    for name, value in sizes.items():
        if hasattr(model, name):
            delattr(model, name)
        model.register_buffer(name, torch.tensor(value))
    inputs = torch.zeros(1, 3, size, size), torch.zeros(1, LENGTH, dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, inputs, check_trace=False)
    for parameter in traced.parameters():
        parameter.data = parameter.data.half()
    traced.save(str(folder / "openai.pt"))


def main() -> None:
    torch.manual_seed(0)
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    found = tensors()
    torch.save(found, FOLDER / "tensors.pt")
    torch.save(found, FOLDER / "legacy.pt", _use_new_zipfile_serialization=False)
    plain = {
        name: (x.float() if x.dtype == torch.bfloat16 else x).detach().numpy()
        for name, x in found.items()
    }
    np.savez(FOLDER / "tensors.npz", **plain)
    training(FOLDER / "training.pt")
    shutil.rmtree(GOLDEN / "openai", ignore_errors=True)
    (GOLDEN / "openai").mkdir()
    openai(GOLDEN / "openai")


if __name__ == "__main__":
    main()
