"""What of a model decides its numbers, to be compared before weights meet other towers.

Shapes that fit are not enough: with the tanh form of GELU, another epsilon or other pixels, the
same weights give other embeddings, near enough to pass for a worse model.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from vlalign import tree
from vlalign.encoders.blocks import hidden_width
from vlalign.errors import UserError
from vlalign.interop.bundle import Bundle

# How it is computed, of training alone, or of images of another size than the weights'.
_HOW = frozenset({"scan", "remat", "dtype", "token_drop", "block.drop_path", "position_resize"})
_PIXELS = ("size", "resize_mode", "interpolation", "mean", "std")


def tower_numbers(module: nn.Module) -> dict[str, str]:
    """Field -> text, of all fields of a tower that decide its output (not how it is computed)."""
    lines = tree.flatten(module)
    lines["class"] = lines.pop("")
    found = {name: text for name, text in lines.items() if name not in _HOW}
    fields: Any = module
    if "mlp_ratio" in found:  # 3.7362 and 4304 / 1152 are the same layer
        found["mlp_ratio"] = f"{hidden_width(fields.width, fields.mlp_ratio)} hidden units"
    if "class_token" in found:
        found["class_token"] = str(fields.class_token or fields.pool == "class")
    if found.get("block.layer_scale", "None") != "None":
        found["block.layer_scale"] = "a number"  # at which it began
    return found


def tower_differences(weights: nn.Module, tower: nn.Module) -> list[tuple[str, str, str]]:
    """(field, value that the weights want, value that the tower has) where they differ."""
    wanted, has = tower_numbers(weights), tower_numbers(tower)
    return [
        (name, wanted.get(name, "(absent)"), has.get(name, "(absent)"))
        for name in sorted(wanted.keys() | has.keys())
        if wanted.get(name) != has.get(name)
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """What weights are to be loaded over: the parts of an experiment that decide its numbers.

    model: tower name -> encoder.   pixels: `spec()` of the image view.   context_length: tokens.
    tokenizer: fingerprint.   logit_scale_max: clamp of the scale (not its logarithm), None: none.
    """

    model: Mapping[str, nn.Module]
    pixels: Mapping[str, Any]
    context_length: int
    tokenizer: str | None = None
    logit_scale_max: float | None = None


def check_numerics(bundle: Bundle, target: Target) -> None:
    """Raises UserError with each difference between the model of the weights and the target.

    A line names the setting, what it is and what it has to be; towers that the target does not
    have are left out.
    """
    lines = []
    for name in sorted(bundle.model.keys() & target.model.keys()):
        for field, wanted, has in tower_differences(bundle.model[name], target.model[name]):
            path = f"model.{name}" if field == "class" else f"model.{name}.{field}"
            lines.append(f"{path} is {has}: set it to {wanted}")
    spec = bundle.preprocess.spec()
    for field in _PIXELS if "image" in target.model else ():
        if field in target.pixels and _plain(target.pixels[field]) != _plain(spec[field]):
            lines.append(
                f"data.views.image.{field} is {target.pixels[field]}: set it to {spec[field]}"
            )
    if "text" in target.model and target.context_length != bundle.context_length:
        length = bundle.context_length
        lines.append(f"data.tokenizer.length is {target.context_length}: set it to {length}")
    own = None if bundle.tokenizer is None else bundle.tokenizer.fingerprint()
    if None not in (own, target.tokenizer) and own != target.tokenizer:
        lines.append("data.tokenizer is another one: use that of the weights")
    lines += _clamp(bundle, target.logit_scale_max)
    if lines:
        raise UserError(
            f"the weights of {bundle.origin} would give other numbers here:\n  "
            + "\n  ".join(lines)
        )


def _clamp(bundle: Bundle, maximum: float | None) -> list[str]:
    if maximum is None or bundle.logit_scale is None:
        return []
    scale = math.exp(bundle.logit_scale)
    if scale <= maximum * (1 + 1e-6):
        return []
    return [f"logit_scale_max is {maximum} and would cut the learned scale {scale:.1f}: set none"]


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value
