"""Regularisers of the modality gap, and the digits of the consistencies."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses.companions import Case, Companion, check_close, normal, unit, weights
from vlalign.losses.gap import (
    centroid_distance,
    cross_modal_consistency,
    in_modal_consistency,
    random_feature_alignment,
)

B, D = 16, 6
RNG = np.random.default_rng(0)
X = unit(normal(RNG, B, D))
PAIRS = {"x": X, "y": unit(X + np.float32(0.7) * normal(RNG, B, D))}
NOISE = normal(RNG, B, D)
GIVEN = {"weight": weights(RNG, B)}


def rows(loss):
    def ours(weight, **arrays):
        return loss(*arrays.values(), row_weight_b=weight)

    return ours


def centroid_twin(x, y, weight):
    return jnp.sum((jnp.average(x, 0, weight) - jnp.average(y, 0, weight)) ** 2)


def prior_twin(reference, x, y, weight):
    distance = [jnp.linalg.norm(z - jax.lax.stop_gradient(reference), axis=1) for z in (x, y)]
    return jnp.average((distance[0] ** 2 + distance[1] ** 2) / 2, 0, weight)


def in_modal_twin(x, y, weight):
    relative = weight / jnp.mean(weight)
    return relative @ (x @ x.T - y @ y.T) ** 2 @ relative / len(x)


def cross_modal_twin(x, y, weight):
    relative = weight / jnp.mean(weight)
    return relative @ (x @ y.T - y @ x.T) ** 2 @ relative / len(x)


class TestGap(Companion):
    cases = (
        Case("centroids", rows(centroid_distance), centroid_twin, PAIRS, GIVEN),
        Case(
            "prior",
            rows(lambda reference, x, y, **rest: random_feature_alignment(x, y, reference, **rest)),
            prior_twin,
            {"reference": NOISE} | PAIRS,
            GIVEN,
            still=("reference",),
        ),
        Case("in-modal", rows(in_modal_consistency), in_modal_twin, PAIRS, GIVEN),
        Case("cross-modal", rows(cross_modal_consistency), cross_modal_twin, PAIRS, GIVEN),
    )


@pytest.mark.parametrize("distance", [1e-1, 1e-3, 1e-5])
def test_consistencies_keep_the_digits_of_nearly_equal_pairs(distance):
    """The three Gram matrices of the textbook would leave none at 1e-3."""
    arrays = {"x": X, "y": X + np.float32(distance) * NOISE}
    given = {"weight": np.ones(B, np.float32)}
    for loss, twin in (
        (in_modal_consistency, in_modal_twin),
        (cross_modal_consistency, cross_modal_twin),
    ):
        case = Case("near", rows(loss), twin, arrays, given)
        check_close(case.found(arrays, given), case.exact)


def test_rotated_modalities_are_consistent_within_and_reflected_ones_across():
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(D, D)))[0].astype(np.float32)
    across = cross_modal_consistency(X, X @ rotation).mean
    assert across > 0.1
    assert abs(in_modal_consistency(X, X @ rotation).mean) < 1e-6 * across
    symmetric = np.diag(np.asarray([1, -1, 1, -1, 1, 1], np.float32))
    assert abs(cross_modal_consistency(X, X @ symmetric).mean) < 1e-5


def test_nothing_is_as_large_as_all_pairs():
    shapes = set()

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            shapes.update(getattr(v.aval, "size", 0) for v in equation.outvars)
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                walk(inner)

    x = np.zeros((64, 4), np.float32)
    for loss in (in_modal_consistency, cross_modal_consistency):
        walk(jax.make_jaxpr(jax.grad(lambda z, f=loss: f(z, 2.0 * z).mean))(x).jaxpr)
    assert max(shapes) == 64 * 4


def test_errors_say_what_would_be_right():
    for loss in (centroid_distance, in_modal_consistency, cross_modal_consistency):
        with pytest.raises(ValueError, match=r"y_bd \(4, 6\) float32: must be \(B, d\)"):
            loss(X, X[:4])
    with pytest.raises(ValueError, match=r"reference_bd \(16, 3\)"):
        random_feature_alignment(X, X, X[:, :3])
