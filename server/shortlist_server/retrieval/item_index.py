"""Nearest items by inner product, exactly k of them whatever is left out."""

import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from shortlist_server.retrieval.exact import Found, Neighbours, best_rows
from shortlist_server.retrieval.faiss_index import FaissIndex
from shortlist_server.retrieval.item_attributes import AllowedItems

OnSearch = Callable[[float], None]
"""Is told what a search took, in seconds."""

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
RowArray = npt.NDArray[np.integer]

_FAISS: Any = faiss  # its stubs lack part of what it takes

NO_ROWS: Int64Array = np.empty(0, dtype=np.int64)

_SCAN_SHARE = 20
"""Asked for more than one in this many of all items, every item is scored: an approximate index has been tuned to find
few."""

_RESTRICTIVE = 0.1
"""Filters that let a smaller share of the items pass are answered by scoring these alone: an approximate index that
meets so few of them would bring too few, or not the best."""


@dataclass(slots=True, eq=False)
class Searches:
    """What to look for, many times over: the i-th of each column belongs to the i-th search.

    Attributes:
        vectors: (b, d) float32.
        ks: how many items, at least 1.
        excluded: item rows to leave out, ascending and distinct.
        allowed: the only items that may come back; None for all.
        efforts: of an approximate index, as a multiple of the published one.
    """

    vectors: Float32Array
    ks: list[int]
    excluded: list[RowArray]
    allowed: list[AllowedItems | None]
    efforts: list[float]

    def __len__(self) -> int:
        return len(self.ks)


def rounded_up(items: int) -> int:
    """The power of two that is asked for where so many items are needed: searches for nearly as many are one call."""
    return 1 << (items - 1).bit_length()


