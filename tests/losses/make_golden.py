"""Records values and gradients of other people's losses, for `test_peers.py` to hold ours against.

Run it in an environment with the `peers` extra. Every number comes from the peers' own code and
torch's autograd, in float64 at float32 inputs. It goes to `golden/<peer>.npz` under the peer's own
names: `<case>/in/<name>` has the gradient `<case>/grad/<name>`, `<case>/given/<name>` has none, and
`<case>/value` is the loss. `versions` says what ran.
"""

import argparse
import importlib
import subprocess
import sys
import types
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import lightly.loss as lightly
import numpy as np
import open_clip.loss as open_clip
import torch
import torch.nn.functional as F
from lightly.loss import swav_loss
from lightly.loss.hypersphere_loss import HypersphereLoss
from pytorch_metric_learning import distances, losses, miners, reducers

GOLDEN = Path(__file__).parent / "golden"
# The checkouts that --papers reads, in folders named as the repositories.
PAPERS = {
    "ispamm/GRAM": "b70c5c213de7d5bbd5f453e22757583c8d0ad599",
    "pakoromilas/Multi-View-CL": "c26ae77984b7e4b3b6b4568a6a58d028f6132c89",
    "anosorae/IRRA": "cfc23785545ead82dee2749fa0fc0ad948c96430",
    "deepglint/UniME": "d56558417617859a17726b932b912d26e6d272ba",
    "ml-jku/cloob": "357adda017e4104266b9ee23c821372b91e70f66",
    "ml-jku/hopfield-layers": "f56f929c95b77a070ae675ea4f56b6d54d36e730",
    "XLearning-SCU/2024-ICLR-Norton": "6c80470acbb8ab00f464d94669e10691a1da79bd",
}
B, D = 12, 8
GROUPS = np.asarray([0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 3, 0])

