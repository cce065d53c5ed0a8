"""Softmax and sigmoid contrast of a batch, exact, in memory linear in it, on any mesh.

Embeddings arrive unit-normalised: nothing here divides by a norm, scores are scale * <x, y>.
Inside `jax.set_mesh(mesh)` arrays have their global meaning: the kernel cuts the batch over those
of the mesh axes `data` and `fsdp` that exist, repeats the work over other axes, and returns the
numbers of the whole batch. Without a mesh it is the plain loss.
All forms return sums and a count; the caller divides once (`Loss.mean`). Their metrics are
`positive_logit`, and for the directions in use `accuracy_rows` and `accuracy_columns` (a positive
scores above all negatives; a tie counts as wrong, so that a collapsed model is not right).
"""

import dataclasses
import functools
from typing import Literal, Unpack

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from vlalign.losses.inputs import Extra, Options, OtherScores, check_shape
from vlalign.losses.kernel.form import AllStats, Form, Named
from vlalign.losses.kernel.statistics import Highest, Logistic, LogSum, Maximum, TeacherMean, Total
from vlalign.losses.kernel.sweep import Tree
from vlalign.losses.kernel.tile import EXCLUDED, Over, is_empty
from vlalign.losses.loss import Loss
from vlalign.losses.pairs import Pairs

__all__ = [
    "Extra",
    "Hardest",
    "OtherScores",
    "OwnColumns",
    "Smoothing",
    "Teacher",
    "log_sum_negatives",
    "sigmoid_contrast",
    "softmax_contrast",
]

