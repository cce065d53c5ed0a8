"""Our losses against other people's code, whose values and gradients `make_golden.py` recorded.

Each docstring says what of the peer's is what of ours. Gradients are those of the peer's inputs: a
peer that normalises them gets `unit` around them here.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace as Recorded
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlalign.losses.captioning import captioning_loss
from vlalign.losses.clustering import sinkhorn_codes, swapped_prediction
from vlalign.losses.contrast import (
    Extra,
    Hardest,
    Smoothing,
    Teacher,
    sigmoid_contrast,
    softmax_contrast,
)
from vlalign.losses.hopfield import hopfield_retrieval
from vlalign.losses.margin import triplet_contrast
from vlalign.losses.matching import distribution_matching
from vlalign.losses.multiview import multiview_dhel, multiview_infonce, nt_xent
from vlalign.losses.predictive import byol, simsiam
from vlalign.losses.redundancy import barlow_twins, vicreg, whitened_mse
from vlalign.losses.scores import Volume, volume_columns
from vlalign.losses.sinkhorn import transport_teacher
from vlalign.losses.uniformity import alignment, uniformity

GOLDEN = Path(__file__).parent / "golden"
ROWS = (1.0, 0.0)  # the direction of peers that have only one
Check = Callable[..., None]


@functools.cache
def golden() -> dict[str, np.ndarray]:
    """All that was recorded: "<peer>/<case>/value", "<peer>/<case>/<kind>/<name>"."""
    arrays = {}
    for path in GOLDEN.glob("*.npz"):
        with np.load(path, allow_pickle=False) as file:
            arrays |= {f"{path.stem}/{name}": array for name, array in file.items()}
    return arrays


def read(case: str, kind: str) -> dict[str, Any]:
    """What of a case is "in", "given" or "grad": integers of 32 bits, given numbers as numbers."""
    start, found = f"{case}/{kind}/", {}
    for name, array in golden().items():
        if name.startswith(start):
            array = array.astype(np.int32) if array.dtype == np.int64 else array
            number = kind == "given" and array.ndim == 0
            found[name.removeprefix(start)] = array.item() if number else array
    return found


@pytest.fixture
def check(check_close: Callable[..., None]) -> Check:
    """Asserts that ours, a function of what was recorded, has the peer's value and gradients.

    The peers calculated in float64, ours does in float32.
    """

    def run(case: str, ours: Callable[[Recorded], jax.Array]) -> None:
        given = read(case, "given")
        step = jax.jit(jax.value_and_grad(lambda inputs: ours(Recorded(**inputs, **given))))
        found = jax.tree.map(np.asarray, step(read(case, "in")))
        check_close(found, (golden()[f"{case}/value"], read(case, "grad")))

    return run


def unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


# open_clip.loss


def _of_features(p: Recorded, **options: Any) -> jax.Array:
    pair = p.image_features, p.text_features
    return softmax_contrast(*pair, logit_scale=p.logit_scale, **options).mean


def test_open_clip_clip_loss(check: Check):
    """ClipLoss: `softmax_contrast`."""
    check("open_clip/clip", _of_features)


def test_open_clip_siglip_loss(check: Check):
    """SigLipLoss: `sigmoid_contrast`; both divide the sum over all pairs by the rows."""

    def ours(p):
        pair, scale = (p.image_features, p.text_features), p.logit_scale
        return sigmoid_contrast(*pair, logit_scale=scale, logit_bias=p.logit_bias).mean

    check("open_clip/siglip", ours)


def test_open_clip_distill_clip_loss(check: Check):
    """DistillClipLoss: its distillation is a `Teacher` of alpha=1; the sum with the contrastive
    loss, which open_clip trains with, is twice the loss of alpha=0.5."""

    def ours(p, alpha):
        pair = p.dist_image_features, p.dist_text_features
        return _of_features(p, teacher=Teacher(*pair, p.dist_logit_scale, alpha))

    check("open_clip/distill/distill_loss", lambda p: ours(p, 1.0))
    check("open_clip/distill/sum", lambda p: 2.0 * ours(p, 0.5))


def test_open_clip_coca_loss(check: Check):
    """CoCaLoss: weighted `softmax_contrast` and `captioning_loss`, whose mean is over tokens."""

    def ours(p):
        caption = captioning_loss(p.logits, p.labels, pad_id=0).mean
        return p.clip_loss_weight * _of_features(p) + p.caption_loss_weight * caption

    check("open_clip/coca", ours)


# pytorch_metric_learning, with CosineSimilarity


def _embeddings(p: Recorded, among: str) -> dict[str, Any]:
    """Among references, in "pairs" or "groups": rows and columns; among themselves: "items"."""
    x = unit(p.embeddings)
    if among == "items":
        items = {"group_b": p.labels, "same_items": True, "directions": ROWS}
        return {"x_bd": x, "y_bd": x} | items
    groups = {"group_b": p.labels} if among == "groups" else {}
    return {"x_bd": x, "y_bd": unit(p.ref_emb), "directions": ROWS} | groups


@pytest.mark.parametrize(
    ("loss", "among"),
    [("ntxent", "pairs"), ("ntxent", "items"), ("supcon", "groups"), ("supcon", "items")],
)
def test_pytorch_metric_learning_softmax(loss: str, among: str, check: Check):
    """NTXentLoss (one positive each) and SupConLoss (several): `softmax_contrast` of one direction.

    With several positives NTXentLoss is another loss: there each has a denominator of its own. An
    item without a positive, as there is one in SupConLoss' items, does not count in either.
    """

    def ours(p):
        return softmax_contrast(**_embeddings(p, among), logit_scale=1.0 / p.temperature).mean

    check(f"pytorch_metric_learning/{loss}/{among}", ours)


@pytest.mark.parametrize(
    "case", ["all/pairs", "semihard/pairs", "hard/pairs", "hard/groups", "hard/items"]
)
def test_pytorch_metric_learning_triplets(case: str, check: Check):
    """TripletMarginLoss: `triplet_contrast`, the sum over the number of triplets with a loss.

    No miner: "all". BatchHardMiner: "hard". BatchEasyHardMiner with the hardest positive and
    semihard negatives: "semihard".
    """

    def ours(p):
        mining, among = case.split("/")
        options = {"margin": p.margin, "mining": mining}
        loss = triplet_contrast(**_embeddings(p, among), logit_scale=1.0, **options)
        return loss.sum / loss.metrics["active"]

    check(f"pytorch_metric_learning/triplet/{case}", ours)


@pytest.mark.parametrize(("case", "mining"), [("all/sum", "all"), ("semihard/hardest", "semihard")])
def test_pytorch_metric_learning_sums_of_triplets(case: str, mining: Any, check: Check):
    """TripletMarginLoss with SumReducer: the `sum` of "all" triplets. TripletMarginMiner's semihard
    triplets are all between the positive and the margin: ours is each anchor's hardest of them."""

    def ours(p):
        options = {"margin": p.margin, "mining": mining}
        return triplet_contrast(**_embeddings(p, "pairs"), logit_scale=1.0, **options).sum

    check(f"pytorch_metric_learning/triplet/{case}", ours)


