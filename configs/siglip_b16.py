"""SigLIP B/16 at 256 pixels (Zhai et al. 2023, 2303.15343), on your own tar shards.

    vlalign plan siglip_b16 --topology v5e:16x16
    vlalign train siglip_b16 --set 'data.source.shards=("shards/{00000..12345}.tar",)' \
        --set data.tokenizer.path=spiece.model

Towers, loss, tokenizer and batch are the published ones; the optimiser is AdamW with the paper's
b2=0.95, and its other numbers are where to begin. Planned and never trained: docs/scaling.md has
what the compiler says of a pod. Data and vocabulary do not come with vlalign: shards are as
img2dataset writes them, the vocabulary is the SentencePiece model of c4_en (32,000 pieces).
"""

from typing import Any

from vlalign.data.captions import CaptionView
from vlalign.data.formats.webdataset import WebDatasetSource
from vlalign.data.pipeline import Data
from vlalign.data.preprocess import siglip
from vlalign.data.tokenizers.pieces import SentencePiece
from vlalign.encoders.text import TextTransformer
from vlalign.encoders.vit import ViT
from vlalign.experiment import Experiment
from vlalign.objectives.contrastive import SigLip
from vlalign.parallel.mesh import MeshSpec
from vlalign.train.config import Train
from vlalign.train.optimizer import Optimizer
from vlalign.train.schedule import Rsqrt


def config() -> Experiment:
    """The experiment: 9 billion pairs in batches of 32,768."""
    common: dict[str, Any] = {
        "width": 768,
        "depth": 12,
        "heads": 12,
        "activation": "gelu_tanh",
        "remat": "dots",
        "dtype": "bfloat16",
    }
    text = TextTransformer(
        vocab_size=32_000,
        embed_dim=768,
        causal=False,
        pool="last",
        mask_padding=False,
        pad_id=1,
        bias=True,
        **common,
    )
    return Experiment(
        name="siglip_b16",
        model={"image": ViT(patch_size=16, pool="map", **common), "text": text},
        objectives={"siglip": SigLip()},
        data=Data(
            source=WebDatasetSource(shards=("shards/{00000..00099}.tar",)),
            views={"image": siglip(256), "text": CaptionView()},
            tokenizer=SentencePiece(path="spiece.model", length=64),
            batch_size=32_768,
            workers=8,
        ),
        optimizer=Optimizer(
            learning_rate=1e-3,
            schedule=Rsqrt(warmup=10_000, timescale=10_000, cooldown=50_000),
            b2=0.95,
            weight_decay=1e-4,
        ),
        mesh=MeshSpec(data=-1, fsdp=16),
        train=Train(steps=274_658, log_every=50, save_every=2_000),
    )
