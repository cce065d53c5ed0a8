"""Writes golden/coca_*: open_clip's CoCa, its parts and its captions, at random weights.

Run with a Python that has open_clip 3.3 and transformers 5.23:

    python tests/encoders/make_golden_coca.py

coca_model.npz holds the parameters by their names (param/NAME), pixels (b, h, w, 3), ids (b, l),
the outputs of image tower, text tower and decoder, and gradients of the sum of wave * output over
all of them, wave being cos(0, 1, ...) in the array's shape: of the pixels (grad_pixels) and of the
parameters `LOOKED_AT` (grad/NAME). `captions` are what its greedy decoding gives, `prompted` those
behind the first tokens of `ids`.
coca_parallel.npz and coca_cascade.npz hold an image tower alone.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from open_clip import coca_model
from open_clip.coca_model import CoCa
from open_clip.transformer import VisionTransformer

GOLDEN = Path(__file__).parent / "golden"
LOOKED_AT = (
    "visual.attn_pool.query",
    "visual.attn_pool.attn.k_proj_weight",
    "text.cls_emb",
    "text.positional_embedding",
    "text.token_embedding.weight",
    "text_decoder.cross_attn.1.attn.in_proj_weight",
    "text_decoder.cross_attn.0.ln_1_kv.weight",
    "text_decoder.resblocks.1.attn.in_proj_weight",
    "text_decoder.text_projection",
)
START, END = 58, 48


def randomise(model: torch.nn.Module) -> None:
    """Random values for everything; scales of norms are near 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if name.endswith("query"):
                p.copy_(noise)
            elif p.ndim > 1 and "embedding" not in name:
                # The last two are not transposed.
                inputs = p.shape[0] if name.endswith("proj") else p[0].numel()
                p.copy_(noise / inputs**0.5)
            elif "ln_" in name and name.endswith("weight"):
                p.copy_(1 + 0.3 * noise)
            else:
                p.copy_(0.5 * noise)


def wave(x: torch.Tensor) -> torch.Tensor:
    return torch.cos(torch.arange(x.numel(), dtype=torch.float32)).reshape(x.shape)


def images(batch: int, channels: tuple[int, ...] = (3, 12, 12)) -> torch.Tensor:
    return torch.randn(batch, *channels, generator=torch.Generator().manual_seed(1))


def finished(model: torch.nn.Module, x: torch.Tensor, outputs: dict[str, torch.Tensor]) -> Any:
    """The arrays of a file: outputs, and gradients of their weighted sum."""
    sum((wave(out) * out).sum() for out in outputs.values()).backward()
    arrays = {f"param/{n}": p for n, p in model.named_parameters()} | outputs
    looked_at = {n: p for n, p in model.named_parameters() if n in LOOKED_AT}
    arrays |= {f"grad/{n}": p.grad for n, p in looked_at.items()}
    arrays["pixels"], arrays["grad_pixels"] = (y.permute(0, 2, 3, 1) for y in (x, x.grad))
    return {key: value.detach().numpy() for key, value in arrays.items()}


def mend_generate() -> None:
    """Gives open_clip what it imports all at once, of which beam search left transformers."""
    names = ("LogitsProcessorList", "MinLengthLogitsProcessor", "RepetitionPenaltyLogitsProcessor")
    for name in (*names, "MaxLengthCriteria", "StoppingCriteriaList"):
        setattr(coca_model, name, getattr(hf, name))
    coca_model.GENERATION_TYPES["top_k"] = hf.TopKLogitsWarper
    coca_model._has_transformers = True


def model() -> dict[str, np.ndarray]:
    vision: dict[str, Any] = dict(image_size=12, layers=2, width=24, patch_size=4, head_width=8)
    vision |= dict(attentional_pool=True, attn_pooler_heads=2, attn_pooler_queries=5)
    text: dict[str, Any] = dict(context_length=8, vocab_size=60, width=16, heads=2, layers=2)
    towers = dict(vision_cfg=vision | dict(output_tokens=True))
    towers |= dict(text_cfg=text | dict(embed_cls=True, output_tokens=True), multimodal_cfg=text)
    coca = CoCa(16, **towers).eval()
    randomise(coca)
    ids = torch.randint(1, 58, (3, 8), generator=torch.Generator().manual_seed(2))
    ids[:, 0] = START
    ids[0, 5:], ids[1, 7:] = 0, 0
    x = images(3).requires_grad_()
    image, image_tokens = coca._encode_image(x, normalize=False)
    text_pooled, text_tokens = coca._encode_text(ids, normalize=False)
    outputs = dict(image=image, image_tokens=image_tokens, text=text_pooled)
    outputs |= dict(text_tokens=text_tokens, logits=coca.text_decoder(image_tokens, text_tokens))
    arrays = finished(coca, x, outputs)
    greedy: dict[str, Any] = dict(generation_type="top_k", top_k=1, seq_len=8, min_seq_len=1)
    greedy |= dict(eos_token_id=END, sot_token_id=START, fixed_output_length=True)
    mend_generate()
    captions = coca.generate(x.detach(), **greedy)
    prompted = coca.generate(x.detach(), text=ids[:, :3], **greedy)
    return arrays | dict(
        ids=ids.int().numpy(), captions=captions.numpy(), prompted=prompted.numpy()
    )


def tower(pool: str) -> dict[str, np.ndarray]:
    vision = VisionTransformer(
        image_size=12,
        patch_size=4,
        width=16,
        layers=2,
        heads=2,
        mlp_ratio=2.0,
        attentional_pool=pool,  # type: ignore[arg-type]
        attn_pooler_queries=5,
        attn_pooler_heads=4,
        output_dim=16,
        output_tokens=True,
    ).eval()
    randomise(vision)
    x = images(2).requires_grad_()
    pooled, tokens = vision(x)
    return finished(vision, x, dict(image=pooled[:, 0], image_tokens=tokens))


def main() -> None:
    for name, arrays in {
        "model": model(),
        "parallel": tower("parallel"),
        "cascade": tower("cascade"),
    }.items():
        path = GOLDEN / f"coca_{name}.npz"
        np.savez_compressed(path, **arrays)
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")
        if "captions" in arrays:
            print(arrays["captions"], arrays["prompted"], arrays["ids"])


if __name__ == "__main__":
    main()
