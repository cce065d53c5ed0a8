"""Writes golden/presets.json: what open_clip's models are, in numbers.

Run with a Python that has open_clip 3.3, timm 1.0 and transformers 5.23:

    python tests/encoders/make_golden_presets.py [model_profile.csv]

Every model is made on torch's meta device, so nothing is allocated. Of each: its configuration, how
its images are prepared, and of each part [parameters, statistics of norms, FLOPs], the FLOPs by
torch's own counter for one image or one text. The file of docs/ in open_clip's repository adds what
it publishes: [image, text] of millions of parameters and of GFLOPs.
"""

import copy
import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
import transformers as hf
from open_clip import hf_model, pretrained
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from torch.utils.flop_counter import FlopCounterMode

GOLDEN = Path(__file__).parent / "golden"
# Without a tower of ours: T5's and NLLB's encoders, Swin, relative positions; and one that
# open_clip cannot make.
ABSENT = (
    *("mt5-base-ViT-B-32", "mt5-xl-ViT-H-14", "nllb-clip-base", "nllb-clip-large"),
    *("nllb-clip-base-siglip", "nllb-clip-large-siglip", "coca_roberta-ViT-B-32"),
    *("swin_base_patch4_window7_224", "vit_relpos_medium_patch16_cls_224"),
)
# Models of one shape whose weights want other pixels or another activation: (model, weights).
WEIGHTS = {
    "CLIP-ViT-L-14-laion2B-s32B-b82K": ("ViT-L-14", "laion2b_s32b_b82k"),
    "DFN2B-CLIP-ViT-B-16": ("ViT-B-16-quickgelu", "dfn2b"),
    "DFN2B-CLIP-ViT-L-14": ("ViT-L-14-quickgelu", "dfn2b"),
    "DFN2B-CLIP-ViT-L-14-39B": ("ViT-L-14", "dfn2b_s39b"),
    "DFN5B-CLIP-ViT-H-14": ("ViT-H-14-quickgelu", "dfn5b"),
    "DFN5B-CLIP-ViT-H-14-378": ("ViT-H-14-378-quickgelu", "dfn5b"),
    "MetaCLIP-ViT-B-32": ("ViT-B-32-quickgelu", "metaclip_fullcc"),
    "MetaCLIP-ViT-B-16": ("ViT-B-16-quickgelu", "metaclip_fullcc"),
    "MetaCLIP-ViT-L-14": ("ViT-L-14-quickgelu", "metaclip_fullcc"),
    "MetaCLIP-ViT-H-14": ("ViT-H-14-quickgelu", "metaclip_fullcc"),
    "MetaCLIP-ViT-bigG-14": ("ViT-bigG-14-quickgelu", "metaclip_fullcc"),
}
# Its file says 256 of timm's model for 384.
SIZES = {"ViTamin-XL-384": 384}
# Configurations on the hub, which is not asked.
_ROBERTA: dict[str, Any] = dict(max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5)
_LARGE: dict[str, Any] = dict(
    hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
)
HUB = {
    "roberta-base": hf.RobertaConfig(vocab_size=50265, **_ROBERTA),
    "xlm-roberta-base": hf.XLMRobertaConfig(vocab_size=250002, **_ROBERTA),
    "xlm-roberta-large": hf.XLMRobertaConfig(vocab_size=250002, **_ROBERTA, **_LARGE),
}
Counts = list[int]


def make(config: dict[str, Any]) -> torch.nn.Module:
    """The model of a configuration, on the meta device."""
    config = copy.deepcopy(config)
    text = config["text_cfg"]
    text["hf_model_pretrained"] = False
    apart = config.pop("custom_text", False) or "hf_model_name" in text
    kind = CoCa if "multimodal_cfg" in config else CustomTextCLIP if apart else CLIP
    with torch.device("meta"):
        return kind(**config).eval().requires_grad_(False)


def flops(run: Callable[[], Any]) -> tuple[int, Any]:
    """FLOPs of what `run` does, and what it returns."""
    with FlopCounterMode(display=False) as counter:
        made = run()
    return counter.get_total_flops(), made


