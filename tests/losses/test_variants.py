"""Every way the kernel can be used, against its dense form in float64: values and all gradients.

One device, two and eight, gathered and passed on, blocks that divide the batch and that do not.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses.companions import Case, Companion, check_close, normal, unit, weights
from vlalign.losses import reference as ref
from vlalign.losses import scores
from vlalign.losses.contrast import (
    Extra,
    Hardest,
    OtherScores,
    OwnColumns,
    Smoothing,
    Teacher,
    log_sum_negatives,
    sigmoid_contrast,
    softmax_contrast,
)
from vlalign.losses.hopfield import hopfield_retrieval
from vlalign.losses.loss import Loss
from vlalign.losses.margin import triplet_contrast
from vlalign.losses.matching import distribution_matching
from vlalign.losses.multiview import modality_contrast, multiview_dhel, multiview_infonce, nt_xent
from vlalign.losses.negatives import geodesic_mix
from vlalign.losses.sinkhorn import transport_teacher

B, D, Q, SCALE = 24, 16, 13, np.float32(6.0)
RNG = np.random.default_rng(0)
WEIGHT = weights(RNG, B)
X, Y, U, V = (unit(normal(RNG, B, D)) for _ in range(4))
EXTRA, LONG_EXTRA = unit(normal(RNG, Q, D)), unit(normal(RNG, B, D))
OWN = unit(normal(RNG, B, 3, D))
OWN_VALID = RNG.random((B, 3)) < 0.7
GROUP = RNG.integers(0, B // 2, B, dtype=np.int32)
KEY = RNG.integers(0, B // 3, B, dtype=np.int32)
OWNER = RNG.integers(-1, B, Q, dtype=np.int32)
CLASS = RNG.integers(0, 3, B, dtype=np.int32)
GATE = 0.2 + RNG.random((3, 3, D)).astype(np.float32)
TOKENS_X = unit(normal(RNG, B, 5, D))
TOKENS_Y = unit(normal(RNG, B, 3, D) + 2.0 * TOKENS_X[:, :3])
MASK_X, MASK_Y = (RNG.random((B, n)) < 0.7 for n in (5, 3))
MASK_X[:, 0] = MASK_Y[:, 1] = True
NEAR = unit(OWN[:, :2] + 2.0 * X[:, None])  # a sample's modalities agree, as in training
VIEWS = unit(normal(RNG, B, 3, D))
PAIR = {"x": X, "y": Y, "scale": SCALE}
FAR = -1e30


def eye(x):
    return jnp.eye(len(x), dtype=x.dtype)


def both(loss, x, y, *rest):
    """Mean of a loss of scores over both directions; further (B, B) arguments turn along."""
    total, count = loss(ref.cosine(x, y, 1.0), *rest)
    turned = [a.T if getattr(a, "ndim", 0) == 2 else a for a in rest]
    return 0.5 * (total + loss(ref.cosine(y, x, 1.0), *turned)[0]) / count


def same(a, b=None):
    b = a if b is None else b
    return a[:, None] == b[None, :]


def mean(sums):
    return sums[0] / sums[1]


# ---------------------------------------------------------------- softmax: what is in it


def decoupled(x, y, scale, weight, **options):
    return softmax_contrast(
        x, y, logit_scale=scale, row_weight_b=weight, denominator="negatives", **options
    )


def decoupled_twin(x, y, scale, weight):
    return both(ref.softmax_dense, scale * x, y, eye(x), weight, 1.0 - eye(x))


def grouped_decoupled(x, y, scale, group, weight, **options):
    return decoupled(x, y, scale, weight, group_b=group, **options)


def grouped_decoupled_twin(x, y, scale, group, weight):
    target = ref.uniform_target(group, group, x.dtype)
    return both_with_target(x, y, scale, target, weight, (~same(group)).astype(x.dtype))


def both_with_target(x, y, scale, target, weight, counted, turned=None):
    """For targets whose transpose is that of the other direction (symmetric ones, as a rule)."""
    turned = target.T if turned is None else turned
    rows, count = ref.softmax_dense(ref.cosine(x, y, scale), target, weight, counted)
    columns, _ = ref.softmax_dense(ref.cosine(y, x, scale), turned, weight, counted.T)
    return 0.5 * (rows + columns) / count


def smoothed(over, x, y, scale, weight, **options):
    smoothing = Smoothing(0.2, over)
    return softmax_contrast(
        x, y, logit_scale=scale, row_weight_b=weight, smoothing=smoothing, **options
    )


def smoothed_twin(over, x, y, scale, weight):
    n, one = len(x), eye(x)
    uniform = jnp.full((n, n), 1 / n) if over == "all" else (1.0 - one) / (n - 1)
    target = 0.8 * one + 0.2 * uniform
    return both_with_target(x, y, scale, target, weight, jnp.ones_like(one))


def duplicates(x, y, scale, key, weight, **options):
    return softmax_contrast(
        x, y, logit_scale=scale, row_weight_b=weight, duplicate_b=key, **options
    )


def duplicates_twin(x, y, scale, key, weight):
    counted = jnp.maximum(eye(x), (~same(key)).astype(x.dtype))
    return both_with_target(x, y, scale, eye(x), weight, counted)


def weighted_pairs(x, y, scale, u, v, weight, **options):
    pair_weight = OtherScores(u, v, -0.5, logit_bias=0.25)
    return softmax_contrast(
        x, y, logit_scale=scale, row_weight_b=weight, pair_weight=pair_weight, **options
    )


def weighted_pairs_twin(x, y, scale, u, v, weight):
    counted = jnp.where(eye(x) > 0, 1.0, jax.nn.relu(0.25 - 0.5 * (u @ v.T)))
    counted = jax.lax.stop_gradient(counted)
    return both_with_target(x, y, scale, eye(x), weight, counted)


def mined(margin, x, y, scale, weight, **options):
    return softmax_contrast(
        x, y, logit_scale=scale, row_weight_b=weight, hardest=Hardest(3, margin), **options
    )


def mined_twin(margin, x, y, scale, weight):
    limit = jnp.inf if margin is None else margin
    total = 0.0
    for a, b in ((x, y), (y, x)):
        cosines = a @ b.T
        away = (eye(x) == 0) & (cosines < jnp.diagonal(cosines)[:, None] + limit)
        hard, _ = jax.lax.top_k(jnp.where(away, scale * cosines, FAR), 3)
        own = scale * jnp.diagonal(cosines)
        logits = jnp.concatenate([own[:, None], hard], axis=1)
        total += 0.5 * jnp.sum(weight * (jax.nn.logsumexp(logits, axis=1) - own))
    return total / jnp.sum(weight)


# ---------------------------------------------------------------- softmax: further columns


def own_columns(x, y, scale, own, own_valid, weight, **options):
    return softmax_contrast(
        x,
        y,
        logit_scale=scale,
        row_weight_b=weight,
        own_columns=OwnColumns(own, own_valid),
        **options,
    )


def own_columns_twin(x, y, scale, own, own_valid, weight):
    more = jnp.where(own_valid, scale * jnp.einsum("bd,bkd->bk", x, own), -jnp.inf)
    logits = jnp.concatenate([ref.cosine(x, y, scale), more], axis=1)
    loss = jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(logits)
    columns, count = ref.softmax_dense(ref.cosine(y, x, scale), eye(x), weight)
    return 0.5 * (jnp.sum(weight * loss) + columns) / count


def on_sphere(z):
    return z / jnp.maximum(jnp.linalg.norm(z, axis=1, keepdims=True), jnp.asarray(1e-6, z.dtype))


def mixed(x, y, scale, weight, **options):
    """The mix is a function on the sphere: gradients along the radius have no meaning."""
    x, y = (on_sphere(jnp.where(weight[:, None] > 0, z, 1.0)) for z in (x, y))
    mix = geodesic_mix(x, y, 0.3)
    return softmax_contrast(
        x, mix, logit_scale=scale, row_weight_b=weight, positive_bd=y, **options
    )


def mixed_twin(x, y, scale, weight):
    x, y = on_sphere(x), on_sphere(y)
    angle = jnp.arccos(jnp.sum(x * y, axis=1, keepdims=True))
    mix = (jnp.sin(0.3 * angle) * x + jnp.sin(0.7 * angle) * y) / jnp.sin(angle)
    total, own = 0.0, scale * jnp.sum(x * y, axis=1)
    for a, b in ((x, mix), (mix, x)):
        logits = jnp.where(eye(x) > 0, own[:, None], ref.cosine(a, b, scale))
        total += 0.5 * jnp.sum(weight * (jax.nn.logsumexp(logits, axis=1) - own))
    return total / jnp.sum(weight)


def owned(x, y, scale, extra, weight, **options):
    return softmax_contrast(
        x,
        y,
        logit_scale=scale,
        row_weight_b=weight,
        directions=(1.0, 0.0),
        extra=Extra(extra, owner_q=OWNER),
        **options,
    )


def owned_twin(x, y, scale, extra, weight):
    row = np.flatnonzero(WEIGHT)
    more = jnp.where(row[:, None] == OWNER[None], -jnp.inf, ref.cosine(x, extra, scale))
    logits = jnp.concatenate([ref.cosine(x, y, scale), more], axis=1)
    loss = jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(logits)
    return jnp.sum(weight * loss) / jnp.sum(weight)


def long_extra(x, y, scale, extra, weight, **options):
    options |= {"directions": (1.0, 0.0), "extra": Extra(extra)}
    return softmax_contrast(x, y, logit_scale=scale, row_weight_b=weight, **options)


def long_extra_twin(x, y, scale, extra, weight):
    columns = jnp.concatenate([y, extra])
    target = jnp.eye(len(x), len(columns), dtype=x.dtype)
    return mean(ref.softmax_dense(ref.cosine(x, columns, scale), target, weight))


def null_target(x, y, scale, null, weight, **options):
    """TIP-CLIP: texts (rows) of class 0 are all paired with one common image."""
    visual = (CLASS != 0)[:, None]
    group = np.where(CLASS == 0, -1, np.arange(B)).astype(np.int32)
    columns = jnp.where(visual, y, null[None, :])
    return softmax_contrast(
        x, columns, logit_scale=scale, row_weight_b=weight, group_b=group, **options
    )


def null_target_twin(x, y, scale, null, weight):
    kept = CLASS[np.flatnonzero(WEIGHT)]
    group = np.where(kept == 0, -1, np.arange(len(kept)))
    columns = jnp.where((kept != 0)[:, None], y, null[None, :])
    target = ref.uniform_target(group, group, x.dtype)
    return both_with_target(x, columns, scale, target, weight, jnp.ones_like(target))


# ---------------------------------------------------------------- softmax: targets


def linear_teacher(x, y, scale, u, weight, **options):
    """CWCL: weights of pairs from the frozen modality, one direction; the other is plain."""
    teacher = Teacher(u, u, 0.5, logit_bias=0.5, kind="linear")
    shared = {"logit_scale": scale, "row_weight_b": weight, **options}
    rows = softmax_contrast(x, y, teacher=teacher, directions=(1.0, 0.0), **shared)
    columns = softmax_contrast(x, y, directions=(0.0, 1.0), **shared)
    return Loss(sum=rows.sum + columns.sum, count=rows.count)


def linear_teacher_twin(x, y, scale, u, weight):
    target = jax.lax.stop_gradient(0.5 * (u @ u.T) + 0.5)
    target = target / jnp.sum(target, axis=1, keepdims=True)
    rows, count = ref.softmax_dense(ref.cosine(x, y, scale), target, weight)
    return (rows + ref.softmax_dense(ref.cosine(y, x, scale), eye(x), weight)[0]) / count


def learned_teacher(kind, x, y, scale, u, v, weight, **options):
    entropy = kind == "softmax"
    bias = None if entropy else 1.5
    teacher = Teacher(u, v, 3.0, 0.7, logit_bias=bias, kind=kind, entropy=entropy, learn=True)
    shared = {"logit_scale": scale, "row_weight_b": weight, **options}
    return softmax_contrast(x, y, teacher=teacher, **shared)


def learned_teacher_twin(kind, x, y, scale, u, v, weight):
    total = 0.0
    for a, b, s, t in ((x, y, u, v), (y, x, v, u)):
        if kind == "softmax":
            soft = jax.nn.softmax(3.0 * (s @ t.T), axis=1)
            entropy = -jnp.sum(soft * jnp.log(soft), axis=1)
        else:
            soft = jax.nn.relu(3.0 * (s @ t.T) + 1.5)
            soft, entropy = soft / jnp.sum(soft, axis=1, keepdims=True), jnp.zeros(())
        target = 0.3 * eye(x) + 0.7 * soft
        total += 0.5 * ref.softmax_dense(ref.cosine(a, b, scale), target, weight)[0]
        total -= 0.5 * 0.7 * jnp.sum(weight * entropy)
    return total / jnp.sum(weight)


def transported(x, y, scale, weight, **options):
    teacher = transport_teacher(
        x, y, alpha=0.3, iterations=4, logit_scale=3.0, row_weight_b=weight, **options
    )
    shared = {"logit_scale": scale, "row_weight_b": weight, **options}
    return softmax_contrast(x, y, teacher=teacher, directions=(0.0, 1.0), **shared)


def transported_twin(x, y, scale, weight):
    """Columns, whose sums are 1 after any number of iterations."""
    plan = jax.lax.stop_gradient(ref.sinkhorn_dense(ref.cosine(x, y, 3.0), 4))
    target = 0.7 * eye(x) + 0.3 * plan.T
    return mean(ref.softmax_dense(ref.cosine(y, x, scale), target, weight))


# ---------------------------------------------------------------- sigmoid


def sigmoid_everything(x, y, scale, bias, u, v, own, key, weight, **options):
    """Soft labels, duplicates, weights of pairs and own columns at once."""
    return sigmoid_contrast(
        x,
        y,
        logit_scale=scale,
        logit_bias=bias,
        row_weight_b=weight,
        duplicate_b=key,
        teacher=Teacher(u, v, 4.0, 0.3),
        pair_weight=OtherScores(v, u, 0.5, logit_bias=0.25),
        own_columns=OwnColumns(own),
        **options,
    )


def sigmoid_everything_twin(x, y, scale, bias, u, v, own, key, weight):
    one, still = eye(x), jax.lax.stop_gradient
    label = 0.7 * one + 0.3 * still(jax.nn.sigmoid(4.0 * (u @ v.T)))
    pair = jnp.where(one > 0, 1.0, still(jax.nn.relu(0.5 * (v @ u.T) + 0.25)))
    pair = jnp.where((one > 0) | ~same(key), pair, 0.0)
    pair = pair * 0.5 * (weight[:, None] + weight[None, :])
    total, _ = ref.sigmoid_dense(ref.cosine(x, y, scale) + bias, label, pair)
    more = scale * jnp.einsum("bd,bkd->bk", x, own) + bias
    return (total + jnp.sum(weight[:, None] * jax.nn.softplus(more))) / jnp.sum(weight)


# ---------------------------------------------------------------- scores


def with_score(score, x, y, scale, weight, **options):
    return softmax_contrast(x, y, score=score, logit_scale=scale, row_weight_b=weight, **options)


def with_dense(dense, weight):
    rows, count = ref.softmax_dense(dense, jnp.eye(len(dense)), weight)
    return 0.5 * (rows + ref.softmax_dense(dense.T, jnp.eye(len(dense)), weight)[0]) / count


def distance_twin(x, y, scale, weight):
    return with_dense(ref.negative_distance(x, y, scale), weight)


def late(smoothness, symmetric, x, y, scale, mask_x, mask_y, weight, **options):
    score = scores.LateInteraction(smoothness, symmetric)
    x, y = scores.tokens(x, mask_x), scores.tokens(y, mask_y)
    return with_score(score, x, y, scale, weight, **options)


def late_twin(smoothness, symmetric, x, y, scale, mask_x, mask_y, weight):
    dense = ref.late_interaction(x, mask_x, y, mask_y, smoothness)
    if symmetric:
        dense = 0.5 * (dense + ref.late_interaction(y, mask_y, x, mask_x, smoothness).T)
    return with_dense(scale * dense, weight)


def volume(x, y, scale, weight, **options):
    return with_score(
        scores.Volume(), x, scores.volume_columns(y, weight), scale, weight, **options
    )


def volume_twin(x, y, scale, weight):
    return with_dense(-scale * ref.volume(x, y), weight)


def gated(x, y, gate, label, weight, **options):
    x, y = {"z": x, "class": label}, {"z": y, "class": label}
    options |= {"score": scores.Gated(), "score_params": gate, "logit_scale": SCALE}
    return softmax_contrast(x, y, row_weight_b=weight, **options)


def gated_twin(x, y, gate, label, weight):
    return with_dense(float(SCALE) * ref.gated(x, y, label, label, gate), weight)


def shifted(x, y, a, b, weight, **options):
    x, y = {"z": x, "shift": a[:, 0]}, {"z": y, "shift": b[:, 0]}
    return with_score(scores.Shifted(), x, y, SCALE, weight, **options)


def shifted_twin(x, y, a, b, weight):
    return with_dense(ref.cosine(x, y, float(SCALE)) + a[:, :1] + b[:, :1].T, weight)


# ---------------------------------------------------------------- other forms


def triplet(mining, x, y, scale, weight, **options):
    options |= {"margin": 1.0, "mining": mining, "logit_scale": scale, "row_weight_b": weight}
    return triplet_contrast(x, y, **options)


def triplet_twin(mining, x, y, scale, weight):
    loss = functools.partial(ref.triplet_dense, margin=1.0, mining=mining, weight_b=weight)
    rows, count = loss(ref.cosine(x, y, scale), eye(x) > 0)
    return 0.5 * (rows + loss(ref.cosine(y, x, scale), eye(x) > 0)[0]) / count


def triplet_groups(x, y, scale, group, weight, **options):
    return triplet("hard", x, y, scale, weight, group_b=group, **options)


def triplet_groups_twin(x, y, scale, group, weight):
    loss = functools.partial(ref.triplet_dense, margin=1.0, mining="hard", weight_b=weight)
    rows, count = loss(ref.cosine(x, y, scale), same(group))
    return 0.5 * (rows + loss(ref.cosine(y, x, scale), same(group))[0]) / count


def matching(x, y, scale, group, weight, **options):
    options |= {"logit_scale": scale, "row_weight_b": weight, "group_b": group}
    return distribution_matching(x, y, epsilon=1e-3, **options)


def matching_twin(x, y, scale, group, weight):
    target = ref.uniform_target(group, group, x.dtype)
    rows, count = ref.matching_dense(ref.cosine(x, y, scale), target, 1e-3, weight)
    return (rows + ref.matching_dense(ref.cosine(y, x, scale), target, 1e-3, weight)[0]) / count


def views_of(loss):
    return functools.partial(multiview, loss)


def multiview(loss, views, scale, weight, **options):
    views = jnp.swapaxes(views, 0, 1)
    return loss(views, logit_scale=scale, row_weight_b=weight, **options)


def items(views, scale):
    """Scores of all items (sample, view) in a row; their samples; which are the same item."""
    batch, n = views.shape[:2]
    flat = views.reshape(batch * n, -1)
    dense = jnp.where(jnp.eye(batch * n) > 0, -jnp.inf, scale * (flat @ flat.T))
    return dense, jnp.repeat(jnp.arange(batch), n)


def nt_xent_twin(views, scale, weight):
    dense, sample = items(views, scale)
    positive = same(sample) & jnp.isfinite(dense)
    loss = jax.nn.logsumexp(dense, axis=1) - jnp.sum(jnp.where(positive, dense, 0.0), 1) / 2
    return jnp.average(loss, weights=jnp.repeat(weight, 3))


def multiview_infonce_twin(views, scale, weight):
    dense, sample = items(views, scale)
    top = jnp.exp(jnp.where(same(sample), dense, -jnp.inf)).sum(1).reshape(-1, 3).sum(1)
    bottom = jnp.exp(dense).sum(1).reshape(-1, 3).sum(1)
    return jnp.average(-jnp.log(top / bottom), weights=weight)


def multiview_dhel_twin(views, scale, weight):
    within = jnp.exp(scale * jnp.einsum("bvd,cvd->vbc", views, views))
    apart = jnp.sum(within * (1.0 - jnp.eye(len(views)))[None], axis=2)
    pairs = jnp.exp(scale * jnp.einsum("bvd,bwd->bvw", views, views))
    together = pairs[:, 0, 1] + pairs[:, 0, 2] + pairs[:, 1, 2]
    return jnp.average(-jnp.log(together / jnp.prod(apart, axis=0)), weights=weight)


def modalities(views, scale, weight, **options):
    names = {"image": views[:, 0], "text": views[:, 1], "audio": views[:, 2]}
    pairs = {("image", "text"): 1.0, ("text", "audio"): 0.5}
    options |= {"logit_scale": scale, "row_weight_b": weight}
    return modality_contrast(names, weights=pairs, **options)


def modalities_twin(views, scale, weight):
    image, text, audio = (views[:, i] for i in range(3))
    one = with_dense(ref.cosine(image, text, scale), weight)
    return one + 0.5 * with_dense(ref.cosine(text, audio, scale), weight)


def cloob(x, y, scale, weight, block_size=64, **options):
    """InfoLOOB on what each modality's memory retrieves."""
    retrieve = functools.partial(
        hopfield_retrieval, scale=4.0, row_weight_b=weight, block_size=block_size
    )
    options |= {"denominator": "negatives", "directions": (1.0, 0.0), "block_size": block_size}
    shared = {"logit_scale": scale, "row_weight_b": weight, **options}
    one = softmax_contrast(retrieve(x, x), retrieve(y, x), **shared)
    other = softmax_contrast(retrieve(y, y), retrieve(x, y), **shared)
    return Loss(sum=one.sum + other.sum, count=one.count)


