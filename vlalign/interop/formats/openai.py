"""OpenAI's archives of CLIP: no configuration, so sizes are read from the tensors."""

import math
from collections.abc import Mapping
from typing import Any

from vlalign.errors import UserError
from vlalign.interop.hows import Array
from vlalign.interop.rows import Table, unwrapped


def openai_config(tensors: Mapping[str, Array], where: str) -> dict[str, Any]:
    """The `model_cfg` that open_clip would have for an archive of OpenAI's.

    Raises UserError if it has not their names; a file of another origin needs a configuration.
    """
    plain = unwrapped(Table(()), tensors)
    resnet = "visual.layer1.0.conv1.weight" in plain
    own = "visual.attnpool.positional_embedding" if resnet else "visual.proj"
    absent = [
        name
        for name in ("input_resolution", "visual.conv1.weight", own, "text_projection")
        if name not in plain
    ]
    if absent:
        raise UserError(
            f"{where} has no {absent[0]}, so it is no CLIP of OpenAI's. Weights of others need a "
            "configuration, for what tensors do not tell (the activation): give --config FILE, an "
            "open_clip_config.json or a model's JSON of open_clip"
        )

    def shape(name: str) -> tuple[int, ...]:
        if name not in plain:
            raise UserError(f"{where} has no {name}, so it is no CLIP of OpenAI's")
        return tuple(tensors[plain[name]].shape)

    def count(prefix: str, end: str) -> int:
        return sum(name.startswith(prefix) and name.endswith(end) for name in plain)

    vision: dict[str, Any]
    if resnet:
        grid = math.isqrt(shape(own)[0] - 1)
        vision = {
            "image_size": grid * 32,
            "layers": [count(f"visual.layer{n}.", ".conv1.weight") for n in (1, 2, 3, 4)],
            "width": shape("visual.layer1.0.conv1.weight")[0],
        }
    else:
        width, _, patch, _ = shape("visual.conv1.weight")
        vision = {
            "image_size": math.isqrt(shape("visual.positional_embedding")[0] - 1) * patch,
            "layers": count("visual.", "attn.in_proj_weight"),
            "width": width,
            "patch_size": patch,
        }
    vocab, text_width = shape("token_embedding.weight")
    return {
        "embed_dim": shape("text_projection")[1],
        "quick_gelu": True,
        "vision_cfg": vision,
        "text_cfg": {
            "context_length": shape("positional_embedding")[0],
            "vocab_size": vocab,
            "width": text_width,
            "heads": max(1, text_width // 64),
            "layers": count("transformer.", "attn.in_proj_weight"),
        },
    }
