"""How much of the truth a search returns, and how long a query takes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt
import torch

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

Search = Callable[[Float32Array, int], Int64Array]
"""(b, d) queries and k to (b, k) item rows in any order, -1 where there is none."""

_BATCH = 64  # about what a server under load drains at once
_TIMED_SINGLY = 64
_SECONDS_SINGLY = 1.0


@dataclass(frozen=True)
class Measured:
    """What a search was found to do.

    Attributes:
        shares: (n,) of each query, the share of its true best k that was returned.
        single_query_micros: median time of a query that comes alone, on one thread.
        batch_micros_per_query: median time of a batch of 64 by its size, on one thread.
    """

    shares: FloatArray
    single_query_micros: float
    batch_micros_per_query: float


class GroundTruth:
    """The best scores of queries by exact search, which other searches are held against.

    Args:
        vectors: (items, d) float32.
        queries: (n, d) float32.
        most: the largest k that will be asked for.
        own_rows: (n,) the item that each query itself is and that does not count; None where queries are no items.
    """

    def __init__(
        self, vectors: Float32Array, queries: Float32Array, most: int, own_rows: Int64Array | None = None
    ) -> None:
        self._vectors, self._own_rows = vectors, own_rows
        self.queries = np.ascontiguousarray(queries, dtype=np.float32)
        most = min(most, self._there_are)
        self._best = np.empty((len(queries), most), np.float32)  # (n, most) scores, best first
        items = torch.from_numpy(vectors)
        for start in range(0, len(queries), _BATCH):  # exact scores of 64 queries and a million items are 256 MB
            scores = torch.from_numpy(self.queries[start : start + _BATCH]) @ items.T  # (b, items)
            if own_rows is not None:
                scores[torch.arange(len(scores)), torch.from_numpy(own_rows[start : start + _BATCH])] = -torch.inf
            self._best[start : start + _BATCH] = torch.topk(scores, most).values.numpy()

    @property
    def _there_are(self) -> int:
        return len(self._vectors) - (self._own_rows is not None)

    def halves(self) -> "tuple[GroundTruth, GroundTruth]":
        """Half of the queries, to choose by, and as many others, to judge the choice by; of one query, itself."""
        half = max(1, len(self.queries) // 2)
        return self._part(slice(0, half)), self._part(slice(-half, None))

    def first(self, queries: int) -> "GroundTruth":
        """The same of so many queries."""
        return self._part(slice(0, queries))

    def _part(self, places: slice) -> "GroundTruth":
        part = copy(self)
        part.queries, part._best = self.queries[places], self._best[places]
        part._own_rows = None if self._own_rows is None else self._own_rows[places]
        return part

    def sample(self, items: int, k: int, seed: int) -> "tuple[Int64Array, GroundTruth]":
        """(n,) rows of so many items, those among them that are queries themselves, and the truth about these items."""
        own = np.empty(0, np.int64) if self._own_rows is None else self._own_rows
        others = np.setdiff1d(np.arange(len(self._vectors)), own)
        rows = np.concatenate([own, np.random.default_rng(seed).permutation(others)[: items - len(own)]])
        own_rows = None if self._own_rows is None else np.arange(len(own))
        return rows, GroundTruth(self._vectors[rows], self.queries, k, own_rows)

    def shares(self, search: Search, k: int) -> FloatArray:
        """(n,) of each query, the share of its true best k that a search returns.

        An item counts as one of the best k if its exact score reaches the k-th best exact score, so that ties do no
        harm.
        """
        return np.concatenate([self._of_batch(start, search, k)[0] for start in range(0, len(self.queries), _BATCH)])

    def measure(self, search: Search, k: int) -> Measured:
        """Shares and times of a search that is asked for ``k`` items."""
        with _one_thread():
            self._of_batch(0, search, k)  # brings the index into the caches
            batches = [self._of_batch(start, search, k) for start in range(0, len(self.queries), _BATCH)]
            # The last batch is smaller than the others unless it is the only one.
            micros = [seconds * 1e6 / len(shares) for shares, seconds in batches[: max(1, len(batches) - 1)]]
            singly: list[float] = []
            asked = self._asked(k)
            while len(singly) < _TIMED_SINGLY and (len(singly) < 5 or sum(singly) < _SECONDS_SINGLY):
                place = len(singly) % len(self.queries)
                began = time.perf_counter()
                search(self.queries[place : place + 1], asked)
                singly.append(time.perf_counter() - began)
        shares = np.concatenate([shares for shares, _ in batches])
        return Measured(shares, float(np.median(singly)) * 1e6, float(np.median(micros)))

    def _asked(self, k: int) -> int:
        return min(k, self._there_are) + (self._own_rows is not None)

    def _of_batch(self, start: int, search: Search, k: int) -> tuple[FloatArray, float]:
        """Shares of the batch that begins at ``start``, and the seconds that its search took."""
        queries = self.queries[start : start + _BATCH]
        began = time.perf_counter()
        found = search(queries, self._asked(k))  # (b, k or k + 1)
        seconds = time.perf_counter() - began
        k = min(k, self._there_are)
        scores = np.einsum("bkd,bd->bk", self._vectors[np.maximum(found, 0)], queries)
        counts = found >= 0
        if self._own_rows is not None:
            counts &= found != self._own_rows[start : start + _BATCH, None]
        kth_best = self._best[start : start + _BATCH, k - 1, None]
        good = counts & (scores >= kth_best - 1e-5 * np.abs(kth_best))  # but for rounding
        return np.minimum(good.sum(1), k) / k, seconds


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
    """(b, k) places of the greatest of each row, in any order; NumPy's partition is twice as quick as torch.topk."""
    return np.argpartition(scores.numpy(), scores.shape[1] - k, axis=1)[:, scores.shape[1] - k :]