# lightly.loss


def test_lightly_ntxent_loss(check: Check):
    """NTXentLoss: `nt_xent` of two views."""

    def ours(p):
        views = jnp.stack([unit(p.out0), unit(p.out1)])
        return nt_xent(views, logit_scale=1.0 / p.temperature).mean

    check("lightly/ntxent", ours)


def test_lightly_dcl_loss(check: Check):
    """DCLLoss: both views' items among each other, the positives not in the denominator."""

    def ours(p):
        x = jnp.concatenate([unit(p.out0), unit(p.out1)])
        group = np.tile(np.arange(len(p.out0), dtype=np.int32), 2)
        options = {"group_b": group, "same_items": True, "denominator": "negatives"}
        return softmax_contrast(x, x, logit_scale=1.0 / p.temperature, **options).mean

    check("lightly/dcl", ours)


def test_lightly_dclw_loss(check: Check):
    """DCLWLoss: a view's items as rows; the other view's as columns, and as extra columns the
    view's own, but each for its row. The positives' weights go into `positive_bd`."""

    def ours(p):
        def one(x, y):
            cosine_b = jax.lax.stop_gradient(jnp.sum(x * y, axis=1))
            weight_b = 2.0 - len(x) * jax.nn.softmax(cosine_b / p.sigma)
            own = Extra(x, owner_q=jnp.arange(len(x), dtype=jnp.int32))
            options = {"extra": own, "denominator": "negatives", "directions": ROWS}
            options |= {"positive_bd": weight_b[:, None] * y}
            return softmax_contrast(x, y, logit_scale=1.0 / p.temperature, **options).mean

        x, y = unit(p.out0), unit(p.out1)
        return 0.5 * (one(x, y) + one(y, x))

    check("lightly/dclw", ours)


def test_lightly_hypersphere_loss(check: Check):
    """HypersphereLoss: `alignment`, and the mean of the views' `uniformity`."""

    def ours(p):
        x, y = unit(p.z_a), unit(p.z_b)
        spread = 0.5 * (uniformity(x, t=p.t).mean + uniformity(y, t=p.t).mean)
        return alignment(x, y, alpha=p.alpha).mean + p.lam * spread

    check("lightly/hypersphere", ours)


def test_lightly_barlow_twins_loss(check: Check):
    """BarlowTwinsLoss: `barlow_twins`."""

    def ours(p):
        return barlow_twins(p.z_a, p.z_b, redundancy_weight=p.lambda_param).mean

    check("lightly/barlow_twins", ours)


def test_lightly_vicreg_loss(check: Check):
    """VICRegLoss: `vicreg`."""

    def ours(p):
        weights = {"invariance_weight": p.lambda_param, "variance_weight": p.mu_param}
        weights |= {"covariance_weight": p.nu_param, "epsilon": p.eps}
        return vicreg(p.z_a, p.z_b, **weights).mean

    check("lightly/vicreg", ours)