def cloob_twin(x, y, scale, weight):
    def retrieve(state, stored):
        found = jax.nn.softmax(4.0 * (state @ stored.T), axis=1) @ stored
        return found / jnp.linalg.norm(found, axis=1, keepdims=True)

    total = 0.0
    for a, b in ((retrieve(x, x), retrieve(y, x)), (retrieve(y, y), retrieve(x, y))):
        dense = ref.cosine(a, b, scale)
        total += mean(ref.softmax_dense(dense, eye(x), weight, 1.0 - eye(x)))
    return total


def energy(x, y, scale, weight, **options):
    lse = log_sum_negatives(x, y, logit_scale=scale, row_weight_b=weight, **options)
    weight = jnp.where(weight > 0, weight, 0.0).astype(lse.dtype)
    return Loss(sum=jnp.sum(jnp.where(weight > 0, weight * lse, 0.0)), count=jnp.sum(weight))


def energy_twin(x, y, scale, weight):
    dense = jnp.where(eye(x) > 0, -jnp.inf, ref.cosine(x, y, scale))
    return jnp.average(jax.nn.logsumexp(dense, axis=1), weights=weight)


class PairCase(Case):
    """A case whose loss takes the kernel's options."""

    def __post_init__(self):
        self._steps = {}

    def found(self, arrays, given, devices=1, **options):
        options = options or {"block_size": 5}
        key = tuple(options.items())
        if key not in self._steps:
            loss = functools.partial(self.ours, **options)
            self._steps[key] = jax.jit(jax.value_and_grad(lambda a, g: loss(**a, **g).mean))
        self._step = self._steps[key]
        return super().found(arrays, given, devices)


