"""A run that is quick to start, for benchmarks/faults.py: 64 drawn pictures, two small towers."""

import io
from typing import Any

import numpy as np
from PIL import Image

from vlalign.data.captions import CaptionView
from vlalign.data.images import ImageView
from vlalign.data.pipeline import Data
from vlalign.data.record import Caption, Record
from vlalign.data.sources import MemorySource
from vlalign.data.tokenizer import Bpe
from vlalign.encoders.text import TextTransformer
from vlalign.encoders.vit import ViT
from vlalign.evals.retrieval import Retrieval
from vlalign.experiment import Experiment
from vlalign.objectives.momentum import MomentumClip
from vlalign.parallel.mesh import MeshSpec
from vlalign.train.config import Train
from vlalign.train.optimizer import Optimizer
from vlalign.train.schedule import Cosine

COLOURS = ("red", "green", "blue", "white", "black", "grey", "brown", "pink")


def config() -> Experiment:
    """With memory (a queue, an EMA copy), an average of the parameters, and token dropping."""
    source = MemorySource(records=tuple(record(index) for index in range(64)))
    tower: dict[str, Any] = {"width": 32, "depth": 2, "heads": 4, "embed_dim": 16, "scan": True}
    return Experiment(
        name="faults",
        model={
            "image": ViT(patch_size=8, pool="mean", token_drop=0.25, **tower),
            "text": TextTransformer(vocab_size=320, **tower),
        },
        objectives={"momentum": MomentumClip(queue=32, alpha_warmup=10)},
        data=Data(
            source=source,
            views={"image": ImageView(size=16, rotation=20.0), "text": CaptionView(template=0.0)},
            tokenizer=Bpe(vocab_size=300, length=12),
            batch_size=16,
        ),
        optimizer=Optimizer(learning_rate=1e-3, schedule=Cosine(warmup=5)),
        evals={"retrieval": Retrieval(source=source, ks=(1, 5), every=40)},
        mesh=MeshSpec(data=1, fsdp=-1),
        # The watchdog speaks before gloo does, which ends a process after 30 s in one collective.
        train=Train(steps=120, log_every=1, save_every=5, ema=0.99, stall_s=15.0, on_nan="rewind"),
    )


def record(index: int) -> Record:
    """A square of one colour with a bar, and its name."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:] = (40 + 30 * (index % 7), 20 + 50 * (index % 4), 255 - 3 * index)
    pixels[:, index % 16] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    name = f"{COLOURS[index % 8]} number {index}"
    return Record(key=f"r{index}", image=buffer.getvalue(), captions=(Caption(name, kind="name"),))
