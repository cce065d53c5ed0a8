"""Losses that predict a target: values, gradients, and none for the target."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses.companions import Case, Companion, normal, weights
from vlalign.losses.predictive import byol, feature_regression, negative_cosine, simsiam

B, L, D = 16, 5, 6
RNG = np.random.default_rng(0)
WEIGHT = weights(RNG, B)
MASK = RNG.random((B, L)) < 0.6
VIEWS = {name: normal(RNG, B, D) for name in ("p1", "p2", "z1", "z2")}
TOKENS = {"student": normal(RNG, B, L, D), "target": normal(RNG, B, L, D)}


def cosine(a, b):
    return jnp.sum(a * b, -1) / jnp.linalg.norm(a, axis=-1) / jnp.linalg.norm(b, axis=-1)


def mean(loss, weight):
    return jnp.sum(weight * loss) / jnp.sum(weight)


def swapped(loss):
    def ours(p1, p2, z1, z2, weight):
        return loss(p1, p2, z1, z2, row_weight_b=weight)

    return ours


def swapped_twin(p1, p2, z1, z2, weight):
    z1, z2 = jax.lax.stop_gradient((z1, z2))
    return mean(-(cosine(p1, z2) + cosine(p2, z1)) / 2, weight)


def regression(kind, **options):
    def ours(student, target, weight, mask=None):
        given = {"mask_bl": mask, "row_weight_b": weight}
        return feature_regression(student, target, kind=kind, **given, **options)

    return ours


def regression_twin(each):
    def twin(student, target, weight, mask=None):
        loss = each(student, jax.lax.stop_gradient(target))
        return mean(loss, weight if mask is None else weight[:, None] * mask)

    return twin


def huber(a, b, beta=0.5):
    size = jnp.abs(a - b)
    return jnp.mean(jnp.where(size < beta, size**2 / (2 * beta), size - beta / 2), -1)


def l2(a, b):
    return jnp.mean((a - b) ** 2, -1)


ROWS = {"weight": WEIGHT}
MASKED = ROWS | {"mask": MASK}
TARGETS = {"student": TOKENS["student"][:, 0], "target": TOKENS["target"][:, 0]}


class TestPredictive(Companion):
    cases = (
        Case(
            "negative_cosine",
            lambda p1, z1, weight: negative_cosine(p1, z1, row_weight_b=weight),
            lambda p1, z1, weight: mean(-cosine(p1, jax.lax.stop_gradient(z1)), weight),
            {"p1": VIEWS["p1"], "z1": VIEWS["z1"]},
            ROWS,
            still=("z1",),
        ),
        Case("simsiam", swapped(simsiam), swapped_twin, VIEWS, ROWS, still=("z1", "z2")),
        Case(
            "byol",
            swapped(byol),
            lambda **inputs: 4 + 4 * swapped_twin(**inputs),
            VIEWS,
            ROWS,
            still=("z1", "z2"),
        ),
        Case("l2 rows", regression("l2"), regression_twin(l2), TARGETS, ROWS, still=("target",)),
        Case("l2", regression("l2"), regression_twin(l2), TOKENS, MASKED, still=("target",)),
        Case(
            "cosine",
            regression("cosine"),
            regression_twin(lambda a, b: -cosine(a, b)),
            TOKENS,
            MASKED,
            still=("target",),
        ),
        Case(
            "smooth_l1",
            regression("smooth_l1", beta=0.5),
            regression_twin(huber),
            TOKENS,
            MASKED,
            still=("target",),
        ),
    )


def test_left_out_tokens_change_nothing_and_the_count_is_of_tokens():
    holes = {k: np.where(MASK[..., None], a, np.nan) for k, a in TOKENS.items()}
    clean, dirty = (feature_regression(*t.values(), mask_bl=MASK) for t in (TOKENS, holes))
    assert int(clean.count) == int(dirty.count) == MASK.sum()
    assert clean.sum == dirty.sum


def test_byol_keeps_the_digits_of_a_small_loss():
    p = VIEWS["p1"]
    z = p + np.float32(1e-4) * VIEWS["p2"]
    with jax.enable_x64(True):
        wide = [a.astype(np.float64) for a in (p, p, z, z)]
        exact = byol(*wide).mean
    np.testing.assert_allclose(byol(p, p, z, z).mean, exact, rtol=1e-3)


def test_equal_unit_vectors_and_zero_vectors():
    p = VIEWS["p1"]
    np.testing.assert_allclose(negative_cosine(p, 3.0 * p).mean, -1.0, rtol=1e-6)
    grad = jax.grad(lambda a: negative_cosine(a, p).mean)(np.zeros_like(p))
    assert np.all(np.isfinite(grad))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: negative_cosine(x, x[:3]), r"z_bd \(3, 6\).* \(B, d\).*of one shape"),
        (lambda x: negative_cosine(x[0], x[0]), r"must be \(B, d\)"),
        (lambda x: negative_cosine(x, x.astype(np.int32)), "of float dtypes"),
        (lambda x: negative_cosine(x[:0], x[:0]), "not empty"),
        (lambda x: negative_cosine(x, x, row_weight_b=WEIGHT[:3]), r"row_weight_b \(3,\).*\(16,\)"),
        (lambda x: feature_regression(x, x, mask_bl=MASK), r"must be \(B, l, d\)"),
        (lambda x: feature_regression(x, x, kind="l1"), "kind='l1': must be \"l2\""),
        (lambda x: feature_regression(x, x, kind="smooth_l1", beta=0.0), "beta=0.0: must be above"),
        (
            lambda x: feature_regression(*TOKENS.values(), mask_bl=MASK[:, :2]),
            r"mask_bl \(16, 2\): must be \(16, 5\)",
        ),
    ],
)
def test_errors_say_what_would_be_right(call, message):
    with pytest.raises(ValueError, match=message):
        call(VIEWS["p1"])
