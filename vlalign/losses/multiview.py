"""Contrast of more than two views of a sample, or of more than two modalities."""

import functools
import itertools
from collections.abc import Mapping
from typing import Unpack

import jax
import jax.numpy as jnp

from vlalign.losses.contrast import log_sum_negatives, softmax_contrast
from vlalign.losses.inputs import Options
from vlalign.losses.kernel.form import Form
from vlalign.losses.kernel.statistics import LogSum
from vlalign.losses.kernel.tile import is_empty
from vlalign.losses.loss import Loss
from vlalign.losses.pairs import Pairs


def nt_xent(views_vbd: jax.Array, **options: Unpack[Options]) -> Loss:
    """Every view against all views of all samples: SimCLR, for several views SupCon's form.

    Chen et al. 2020 (arXiv:2002.05709, eq. 1): the views of one sample are each other's positives,
    an item makes no pair with itself; the mean over V * B items. Khosla et al. 2020
    (arXiv:2004.11362, eq. 2) for more than two views.
    views_vbd: unit-norm embeddings of V >= 2 views (V, B, d). options: as in `softmax_contrast`,
    but for groups, which are the samples.
    """
    items_nd, options = _items(views_vbd, options)
    return softmax_contrast(items_nd, items_nd, directions=(1.0, 0.0), **options)


def multiview_infonce(views_vbd: jax.Array, **options: Unpack[Options]) -> Loss:
    """One term for each sample over all its views at once: MV-InfoNCE.

    Koromilas et al. 2025 ("A principled framework for multi-view contrastive learning",
    arXiv:2507.06979): -log [sum over a sample's pairs of views of exp(score) / sum over its views
    and all other items of exp(score)].
    views_vbd, options: as in `nt_xent`.
    """
    views, batch = views_vbd.shape[:2]
    weight_b = options.get("row_weight_b")
    items_nd, options = _items(views_vbd, options)
    pairs = Pairs.of(items_nd, items_nd, **options)
    named = (("all", LogSum("all")), ("positives", LogSum("positives")))
    stats, _ = pairs.statistics(Form(positives="group", same_items=True, rows=named))
    all_b, positive_b = (
        jax.nn.logsumexp(stats[name]["lse"].reshape(batch, views), axis=1)
        for name in ("all", "positives")
    )
    return _weighted(all_b - positive_b, weight_b)


def multiview_dhel(views_vbd: jax.Array, **options: Unpack[Options]) -> Loss:
    """Alignment of all views, uniformity within each: MV-DHEL.

    Koromilas et al. 2025 (as above): sum over views of log sum_{j != i} exp(score of the view with
    itself) - log sum over the sample's unordered pairs of views of exp(score). For two views the
    decoupled hyperspherical energy loss DHEL (Koromilas et al. 2024, arXiv:2405.18045).
    views_vbd, options: as in `nt_xent`.
    """
    _check(views_vbd)
    views = list(views_vbd)
    lse_vb = jnp.stack([log_sum_negatives(view_bd, view_bd, **options) for view_bd in views])
    apart_b = jnp.sum(jnp.where(is_empty(lse_vb), 0.0, lse_vb), axis=0)
    together_pb = jnp.stack(
        [Pairs.of(u, v, **options).matched() for u, v in itertools.combinations(views, 2)]
    )
    loss_b = apart_b - jax.nn.logsumexp(together_pb, axis=0)
    return _weighted(loss_b, options.get("row_weight_b"))


def modality_contrast(
    embeddings: Mapping[str, jax.Array],
    *,
    weights: Mapping[tuple[str, str], float] | None = None,
    **options: Unpack[Options],
) -> Loss:
    """Weighted sum of `softmax_contrast` over pairs of modalities.

    embeddings: unit-norm (B, d) by modality. weights: of pairs of names, None: 1 for each pair.
    options: as in `softmax_contrast`. Metrics: those of each pair, as `<one>_<other>/<metric>`.
    Raises ValueError for fewer than two modalities, or a pair of which a name is unknown.
    """
    if weights is None:
        weights = dict.fromkeys(itertools.combinations(embeddings, 2), 1.0)
    unknown = {name for pair in weights for name in pair} - set(embeddings)
    if unknown or not weights:
        raise ValueError(
            f"weights={dict(weights)}: must name one pair or more of {sorted(embeddings)}"
        )
    total, count = [], []
    metrics: dict[str, jax.Array] = {}
    for (one, other), weight in weights.items():
        loss = softmax_contrast(embeddings[one], embeddings[other], **options)
        total.append(weight * loss.sum)
        count.append(loss.count)
        metrics |= {f"{one}_{other}/{name}": value for name, value in loss.metrics.items()}
    return Loss(sum=functools.reduce(jnp.add, total), count=count[0], metrics=metrics)


def _items(views_vbd: jax.Array, options: Options) -> tuple[jax.Array, Options]:
    """All views as items (B * V, d), the views of a sample together: a cut batch stays cut."""
    _check(views_vbd)
    if options.get("group_b") is not None or options.get("same_items"):
        raise ValueError("group_b, same_items: the groups of views are the samples")
    views, batch, dim = views_vbd.shape
    items = Options(**options | {"group_b": jnp.repeat(jnp.arange(batch, dtype=jnp.int32), views)})
    items["same_items"] = True
    for name in ("row_weight_b", "duplicate_b"):
        if (value := options.get(name)) is not None:
            items[name] = jnp.repeat(jnp.asarray(value), views)
    return jnp.swapaxes(views_vbd, 0, 1).reshape(batch * views, dim), items


def _check(views_vbd: jax.Array) -> None:
    if views_vbd.ndim != 3 or views_vbd.shape[0] < 2:
        raise ValueError(f"views_vbd {views_vbd.shape}: must be (V, B, d), V >= 2")


def _weighted(loss_b: jax.Array, weight_b: jax.Array | None) -> Loss:
    if weight_b is None:
        weight_b = jnp.ones_like(loss_b)
    weight_b = jnp.where(weight_b > 0, weight_b, 0).astype(loss_b.dtype)
    return Loss(sum=jnp.sum(weight_b * loss_b), count=jnp.sum(weight_b))
