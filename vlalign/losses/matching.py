"""Matching of distributions over the batch: what a softmax says against what labels say."""

from typing import Unpack

import jax.numpy as jnp
from jax.typing import ArrayLike

from vlalign.losses.contrast import Directions, check_directions
from vlalign.losses.inputs import Options
from vlalign.losses.kernel.form import Form, Named
from vlalign.losses.kernel.statistics import LogSum, Total
from vlalign.losses.kernel.sweep import Tree
from vlalign.losses.loss import Loss
from vlalign.losses.pairs import Pairs


def distribution_matching(
    x_bd: Tree,
    y_bd: Tree,
    *,
    directions: Directions = (1.0, 1.0),
    epsilon: ArrayLike = 1e-8,
    **options: Unpack[Options],
) -> Loss:
    """KL(softmax of the scores || labels): similarity distribution matching with many positives.

    IRRA (Jiang & Ye 2023, arXiv:2303.12501, eq. 6 to 8): sum_j p_ij log(p_ij / (q_ij + epsilon)),
    q uniform over the samples of equal `group_b` (without it: the diagonal). The softmax stands in
    front, so that mass on a wrong pair is punished and a forgotten positive is not.
    directions, options, errors: as in `softmax_contrast`; epsilon: () floor of the labels.
    """
    check_directions(directions, options.get("extra"))
    pairs = Pairs.of(x_bd, y_bd, **options)
    named: Named = (
        ("all", LogSum("all", mean=True)),
        ("positives", LogSum("positives")),
        ("labels", Total("positives")),
    )
    form = Form(
        positives="diagonal" if pairs.group_b is None else "group",
        same_items=pairs.same_items,
        rows=named if directions[0] > 0 else (),
        columns=named if directions[1] > 0 else (),
    )
    epsilon = jnp.asarray(epsilon).astype(pairs.dtype)
    total = jnp.zeros((), pairs.dtype)
    for share, stats in zip(directions, pairs.statistics(form), strict=True):
        if share > 0:
            lse_b, labels_b = stats["all"]["lse"], stats["labels"]["count"]
            hit_b = jnp.exp(stats["positives"]["lse"] - lse_b)
            label_b = 1.0 / jnp.maximum(labels_b, 1.0)
            log_q_b = jnp.log(epsilon) + hit_b * (jnp.log(label_b + epsilon) - jnp.log(epsilon))
            total += share * jnp.sum(pairs.weight_b * (stats["all"]["mean"] - lse_b - log_q_b))
    return Loss(sum=total, count=jnp.sum(pairs.weight_b))
