"""Nearest items by inner product, exactly k of them whatever is left out."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from shortlist_server.exact import Neighbours, best_rows
from shortlist_server.faiss_index import FaissIndex
from shortlist_server.item_attributes import AllowedItems

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
RowArray = npt.NDArray[np.integer]

NO_ROWS: Int64Array = np.empty(0, dtype=np.int64)

_SCAN_SHARE = 20
"""Asked for more than one in this many of all items, every item is scored: an approximate index has been tuned to find
few."""

_RESTRICTIVE = 0.1
"""Filters that let a smaller share of the items pass are answered by scoring these alone: an approximate index that
meets so few of them would bring too few, or not the best."""


@dataclass(slots=True, eq=False)
class Search:
    """What to look for.

    Attributes:
        vector: (d,) float32.
        k: how many items, at least 1.
        excluded: item rows to leave out, ascending and distinct.
        allowed: the only items that may come back; None for all.
        effort: of an approximate index, as a multiple of the published one.
    """

    vector: Float32Array
    k: int
    excluded: RowArray = field(default_factory=lambda: NO_ROWS)
    allowed: AllowedItems | None = None
    effort: float = 1.0


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
        self._vectors = vectors
        self._scale = scale
        self._scan_cost = scan_cost
        self.on_search: Callable[[float], None] = lambda _: None

    def __len__(self) -> int:
        return len(self._vectors)

    def vectors(self, rows: RowArray) -> Float32Array:
        """(n, d) the vectors of items as the index has them."""
        gathered = self._vectors[rows]
        return gathered if self._scale is None else gathered * self._scale[rows, None]

    def search(self, searches: Sequence[Search]) -> list[Neighbours]:
        """The best allowed items of each search: exactly k wherever so many are allowed and not excluded.

        An approximate index is asked for as many more as are excluded. Where it would take longer than scoring every
        item, the filter is restrictive, or the index brings too few, all allowed items are scored instead.
        """
        began = time.perf_counter()
        found: list[Neighbours | None] = [None] * len(searches)
        together = defaultdict(list)
        for place, search in enumerate(searches):
            wanted = rounded_up(search.k + len(search.excluded))
            if not self._index.exact and self._suits_index(search, wanted):
                together[wanted, search.effort, search.allowed].append(place)
        for (wanted, effort, allowed), places in together.items():
            queries = np.array([searches[place].vector for place in places])
            scores, rows = self._index.search(queries, min(wanted, len(self)), effort, allowed)
            for place, its_scores, its_rows in zip(places, scores, rows, strict=True):
                search = searches[place]
                kept = its_rows >= 0
                if len(search.excluded):  # np.isin takes ten times as long for so few
                    nearest = np.searchsorted(search.excluded, its_rows).clip(max=len(search.excluded) - 1)
                    kept &= search.excluded[nearest] != its_rows
                if np.count_nonzero(kept) >= search.k:
                    found[place] = self._best(search, its_rows[kept], its_scores[kept])
        self._scan(searches, found)
        self.on_search(time.perf_counter() - began)
        return [neighbours for neighbours in found if neighbours is not None]

    def _best(self, search: Search, rows: Int64Array, scores: Float32Array) -> Neighbours:
        """The first k of what the index found, which is in order where its scores are those of the vectors."""
        if self._index.rounded_scores:
            scores = self.vectors(rows) @ search.vector
            order = np.argsort(-scores, kind="stable")
            rows, scores = rows[order], scores[order]
        return Neighbours(rows[: search.k], scores[: search.k])

    def _suits_index(self, search: Search, wanted: int) -> bool:
        share = 1.0 if search.allowed is None else search.allowed.share
        if share < _RESTRICTIVE or search.k + len(search.excluded) > len(self) // _SCAN_SHARE:
            return False
        return search.effort * self._index.growth(wanted, share) <= self._scan_cost

    def _scan(self, searches: Sequence[Search], found: list[Neighbours | None]) -> None:
        """Scores every allowed item for the searches that have found nothing yet."""
        together = defaultdict(list)
        for place, search in enumerate(searches):
            if found[place] is None:
                together[search.allowed].append(place)
        for allowed, places in together.items():
            queries = np.array([searches[place].vector for place in places])
            ks = [searches[place].k for place in places]
            excluded = [searches[place].excluded for place in places]
            if allowed is None or allowed.share >= _RESTRICTIVE:
                forbidden = None if allowed is None else ~allowed.mask
                ranked = best_rows(self._vectors, self._scale, queries, ks, excluded, forbidden)
            else:
                table = self._vectors[allowed.rows]
                scale = None if self._scale is None else self._scale[allowed.rows]
                ranked = best_rows(table, scale, queries, ks, [allowed.places(rows) for rows in excluded])
                ranked = [Neighbours(allowed.rows[rows], scores) for rows, scores in ranked]
            for place, neighbours in zip(places, ranked, strict=True):
                found[place] = neighbours
