"""How much of the truth a search returns, and how long a query takes."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import torch

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
RowArray = npt.NDArray[np.integer]

Search = Callable[[Float32Array, int], Int64Array]
"""(b, d) queries and k to (b, k) item rows in any order, -1 where there is none."""

_NO_ROWS = np.empty(0, np.int64)
_BATCH = 64  # about what a server under load drains at once
_TIMED_SINGLY = 64
_DEEP = 40  # rankings longer than one in so many scores are not kept in heaps
_SECONDS_SINGLY = 1.0
_QUARTILE = 0.25  # other work on the machine makes times longer and none shorter: medians suffer more from it


@dataclass(frozen=True)
class Measured:
    """What a search was found to do.

    Attributes:
        shares: (n,) of each query, the share of its true best k that was returned.
        single_query_micros: time of a query that comes alone, on one thread: a quarter took less.
        batch_micros_per_query: time of a batch of 64 by its size, on one thread: a quarter took less.
    """

    shares: FloatArray
    single_query_micros: float
    batch_micros_per_query: float

    @property
    def cost(self) -> float:
        """As ``cost_of`` has it."""
        return cost_of(self.single_query_micros, self.batch_micros_per_query)


def cost_of(single_query_micros: float, batch_micros_per_query: float) -> float:
    """What searches are compared by: the geometric mean of both times, for which half of either counts the same."""
    return math.sqrt(single_query_micros * batch_micros_per_query)


class GroundTruth:
    """The best scores of queries by exact search, which other searches are held against.

    What a query leaves out, such as the items that its user has seen, is left out of the truth; a search is asked for
    as many more, as a server asks it, and what it brings of them does not count.

    Args:
        vectors: (items, d) float32.
        queries: (n, d) float32.
        most: the largest k that will be asked for.
        left_out: (n,) of (m,) distinct item rows that a query leaves out; None for none.
    """

    def __init__(
        self, vectors: Float32Array, queries: Float32Array, most: int, left_out: Sequence[RowArray] | None = None
    ) -> None:
        self._vectors = vectors
        self._left_out = [_NO_ROWS] * len(queries) if left_out is None else left_out
        self.queries = np.ascontiguousarray(queries, dtype=np.float32)
        most = min(most, len(vectors))
        self._best = np.empty(
            (len(queries), most), np.float32
        )  # (n, most) scores, best first; -inf where there is none
        items = torch.from_numpy(vectors)
        for start in range(0, len(queries), _BATCH):  # exact scores of 64 queries and a million items are 256 MB
            scores = torch.from_numpy(self.queries[start : start + _BATCH]) @ items.T  # (b, items)
            for row, rows in zip(scores, self._left_out[start : start + _BATCH], strict=True):
                row[torch.from_numpy(rows.astype(np.int64))] = -torch.inf
            self._best[start : start + _BATCH] = torch.topk(scores, most).values.numpy()

    def halves(self) -> "tuple[GroundTruth, GroundTruth]":
        """Half of the queries, to choose by, and as many others, to judge the choice by; of one query, itself."""
        half = max(1, len(self.queries) // 2)
        return self._part(slice(0, half)), self._part(slice(-half, None))

    def first(self, queries: int) -> "GroundTruth":
        """The same of so many queries."""
        return self._part(slice(0, queries))

    def with_nothing_left_out(self) -> "GroundTruth":
        """The same queries, to take times of; shares are then of no meaning."""
        bare = copy(self)
        bare._left_out = [_NO_ROWS] * len(self.queries)
        return bare

    def _part(self, places: slice) -> "GroundTruth":
        part = copy(self)
        part.queries, part._best, part._left_out = self.queries[places], self._best[places], self._left_out[places]
        return part

    def sample(self, items: int, k: int, seed: int) -> "tuple[Int64Array, GroundTruth]":
        """(n,) rows of so many items, and the truth about these items alone."""
        rows = np.sort(np.random.default_rng(seed).permutation(len(self._vectors))[:items])
        left_out = [np.searchsorted(rows, np.intersect1d(rows, one)) for one in self._left_out]
        return rows, GroundTruth(self._vectors[rows], self.queries, k, left_out)

    def shares(self, search: Search, k: int) -> FloatArray:
        """(n,) of each query, the share of its true best k that a search returns.

        An item counts as one of the best k if its exact score reaches the k-th best exact score, so that ties do no
        harm.
        """
        return np.concatenate([self._of_batch(start, search, k)[0] for start in range(0, len(self.queries), _BATCH)])

    def measure(self, search: Search, k: int) -> Measured:
        """Shares and times of a search for ``k`` items."""
        with _one_thread():
            self._of_batch(0, search, k)  # brings the index into the caches
            batches = [self._of_batch(start, search, k) for start in range(0, len(self.queries), _BATCH)]
            # The last batch is smaller than the others unless it is the only one.
            micros = [seconds * 1e6 / len(shares) for shares, seconds in batches[: max(1, len(batches) - 1)]]
            singly: list[float] = []
            asked = self._asked(slice(None), k)
            while len(singly) < _TIMED_SINGLY and (len(singly) < 5 or sum(singly) < _SECONDS_SINGLY):
                place = len(singly) % len(self.queries)
                began = time.perf_counter()
                search(self.queries[place : place + 1], asked[place])
                singly.append(time.perf_counter() - began)
        shares = np.concatenate([shares for shares, _ in batches])
        return Measured(shares, float(np.quantile(singly, _QUARTILE)) * 1e6, float(np.quantile(micros, _QUARTILE)))

    def _asked(self, places: slice, k: int) -> list[int]:
        """How many items a server asks for so that k are left."""
        return [min(rounded_up(k + len(rows)), len(self._vectors)) for rows in self._left_out[places]]

    def _of_batch(self, start: int, search: Search, k: int) -> tuple[FloatArray, float]:
        """Shares of the batch that begins at ``start``, and the seconds that its searches took."""
        batch = slice(start, start + _BATCH)
        queries, best, left_out = self.queries[batch], self._best[batch, :k], self._left_out[batch]
        asked = np.array(self._asked(batch, k))
        shares, seconds = np.empty(len(queries)), 0.0
        for count in np.unique(asked).tolist():
            places = np.flatnonzero(asked == count)
            began = time.perf_counter()
            found = search(queries[places], count)  # (p, count)
            seconds += time.perf_counter() - began
            scores = np.einsum("bkd,bd->bk", self._vectors[np.maximum(found, 0)], queries[places])
            for place, rows, its_scores in zip(places.tolist(), found, scores, strict=True):
                true = best[place][best[place] > -np.inf]
                if len(true):
                    counts = (rows >= 0) & ~np.isin(rows, left_out[place])
                    good = counts & (its_scores >= true[-1] - 1e-5 * np.abs(true[-1]))  # but for rounding
                    shares[place] = min(int(good.sum()), len(true)) / len(true)
                else:
                    shares[place] = 1.0
        return shares, seconds


def rounded_up(items: int) -> int:
    """How many items a server asks for that needs so many: a power of two, so that many queries ask for as many."""
    return 1 << (items - 1).bit_length()


@contextmanager
def _one_thread() -> Iterator[None]:
    """A server answers several callers at once: what counts is the time of one core."""
    before = faiss.omp_get_max_threads(), torch.get_num_threads()
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before[0])
        torch.set_num_threads(before[1])


def exact_search(vectors: Float32Array) -> Search:
    """Exact search by one matrix product, as a server does it for an index of kind "flat"."""
    items = torch.from_numpy(vectors)

    def search(queries: Float32Array, k: int) -> Int64Array:
        return _best(_products(items, torch.from_numpy(queries)), k)

    return search


def bfloat16_search(vectors: Float32Array, over_fetch: int = 4) -> Search:
    """Exact search for ``over_fetch`` times as many in bfloat16, which are then scored again in float32."""
    rounded = torch.from_numpy(vectors).bfloat16()

    def search(queries: Float32Array, k: int) -> Int64Array:
        products = _products(rounded, torch.from_numpy(queries).bfloat16()).float()
        found = _best(products, min(over_fetch * k, len(vectors)))  # (b, 4k)
        scores = torch.from_numpy(np.einsum("bkd,bd->bk", vectors[found], queries))
        return np.take_along_axis(found, _best(scores, k), axis=1)

    return search


def _products(items: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """(b, items) inner products."""
    return (items @ queries[0])[None] if len(queries) == 1 else queries @ items.T


def _best(scores: torch.Tensor, k: int) -> Int64Array:
    """(b, k) places of the greatest of each row of (b, n), in any order, about as quickly as a server finds them."""
    matrix, items = scores.numpy(), scores.shape[1]
    if len(matrix) == 1 or k * _DEEP > items:
        return np.argpartition(matrix, items - k, axis=1)[:, items - k :]
    heaps: Any = faiss.float_minheap_array_t()
    best, places = np.empty((len(matrix), k), np.float32), np.empty((len(matrix), k), np.int64)
    heaps.nh, heaps.k, heaps.val, heaps.ids = len(matrix), k, faiss.swig_ptr(best), faiss.swig_ptr(places)
    heaps.heapify()
    heaps.addn(items, faiss.swig_ptr(matrix))
    return places
