"""Bootstrap intervals: how much a number would move on another sample of queries.

Percentile bootstrap (Efron, Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3).
Queries that belong together (the captions of one image) are drawn together: a cluster bootstrap,
without which five captions an image would look like five times the evidence.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from vlalign.evals.base import Estimate

RESAMPLES = 1000
LEVEL = 0.95
_BLOCK = 4_000_000  # entries of one block of draws: 32 MB


def mean_estimates(
    values_nm: np.ndarray,
    clusters_n: np.ndarray | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Estimate]:
    """Means of m columns over n queries, with intervals from the same draws.

    values_nm: real (n, m), such as hits 0/1; clusters_n: int (n,), queries that are drawn together.
    Raises `ValueError` without queries or on values that are not finite.
    """
    values_nm = _checked(values_nm, ndim=2)
    n, m = values_nm.shape
    cluster_n, size_c = _clusters(clusters_n, n)
    sums_cm = np.stack(
        [np.bincount(cluster_n, weights=values_nm[:, j], minlength=len(size_c)) for j in range(m)],
        axis=1,
    )
    drawn = [
        (draws_rc @ sums_cm) / (draws_rc @ size_c)[:, None]
        for draws_rc in _draws(len(size_c), resamples, seed)
    ]
    return _estimates(values_nm.mean(axis=0), np.concatenate(drawn), n)


def median_estimate(
    values_n: np.ndarray,
    clusters_n: np.ndarray | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """The median over n queries, as `numpy.median`, with its interval.

    values_n: real (n,); clusters_n: int (n,), queries that are drawn together.
    Raises `ValueError` without queries or on values that are not finite.
    """
    values_n = _checked(values_n, ndim=1)
    cluster_n, size_c = _clusters(clusters_n, len(values_n))
    order_n = np.argsort(values_n, kind="stable")
    sorted_n = values_n[order_n]
    drawn = []
    for draws_rc in _draws(len(size_c), resamples, seed, width=len(values_n)):
        up_to_rn = np.cumsum(draws_rc[:, cluster_n[order_n]], axis=1)
        total_r1 = up_to_rn[:, -1:]
        low_r = (up_to_rn < np.floor((total_r1 + 1) / 2)).sum(axis=1)
        high_r = (up_to_rn < np.floor((total_r1 + 2) / 2)).sum(axis=1)
        drawn.append((sorted_n[low_r] + sorted_n[high_r]) / 2)
    value_1 = np.asarray([np.median(values_n)])
    return _estimates(value_1, np.concatenate(drawn)[:, None], len(values_n))[0]


def class_mean_estimate(
    hits_n: np.ndarray, classes_n: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Mean over classes of the mean within; classes are fixed, samples drawn within a class.

    hits_n: bool (n,) or 0/1; classes_n: int (n,). Raises `ValueError` without samples or if a hit
    is neither 0 nor 1.
    """
    hits_n = _checked(hits_n, ndim=1)
    if not np.isin(hits_n, (0.0, 1.0)).all():
        raise ValueError("hits must be 0 or 1")
    class_n, size_c = _clusters(classes_n, len(hits_n))
    rate_c = np.bincount(class_n, weights=hits_n) / size_c
    # Drawing n_c hits with replacement and counting the ones is a binomial draw: no loop needed.
    rng = np.random.default_rng(seed)
    drawn_rc = rng.binomial(size_c.astype(np.int64), rate_c, (resamples, len(rate_c))) / size_c
    value_1 = np.asarray([rate_c.mean()])
    return _estimates(value_1, drawn_rc.mean(axis=1, keepdims=True), len(hits_n))[0]


def _checked(values: np.ndarray | Sequence[float], *, ndim: int) -> np.ndarray:
    result = np.asarray(values, np.float64)
    if result.ndim != ndim or len(result) == 0:
        raise ValueError(f"need {ndim}-d values of at least one query, got shape {result.shape}")
    if not np.isfinite(result).all():
        raise ValueError("values of queries must be finite")
    return result


def _clusters(clusters_n: np.ndarray | None, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Cluster numbers without gaps (n,) and the float64 sizes (c,)."""
    if clusters_n is None:
        return np.arange(n), np.ones(n)
    if np.shape(clusters_n) != (n,):
        raise ValueError(f"clusters of shape {np.shape(clusters_n)} for {n} queries")
    cluster_n = np.unique(clusters_n, return_inverse=True)[1]
    return cluster_n, np.bincount(cluster_n).astype(np.float64)


def _draws(count: int, resamples: int, seed: int, width: int = 0) -> Iterator[np.ndarray]:
    """Blocks float64 (r, count): how often each resample has drawn each cluster."""
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // max(count, width))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        picked_rc = rng.integers(0, count, (rows, count)) + count * np.arange(rows)[:, None]
        flat = np.bincount(picked_rc.ravel(), minlength=rows * count)
        yield flat.reshape(rows, count).astype(np.float64)


def _estimates(value_m: np.ndarray, drawn_rm: np.ndarray, count: int) -> list[Estimate]:
    tail = (1 - LEVEL) / 2
    low_m, high_m = np.quantile(drawn_rm, (tail, 1 - tail), axis=0)
    return [
        Estimate(float(value), float(min(low, value)), float(max(high, value)), count)
        for value, low, high in zip(value_m, low_m, high_m, strict=True)
    ]
