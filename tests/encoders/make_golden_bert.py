"""Writes golden/bert_*: text towers of transformers and open_clip at random weights.

Run with a Python that has transformers 5.23 and open_clip 3.3:

    python tests/encoders/make_golden_bert.py

Each .npz holds the tower's parameters by their names in its files (param/NAME), the ids (b, l),
`pooled`, `tokens` where they are not padding, and gradients (grad/NAME) of sum(wave * pooled) +
sum(wave * tokens), wave being cos(0, 1, ...) in the array's shape, for the parameters `LOOKED_AT`.
bert_buckets.npz has MPNet's buckets of distances.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from open_clip.hf_model import HFTextEncoder
from safetensors.torch import load_file
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

GOLDEN = Path(__file__).parent / "golden"
LOOKED_AT = (
    "word_embeddings.weight",
    "position_embeddings.weight",
    "token_type_embeddings.weight",
    "relative_attention_bias.weight",
    "layer.1.attention.self.key.weight",
    "layer.1.attention.attn.k.weight",
    "layer.1.attention.k_lin.weight",
    "layer.0.output.LayerNorm.weight",
    "pooler.dense.weight",
    "proj.0.weight",
    "proj.weight",
)
SIZES: dict[str, Any] = dict(
    vocab_size=60,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=3,
    max_position_embeddings=14,
)
Run = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
Case = tuple[torch.nn.Module, int, Run]


def randomise(model: torch.nn.Module) -> None:
    """Random values for everything; scales of norms are near 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim > 1 and "embeddings" not in name:
                p.copy_(noise / p.shape[1] ** 0.5)
            elif "norm" in name.lower() and name.endswith("weight"):
                p.copy_(1 + 0.3 * noise)
            else:
                p.copy_(0.5 * noise)


def class_token(hidden: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    return hidden[:, 0]


def mean(hidden: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """As sentence-transformers takes it."""
    weight = real[..., None].float()
    return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)


def case(model: torch.nn.Module, pad: int, pool: Any = None) -> Case:
    """pool: of the hidden states; None: the model's own pooler."""

    def run(ids: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = model(input_ids=ids, attention_mask=real.long())
        hidden = out.last_hidden_state
        return (out.pooler_output if pool is None else pool(hidden, real)), hidden

    return model, pad, run


def open_clip(projection: str, pooler: str) -> Case:
    config = hf.XLMRobertaConfig(**SIZES, pad_token_id=1, type_vocab_size=1, layer_norm_eps=1e-5)
    model = HFTextEncoder("", 10, config, pooler, projection, pretrained=False, output_tokens=True)
    return model, 1, lambda ids, real: model(ids)


def bert() -> torch.nn.Module:
    return hf.BertModel(hf.BertConfig(**SIZES))


def roberta(**options: Any) -> torch.nn.Module:
    sizes = SIZES | dict(pad_token_id=1, layer_norm_eps=1e-5) | options
    return hf.RobertaModel(hf.RobertaConfig(**sizes))


def mpnet() -> torch.nn.Module:
    config = hf.MPNetConfig(**SIZES, layer_norm_eps=1e-5, relative_attention_num_buckets=32)
    return hf.MPNetModel(config)


def distilbert() -> torch.nn.Module:
    config = hf.DistilBertConfig(
        vocab_size=60, dim=24, hidden_dim=40, n_layers=2, n_heads=3, max_position_embeddings=14
    )
    return hf.DistilBertModel(config)


CASES: dict[str, Callable[[], Case]] = {
    "bert": lambda: case(bert(), 0),
    "bert_mean": lambda: case(bert(), 0, mean),
    "roberta": lambda: case(roberta(type_vocab_size=1), 1, class_token),
    "xlm_roberta_linear": lambda: open_clip("linear", "mean_pooler"),
    "xlm_roberta_mlp": lambda: open_clip("mlp", "cls_pooler"),
    "mpnet": lambda: case(mpnet(), 1, mean),
    "distilbert": lambda: case(distilbert(), 0, class_token),
}


def ids_of(pad: int) -> torch.Tensor:
    """Three texts of 12 tokens, the most that all towers take. The second has no padding, the third
    some between its tokens too, so that it shows where positions are counted from.
    """
    ids = torch.randint(2, 60, (3, 12), generator=torch.Generator().manual_seed(1))
    ids[0, 7:] = pad
    ids[2, 4:6] = pad
    ids[2, 10:] = pad
    return ids


def wave(x: torch.Tensor) -> torch.Tensor:
    return torch.cos(torch.arange(x.numel(), dtype=torch.float32)).reshape(x.shape)


def in_files(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters by their names in files, which transformers changes on reading and writing."""
    if not isinstance(model, hf.PreTrainedModel):
        return dict(model.named_parameters())
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(f"{folder}/model.safetensors")


def stored(name: str) -> dict[str, np.ndarray]:
    model, pad, run = CASES[name]()
    model = model.eval()
    randomise(model)
    ids = ids_of(pad)
    real = ids != pad
    pooled, tokens = run(ids, real)
    if tokens.shape[1] < ids.shape[1]:  # open_clip leaves out the class token with its pooler
        real = real[:, 1:]
    tokens = tokens * real[..., None]
    ((pooled * wave(pooled)).sum() + (tokens * wave(tokens)).sum()).backward()
    arrays = {f"param/{n}": p for n, p in in_files(model).items()}
    looked_at = {n: p for n, p in model.named_parameters() if n.endswith(LOOKED_AT)}
    arrays |= {f"grad/{n}": p.grad for n, p in looked_at.items() if p.grad is not None}
    arrays |= {"ids": ids.int(), "pooled": pooled, "tokens": tokens}
    return {key: value.detach().numpy() for key, value in arrays.items()}


def main() -> None:
    for name in CASES:
        path = GOLDEN / f"bert_{name}.npz"
        arrays = stored(name)
        np.savez_compressed(path, **arrays)
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB", sorted(arrays)[:9])
    offset = torch.arange(520)[None] - torch.arange(520)[:, None]
    buckets = MPNetEncoder.relative_position_bucket(offset)
    np.savez_compressed(GOLDEN / "bert_buckets.npz", buckets=buckets[[0, -1]].numpy())


if __name__ == "__main__":
    main()
