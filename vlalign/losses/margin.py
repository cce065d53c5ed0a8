"""Triplet losses with online mining over all pairs of the batch, in linear memory."""

from typing import Literal, Unpack

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from vlalign.losses.contrast import SIDES, Directions, check_directions
from vlalign.losses.inputs import Options
from vlalign.losses.kernel.form import AllStats, Form, Named
from vlalign.losses.kernel.statistics import Highest, Total
from vlalign.losses.kernel.sweep import Tree
from vlalign.losses.kernel.tile import EXCLUDED
from vlalign.losses.loss import Loss
from vlalign.losses.pairs import Pairs

Mining = Literal["all", "hard", "semihard"]


def triplet_contrast(
    x_bd: Tree,
    y_bd: Tree,
    *,
    margin: ArrayLike,
    mining: Mining = "hard",
    directions: Directions = (0.5, 0.5),
    **options: Unpack[Options],
) -> Loss:
    """Hinge max(0, margin + negative - positive) on scores, over triplets mined from the batch.

    mining: "all": the sum over all negatives; "hard": each row's hardest negative (VSE++, Faghri et
    al. 2018, arXiv:1707.05612, eq. 6), and with `group_b` its hardest positive (batch hard, Hermans
    et al. 2017, arXiv:1703.07737, eq. 5); "semihard": the hardest negative that scores below the
    positive (FaceNet, Schroff et al. 2015, arXiv:1503.03832, section 3.2), none if there is none.
    margin: () in units of the scores. directions, options, errors: as in `softmax_contrast`.
    Metric: `active`, the number of triplets with a loss (not weighted, of the directions in use).
    """
    check_directions(directions, options.get("extra"))
    if mining not in ("all", "hard", "semihard"):
        raise ValueError(f'mining={mining!r}: must be "all", "hard" or "semihard"')
    pairs = Pairs.of(x_bd, y_bd, **options)
    grouped = pairs.group_b is not None
    if grouped and mining != "hard":
        raise ValueError(f'mining={mining!r} with group_b: several positives need mining="hard"')
    margin = jnp.asarray(margin).astype(pairs.dtype)
    own_b, named = pairs.matched(), _wanted(mining, grouped=grouped)
    found = pairs.statistics(
        Form(
            positives="group" if grouped else "diagonal",
            same_items=pairs.same_items,
            rows=named if directions[0] > 0 else (),
            columns=named if directions[1] > 0 else (),
        ),
        floor_b=own_b - margin if mining == "all" else None,
        ceiling_b=own_b if mining == "semihard" else None,
    )
    total, active = jnp.zeros((), own_b.dtype), jnp.zeros((), own_b.dtype)
    for share, stats in zip(directions, found, strict=True):
        if share > 0:
            loss_b, active_b = _hinge(stats, own_b, margin)
            present_b = (pairs.weight_b > 0).astype(active_b.dtype)
            total += share * jnp.sum(pairs.weight_b * loss_b)
            active += jnp.sum(present_b * active_b)
    metrics = {"active": jax.lax.stop_gradient(active)}
    return Loss(sum=total, count=jnp.sum(pairs.weight_b), metrics=metrics)


def hardest_negatives(
    x_bd: Tree, y_bd: Tree, *, k: int, **options: Unpack[Options]
) -> tuple[jax.Array, jax.Array]:
    """Scores and indices (B, k) of each row's k hardest negatives, hardest first; no gradient.

    An index below B is a column's, B + q that of extra column q, -1 where there are not so many
    (its score is -1e30). To make columns from: `negatives.py`.
    """
    pairs = Pairs.of(x_bd, y_bd, **options)
    grouped = pairs.group_b is not None
    form = Form(
        positives="group" if grouped else "diagonal",
        same_items=pairs.same_items,
        rows=(("negatives", Highest("negatives", k)),),
    )
    stats = jax.lax.stop_gradient(pairs.statistics(form)[SIDES.index("rows")])
    return stats["negatives"]["top"], stats["negatives"]["at"]


def _wanted(mining: Mining, *, grouped: bool) -> Named:
    if mining == "all":
        return (("violating", Total("negatives")),)
    negatives = ("negatives", Highest("negatives"))
    if not grouped:
        return (negatives,)
    return (negatives, ("positives", Highest("positives", lowest=True)))


def _hinge(stats: AllStats, own_b: jax.Array, margin: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Each row's loss (B,), and how many of its triplets have one."""
    if "violating" in stats:  # the negatives were chosen by the sign of their hinge
        count_b = jax.lax.stop_gradient(stats["violating"]["count"])
        return stats["violating"]["sum"] + count_b * (margin - own_b), count_b
    negative_b, found_b = stats["negatives"]["top"][:, 0], stats["negatives"]["at"][:, 0] >= 0
    if "positives" in stats:
        found_b &= stats["positives"]["at"][:, 0] >= 0
        own_b = stats["positives"]["top"][:, 0]
    away_b = jnp.where(found_b, margin + negative_b - own_b, jnp.asarray(EXCLUDED, own_b.dtype))
    return jnp.maximum(away_b, 0.0), (away_b > 0).astype(own_b.dtype)
