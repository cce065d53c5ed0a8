"""open_clip's train step; run by `benchmarks/step.py` in an environment with the peers.

    python benchmarks/_step_peer.py BATCH float32|bfloat16 DEPTH THREADS

Answers each line "step" on its standard input with seconds, CPU seconds and loss of a step of
open_clip's `ViT-B-32` and `ClipLoss`: clipping of the global norm at 1, torch's fused AdamW with
decay of the matrices, as open_clip's own training groups them; and "rate" with the GFLOP/s of
2048 x 2048 products. bfloat16 is torch's autocast, as open_clip's `--precision amp_bfloat16`.
"""

import sys
import time

import open_clip
import torch


def make(depth: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """The model in training mode and its optimiser."""
    config = open_clip.get_model_config("ViT-B-32")
    for part in ("vision_cfg", "text_cfg"):
        config[part]["layers"] = depth
    model = open_clip.CLIP(**config)
    model.train()
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    plain = [p for name, p in named if p.ndim < 2 or "ln" in name]
    matrices = [p for name, p in named if not (p.ndim < 2 or "ln" in name)]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": matrices, "weight_decay": 0.1}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.98), eps=1e-6, fused=True)
    return model, optimizer


def main() -> None:
    """Builds the model and answers until the input ends."""
    batch, dtype = int(sys.argv[1]), getattr(torch, sys.argv[2])
    torch.set_num_threads(int(sys.argv[4]))
    torch.manual_seed(0)
    model, optimizer = make(int(sys.argv[3]))
    loss_fn = open_clip.ClipLoss()
    images = torch.randn(batch, 3, 224, 224)
    tokens = torch.randint(1, 49407, (batch, 77))
    tokens[:, -1] = 49407
    square = torch.ones(2048, 2048, dtype=dtype)

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = loss_fn(*model(images, tokens))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)
        return float(loss.detach())

    for line in sys.stdin:
        start, cpu = time.perf_counter(), time.process_time()
        if line.strip() == "rate":
            for _ in range(8):
                square @ square
            print(8 * 2 * 2048**3 / 1e9 / (time.perf_counter() - start), flush=True)
            continue
        loss = step()
        print(time.perf_counter() - start, time.process_time() - cpu, loss, flush=True)


if __name__ == "__main__":
    main()
