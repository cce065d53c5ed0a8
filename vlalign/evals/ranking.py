"""Ranks of positives in a gallery, exactly, without keeping the whole score matrix.

Scores are inner products in float64 rounded to float32, so that equal embeddings have equal scores
however the matrix is cut: the order of a BLAS sum depends on the shape of its block.
"""

import dataclasses
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

_BLOCK = 8_000_000  # entries of one block of scores: 64 MB in float64


@dataclasses.dataclass(frozen=True)
class Positives:
    """Which gallery rows are right for each query, as compressed rows.

    columns: int64 (p,), gallery rows, those of query q at `columns[starts[q]:starts[q + 1]]`,
      ascending and without repetition
    starts: int64 (q + 1,)
    """

    columns: np.ndarray
    starts: np.ndarray

    def of(self, query: int) -> np.ndarray:
        """The gallery rows that are right for `query`."""
        return self.columns[self.starts[query] : self.starts[query + 1]]


def positives(
    query_tags: Sequence[Iterable[Hashable]], gallery_tags: Sequence[Iterable[Hashable]]
) -> Positives:
    """Query and gallery row belong together if they share a tag (a group, an equal text).

    Raises `ValueError` if a query has no right answer: its recall would be undefined.
    """
    rows_of: dict[Hashable, list[int]] = {}
    for row, tags in enumerate(gallery_tags):
        for tag in tags:
            rows_of.setdefault(tag, []).append(row)
    found = [sorted({row for tag in tags for row in rows_of.get(tag, ())}) for tags in query_tags]
    lonely = [query for query, rows in enumerate(found) if not rows]
    if lonely:
        raise ValueError(f"{len(lonely)} queries have no positive, the first is query {lonely[0]}")
    starts = np.cumsum([0, *map(len, found)], dtype=np.int64)
    return Positives(np.asarray([row for rows in found for row in rows], np.int64), starts)


def scores(query_qd: np.ndarray, gallery_nd: np.ndarray) -> np.ndarray:
    """Float32 (q, n) inner products that do not depend on how queries are cut into blocks."""
    product = query_qd.astype(np.float64) @ gallery_nd.astype(np.float64).T
    return product.astype(np.float32)


def best_ranks(query_qd: np.ndarray, gallery_nd: np.ndarray, right: Positives) -> np.ndarray:
    """Int64 (q,): the place, from 1, of the best right answer of each query.

    The place is 1 + the number of wrong answers with at least its score: ties count against the
    model, so one that maps all to a single point is last everywhere, not first.
    """
    gallery = gallery_nd.astype(np.float64)
    ranks = np.empty(len(query_qd), np.int64)
    block = max(1, _BLOCK // max(1, len(gallery)))
    for start in range(0, len(query_qd), block):
        stop = min(start + block, len(query_qd))
        score_bn = scores(query_qd[start:stop], gallery)
        first, last = right.starts[start], right.starts[stop]
        offsets = right.starts[start:stop] - first
        sizes = np.diff(right.starts[start : stop + 1])
        rows = np.repeat(np.arange(stop - start), sizes)
        right_p = score_bn[rows, right.columns[first:last]]
        best_b = np.maximum.reduceat(right_p, offsets)
        as_good_b = (score_bn >= best_b[:, None]).sum(axis=1)
        right_as_good_b = np.add.reduceat((right_p >= best_b[rows]).astype(np.int64), offsets)
        ranks[start:stop] = 1 + as_good_b - right_as_good_b
    return ranks


def top(score_qn: np.ndarray, count: int) -> np.ndarray:
    """Int64 (q, min(count, n)): the columns of the best scores, best first, ties by column."""
    count = min(count, score_qn.shape[1])
    return np.argsort(-score_qn, axis=1, kind="stable")[:, :count]
