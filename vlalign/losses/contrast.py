"""Batch-contrastive losses, exact, in memory linear in the batch, on any mesh: uses of one kernel.

Embeddings arrive unit-normalised: nothing here divides by a norm, scores are scale * <x, y>.
Inside `jax.set_mesh(mesh)` arrays have their global meaning: the kernel cuts the batch over those
of the mesh axes `data` and `fsdp` that exist, repeats the work over other axes, and returns the
numbers of the whole batch. Without a mesh it is the plain loss.
All forms return sums and a count; the caller divides once (`Loss.mean`).
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from vlalign.losses import _inputs
from vlalign.losses._forms import Form, Positives, Sigmoid, Softmax, Stats
from vlalign.losses._inputs import Extra, Teacher
from vlalign.losses._pairs import Route, pair_statistics
from vlalign.losses._scores import Cosine
from vlalign.losses.loss import Loss

__all__ = ["BLOCK_SIZE", "Extra", "Teacher", "sigmoid_contrast", "softmax_contrast"]

# Longest side of a tile; measured on CPU by benchmarks/contrast.py.
BLOCK_SIZE = 1024


def softmax_contrast(
    x_bd: jax.Array,
    y_bd: jax.Array,
    *,
    logit_scale: ArrayLike,
    row_weight_b: jax.Array | None = None,
    group_b: jax.Array | None = None,
    teacher: Teacher | None = None,
    extra: Extra | None = None,
    directions: tuple[float, float] = (0.5, 0.5),
    block_size: int = BLOCK_SIZE,
    route: Route = "gather",
) -> Loss:
    """Softmax cross-entropy of pairs (InfoNCE): rows among all columns, columns among all rows.

    CLIP (Radford et al. 2021, arXiv:2103.00020, figure 3) by default; with `group_b` the uniform
    distribution over several positives (UniCL, Yang et al. 2022, arXiv:2204.03610, eq. 3); with
    `teacher` momentum-distilled targets (ALBEF); with `extra` a queue (MoCo) or hard negatives
    (NegCLIP). A loss whose directions have different columns is two calls of `directions=(1, 0)`.

    x_bd, y_bd: unit-norm embeddings (B, d) of one dtype; row i and column i are one sample.
    Products of bfloat16 are summed in float32.
    logit_scale: () the factor itself, not its logarithm; of any size, nothing overflows.
    row_weight_b: (B,) weight of each sample, not negative; 0 leaves the sample out as row and as
    column, whatever it holds.
    group_b: integer (B,), samples of equal group are each other's positives.
    teacher: soft targets. extra: columns that only the rows see.
    directions: weights of the rows' and of the columns' loss; one of weight 0 is not computed.
    block_size: longest side of a tile; temporaries are O(block_size^2 + B * d) on a device.
    route: "gather", or "ring" (then no array of the whole batch on any device).
    Raises ValueError for inputs that do not fit together or a batch that the mesh does not divide.
    """
    positives: Positives = "diagonal" if group_b is None else "group"
    _inputs.check_directions(directions, extra)
    for_rows, for_columns = (weight > 0 for weight in directions)
    pairs = _inputs.Pairs(x_bd, y_bd, logit_scale, None, row_weight_b, group_b, teacher, extra)
    form = Softmax(
        positives=positives, soft=teacher is not None, rows=for_rows, columns=for_columns
    )
    statistics, own_b, weight_b = _reduce(pairs, form, block_size, route)
    losses = [
        share * jnp.sum(weight_b * _softmax_loss(statistics[name], own_b, teacher))
        for name, share in zip(("rows", "columns"), directions, strict=True)
        if name in statistics
    ]
    return Loss(
        sum=functools.reduce(jnp.add, losses),
        count=jnp.sum(weight_b),
        metrics=_metrics(statistics, own_b, weight_b),
    )


def sigmoid_contrast(
    x_bd: jax.Array,
    y_bd: jax.Array,
    *,
    logit_scale: ArrayLike,
    logit_bias: ArrayLike,
    row_weight_b: jax.Array | None = None,
    group_b: jax.Array | None = None,
    extra: Extra | None = None,
    block_size: int = BLOCK_SIZE,
    route: Route = "gather",
) -> Loss:
    """Logistic loss of all pairs: SigLIP (Zhai et al. 2023, arXiv:2303.15343, algorithm 1).

    Scores are logit_scale * <x, y> + logit_bias; label +1 on the diagonal (or for equal `group_b`),
    else -1. A pair weighs the mean of its two samples' `row_weight_b`, 0 if one of them has 0; with
    an extra column, its row's. `mean` is normalised as published: the sum over all pairs / B.
    All other arguments and errors as in `softmax_contrast`.
    """
    positives: Positives = "diagonal" if group_b is None else "group"
    pairs = _inputs.Pairs(x_bd, y_bd, logit_scale, logit_bias, row_weight_b, group_b, None, extra)
    statistics, own_b, weight_b = _reduce(pairs, Sigmoid(positives=positives), block_size, route)
    total = jnp.sum(statistics["rows"]["loss"])
    metrics = _metrics(statistics, own_b, weight_b)
    return Loss(sum=total, count=jnp.sum(weight_b), metrics=metrics)


def _reduce(
    pairs: _inputs.Pairs, form: Form, block_size: int, route: Route
) -> tuple[dict[str, Stats], jax.Array, jax.Array]:
    """Statistics of the wanted directions; each sample's score with itself, and weight, (B,)."""
    plan = _inputs.plan(pairs, Cosine(), form, block_size, route)
    pairs = _inputs.clean(pairs)
    shared, given = _inputs.shared(pairs), _inputs.given(pairs)
    x_bd, y_bd = pairs.x_bd, pairs.y_bd
    extra_qd = None if pairs.extra is None else pairs.extra.z_qd
    found = pair_statistics(plan, x_bd, y_bd, extra_qd, shared, given)
    statistics = dict(zip(("rows", "columns"), found, strict=True))
    wide = shared["scale"].dtype
    own_b = shared["scale"] * jnp.sum(x_bd.astype(wide) * y_bd.astype(wide), axis=1)
    if shared["bias"] is not None:
        own_b += shared["bias"]
    weight_b = jnp.ones_like(own_b) if given.rows.weight is None else given.rows.weight
    return {k: v for k, v in statistics.items() if v is not None}, own_b, weight_b