def case(name, ours, twin, arrays=None, given=None, static=(), **fields):
    arrays = PAIR if arrays is None else arrays
    whole = ("scale", "bias", "extra", "null", "gate", *fields.pop("whole", ()))
    return PairCase(
        name,
        functools.partial(ours, *static),
        functools.partial(twin, *static),
        arrays,
        {"weight": WEIGHT} | (given or {}),
        whole=tuple(name for name in whole if name in arrays),
        **fields,
    )


SIDES = {"u": U, "v": V}
TOKENS = {"x": TOKENS_X, "y": TOKENS_Y, "scale": SCALE}
MASKS = {"mask_x": MASK_X, "mask_y": MASK_Y}
THREE = {"views": VIEWS, "scale": SCALE}
CASES = (
    case("decoupled", decoupled, decoupled_twin),
    case("decoupled-groups", grouped_decoupled, grouped_decoupled_twin, given={"group": GROUP}),
    case("smoothing-all", smoothed, smoothed_twin, static=("all",)),
    case("smoothing-negatives", smoothed, smoothed_twin, static=("negatives",)),
    case("duplicates", duplicates, duplicates_twin, given={"key": KEY}),
    case("pair-weights", weighted_pairs, weighted_pairs_twin, PAIR | SIDES, still=("u", "v")),
    case("hardest", mined, mined_twin, static=(None,)),
    case("hardest-filtered", mined, mined_twin, static=(0.1,)),
    case(
        "own-columns",
        own_columns,
        own_columns_twin,
        PAIR | {"own": OWN},
        {"own_valid": OWN_VALID},
    ),
    case("geodesic-mix", mixed, mixed_twin),
    case("extra-owned", owned, owned_twin, PAIR | {"extra": EXTRA}),
    case("extra-cut", long_extra, long_extra_twin, PAIR | {"extra": LONG_EXTRA}),
    case("null-target", null_target, null_target_twin, PAIR | {"null": EXTRA[0]}),
    case("cwcl", linear_teacher, linear_teacher_twin, PAIR | {"u": U}, still=("u",)),
    case(
        "learned-teacher",
        learned_teacher,
        learned_teacher_twin,
        PAIR | SIDES,
        static=("softmax",),
    ),
    case(
        "learned-weights", learned_teacher, learned_teacher_twin, PAIR | SIDES, static=("linear",)
    ),
    case("transport", transported, transported_twin),
    case(
        "sigmoid-everything",
        sigmoid_everything,
        sigmoid_everything_twin,
        PAIR | SIDES | {"bias": np.float32(-2.0), "own": OWN},
        {"key": KEY},
        still=("u", "v"),
    ),
    case("distance", functools.partial(with_score, scores.NegativeDistance()), distance_twin),
    case("filip", late, late_twin, TOKENS, MASKS, static=(0.0, False)),
    case("norton", late, late_twin, TOKENS, MASKS, static=(0.1, True)),
    case("gram", volume, volume_twin, {"x": X, "y": NEAR, "scale": SCALE}),
    case("hydra", gated, gated_twin, {"x": X, "y": Y, "gate": GATE}, {"label": CLASS}),
    case("shifted", shifted, shifted_twin, {"x": X, "y": Y, "a": U, "b": V}),
    case("triplet-all", triplet, triplet_twin, static=("all",)),
    case("triplet-hard", triplet, triplet_twin, static=("hard",)),
    case("triplet-semihard", triplet, triplet_twin, static=("semihard",)),
    case("triplet-groups", triplet_groups, triplet_groups_twin, given={"group": GROUP}),
    case("matching", matching, matching_twin, given={"group": GROUP}),
    case("nt-xent", views_of(nt_xent), nt_xent_twin, THREE),
    case(
        "multiview-infonce",
        functools.partial(multiview, multiview_infonce),
        multiview_infonce_twin,
        THREE,
    ),
    case(
        "multiview-dhel", functools.partial(multiview, multiview_dhel), multiview_dhel_twin, THREE
    ),
    case("modalities", modalities, modalities_twin, THREE),
    case("cloob", cloob, cloob_twin),
    case("energy", energy, energy_twin),
)