Arrays = Mapping[str, np.ndarray]
Peer = Callable[..., torch.Tensor]


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def near(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """Partners of x that resemble it, as those of a model half trained do."""
    return x + np.float32(0.8) * normal(rng, *x.shape)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


class Book:
    """The cases of one file."""

    def __init__(self, *versions: str) -> None:
        self.entries = {"versions": np.asarray((f"torch {torch.__version__}", *versions))}

    def record(
        self,
        case: str,
        peer: Callable[..., Peer],
        inputs: Arrays,
        given: Arrays | None = None,
        **options: float,
    ) -> None:
        """The value of `peer(**options)(**inputs, **given)`, and its gradients for the inputs."""
        given = given or {}
        wanted = {k: torch.from_numpy(v).double().requires_grad_() for k, v in inputs.items()}
        rest = {k: torch.from_numpy(v) for k, v in given.items()}
        rest = {k: v.double() if v.is_floating_point() else v for k, v in rest.items()}
        value = peer(**options)(**wanted, **rest).squeeze()
        found: dict[str, Any] = {f"in/{k}": v for k, v in inputs.items()}
        found |= {f"given/{k}": np.asarray(v) for k, v in {**given, **options}.items()}
        found["value"] = value.detach().numpy()
        assert found["value"].dtype == np.float64, f"{case}: not in float64"
        if value.requires_grad:
            grads = torch.autograd.grad(value, list(wanted.values()), materialize_grads=True)
            found |= {f"grad/{k}": g.numpy() for k, g in zip(wanted, grads, strict=True)}
        self.entries |= {f"{case}/{name}": array for name, array in found.items()}

    def write(self, name: str) -> None:
        path = GOLDEN / f"{name}.npz"
        np.savez_compressed(path, allow_pickle=False, **self.entries)
        cases = sum(key.endswith("/value") for key in self.entries)
        print(f"{path.name}: {cases} cases, {path.stat().st_size} bytes")


def record_open_clip() -> None:
    """World size 1."""
    rng, book = np.random.default_rng(0), Book(f"open_clip_torch {version('open_clip_torch')}")
    image = unit(normal(rng, B, D))
    pair = {"image_features": image, "text_features": unit(near(rng, image))}
    pair |= {"logit_scale": np.asarray(12, np.float32)}
    book.record("clip", open_clip.ClipLoss, pair)
    bias = {"logit_bias": np.asarray(-7, np.float32)}
    book.record("siglip", open_clip.SigLipLoss, pair | bias)
    image = unit(normal(rng, B, 5))
    teacher = {"dist_image_features": image, "dist_text_features": unit(near(rng, image))}
    teacher |= {"dist_logit_scale": np.asarray(9, np.float32)}
    for part in ("distill_loss", "sum"):
        book.record(f"distill/{part}", partial(distill_clip, part), pair, teacher)
    labels = rng.integers(1, 11, size=(B, 6))
    labels[rng.random(labels.shape) < 0.3] = 0  # the peer's pad_id
    logits = {"logits": normal(rng, B, 6, 11)}
    weights = {"caption_loss_weight": 2.0, "clip_loss_weight": 0.5}
    book.record("coca", coca, pair | logits, {"labels": labels}, **weights)
    book.write("open_clip")


def distill_clip(part: str) -> Peer:
    """The distillation alone, or with the contrastive loss: what the peer trains with."""

    def loss(**inputs):
        parts = open_clip.DistillClipLoss()(**inputs, output_dict=True)
        return sum(parts.values()) if part == "sum" else parts[part]

    return loss


def coca(**options: float) -> Peer:
    return lambda **inputs: sum(open_clip.CoCaLoss(**options)(**inputs))


def record_pytorch_metric_learning() -> None:
    """Cosine similarities: the peer normalises, its inputs are no unit vectors."""
    rng = np.random.default_rng(0)
    book = Book(f"pytorch-metric-learning {version('pytorch-metric-learning')}")
    x = normal(rng, B, D)
    y = near(rng, x)
    # Rows x among columns y, or both among each other; in pairs, or in groups.
    two, one = {"embeddings": x, "ref_emb": y}, {"embeddings": np.concatenate([x, y])}
    pairs, groups = ({"labels": of, "ref_labels": of} for of in (np.arange(B), GROUPS))
    item_pairs, items = ({"labels": np.tile(of["labels"], 2)} for of in (pairs, groups))
    items["labels"][-1] = 9  # alone: an item without a positive does not count
    book.record("ntxent/pairs", losses.NTXentLoss, two, pairs, temperature=0.125)
    book.record("ntxent/items", losses.NTXentLoss, one, item_pairs, temperature=0.125)
    book.record("supcon/groups", losses.SupConLoss, two, groups, temperature=0.125)
    book.record("supcon/items", losses.SupConLoss, one, items, temperature=0.125)
    book.record("triplet/all/pairs", all_triplets, two, pairs, margin=0.25)
    book.record("triplet/semihard/pairs", semihard_triplets, two, pairs, margin=0.25)
    book.record("triplet/hard/pairs", hard_triplets, two, pairs, margin=0.25)
    book.record("triplet/hard/groups", hard_triplets, two, groups, margin=0.25)
    book.record("triplet/hard/items", hard_triplets, one, items, margin=0.25)
    book.record("triplet/all/sum", all_triplets_sum, two, pairs, margin=0.25)
    book.record("triplet/semihard/hardest", hardest_of_semihard, two, pairs, margin=0.25)
    book.write("pytorch_metric_learning")


def triplet_margin(margin: float, miner: miners.BaseMiner | None = None, **options: Any) -> Peer:
    """By default the mean over the triplets of a loss above 0."""
    peer = losses.TripletMarginLoss(margin, distance=distances.CosineSimilarity(), **options)

    def loss(embeddings, labels, ref_emb=None, ref_labels=None):
        mined = miner and miner(embeddings, labels, ref_emb, ref_labels)
        return peer(embeddings, labels, mined, ref_emb, ref_labels)

    return loss


def all_triplets(margin: float) -> Peer:
    return triplet_margin(margin)


def all_triplets_sum(margin: float) -> Peer:
    return triplet_margin(margin, reducer=reducers.SumReducer())


def hard_triplets(margin: float) -> Peer:
    """The hardest positive and the hardest negative of each anchor."""
    return triplet_margin(margin, miners.BatchHardMiner(distance=distances.CosineSimilarity()))


def semihard_triplets(margin: float) -> Peer:
    """Of the negatives that score below the positive the hardest; anchors without are left out.

    TripletMarginMiner's "semihard" is another thing: see `hardest_of_semihard`.
    """
    cosine = distances.CosineSimilarity()
    return triplet_margin(margin, miners.BatchEasyHardMiner("hard", "semihard", distance=cosine))


def hardest_of_semihard(margin: float) -> Peer:
    """Sum over anchors of the largest loss among their semihard triplets.

    TripletMarginMiner's semihard triplets are all those of a loss whose negative scores below the
    positive. Where an anchor has one positive, the largest loss is that of the hardest negative.
    """
    miner = miners.TripletMarginMiner(margin, "semihard", distance=distances.CosineSimilarity())
    peer = triplet_margin(margin, miner, reducer=reducers.DoNothingReducer())

    def loss(embeddings, labels, ref_emb, ref_labels):
        found = peer(embeddings, labels, ref_emb, ref_labels)["loss"]
        each, anchors = found["losses"], found["indices"][0]
        return torch.zeros(len(labels)).scatter_reduce(0, anchors, each, "amax").sum()

    return loss


def record_lightly() -> None:
    """The peer normalises where it wants cosines; its inputs are no unit vectors."""
    rng, book = np.random.default_rng(0), Book(f"lightly {version('lightly')}")
    x = normal(rng, B, D)
    y = near(rng, x)
    views = {"out0": x, "out1": y}
    book.record("ntxent", lightly.NTXentLoss, views, temperature=0.125)
    book.record("dcl", lightly.DCLLoss, views, temperature=0.125)
    book.record("dclw", lightly.DCLWLoss, views, temperature=0.125, sigma=0.5)
    views = {"z_a": x, "z_b": y}
    book.record("hypersphere", HypersphereLoss, views, t=2.0, lam=0.5, alpha=2.0)
    book.record("barlow_twins", lightly.BarlowTwinsLoss, views, lambda_param=0.125)
    weights = {"lambda_param": 25.0, "mu_param": 15.0, "nu_param": 2.0, "eps": 1e-4}
    book.record("vicreg", lightly.VICRegLoss, views, **weights)
    # In whole batches, whose order in the peer is random and of no consequence.
    halves = {"input": np.concatenate([x[:, :5], y[:, :5]])}
    book.record("wmse", lightly.WMSELoss, halves, embedding_dim=5, w_size=B)
    z = {"z0": near(rng, x), "z1": near(rng, y)}
    book.record("simsiam", simsiam, {"p0": x, "p1": y} | z)
    features = {"x": unit(x), "y": unit(y), "prototypes": unit(normal(rng, 7, D))}
    options = {"temperature": 0.125, "sinkhorn_iterations": 3, "sinkhorn_epsilon": 0.25}
    book.record("swav", swav, features, **options)
    queue = {"queue_x": unit(normal(rng, 5, D)), "queue_y": unit(normal(rng, 5, D))}
    book.record("swav/crops", swav, features | {"crop": unit(near(rng, x))}, queue, **options)
    out = {"out": unit(x) @ features["prototypes"].T}
    book.record("sinkhorn", sinkhorn, out, iterations=3, epsilon=0.25)
    book.write("lightly")


def simsiam() -> Peer:
    """The mean of both directions; as in training, no gradient flows into the targets."""
    peer = lightly.NegativeCosineSimilarity()
    return lambda p0, p1, z0, z1: 0.5 * (peer(z0.detach(), p1) + peer(z1.detach(), p0))


def swav(**options: float) -> Peer:
    """Two views, or also a smaller crop and a queue: cosines with prototypes go in."""
    peer = lightly.SwaVLoss(**options)

    def loss(x, y, prototypes, crop=None, queue_x=None, queue_y=None):
        def scores(*views):
            return [view @ prototypes.T for view in views if view is not None]

        return peer(scores(x, y), scores(crop), scores(queue_x, queue_y) or None)

    return loss


def sinkhorn(**options: float) -> Peer:
    return lambda out: swav_loss.sinkhorn(out, **options)


def record_papers(folder: Path) -> None:
    """Losses that exist only as the code of a paper."""
    rng, book = np.random.default_rng(0), Book(*(" ".join(item) for item in PAPERS.items()))
    x = unit(normal(rng, B, D))
    y, z, u = (unit(near(rng, x)) for _ in range(3))
    pair, scale = {"x": x, "y": y}, np.asarray(8, np.float32)

    module = checkout(folder, "ispamm/GRAM", "utils/volume.py")
    three = {"text": x, "video": y, "audio": z, "contra_temp": np.asarray(0.125, np.float32)}
    four = three | {"subtitles": u}
    book.record("gram", partial(gram, module), three, label_smoothing=0.0)
    book.record("gram/smoothed", partial(gram, module), four, label_smoothing=0.1)

    absent = ("diffdist", "einops", "utils")
    module = checkout(folder, "pakoromilas/Multi-View-CL", "models/losses.py", absent)
    views = {"z": np.concatenate([x, y, z])}
    for name in ("MVINFONCE", "MVDHEL"):
        peer = partial(multiview, getattr(module, name))
        book.record(name.lower(), peer, views, tau=0.25, multiplier=3)

    module = checkout(folder, "anosorae/IRRA", "model/objectives.py")
    of_sdm = {"image_fetures": x, "text_fetures": y, "logit_scale": scale}
    book.record("sdm", lambda: module.compute_sdm, of_sdm, {"pid": GROUPS})

    module = checkout(folder, "deepglint/UniME", "loss.py")
    book.record("unime", partial(unime, module), pair, temperature=0.125, topk=4, threshold=0.1)

    module = checkout(folder, "ml-jku/cloob", "src/training/methods.py")
    of_loob = pair | {"inv_tau": scale}
    book.record("infoloob", lambda: module.infoLOOB_loss, of_loob, {"i": np.eye(B, dtype=bool)})
    layers = checkout(folder, "ml-jku/hopfield-layers", "hflayers")
    features = {"image_features": x, "text_features": y, "inv_tau": scale}
    book.record("cloob", partial(cloob, module, layers), features, scaling=6.0)

    module = checkout(folder, "XLearning-SCU/2024-ICLR-Norton", "mmpt/losses/nce.py")
    # Norton does not normalise here: the lengths are the inverse temperature.
    pooled = {"pooled_video": 2 * x, "pooled_text": 2 * y}
    book.record("norton", partial(norton, module), pooled, beta=0.25, sinkhorn_iterations=50)
    book.write("papers")


def checkout(
    folder: Path, repository: str, file: str, absent: tuple[str, ...] = ()
) -> types.ModuleType:
    """The module of a checkout; `absent` are packages that it imports and the loss does not use."""
    root = folder / repository.split("/")[1]
    head = subprocess.check_output(["git", "-C", root, "rev-parse", "HEAD"], text=True).strip()
    if head != PAPERS[repository]:
        raise SystemExit(f"{root} is at {head}; check out {PAPERS[repository]}")
    path = root / file
    package = types.ModuleType("checkout")
    package.__path__ = [str(path.parent)]
    stand_ins = {name: mock.MagicMock() for name in absent} | {"checkout": package}
    with mock.patch.dict(sys.modules, stand_ins):
        return importlib.import_module(f"checkout.{path.stem}")


def gram(module: types.ModuleType, label_smoothing: float) -> Peer:
    """As in model/gram.py: cross-entropies of minus the volumes, over their columns and rows."""

    def loss(text, video, audio, contra_temp, **more):
        volume = module.volume_computation(text, video, audio, *more.values()) / contra_temp
        targets = torch.arange(len(text))
        return sum(
            F.cross_entropy(-v, targets, label_smoothing=label_smoothing) / 2
            for v in (volume, volume.T)
        )

    return loss


def multiview(peer: Callable[..., Any], **options: float) -> Peer:
    """z holds the views one after the other."""
    return lambda z: peer(**options)(z)[0]


def unime(module: types.ModuleType, temperature: float, topk: int, threshold: float) -> Peer:
    peer = module.SimpleContrastiveLossBatchRank(temperature)

    def loss(x, y):
        # With less than topk negatives left the peer would bring back those it filtered out.
        scores = x @ y.T
        left = (scores <= scores.diag()[:, None] + threshold).sum(1) - 1
        assert topk <= left.min() < B - 1, "nothing filtered out, or too much"
        return peer(x, y, topk=topk, threshold_value=threshold)

    return loss


def cloob(module: types.ModuleType, layers: types.ModuleType, scaling: float) -> Peer:
    """The Hopfield layer as in src/training/train.py: no weights, no normalisation of its own."""
    off = ("hopfield_space", "pattern_projection", "state_pattern", "stored_pattern")
    off = tuple(f"normalize_{name}{affine}" for name in off for affine in ("", "_affine"))
    static = ("state_pattern", "pattern_projection", "stored_pattern")
    options = dict.fromkeys(off, False) | {f"{name}_as_static": True for name in static}
    layer = layers.Hopfield(
        input_size=D, scaling=scaling, disable_out_projection=True, dropout=False, **options
    )
    return lambda **inputs: module.cloob(**inputs, hopfield_layer=layer)


def norton(module: types.ModuleType, beta: float, sinkhorn_iterations: int) -> Peer:
    """The part of clips and captions; the weight None leaves out that of sequences."""
    sequence = mock.MagicMock(sequence_contrast_weight=None, threshold=1)
    config = mock.MagicMock(dataset=mock.MagicMock(clip_per_video=1))
    config.loss.configure_mock(
        sequence_contrast=sequence, beta=beta, sinkhorn_iterations=sinkhorn_iterations
    )
    return module.MMContraLoss(config)


def main() -> None:
    repositories = "\n".join(f"  {name} at {commit}" for name, commit in PAPERS.items())
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"The repositories of --papers, all on GitHub:\n{repositories}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--papers",
        type=Path,
        metavar="DIR",
        help="also make papers.npz, from DIR/<repository's name>, a checkout of each one below",
    )
    papers = parser.parse_args().papers
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    record_open_clip()
    record_pytorch_metric_learning()
    record_lightly()
    if papers is not None:
        # Two of the papers ask for float32 in the middle.
        with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
            record_papers(papers)


if __name__ == "__main__":
    main()