def _softmax_loss(stats: Stats, own_b: jax.Array, teacher: Teacher | None) -> jax.Array:
    """Cross-entropy of the targets with the softmax, from one direction's statistics (B,)."""
    if "positive_sum" in stats:
        positive_b = stats["positive_sum"] / _at_least_one(stats["positive_count"])
        lse_b = stats["lse"]
    elif teacher is None:
        return jax.nn.softplus(stats["lse"] - own_b)
    else:
        positive_b, lse_b = own_b, jnp.logaddexp(stats["lse"], own_b)
    if teacher is None:
        return lse_b - positive_b
    alpha = jnp.asarray(teacher.alpha, own_b.dtype)
    return lse_b - (1.0 - alpha) * positive_b - alpha * stats["soft_mean"]


def _metrics(
    statistics: dict[str, Stats], own_b: jax.Array, weight_b: jax.Array
) -> dict[str, jax.Array]:
    """Weighted sums of each direction's accuracy and of the positives' mean score."""
    metrics, positive_b = {}, own_b
    for name, stats in statistics.items():
        if "positive_sum" in stats:
            right_b = stats["positive_top"] > stats["negative_top"]
            positive_b = stats["positive_sum"] / _at_least_one(stats["positive_count"])
        else:
            right_b = own_b > stats["top"]
        metrics[f"accuracy_{name}"] = jnp.sum(weight_b * right_b.astype(weight_b.dtype))
    metrics["positive_logit"] = jnp.sum(weight_b * positive_b)
    return jax.lax.stop_gradient(metrics)


def _at_least_one(count: jax.Array) -> jax.Array:
    return jnp.maximum(count, 1.0)
