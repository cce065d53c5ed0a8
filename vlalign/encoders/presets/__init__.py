"""Published models as data, under the names that open_clip has for them.

    from vlalign.encoders.presets import preset
    model = preset("ViT-B-16-SigLIP-256", dtype="bfloat16", remat="dots").towers

`vlalign models` lists them. The numbers are open_clip 3.3's and timm 1.0's, down to each parameter.
"""

import dataclasses
import typing
from typing import Any

from vlalign import tree
from vlalign.encoders.presets import clip, convolutional, eva, others, siglip
from vlalign.encoders.presets.base import Preset, changed
from vlalign.encoders.vit import ViT
from vlalign.errors import UserError, nearest

FAMILIES: dict[str, dict[str, Preset]] = {
    "CLIP": clip.CLIPS,
    "CLIPA": clip.CLIPAS,
    "SigLIP": siglip.SIGLIPS,
    "SigLIP 2": siglip.SIGLIPS_2,
    "EVA": eva.EVAS,
    "PE": eva.PERCEPTIONS,
    "ResNet": convolutional.RESNETS,
    "ConvNeXt": convolutional.CONVNEXTS,
    "ViTamin": convolutional.VITAMINS,
    "MobileCLIP": convolutional.MOBILES,
    "RoBERTa": others.ROBERTAS,
    "CoCa": others.COCAS,
    "mean ViT": others.MEANS,
}
# Fields that every tower has: how it is computed, not what.
_HOW = ("dtype", "remat", "scan")


def names() -> dict[str, str]:
    """Name -> family of all presets."""
    return {name: family for family, presets in FAMILIES.items() for name in presets}


def preset(name: str, **overrides: Any) -> Preset:
    """A published model.

    overrides: fields of `Preset`; or `dtype`, `remat`, `scan` of all its towers. A tower's other
    fields are changed in the tower: `preset(name).image.clone(token_drop=0.5)`.
    Raises UserError for an unknown name or override, and for a value of a wrong type.
    """
    families = names()
    if name not in families:
        raise UserError(f"no preset {name!r}{nearest(name, families)} (see vlalign models)")
    found = FAMILIES[families[name]][name]
    hints = typing.get_type_hints(Preset)
    hints |= {field: typing.get_type_hints(ViT)[field] for field in _HOW}
    for field, value in overrides.items():
        if field not in hints:
            raise UserError(f"preset({name!r}, {field}=...): no such field{nearest(field, hints)}")
        tree.conform(value, hints[field], f"preset({name!r}): {field}")
    how = {field: value for field, value in overrides.items() if field in _HOW}
    own = {field: value for field, value in overrides.items() if field not in _HOW}
    parts = {**found.towers, "decoder": found.decoder}
    towers = {part: changed(tower, **how) for part, tower in parts.items() if tower is not None}
    return dataclasses.replace(found, **{**towers, **own})