class TestVariants(Companion):
    cases = CASES

    @pytest.mark.parametrize(
        ("devices", "options"),
        [
            (1, {"block_size": 64}),
            (1, {"block_size": 5}),
            (2, {"block_size": 5}),
            (8, {"block_size": 2, "route": "ring"}),
        ],
        ids=["whole", "blocks", "gather", "ring"],
    )
    def test_values_and_gradients(self, case, devices, options):
        if case.name == "cloob" and "route" in options:
            options = {"block_size": 2}  # what is retrieved is gathered
        value, grads = case.found(case.arrays, case.given, devices, **options)
        exact_value, exact_grads = case.exact
        for name, grad in exact_grads.items():
            assert np.any(grad) == (name not in case.still), name
            if name in case.still:
                np.testing.assert_array_equal(grads.pop(name), 0.0)
        check_close((value, grads), (exact_value, exact_grads))


ANY_SCALE = ("decoupled", "duplicates", "hardest-filtered", "own-columns", "triplet-hard", "filip")


@pytest.mark.parametrize("scale", [1e-3, 200.0])
@pytest.mark.parametrize("name", ANY_SCALE)
def test_extreme_scales(name, scale):
    (case,) = (case for case in CASES if case.name == name)
    arrays = case.arrays | {"scale": np.float32(scale)}
    (value, grads), (exact, exact_grads) = case.found(arrays, case.given), case.expected(arrays)
    for a, b in ((value, exact), *((grads[k], exact_grads[k]) for k in grads)):
        # float32 scores are rounded to scale * 2^-24: what cancels to less is zero.
        size = max(np.max(np.abs(b)), scale if scale > 1 else 1e-3)
        assert np.max(np.abs(np.asarray(a, np.float64) - b)) <= 1e-5 * size


