"""What vlalign writes, loaded by the libraries that it is for, and compared: three steps.

    PEERS tests/interop/check_exports.py make DIR      # optional: a random CLIP B/32, full size
    python tests/interop/check_exports.py convert DIR  # vlalign: reads, writes, computes
    PEERS tests/interop/check_exports.py check DIR     # transformers, open_clip: load, compare

PEERS is a Python that has torch, transformers and open_clip (extra `peers`); `convert` needs no
torch. Each step prints what it found; `check` ends with code 1 if anything is further than 1e-4.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-4
# Model -> the libraries that can hold it.
MODELS = {
    "hf_clip": ("hf", "open_clip"),
    "hf_siglip": ("hf",),
    "open_clip": ("hf", "open_clip"),
    "open_clip_custom": ("open_clip",),
    "openai": ("hf", "open_clip"),
    "b32": ("hf", "open_clip"),
}


def make(folder: Path) -> None:
    """A CLIP B/32 with every parameter random, saved by open_clip, with what it computes."""
    import open_clip
    import torch
    from make_golden_models import NoTokenizer
    from open_clip.push_to_hf_hub import save_for_hf

    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32", pretrained=None).eval()
    draw = torch.Generator().manual_seed(0)
    for name, x in model.named_parameters():
        if x.dim() == 1 and "embedding" not in name:  # biases and norms; matrices are random
            x.data.add_(0.1 * torch.randn(x.shape, generator=draw))
    config = open_clip.get_model_config("ViT-B-32")
    save_for_hf(model, NoTokenizer(), config, str(folder / "b32"), safe_serialization=True)
    random = np.random.default_rng(0)
    pixels = random.normal(size=(4, 224, 224, 3)).astype(np.float32)
    tokens = np.zeros((4, 77), np.int64)
    for row, count in zip(tokens, (1, 9, 40, 75), strict=True):
        row[: count + 2] = [49406, *random.integers(1, 49406, count), 49407]
    found = _open_clip_outputs(model, pixels, tokens)
    np.savez(folder / "b32" / "expected.npz", pixels=pixels, tokens=tokens, **found)
    print(f"made {folder / 'b32'}: {sum(p.numel() for p in model.parameters()):,} parameters")


def convert(folder: Path) -> None:
    """Reads each model, compares with what its library computed, writes it for the others."""
    import jax
    import jax.numpy as jnp

    from vlalign.interop.convert import check_same, load, save

    places = {name: GOLDEN / name for name in MODELS}
    places["openai"] = GOLDEN / "openai" / "openai.pt"
    places["b32"] = folder / "b32"
    for name, place in places.items():
        if not place.exists():
            continue
        start = time.perf_counter()
        bundle = load(str(place), tokenizer=None if name == "hf_clip" else "none")
        read = time.perf_counter() - start
        golden = np.load((place if place.is_dir() else place.parent) / "expected.npz")

        def pooled(tower: str, field: str, bundle: Any = bundle, golden: Any = golden) -> Any:
            apply = jax.jit(bundle.model[tower].apply)
            inputs = jnp.asarray(
                golden[field].astype(np.int32) if tower == "text" else golden[field]
            )
            return np.asarray(apply({"params": bundle.params[tower]}, inputs).pooled)

        ours = {"image": pooled("image", "pixels"), "text": pooled("text", "tokens")}
        ours["logits"] = _logits(ours["image"], ours["text"], bundle.logit_scale, bundle.logit_bias)
        worst = {key: float(np.abs(ours[key] - golden[key]).max()) for key in ours}
        print(f"{name}: read in {read:.1f} s; from its library {_shown(worst)}")
        for kind in MODELS[name]:
            out = folder / f"{name}-{kind}"
            start = time.perf_counter()
            save(out, bundle, kind)  # type: ignore[arg-type]
            wrote = time.perf_counter() - start
            count = check_same(out, bundle)
            np.savez(out / "ours.npz", pixels=golden["pixels"], tokens=golden["tokens"], **ours)
            print(f"  wrote {out.name} in {wrote:.1f} s; {count:,} numbers came back bit by bit")


def _logits(zimg: np.ndarray, ztxt: np.ndarray, scale: Any, bias: Any) -> np.ndarray:
    unit = [z / np.linalg.norm(z, axis=-1, keepdims=True) for z in (zimg, ztxt)]
    return np.exp(np.float32(scale)) * unit[0] @ unit[1].T + np.float32(bias or 0)


def _shown(worst: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:.1e}" for key, value in worst.items())


def _open_clip_outputs(model: Any, pixels: np.ndarray, tokens: np.ndarray) -> dict[str, np.ndarray]:
    import torch

    with torch.no_grad():
        image = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        text = torch.from_numpy(tokens.astype(np.int64))
        zimg, ztxt = model.encode_image(image).numpy(), model.encode_text(text).numpy()
    bias = None if model.logit_bias is None else model.logit_bias.item()
    logits = _logits(zimg, ztxt, model.logit_scale.item(), bias)
    return {"image": zimg, "text": ztxt, "logits": logits}


def _by_open_clip(path: Path, pixels: np.ndarray, tokens: np.ndarray) -> dict[str, np.ndarray]:
    import open_clip

    model, view = open_clip.create_model_from_pretrained(f"local-dir:{path}")
    pixel = json.loads((path / "open_clip_config.json").read_text())["preprocess_cfg"]
    assert list(view.transforms[-1].mean) == pixel["mean"], "open_clip prepares images otherwise"
    return _open_clip_outputs(model.eval(), pixels, tokens)


def _by_transformers(path: Path, pixels: np.ndarray, tokens: np.ndarray) -> dict[str, np.ndarray]:
    import torch
    import transformers
    from make_golden_models import pooled

    model, report = transformers.AutoModel.from_pretrained(path, output_loading_info=True)
    wrong = {key: names for key, names in report.items() if names}
    assert not wrong, f"transformers says {wrong}"
    transformers.AutoImageProcessor.from_pretrained(path)
    with torch.no_grad():
        image = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        text = torch.from_numpy(tokens.astype(np.int64))
        zimg = pooled(model.eval().get_image_features(pixel_values=image)).numpy()
        ztxt = pooled(model.get_text_features(input_ids=text)).numpy()
    bias = getattr(model, "logit_bias", None)
    logits = _logits(zimg, ztxt, model.logit_scale.item(), None if bias is None else bias.item())
    return {"image": zimg, "text": ztxt, "logits": logits}


def _check_tokenizer(path: Path) -> None:
    """The tokenizer that was written makes the ids of the one that was read."""
    import transformers

    made = transformers.CLIPTokenizer.from_pretrained(path)
    for text, ids in json.loads((GOLDEN / "hf_clip" / "tokens.json").read_text()).items():
        assert made(text).input_ids == ids, f"{path}: {text!r}"
    print(f"{path.name}: transformers makes the same tokens")


def check(folder: Path) -> int:
    """Loads what was written with the library that it is for; 1 if it computes something else."""
    libraries = {"hf": _by_transformers, "open_clip": _by_open_clip}
    failed = 0
    for name, kinds in MODELS.items():
        for kind in kinds:
            path = folder / f"{name}-{kind}"
            if not path.exists():
                continue
            ours = np.load(path / "ours.npz")
            theirs = libraries[kind](path, ours["pixels"], ours["tokens"])
            worst = {key: float(np.abs(value - ours[key]).max()) for key, value in theirs.items()}
            bad = max(worst.values()) > TOLERANCE
            failed += bad
            print(f"{path.name}: loaded; from ours {_shown(worst)}{'  TOO FAR' if bad else ''}")
            if name == "hf_clip":
                _check_tokenizer(path)
    return 1 if failed else 0


if __name__ == "__main__":
    step = {"make": make, "convert": convert, "check": check}[sys.argv[1]]
    Path(sys.argv[2]).mkdir(parents=True, exist_ok=True)
    sys.exit(step(Path(sys.argv[2])) or 0)
