"""Momentum-distilled contrast on the embedded emoji: as configs/emoji_clip.py, with EMA targets.

vlalign train emoji_momentum

"""

from pathlib import Path

from vlalign import tree
from vlalign.experiment import Experiment, load_config
from vlalign.objectives.momentum import MomentumClip


def config() -> Experiment:
    """The experiment."""
    clip = load_config(Path(__file__).with_name("emoji_clip.py"))
    # The run is short: the copy follows faster than the published 0.995, and the queue is small.
    objective = MomentumClip(
        momentum=0.98, queue=256, alpha=0.4, alpha_warmup=200, logit_scale_init=10.0
    )
    return tree.replace(clip, name="emoji_momentum", objectives={"momentum": objective})
