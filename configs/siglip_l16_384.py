"""SigLIP L/16 at 384 pixels: as configs/siglip_b16.py, with the large towers.

vlalign plan siglip_l16_384 --topology v5p:4x4x8
vlalign train siglip_l16_384 --set 'data.source.shards=("shards/{00000..12345}.tar",)' \
        --set data.tokenizer.path=spiece.model
"""

from pathlib import Path

from vlalign import tree
from vlalign.experiment import Experiment, load_config


def config() -> Experiment:
    """The experiment."""
    base = load_config(Path(__file__).with_name("siglip_b16.py"))
    tower = {"width": 1024, "depth": 24, "heads": 16}
    sizes = [f"model.{name}.{key}={size}" for name in base.model for key, size in tower.items()]
    overrides = ["name=siglip_l16_384", "data.views.image.size=384", "model.text.embed_dim=1024"]
    return tree.override(base, [*overrides, *sizes])
