"""The best rows of a table by inner product, exactly: every row is scored, in blocks that stay in a core's cache."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import faiss
import numpy as np
import numpy.typing as npt
import torch

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
RowArray = npt.NDArray[np.integer]

# Scores held at once: 2^21 float32 are 8 MiB. More queries at once would share a reading of the table, and fall out of
# the cache between being scored and being ranked.
_SCORES_AT_ONCE = 1 << 21

# Rankings that are longer than one in so many scores are sorted by torch, shorter ones by FAISS.
_DEEP = 40

_LOWEST = np.finfo(np.float32).min  # with which FAISS fills up, where torch has the -inf of what is left out


class Neighbours(NamedTuple):
    """Items found, best first.

    Attributes:
        rows: (n,) int64 item rows.
        scores: (n,) float32 inner products.
    """

    rows: Int64Array
    scores: Float32Array


@dataclass(slots=True, eq=False)
class Found:
    """What several searches found, one after the other.

    Attributes:
        rows: (m,) int64 item rows.
        scores: (m,) float32 inner products.
        lengths: (b,) how many of them are each search's.
    """

    rows: Int64Array
    scores: Float32Array
    lengths: Int64Array

    @classmethod
    def of(cls, each: Sequence[Neighbours]) -> "Found":
        """The same of what each found by itself, at least one."""
        if len(each) == 1:
            return cls(*each[0], np.array([len(each[0].rows)]))
        rows, scores = zip(*each, strict=True)
        return cls(np.concatenate(rows), np.concatenate(scores), np.array([len(one) for one in rows]))

    def __iter__(self) -> Iterator[Neighbours]:
        rows, scores = self.rows, self.scores
        for begin, end in pairwise([0, *np.cumsum(self.lengths).tolist()]):
            yield Neighbours(rows[begin:end], scores[begin:end])


def best_rows(
    table: Float32Array,
    scale: Float32Array | None,
    queries: Float32Array,
    ks: Sequence[int],
    excluded: Sequence[RowArray],
    forbidden: npt.NDArray[np.bool_] | None = None,
) -> Found:
    """For each query the rows with the highest ``scale * (table @ query)`` that may be returned, best first.

    Of equal scores the lower row comes first, so that a ranking does not depend on how much of it is asked for.

    Args:
        table: (n, d) float32.
        scale: (n,) float32, or None for ones.
        queries: (b, d) float32.
        ks: (b,) how many rows each wants.
        excluded: (b,) of (m,) rows to leave out.
        forbidden: (n,) rows to leave out for every query; None for none.

    Returns:
        (b,) each with k rows, or as many as there are.
    """
    at_once = max(1, _SCORES_AT_ONCE // max(len(table), 1))
    if len(queries) <= at_once:
        return _best_of_block(table, scale, queries, ks, excluded, forbidden)
    ranked: dict[int, Neighbours] = {}
    by_k = sorted(range(len(queries)), key=ks.__getitem__)  # a deep ranking shall not make shallow ones deep
    for start in range(0, len(by_k), at_once):
        block = by_k[start : start + at_once]
        its_ks, its_excluded = [ks[place] for place in block], [excluded[place] for place in block]
        ranked.update(
            zip(block, _best_of_block(table, scale, queries[block], its_ks, its_excluded, forbidden), strict=True)
        )
    return Found.of([ranked[place] for place in range(len(queries))])


def _best_of_block(
    table: Float32Array,
    scale: Float32Array | None,
    queries: Float32Array,
    ks: Sequence[int],
    excluded: Sequence[RowArray],
    forbidden: npt.NDArray[np.bool_] | None,
) -> Found:
    count = len(table)
    scores = _products(queries, table)
    if scale is not None:
        scores *= scale
    if forbidden is not None:
        scores[:, forbidden] = -np.inf
    if len(queries) == 1:
        scores[0, excluded[0]] = -np.inf
    else:  # all at once, which takes a third of the time of one by one
        begins = np.repeat(np.arange(len(queries)) * count, [len(rows) for rows in excluded])
        scores.reshape(-1)[begins + np.concatenate(excluded)] = -np.inf
    # One more than wanted, which tells whether the last one wanted has its equal.
    best, rows = _highest(scores, min(max(ks) + 1, count))
    equal = best[:, 1:] == best[:, :-1]
    if equal.any():
        tied = (equal & (best[:, 1:] > _LOWEST)).any(axis=1)
        for row in tied.nonzero()[0].tolist():
            rows[row] = np.argsort(-scores[row], kind="stable")[: rows.shape[1]]
    k = min(ks)
    if k == max(ks) <= count and best[:, k - 1].min() > _LOWEST:  # as most often: each finds what it wants
        return Found(rows[:, :k].reshape(-1), best[:, :k].reshape(-1), np.full(len(queries), k))
    there = (best > _LOWEST) & (np.arange(best.shape[1]) < np.array(ks)[:, None])
    return Found(rows[there], best[there], np.count_nonzero(there, axis=1))


def _products(queries: Float32Array, table: Float32Array) -> Float32Array:
    """(c, n) inner products of (c, d) and (n, d)."""
    if len(queries) == 1:  # numpy has it in half of torch's time, which for more queries is the other way round
        return queries @ table.T
    return np.asarray((torch.from_numpy(queries) @ torch.from_numpy(table).T).numpy(), dtype=np.float32)


def _highest(scores: Float32Array, k: int) -> tuple[Float32Array, Int64Array]:
    """(b, k) the highest scores of each row of (b, n), descending, and their columns."""
    count = scores.shape[1]
    if len(scores) == 1 or k * _DEEP > count:
        values, indices = torch.topk(torch.from_numpy(scores), k)
        return values.numpy(), indices.numpy()
    # FAISS keeps the best in a heap, which few scores enter.
    heaps = faiss.float_minheap_array_t()
    best, columns = np.empty((len(scores), k), np.float32), np.empty((len(scores), k), np.int64)
    heaps.nh, heaps.k, heaps.val, heaps.ids = len(scores), k, faiss.swig_ptr(best), faiss.swig_ptr(columns)
    heaps.heapify()
    heaps.addn(count, faiss.swig_ptr(scores))
    heaps.reorder()
    return best, columns