def contrast(**options):
    return softmax_contrast(X, Y, **{"logit_scale": 1.0} | options)


def tokens_error(**options):
    return contrast(score=scores.LateInteraction(), **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: contrast(same_items=True), "needs group_b"),
        (lambda: contrast(own_columns=OwnColumns(OWN[:3])), r"z_bkd \(3, 3, 16\): must be \(24"),
        (lambda: contrast(own_columns=OwnColumns(OWN), smoothing=Smoothing(0.1)), "not with"),
        (lambda: contrast(own_columns=OwnColumns(OWN), directions=(0.0, 1.0)), "swap x_bd"),
        (lambda: contrast(positive_bd=Y, group_b=GROUP), "not with group_b"),
        (lambda: contrast(hardest=Hardest(2), group_b=GROUP), 'denominator="negatives"'),
        (lambda: contrast(extra=Extra(EXTRA, owner_q=OWNER[:2])), r"owner_q \(2,\): must be"),
        (lambda: contrast(extra=Extra(EXTRA, duplicate_q=OWNER)), "needs duplicate_b"),
        (lambda: contrast(duplicate_b=X[:, 0]), "duplicate_b float32: must be an integer"),
        (lambda: contrast(pair_weight=OtherScores(U, V[:2])), r"pair_weight.y_bd \(2, 16\)"),
        (tokens_error, "compares `tokens"),
        (lambda: scores.tokens(TOKENS_X, MASK_Y), r"mask_bl \(24, 3\) bool: must be bool \(24, 5"),
        (lambda: contrast(score=scores.Volume()), "volume_columns"),
        (lambda: contrast(score=scores.Gated()), "Gated compares"),
        (lambda: contrast(score=scores.Shifted()), "Shifted compares"),
        (
            lambda: triplet_contrast(X, Y, margin=1.0, mining="soft", logit_scale=1.0),
            "mining='soft'",
        ),
        (
            lambda: triplet_contrast(
                X, Y, margin=1.0, mining="all", logit_scale=1.0, group_b=GROUP
            ),
            "several positives",
        ),
        (lambda: nt_xent(VIEWS[:1], logit_scale=1.0), r"views_vbd \(1, 3, 16\): must be \(V"),
        (lambda: nt_xent(VIEWS, logit_scale=1.0, group_b=GROUP), "the samples"),
        (lambda: modality_contrast({"a": X}, logit_scale=1.0), r"one pair or more of \['a'\]"),
        (lambda: transport_teacher(X, Y, alpha=0.1, iterations=0, logit_scale=1.0), "at least 1"),
        (lambda: hopfield_retrieval(X, Y[:2], scale=1.0), "two equal"),
    ],
)
def test_errors_say_what_would_be_right(call, message):
    with pytest.raises(ValueError, match=message):
        call()
