"""SigLIP on the embedded emoji: as configs/emoji_clip.py, with the sigmoid loss.

vlalign train emoji_siglip

"""

from pathlib import Path

from vlalign import tree
from vlalign.experiment import Experiment, load_config
from vlalign.objectives.contrastive import SigLip


def config() -> Experiment:
    """The experiment."""
    clip = load_config(Path(__file__).with_name("emoji_clip.py"))
    return tree.replace(clip, name="emoji_siglip", objectives={"siglip": SigLip()})
