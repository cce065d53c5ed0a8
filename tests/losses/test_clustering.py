"""Prototypes: the codes' marginals, swapped assignments and cross-entropy of clusters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from tests.losses.companions import Case, Companion, mesh_of, normal, unit, weights
from vlalign.losses.clustering import prototype_cross_entropy, sinkhorn_codes, swapped_prediction

B, K, D, Q = 16, 5, 6, 8
RNG = np.random.default_rng(0)
WEIGHT = weights(RNG, B)
SCORES = {name: unit(normal(RNG, B, K)) for name in ("first", "second", "third")}
QUEUES = [unit(normal(RNG, Q, K)) for _ in range(2)]
ASSIGNMENT = RNG.integers(0, K, size=B, dtype=np.int32)


def codes_twin(scores, weight, epsilon=0.25, iterations=3):
    """As published: no logarithm, a sample of weight 2 counted twice."""
    q = jnp.exp(scores / epsilon)
    for _ in range(iterations):
        q = q / jnp.sum(weight[:, None] * q, axis=0, keepdims=True)
        q = q / jnp.sum(q, axis=1, keepdims=True)
    return q


def swapped_twin(*views, weight, assign, queues=()):
    total = 0.0
    for i in range(assign):
        scores, count = jax.lax.stop_gradient(views[i]), weight
        if queues:
            scores = jnp.concatenate([scores, queues[i]])
            count = jnp.concatenate([weight, jnp.ones(Q, weight.dtype)])
        codes = codes_twin(scores, count)[: len(weight)]
        others = [view for j, view in enumerate(views) if j != i]
        logs = [jnp.log(jax.nn.softmax(view / 0.2, axis=1)) for view in others]
        loss = [-jnp.average(jnp.sum(codes * log, axis=1), 0, weight) for log in logs]
        total += sum(loss) / len(others)
    return total / assign


def swapped(assign):
    options = {"temperature": 0.2, "epsilon": 0.25, "assign": assign}

    def ours(weight, **views):
        return swapped_prediction(list(views.values()), row_weight_b=weight, **options)

    def twin(weight, **views):
        return swapped_twin(*views.values(), weight=weight, assign=assign)

    return ours, twin


def cluster(x, prototypes, scale, assignment, weight, concentration=None):
    return prototype_cross_entropy(
        x,
        prototypes,
        assignment,
        logit_scale=scale,
        concentration_k=concentration,
        row_weight_b=weight,
    )


def cluster_twin(x, prototypes, scale, assignment, weight, concentration=None):
    logits = scale * x @ prototypes.T
    if concentration is not None:
        logits = logits / concentration[None, :]
    p = jnp.exp(logits) / jnp.sum(jnp.exp(logits), axis=1, keepdims=True)
    return -jnp.average(jnp.log(p[np.arange(len(x)), assignment]), 0, weight)


ARRAYS = {"x": unit(normal(RNG, B, D)), "prototypes": unit(normal(RNG, K, D))}
ARRAYS |= {"scale": np.asarray(3.0, np.float32)}
CONCENTRATION = {"concentration": RNG.uniform(0.5, 2.0, size=K).astype(np.float32)}
TWO = {k: SCORES[k] for k in ("first", "second")}


class TestClustering(Companion):
    cases = (
        Case("swapped", *swapped(2), TWO, {"weight": WEIGHT}),
        Case("crops", *swapped(2), SCORES, {"weight": WEIGHT}),
        Case("one assigns", *swapped(1), TWO, {"weight": WEIGHT}, still=("first",)),
        Case(
            "prototypes",
            cluster,
            cluster_twin,
            ARRAYS,
            {"assignment": ASSIGNMENT, "weight": WEIGHT},
            whole=("prototypes", "scale"),
        ),
        Case(
            "concentration",
            cluster,
            cluster_twin,
            ARRAYS | CONCENTRATION,
            {"assignment": ASSIGNMENT, "weight": WEIGHT},
            whole=("prototypes", "scale", "concentration"),
        ),
    )


@settings(max_examples=15)
@given(seed=st.integers(0, 2**16), epsilon=st.sampled_from([0.5, 0.05, 0.005]))
def test_marginals_of_codes(seed, epsilon):
    rng = np.random.default_rng(seed)
    scores, weight = unit(normal(rng, B, K)), weights(rng, B)
    codes = np.asarray(sinkhorn_codes(scores, epsilon=epsilon, row_weight_b=weight))
    assert np.all(codes >= 0)
    np.testing.assert_allclose(codes.sum(1), weight > 0, rtol=1e-5)
    balanced = np.asarray(sinkhorn_codes(scores, epsilon=0.5, iterations=50, row_weight_b=weight))
    np.testing.assert_allclose(weight @ balanced, weight.sum() / K, rtol=1e-4)


def test_codes_are_those_of_the_published_iteration():
    scores = SCORES["first"]
    with jax.enable_x64(True):
        keep = WEIGHT > 0
        wide = jnp.asarray(scores[keep], jnp.float64), jnp.asarray(WEIGHT[keep], jnp.float64)
        exact = np.asarray(codes_twin(*wide))
    found = sinkhorn_codes(scores, epsilon=0.25, row_weight_b=WEIGHT)
    np.testing.assert_allclose(found[keep], exact, rtol=1e-5)
    np.testing.assert_array_equal(found[~keep], 0.0)
    hard = sinkhorn_codes(scores, epsilon=1e-4)  # exp(scores / epsilon) would be infinite
    assert np.all(np.isfinite(hard))


@pytest.mark.parametrize("devices", [2, 8])
def test_codes_of_a_batch_over_devices(devices):
    alone = sinkhorn_codes(SCORES["first"], row_weight_b=WEIGHT)
    mesh = mesh_of(devices)
    with jax.set_mesh(mesh):
        cut = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        put = [jax.device_put(a, cut) for a in (SCORES["first"], WEIGHT)]
        codes = jax.jit(lambda s, w: sinkhorn_codes(s, row_weight_b=w))(*put)
    np.testing.assert_allclose(codes, alone, rtol=1e-5, atol=1e-7)


def test_codes_are_constants_and_a_queue_helps_to_balance_them():
    codes = jax.jacobian(lambda s: sinkhorn_codes(s, epsilon=0.25))(SCORES["first"])
    np.testing.assert_array_equal(codes, 0.0)
    views = list(TWO.values())
    options = {"temperature": 0.2, "epsilon": 0.25, "queue_scores": QUEUES}
    found = swapped_prediction(views, row_weight_b=WEIGHT, **options).mean
    keep = WEIGHT > 0
    twin = swapped_twin(*(v[keep] for v in views), weight=WEIGHT[keep], assign=2, queues=QUEUES)
    np.testing.assert_allclose(found, twin, rtol=1e-5)
    plain = swapped_prediction(views, row_weight_b=WEIGHT, temperature=0.2, epsilon=0.25).mean
    assert abs(found - plain) > 1e-3


def test_rows_without_a_cluster_are_left_out_and_unknown_ones_are_nan():
    x, prototypes = ARRAYS["x"], ARRAYS["prototypes"]
    some = np.where(np.arange(B) < 3, -1, ASSIGNMENT)
    loss = prototype_cross_entropy(x, prototypes, some, logit_scale=1.0)
    rest = prototype_cross_entropy(x[3:], prototypes, ASSIGNMENT[3:], logit_scale=1.0)
    assert int(loss.count) == B - 3
    np.testing.assert_allclose(loss.mean, rest.mean, rtol=1e-6)
    for wrong in (K, -2):
        some[0] = wrong
        assert np.isnan(prototype_cross_entropy(x, prototypes, some, logit_scale=1.0).mean)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: sinkhorn_codes(s[0]), r"must be \(B, K\)"),
        (lambda s: sinkhorn_codes(s, epsilon=0.0), "epsilon=0.0, iterations=3: must be above 0"),
        (lambda s: sinkhorn_codes(s, iterations=0), "iterations=0: .*at least 1"),
        (lambda s: swapped_prediction([s]), "1 views, assign=2: must be 2 or more"),
        (lambda s: swapped_prediction([s, s], assign=3), "assign=3: must be .* 1 to all"),
        (lambda s: swapped_prediction([s, s[:, :2]]), r"scores\[1\] \(16, 2\)"),
        (lambda s: swapped_prediction([s, s], queue_scores=[s]), "1 queue_scores: .* assign=2"),
        (
            lambda s: swapped_prediction([s, s], queue_scores=[s[:, :2], s]),
            r"queue_scores \(16, 2\): must be \(Q, K\), K = 5",
        ),
        (
            lambda s: prototype_cross_entropy(s, s[:, :2], ASSIGNMENT, logit_scale=1.0),
            r"prototypes_kd \(16, 2\): must be \(K, d\)",
        ),
        (
            lambda s: prototype_cross_entropy(s, s, WEIGHT, logit_scale=1.0),
            "assignment_b float32: must be an integer",
        ),
        (
            lambda s: prototype_cross_entropy(
                s, s, ASSIGNMENT, logit_scale=1.0, concentration_k=WEIGHT[:2]
            ),
            r"concentration_k \(2,\): must be \(16,\)",
        ),
    ],
)
def test_errors_say_what_would_be_right(call, message):
    with pytest.raises(ValueError, match=message):
        call(SCORES["first"])