def numbers(state: dict[str, torch.Tensor], statistics: set[str], prefix: str) -> Counts:
    """Parameters and statistics of the part whose names begin with a prefix."""
    mine = {name: x.numel() for name, x in state.items() if name.startswith(prefix)}
    kept = sum(count for name, count in mine.items() if name in statistics)
    return [sum(mine.values()) - kept, kept]


def parts(model: torch.nn.Module, size: int, length: int) -> dict[str, Counts]:
    """[parameters, statistics, FLOPs] of the towers, and of the decoder if there is one."""
    state = dict(model.named_parameters())
    running = {
        name: x
        for name, x in model.named_buffers()
        if name.endswith(("running_mean", "running_var"))
    }
    state = {
        name: x
        for name, x in (state | running).items()
        if name not in ("logit_scale", "logit_bias")
    }
    whole, image = (numbers(state, set(running), prefix) for prefix in ("", "visual."))
    decoder = numbers(state, set(running), "text_decoder.")
    text = [all_ - one - other for all_, one, other in zip(whole, image, decoder, strict=True)]
    pixels = torch.zeros(1, 3, size, size, device="meta")
    ids = torch.zeros(1, length, dtype=torch.long, device="meta")
    if not isinstance(model, CoCa):
        of_image, of_text = (
            flops(run)[0]
            for run in (lambda: model.encode_image(pixels), lambda: model.encode_text(ids))
        )
        return {"image": [*image, of_image], "text": [*text, of_text]}
    of_image, (_, seen) = flops(lambda: model._encode_image(pixels))
    of_text, (_, words) = flops(lambda: model._encode_text(ids))
    of_decoder, _ = flops(lambda: model.text_decoder(seen, words))
    return {
        "image": [*image, of_image],
        "text": [*text, of_text],
        "decoder": [*decoder, of_decoder],
    }


def published(path: str) -> dict[str, Any]:
    """Model -> the numbers of open_clip's docs/model_profile.csv."""
    found = {}
    with open(path, encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found[row["model"]] = {
                kind: [float(row[f"{tower}_{kind}"]) for tower in ("image", "text")]
                for kind in ("mparams", "gflops")
            }
    return found


def main() -> None:
    """Writes the file."""
    torch.backends.mha.set_fastpath_enabled(False)  # which the counter does not see
    hf_model.AutoConfig.from_pretrained = HUB.__getitem__
    # It would look at the values of a mask, and there are none.
    hf.masking_utils._ignore_bidirectional_mask_sdpa = lambda *args, **kwargs: False
    profile = published(sys.argv[1]) if len(sys.argv) > 1 else {}
    found: dict[str, dict[str, Any]] = {}
    for name in (*open_clip.list_models(), *WEIGHTS):
        if name in ABSENT:
            continue
        model, tag = WEIGHTS.get(name, (name, None))
        tag = tag or next(iter(open_clip.list_pretrained_tags_by_model(model)), None)
        prepared = pretrained.get_pretrained_cfg(model, tag) if tag else pretrained._pcfg()
        config = open_clip.get_model_config(model)
        size = SIZES.get(name, config["vision_cfg"]["image_size"])
        length = config["text_cfg"].get("context_length", 77)
        keys = ("mean", "std", "interpolation", "resize_mode")
        pixels = {key: prepared[key] for key in keys} | {"size": size}
        entry: dict[str, Any] = {"config": config, "pixels": pixels}
        if name in WEIGHTS:
            entry |= {part: found[model][part] for part in ("image", "text")}
        else:
            entry |= parts(make(config), size, length)
            entry |= {"published": profile[name]} if name in profile else {}
        found[name] = entry
        print(name, {part: entry[part] for part in ("image", "text")}, flush=True)
    lines = (f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in found.items())
    text = ",\n".join(lines)
    (GOLDEN / "presets.json").write_text(f"{{\n{text}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