class ItemIndex:
    """A FAISS index with the vectors it was built over.

    Args:
        index: an inner-product index whose i-th vector is ``vectors[i] * scale[i]``.
        vectors: (items, d) float32.
        scale: (items,) float32 that brings each vector to the length it has in the index; None for as it is.
        scan_cost: how many times the usual search of the index it takes to score every item.

    Attributes:
        on_search: is told what every search took, in seconds.
    """

    def __init__(
        self,
        index: FaissIndex,
        vectors: Float32Array,
        scale: Float32Array | None = None,
        scan_cost: float = math.inf,
    ) -> None:
        self._index = index
        self._vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        self._scale = scale
        self._scan_cost = scan_cost
        self.on_search: OnSearch = lambda _: None

    def __len__(self) -> int:
        return len(self._vectors)

    def vectors(self, rows: RowArray) -> Float32Array:
        """(n, d) the vectors of items as the index has them."""
        gathered = self._vectors[rows]
        return gathered if self._scale is None else gathered * self._scale[rows, None]

    def search(self, searches: Searches) -> Found:
        """The best allowed items of each search: exactly k wherever so many are allowed and not excluded.

        An approximate index is asked for as many more as are excluded. Where it would take longer than scoring every
        item, the filter is restrictive, or the index brings too few, all allowed items are scored instead.
        """
        began = time.perf_counter()
        found = self._search(searches)
        self.on_search(time.perf_counter() - began)
        return found

    def _search(self, searches: Searches) -> Found:
        if self._index.exact and not any(searches.allowed):
            return best_rows(self._vectors, self._scale, searches.vectors, searches.ks, searches.excluded)
        if len(searches) == 1:  # steps for many would take a quarter of its time
            return self._search_alone(searches)
        found: list[Neighbours | None] = [None] * len(searches)
        together = defaultdict(list)
        for place, (k, excluded, allowed, effort) in enumerate(
            zip(searches.ks, searches.excluded, searches.allowed, searches.efforts, strict=True)
        ):
            asked_for = k + len(excluded)
            if self._suits_index(asked_for, allowed, effort):
                together[rounded_up(asked_for), effort, allowed].append(place)
        for (wanted, effort, allowed), places in together.items():
            queries = searches.vectors if len(places) == len(searches) else searches.vectors[places]
            scores, rows = self._ask_index(queries, wanted, effort, allowed)
            for place, its_scores, its_rows in zip(places, scores, rows, strict=True):
                found[place] = _first(searches.ks[place], its_rows, its_scores, searches.excluded[place])
        return self._scan(searches, found)

    def _search_alone(self, searches: Searches) -> Found:
        (k,), (excluded,), (allowed,), (effort,) = searches.ks, searches.excluded, searches.allowed, searches.efforts
        asked_for = k + len(excluded)
        if self._suits_index(asked_for, allowed, effort):
            scores, rows = self._ask_index(searches.vectors, rounded_up(asked_for), effort, allowed)
            first = _first(k, rows[0], scores[0], excluded)
            if first is not None:
                return Found(*first, np.array([k]))
        return self._scan(searches, [None])

    def _ask_index(
        self, queries: Float32Array, wanted: int, effort: float, allowed: AllowedItems | None
    ) -> tuple[Float32Array, Int64Array]:
        """(b, n) scores of the vectors themselves, best first, and their rows; -inf and -1 where nothing was found."""
        scores, rows = self._index.search(queries, min(wanted, len(self)), effort, allowed)
        return self._scored_again(queries, rows) if self._index.rounded_scores else (scores, rows)

    def _scored_again(self, queries: Float32Array, rows: Int64Array) -> tuple[Float32Array, Int64Array]:
        """(b, n) the inner products with the vectors themselves, best first, and the rows that they belong to."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        scores = np.empty(rows.shape, np.float32)
        pointers = (_FAISS.swig_ptr(array) for array in (scores, queries, self._vectors, rows))
        # Rows of -1 have a score of -inf.
        _FAISS.fvec_inner_products_by_idx(*pointers, self._vectors.shape[1], *rows.shape)
        if self._scale is not None:
            np.multiply(scores, self._scale[rows], out=scores, where=rows >= 0)
        order = np.argsort(-scores, axis=1, kind="stable")
        if len(rows) > 1:
            order += np.arange(len(rows))[:, None] * rows.shape[1]
        return scores.take(order), rows.take(order)

    def _suits_index(self, asked_for: int, allowed: AllowedItems | None, effort: float) -> bool:
        if self._index.exact or asked_for > len(self) // _SCAN_SHARE:
            return False
        if allowed is not None and (allowed.share < _RESTRICTIVE or not self._index.filters):
            return False
        share = 1.0 if allowed is None else allowed.share
        return effort * self._index.growth(rounded_up(asked_for), share) <= self._scan_cost

    def _scan(self, searches: Searches, found: list[Neighbours | None]) -> Found:
        """What was found, and for the searches that have found nothing yet the best of all allowed items."""
        together = defaultdict(list)
        for place, allowed in enumerate(searches.allowed):
            if found[place] is None:
                together[allowed].append(place)
        for allowed, places in together.items():
            queries = searches.vectors[places]
            ks = [searches.ks[place] for place in places]
            excluded = [searches.excluded[place] for place in places]
            if allowed is None or allowed.share >= _RESTRICTIVE:
                forbidden = None if allowed is None else ~allowed.mask
                ranked = best_rows(self._vectors, self._scale, queries, ks, excluded, forbidden)
            else:
                table = self._vectors[allowed.rows]
                scale = None if self._scale is None else self._scale[allowed.rows]
                ranked = best_rows(table, scale, queries, ks, [allowed.places(rows) for rows in excluded])
                ranked.rows = allowed.rows[ranked.rows]
            for place, neighbours in zip(places, ranked, strict=True):
                found[place] = neighbours
        return Found.of([neighbours for neighbours in found if neighbours is not None])


def _first(k: int, rows: Int64Array, scores: Float32Array, excluded: RowArray) -> Neighbours | None:
    """The first k of what was found that are not excluded; None where these are fewer."""
    if len(excluded):  # np.isin takes ten times as long for so few
        kept = (excluded.take(np.searchsorted(excluded, rows), mode="clip") != rows) & (rows >= 0)
        rows, scores = rows[kept], scores[kept]
    # What was not found is -1 and comes last.
    return None if len(rows) < k or rows[k - 1] < 0 else Neighbours(rows[:k], scores[:k])
