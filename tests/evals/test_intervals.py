import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlalign.evals.intervals import class_mean_estimate, mean_estimates, median_estimate


def naive_bootstrap(values, clusters, statistic, resamples, seed):
    rng = np.random.default_rng(seed)
    names = np.unique(clusters)
    drawn = []
    for _ in range(resamples):
        picked = rng.integers(0, len(names), len(names))
        drawn.append(statistic(np.concatenate([values[clusters == names[c]] for c in picked])))
    return np.quantile(drawn, (0.025, 0.975))


@pytest.mark.parametrize("clustered", [False, True])
def test_mean_and_median_equal_the_loop(clustered):
    values = np.random.default_rng(1).integers(0, 20, 60).astype(float)
    clusters = np.arange(60) // (4 if clustered else 1)
    given_clusters = clusters if clustered else None
    mean = mean_estimates(values[:, None], given_clusters, resamples=80, seed=3)[0]
    median = median_estimate(values, given_clusters, resamples=80, seed=3)
    low, high = naive_bootstrap(values, clusters, np.mean, 80, 3)
    assert (mean.value, mean.count) == (pytest.approx(values.mean()), 60)
    assert (mean.low, mean.high) == (pytest.approx(low), pytest.approx(high))
    low, high = naive_bootstrap(values, clusters, np.median, 80, 3)
    assert median.value == np.median(values)
    assert (median.low, median.high) == (pytest.approx(low), pytest.approx(high))


def test_columns_share_draws_and_blocks_change_nothing(monkeypatch):
    hits = np.random.default_rng(0).random((50, 3)) < 0.3
    whole = mean_estimates(hits)
    monkeypatch.setattr("vlalign.evals.intervals._BLOCK", 170)
    assert mean_estimates(hits) == whole
    assert mean_estimates(hits[:, 1:2])[0] == whole[1]


def test_the_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    covered = [
        found.low <= 0.3 <= found.high
        for found in mean_estimates(rng.random((200, 400)) < 0.3, resamples=400)
    ]
    assert 0.90 <= np.mean(covered) <= 0.99


def test_captions_of_one_image_are_one_piece_of_evidence():
    hits = np.repeat(np.random.default_rng(0).random(40) < 0.5, 5)[:, None]
    alone = mean_estimates(hits)[0]
    together = mean_estimates(hits, np.repeat(np.arange(40), 5))[0]
    assert together.high - together.low > 1.8 * (alone.high - alone.low)


def test_class_mean_weighs_classes_equally():
    classes = np.array([0] * 90 + [1] * 10)
    found = class_mean_estimate(classes == 0, classes)
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)
    hits = np.random.default_rng(0).random(100) < 0.5
    found = class_mean_estimate(hits, classes)
    assert found.value == pytest.approx((hits[:90].mean() + hits[90:].mean()) / 2)
    assert found.low < found.value < found.high


@given(st.lists(st.booleans(), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_the_value_lies_in_its_interval(hits):
    found = mean_estimates(np.array(hits)[:, None], resamples=50)[0]
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.value == pytest.approx(np.mean(hits))


@pytest.mark.parametrize("values", [np.zeros((0, 1)), np.array([[np.nan]]), np.zeros(3)])
def test_values_that_have_no_mean_are_refused(values):
    with pytest.raises(ValueError, match=r"values|query"):
        mean_estimates(values)