Directions = tuple[float, float]
SIDES = ("rows", "columns")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["x_bd", "y_bd", "logit_scale", "logit_bias", "extra_qd", "alpha"],
    meta_fields=["score", "kind", "entropy", "learn"],
)
@dataclasses.dataclass(frozen=True)
class Teacher(OtherScores):
    """Soft targets: (1 - alpha) * positives + alpha * a distribution over all columns, by tiles.

    kind: "softmax" of the teacher's scores (ALBEF, Li et al. 2021, arXiv:2107.07651, section 3.2;
    MobileCLIP), or "linear": in proportion to them, below 0 none (CWCL's continuous weights,
    Srinivasa et al. 2023, arXiv:2309.14580, eq. 3). For targets within one modality give its
    embeddings as both x_bd and y_bd, and each direction in a call of its own.
    alpha: () share of the teacher's distribution, 0 to 1; no gradient flows into it.
    entropy: subtract alpha times the distribution's entropy: its part is then a KL divergence.
    learn: gradients flow into the teacher's embeddings and scale (kind and value as they are).
    """

    alpha: ArrayLike = 1.0
    _: dataclasses.KW_ONLY
    kind: Literal["softmax", "linear"] = "softmax"
    entropy: bool = False
    learn: bool = False


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["z_bkd", "valid_bk"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class OwnColumns:
    """Negatives that only their own row sees: its captions made wrong, its synthetic features.

    z_bkd: (B, k, d), as the columns otherwise; gradients flow into it. valid_bk: bool (B, k).
    """

    z_bkd: Tree
    valid_bk: jax.Array | None = None


@functools.partial(jax.tree_util.register_dataclass, data_fields=["share"], meta_fields=["over"])
@dataclasses.dataclass(frozen=True)
class Smoothing:
    """Softened targets: (1 - share) * the others + share * uniform over some columns.

    share: () 0 to 1, a number of the step for progressive softening (LightCLIP). over: "all"
    columns (ALIGN, Jia et al. 2021, arXiv:2102.05918) or the "negatives" (PyramidCLIP, Gao et al.
    2022, arXiv:2204.14095, section 3.4).
    """

    share: ArrayLike
    over: Literal["all", "negatives"] = "all"


@functools.partial(jax.tree_util.register_dataclass, data_fields=["margin"], meta_fields=["k"])
@dataclasses.dataclass(frozen=True)
class Hardest:
    """Only the k hardest negatives of each row (and column) in its denominator.

    margin: () a negative whose similarity is above the positive's by this much or more is taken
    for a false negative and left out (UniME, Gu et al. 2025, arXiv:2504.17432, section 3.3);
    None: none is.
    """

    k: int
    margin: ArrayLike | None = None


def softmax_contrast(
    x_bd: Tree,
    y_bd: Tree,
    *,
    directions: Directions = (0.5, 0.5),
    denominator: Literal["all", "negatives"] = "all",
    teacher: Teacher | None = None,
    smoothing: Smoothing | None = None,
    hardest: Hardest | None = None,
    own_columns: OwnColumns | None = None,
    positive_bd: Tree = None,
    **options: Unpack[Options],
) -> Loss:
    """Softmax cross-entropy of pairs (InfoNCE): rows among all columns, columns among all rows.

    CLIP (Radford et al. 2021, arXiv:2103.00020, figure 3) by default; with `group_b` the mean over
    several positives (UniCL, Yang et al. 2022, arXiv:2204.03610, eq. 3; SupCon's L_out). A loss
    whose directions have different columns is two calls of `directions=(1, 0)`.

    x_bd, y_bd: unit-norm embeddings (B, d) of one dtype, or what `score` takes; row i and column i
    are one sample. Products of bfloat16 are summed in float32.
    directions: weights of the rows' and of the columns' loss; one of weight 0 is not computed.
    denominator: "negatives" leaves the positives out of it (InfoLOOB, Fuerst et al. 2021,
    arXiv:2110.11316, eq. 8; DCL, Yeh et al. 2021, arXiv:2110.06848, eq. 6).
    teacher, smoothing: soft targets. hardest: mined negatives. own_columns: negatives of one row.
    positive_bd: what row i's positive score is taken with, in place of column i.
    options: `inputs.Options`. A row without a positive (`same_items`) counts as left out.
    Raises ValueError for inputs that do not fit together or a batch that the mesh does not divide.
    """
    check_directions(directions, options.get("extra"), own_columns)
    if own_columns is not None and (teacher or smoothing or hardest):
        raise ValueError("own_columns: not with teacher, smoothing or hardest")
    learn = teacher is not None and teacher.learn
    pairs = Pairs.of(x_bd, y_bd, teacher=teacher, learn_teacher=learn, **options)
    if positive_bd is not None and pairs.group_b is not None:
        raise ValueError("positive_bd: not with group_b, whose positives are columns")
    target = _Target(pairs, denominator, teacher, smoothing, hardest)
    own_b = pairs.matched(positive_bd)
    ceiling_b = None
    if hardest is not None and hardest.margin is not None:
        ceiling_b = own_b + pairs.shared["scale"] * hardest.margin
    named = [target.wanted() if share > 0 else () for share in directions]
    form = _form(pairs, named[0], named[1])
    found = dict(zip(SIDES, pairs.statistics(form, ceiling_b=ceiling_b), strict=True))
    if own_columns is not None:
        found["rows"] = _with_own(found["rows"], _own_scores(pairs, own_columns))
    weight_b = _weight(pairs, found)
    losses = [
        share * jnp.sum(weight_b * target.loss(found[side], own_b))
        for side, share in zip(SIDES, directions, strict=True)
        if share > 0
    ]
    total = functools.reduce(jnp.add, losses)
    return Loss(sum=total, count=jnp.sum(weight_b), metrics=_metrics(found, own_b, weight_b))


def sigmoid_contrast(
    x_bd: Tree,
    y_bd: Tree,
    *,
    teacher: Teacher | None = None,
    own_columns: OwnColumns | None = None,
    **options: Unpack[Options],
) -> Loss:
    """Logistic loss of all pairs: SigLIP (Zhai et al. 2023, arXiv:2303.15343, algorithm 1).

    Scores are logit_scale * <x, y> + logit_bias; label +1 on the diagonal (or for equal `group_b`),
    else -1. A pair weighs the mean of its two samples' `row_weight_b`, 0 if one of them has 0; with
    an extra or own column, its row's. `mean` is normalised as published: the sum over all pairs
    / B. With a teacher the label in (0, 1) is (1 - alpha) * that + alpha * sigmoid(its score).
    All other arguments and errors as in `softmax_contrast`.
    """
    if teacher is not None and (teacher.learn or teacher.entropy or teacher.kind != "softmax"):
        raise ValueError("sigmoid_contrast: learn, entropy and kind of a teacher have no use here")
    check_directions((0.5, 0.5), options.get("extra"), own_columns)
    pairs = Pairs.of(x_bd, y_bd, teacher=teacher, **options)
    metrics = _metric_statistics(pairs)
    form = _form(pairs, (("logistic", Logistic()), *metrics), metrics)
    share = None
    if teacher is not None:
        share = jnp.asarray(teacher.alpha).astype(pairs.dtype)
    found = dict(zip(SIDES, pairs.statistics(form, share=share), strict=True))
    weight_b, own_b = pairs.weight_b, pairs.matched()
    total = jnp.sum(found["rows"]["logistic"]["loss"])
    if own_columns is not None:
        scores_bk = _own_scores(pairs, own_columns)
        total += jnp.sum(weight_b * jnp.sum(jax.nn.softplus(scores_bk), axis=1))
        found["rows"] = _with_own(found["rows"], scores_bk)
    metrics_b = _metrics(found, own_b, weight_b)
    return Loss(sum=total, count=jnp.sum(weight_b), metrics=metrics_b)


def log_sum_negatives(x_bd: Tree, y_bd: Tree, **options: Unpack[Options]) -> jax.Array:
    """Log-sum-exp (B,) of each row's scores with the columns of other samples; -1e30 for none."""
    pairs = Pairs.of(x_bd, y_bd, **options)
    rows, _ = pairs.statistics(_form(pairs, (("negatives", LogSum("negatives")),), ()))
    return rows["negatives"]["lse"]


@dataclasses.dataclass(frozen=True)
class _Target:
    """From one direction's statistics to the cross-entropy of the targets with the softmax."""

    pairs: Pairs
    denominator: Literal["all", "negatives"]
    teacher: Teacher | None
    smoothing: Smoothing | None
    hardest: Hardest | None

    def wanted(self) -> Named:
        """The statistics of a direction."""
        grouped = self.pairs.group_b is not None
        over: Over = "all" if grouped and self.denominator == "all" else "negatives"
        named: Named = _metric_statistics(self.pairs) if grouped else ()
        if self.hardest is not None:
            named += (("highest", Highest("negatives", self.hardest.k)),)
        else:
            named += (("denominator", LogSum(over)),)
        if self.teacher is not None:
            named += (("teacher", TeacherMean(self.teacher.kind, self.teacher.entropy)),)
        if self.smoothing is not None:
            named += (("uniform", Total(self.smoothing.over)),)
        return named

    def loss(self, stats: AllStats, own_b: jax.Array) -> jax.Array:
        """Cross-entropy (B,)."""
        positive_b = _positive(stats, own_b)
        lse_b, complete = self._denominator(stats), self.denominator == "negatives"
        if self.pairs.group_b is None and not complete:
            if self.teacher is None and self.smoothing is None:
                return jax.nn.softplus(lse_b - positive_b)  # exact where lse + loss == lse
            lse_b = jnp.logaddexp(lse_b, own_b)
        rest, target_b = jnp.ones((), lse_b.dtype), jnp.zeros((), lse_b.dtype)
        if self.teacher is not None:
            alpha = jax.lax.stop_gradient(jnp.asarray(self.teacher.alpha)).astype(lse_b.dtype)
            rest, target_b = rest - alpha, alpha * stats["teacher"]["mean"]
            if self.teacher.entropy:
                target_b += alpha * stats["teacher"]["entropy"]
        if self.smoothing is not None:
            share, uniform = jnp.asarray(self.smoothing.share), stats["uniform"]
            share = jax.lax.stop_gradient(share).astype(lse_b.dtype)
            rest, mean_b = rest - share, uniform["sum"] / _at_least_one(uniform["count"])
            target_b += share * mean_b
        loss_b = lse_b - (rest * positive_b + target_b)
        return jnp.where(is_empty(lse_b), 0.0, loss_b)  # nothing to tell the positive from

    def _denominator(self, stats: AllStats) -> jax.Array:
        """Log-sum-exp of what the denominator holds, but for a diagonal's positive."""
        if self.hardest is None:
            return stats["denominator"]["lse"]
        lse_b = jax.nn.logsumexp(stats["highest"]["top"], axis=1)
        if self.pairs.group_b is None or self.denominator == "negatives":
            return lse_b
        raise ValueError('hardest with group_b: only with denominator="negatives"')


def _form(pairs: Pairs, rows: Named, columns: Named) -> Form:
    positives: Literal["diagonal", "group"] = "diagonal" if pairs.group_b is None else "group"
    return Form(positives=positives, same_items=pairs.same_items, rows=rows, columns=columns)


def _metric_statistics(pairs: Pairs) -> Named:
    """What accuracy needs, and the mean of several positives."""
    negatives = ("highest_negative", Maximum("negatives"))
    if pairs.group_b is None:
        return (negatives,)
    highest = ("highest_positive", Maximum("positives"))
    return (negatives, highest, ("positives", Total("positives")))


def _own_scores(pairs: Pairs, own: OwnColumns) -> jax.Array:
    """Scores (B, k) of rows with their own columns, "minus infinity" for absent ones."""
    valid_bk = own.valid_bk
    for leaf in jax.tree.leaves(own.z_bkd):
        if leaf.ndim < 2 or leaf.shape[0] != pairs.batch or leaf.shape[1] == 0:
            raise ValueError(f"own_columns.z_bkd {leaf.shape}: must be ({pairs.batch}, k, ...)")
        shape = leaf.shape[:2]
    check_shape("own_columns.valid_bk", valid_bk, shape)
    if valid_bk is None:
        valid_bk = jnp.ones(shape, jnp.bool_)
    if pairs.valid_b is not None:
        valid_bk = valid_bk & pairs.valid_b[:, None]

    def empty(a: jax.Array) -> jax.Array:
        mask = jnp.expand_dims(valid_bk, tuple(range(2, a.ndim)))
        return jnp.where(mask, a, jnp.zeros((), a.dtype))

    def one(row: Tree, columns: Tree) -> jax.Array:
        return pairs.score.forward(jax.tree.map(lambda a: a[None], row), columns, pairs.shared)[0]

    scores_bk = jax.vmap(one)(pairs.x, jax.tree.map(empty, own.z_bkd))
    return jnp.where(valid_bk, scores_bk, jnp.asarray(EXCLUDED, scores_bk.dtype))


def _with_own(stats: AllStats, scores_bk: jax.Array) -> AllStats:
    """Rows' statistics with their own columns among the negatives."""
    stats, top_b = dict(stats), jax.lax.stop_gradient(scores_bk.max(axis=1))
    if "denominator" in stats:
        lse_b = jnp.logaddexp(stats["denominator"]["lse"], jax.nn.logsumexp(scores_bk, axis=1))
        top_b = jnp.maximum(stats["denominator"]["top"], top_b)
        stats["denominator"] = {"lse": lse_b, "top": top_b}
    if "highest_negative" in stats:
        top_b = jnp.maximum(stats["highest_negative"]["top"], top_b)
        stats["highest_negative"] = {"top": top_b}
    return stats


def _positive(stats: AllStats, own_b: jax.Array) -> jax.Array:
    """Mean score (B,) of each row's positives."""
    if "positives" not in stats:
        return own_b
    return stats["positives"]["sum"] / _at_least_one(stats["positives"]["count"])


def _weight(pairs: Pairs, found: dict[str, AllStats]) -> jax.Array:
    """Weights (B,), 0 for a sample without a positive."""
    for stats in found.values():
        if pairs.same_items and "positives" in stats:
            return jnp.where(stats["positives"]["count"] > 0, pairs.weight_b, 0.0)
    return pairs.weight_b


def _metrics(
    found: dict[str, AllStats], own_b: jax.Array, weight_b: jax.Array
) -> dict[str, jax.Array]:
    """Weighted sums of each direction's accuracy and of the positives' mean score."""
    metrics, positive_b = {}, own_b
    for side, stats in found.items():
        if not stats:
            continue
        if "highest_negative" in stats:
            negative_b = stats["highest_negative"]["top"]
        elif "highest" in stats:
            negative_b = stats["highest"]["top"][:, 0]
        else:
            negative_b = stats["denominator"]["top"]
        right_b = own_b
        if "highest_positive" in stats:
            right_b, positive_b = stats["highest_positive"]["top"], _positive(stats, own_b)
        right_b = (right_b > negative_b).astype(weight_b.dtype)
        metrics[f"accuracy_{side}"] = jnp.sum(weight_b * right_b)
    metrics["positive_logit"] = jnp.sum(weight_b * positive_b)
    return jax.lax.stop_gradient(metrics)


def check_directions(
    directions: Directions, extra: Extra | None, own_columns: OwnColumns | None = None
) -> None:
    """Raises ValueError for weights of directions that make no loss."""
    if min(directions) < 0 or sum(directions) == 0:
        raise ValueError(
            f"directions={directions}: the weights of (rows, columns), none negative, one positive"
        )
    if (extra is not None or own_columns is not None) and directions[0] == 0:
        raise ValueError(
            f"directions={directions} with extra columns: only rows see them, so rows need weight; "
            "swap x_bd and y_bd to give the other side extra columns"
        )


def _at_least_one(count: jax.Array) -> jax.Array:
    return jnp.maximum(count, 1.0)