def test_lightly_wmse_loss(check: Check):
    """WMSELoss, whitened over the whole batch: `whitened_mse`."""
    check("lightly/wmse", lambda p: whitened_mse(*jnp.split(p.input, 2)).mean)


def test_lightly_negative_cosine_similarity(check: Check):
    """NegativeCosineSimilarity, both ways: `simsiam`; `byol` is 4 + 4 times that."""

    def arguments(p):
        return p.p0, p.p1, p.z0, p.z1

    check("lightly/simsiam", lambda p: simsiam(*arguments(p)).mean)
    check("lightly/simsiam", lambda p: byol(*arguments(p)).mean / 4.0 - 1.0)


@pytest.mark.parametrize("case", ["swav", "swav/crops"])
def test_lightly_swav_loss(case: str, check: Check):
    """SwaVLoss: `swapped_prediction`; crops of low resolution have no codes, queues are assigned
    with the batch."""

    def ours(p):
        def scores(*names):
            views = [getattr(p, name) for name in names if hasattr(p, name)]
            return [view @ p.prototypes.T for view in views]

        return swapped_prediction(
            scores("x", "y", "crop"),
            temperature=p.temperature,
            epsilon=p.sinkhorn_epsilon,
            iterations=p.sinkhorn_iterations,
            queue_scores=scores("queue_x", "queue_y"),
        ).mean

    check(f"lightly/{case}", ours)


def test_lightly_sinkhorn():
    """`lightly.loss.swav_loss.sinkhorn`: `sinkhorn_codes`."""
    case = "lightly/sinkhorn"
    found = sinkhorn_codes(read(case, "in")["out"], **read(case, "given"))
    np.testing.assert_allclose(found, golden()[f"{case}/value"], rtol=0, atol=1e-6)


# The code of papers; make_golden.py says where it is


@pytest.mark.parametrize("case", ["gram", "gram/smoothed"])
def test_gram(case: str, check: Check):
    """Cross-entropies of minus GRAM's volumes: `softmax_contrast` with the score `Volume`."""

    def ours(p):
        names = ("video", "audio", "subtitles")
        columns = jnp.stack([getattr(p, name) for name in names if hasattr(p, name)], axis=1)
        return softmax_contrast(
            p.text,
            volume_columns(columns),
            logit_scale=1.0 / p.contra_temp,
            score=Volume(),
            smoothing=Smoothing(p.label_smoothing),
        ).mean

    check(f"papers/{case}", ours)


@pytest.mark.parametrize(
    ("case", "loss"), [("mvinfonce", multiview_infonce), ("mvdhel", multiview_dhel)]
)
def test_multiview(case: str, loss: Callable[..., Any], check: Check):
    """MVINFONCE and MVDHEL of "A principled framework for multi-view contrastive learning"."""

    def ours(p):
        views = unit(p.z).reshape(p.multiplier, -1, p.z.shape[1])
        return loss(views, logit_scale=1.0 / p.tau).mean

    check(f"papers/{case}", ours)


def test_irra_sdm(check: Check):
    """IRRA's compute_sdm: `distribution_matching`, both with an epsilon of 1e-8."""

    def ours(p):
        x, y = unit(p.image_fetures), unit(p.text_fetures)
        return distribution_matching(x, y, logit_scale=p.logit_scale, group_b=p.pid).mean

    check("papers/sdm", ours)


def test_unime(check: Check):
    """UniME's SimpleContrastiveLossBatchRank: the `Hardest` negatives of the rows."""

    def ours(p):
        options = {"hardest": Hardest(p.topk, p.threshold), "directions": ROWS}
        return softmax_contrast(p.x, p.y, logit_scale=1.0 / p.temperature, **options).mean

    check("papers/unime", ours)


def test_infoloob(check: Check):
    """CLOOB's infoLOOB_loss: positives left out of the denominator; over the scale."""

    def ours(p):
        options = {"denominator": "negatives", "directions": ROWS}
        return softmax_contrast(p.x, p.y, logit_scale=p.inv_tau, **options).mean / p.inv_tau

    check("papers/infoloob", ours)


def test_cloob(check: Check):
    """CLOOB's loss: InfoLOOB of what each sample retrieves from the images, and from the texts."""

    def ours(p):
        def among(stored, other):
            own, others = (hopfield_retrieval(z, stored, scale=p.scaling) for z in (stored, other))
            options = {"denominator": "negatives", "directions": ROWS}
            return softmax_contrast(own, others, logit_scale=p.inv_tau, **options).mean

        x, y = p.image_features, p.text_features
        return (among(x, y) + among(y, x)) / p.inv_tau

    check("papers/cloob", ours)


def test_norton(check: Check):
    """Norton's MMContraLoss without its sequences: `transport_teacher`, both directions' sum.

    Norton's plan need not have rows that sum to 1, ours has: compared where it has converged.
    """

    def ours(p):
        pair = p.pooled_video, p.pooled_text
        teacher = transport_teacher(
            *pair, logit_scale=1.0, alpha=p.beta, iterations=p.sinkhorn_iterations
        )
        return 2.0 * softmax_contrast(*pair, logit_scale=1.0, teacher=teacher).mean

    check("papers/norton", ours)
