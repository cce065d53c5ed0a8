"""SigLIP So400m/14 at 384 pixels: as configs/siglip_b16.py, with the shape-optimised towers.

    vlalign plan siglip_so400m14_384 --topology v5p:4x4x8
    vlalign train siglip_so400m14_384 --set 'data.source.shards=("shards/{00000..12345}.tar",)' \
        --set data.tokenizer.path=spiece.model

384 is no multiple of 14: the published model reads 27 x 27 patches and leaves 6 pixels at the right
and below unread. Here the image is made at 378 pixels, all of which are read: the same 729 tokens.
"""

from pathlib import Path

from vlalign import tree
from vlalign.experiment import Experiment, load_config


def config() -> Experiment:
    """The experiment."""
    base = load_config(Path(__file__).with_name("siglip_b16.py"))
    # Hidden width 4304.
    tower = {"width": 1152, "depth": 27, "heads": 16, "mlp_ratio": 4304 / 1152}
    sizes = [f"model.{name}.{key}={size}" for name in base.model for key, size in tower.items()]
    overrides = [
        "name=siglip_so400m14_384",
        "data.views.image.size=378",
        "model.image.patch_size=14",
        "model.text.embed_dim=1152",
    ]
    return tree.override(base, [*overrides, *sizes])
