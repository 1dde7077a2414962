"""Nearest items by inner product, exactly k of them whatever is left out."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shortlist_server.faiss_index import FaissIndex

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
RowArray = npt.NDArray[np.integer]

NO_ROWS: Int64Array = np.empty(0, dtype=np.int64)

_SCAN_SHARE = 100
"""Asked for more than one in this many of all items, the index is slower than scoring every item and sorting
(benchmarks/over_fetch.py)."""


@dataclass(frozen=True)
class Neighbours:
    """Items found, best first.

    Attributes:
        rows: (n,) int64 item rows.
        scores: (n,) float32 inner products.
    """

    rows: Int64Array
    scores: Float32Array


class ItemIndex:
    """A FAISS index with the vectors it was built over.

    Args:
        index: an index whose i-th vector is ``vectors[i] * scale[i]``.
        vectors: (items, d) float32.
        scale: (items,) float32 that brings each vector to the length it has in the index; None for as it is.
    """

    def __init__(
        self,
        index: FaissIndex,
        vectors: Float32Array,
        scale: Float32Array | None = None,
    ) -> None:
        self._index = index
        self._vectors = vectors
        self._scale = scale

    def __len__(self) -> int:
        return len(self._vectors)

    def vectors(self, rows: RowArray) -> Float32Array:
        """(n, d) the vectors of items as the index has them."""
        gathered = self._vectors[rows]
        return gathered if self._scale is None else gathered * self._scale[rows, None]

    def search(self, query: Float32Array, k: int, excluded: RowArray = NO_ROWS) -> Neighbours:
        """The best items that are not excluded.

        The index is asked for as many more as are excluded. Where that is a large part of the catalogue, or an
        approximate index brings too few, every item is scored instead, so that exactly k come back wherever k exist.

        Args:
            query: (d,) float32.
            k: how many items.
            excluded: item rows to leave out, ascending and distinct.

        Returns:
            min(k, items - excluded) items.
        """
        k = min(k, len(self) - len(excluded))
        if k <= 0:
            return Neighbours(NO_ROWS, np.empty(0, dtype=np.float32))
        wanted = k + len(excluded)
        if wanted <= max(len(self) // _SCAN_SHARE, k):
            scores, rows = (found[0] for found in self._index.search(query[None], wanted))
            if self._index.rounded_scores:
                scores = np.where(rows >= 0, self.vectors(rows) @ query, -np.inf).astype(np.float32)
                order = np.argsort(-scores, kind="stable")
                scores, rows = scores[order], rows[order]
            allowed = (rows >= 0) & ~_is_among(rows, excluded)
            if np.count_nonzero(allowed) >= k:
                return Neighbours(rows[allowed][:k], scores[allowed][:k])
        return self._scan(query, k, excluded)

    def _scan(self, query: Float32Array, k: int, excluded: RowArray) -> Neighbours:
        scores = self._vectors @ query  # (items,)
        if self._scale is not None:
            scores *= self._scale
        scores[excluded] = -np.inf
        best = np.argpartition(scores, len(scores) - k)[len(scores) - k :] if k < len(scores) else np.arange(k)
        best = best[np.argsort(-scores[best], kind="stable")]
        return Neighbours(best, scores[best])


def _is_among(rows: RowArray, ascending: RowArray) -> npt.NDArray[np.bool_]:
    """(n,) whether each row is one of ``ascending``."""
    if len(ascending) == 0:
        return np.zeros(len(rows), dtype=np.bool_)
    places = np.minimum(ascending.searchsorted(rows), len(ascending) - 1)
    return np.asarray(ascending[places] == rows)
