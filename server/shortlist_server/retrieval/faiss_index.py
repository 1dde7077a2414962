"""A FAISS index as its manifest describes it: inner products whatever it computes, and search effort per call."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
import numpy.typing as npt

from shortlist_server.errors import BadModel
from shortlist_server.remembering import remembering
from shortlist_server.retrieval.faiss_file import read_faiss_file
from shortlist_server.retrieval.item_attributes import AllowedItems

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

_FAISS: Any = faiss  # its stubs lack part of what it takes

MOST_EFFORT = 16.0
"""More effort than this counts as this much."""

_DIALS = {
    "flat": frozenset[str](),
    "ivf": frozenset({"nprobe"}),
    "ivf-sq8": frozenset({"nprobe"}),
    "ivf-pq-refine": frozenset({"nprobe", "k_factor"}),
    "pq-refine": frozenset({"k_factor"}),
    "hnsw": frozenset({"efSearch"}),
    "hnsw-sq8": frozenset({"efSearch"}),
    "length": frozenset({"longest_lists"}),
    "length-pq": frozenset({"longest_lists", "k_factor"}),
}
_GROWTH = {
    "hnsw": 1.0,
    "hnsw-sq8": 1.0,
    "ivf": 1 / 3,
    "ivf-sq8": 1 / 3,
    "ivf-pq-refine": 1 / 3,
    "pq-refine": 1 / 2,
    "length": 2 / 3,
    "length-pq": 2 / 3,
}
"""By which power of the depth the work grows that finds the same share of the best (docs/decisions/0015)."""

USUAL_K = 16
"""What an index was tuned for that does not say: k of 10, which servers round up."""

_L2_AUGMENTED = "l2-augmented"
_SQUARED_LENGTH = "squared_length"
_MOST_EF_SEARCH = 16_384
_BY_LENGTH = "length"

_KINDS = {
    "IndexFlat": "flat",
    "IndexFlatIP": "flat",
    "IndexIVFFlat": "ivf",
    "IndexIVFScalarQuantizer": "ivf-sq8",
    "IndexIVFPQFastScan": "ivf-pq",
    "IndexPQFastScan": "pq",
    "IndexHNSWFlat": "hnsw",
    "IndexHNSWSQ": "hnsw-sq8",
}


# FAISS does not know what lists are made by.
_LIKE = {"length": "ivf", "length-pq": "ivf-pq"}

_pointer = _FAISS.swig_ptr


class IndexDescription(Protocol):
    """What the manifest says of an index."""

    @property
    def kind(self) -> str:
        """What the index is."""

    @property
    def transform(self) -> str:
        """What was done to the vectors; empty for nothing."""

    @property
    def search_parameters(self) -> Mapping[str, float]:
        """What to search with."""


class FaissIndex:
    """A FAISS index as its manifest describes it. Any number of threads may search it at once.

    Args:
        index: the FAISS index; with the transform "l2-augmented" by distance, over vectors with one more column.
        kind: as in the manifest's ``IndexInfo``.
        transform: "none" or "l2-augmented".
        search_parameters: FAISS's, and "squared_length" where the transform needs it.
        usual_k: for searches of how many items, or fewer, the parameters are.
        content: what the index refers to, kept for as long as it.

    Attributes:
        kind: as given.
        exact: whether it finds the true best; the caller may then as well score the vectors by itself.
        filters: whether a search may be told which items alone may be found.
        rounded_scores: whether scores are of vectors that were rounded, or come out of distances, so that a caller who
            has the vectors should score what was found again.
    """

    def __init__(
        self,
        index: Any,
        kind: str,
        transform: str,
        search_parameters: Mapping[str, float],
        usual_k: int = USUAL_K,
        content: object = None,
    ) -> None:
        self._index = index
        self._content = content
        self._usual_k = usual_k
        self._augmented = transform == _L2_AUGMENTED
        self._parameters = dict(search_parameters)
        self.kind = kind
        self.exact = kind == "flat"
        self.filters = kind != "pq-refine"  # FAISS scans its codes all at once
        self.rounded_scores = self._augmented or kind.endswith(("sq8", "-pq"))
        self._size = int(index.d)
        self._by_length = kind.startswith(_BY_LENGTH)
        self._lists = np.arange(index.nlist) if self._by_length else None
        # From which kinds by length take nothing. FAISS only reads these, and making them takes a part of a search.
        self._distances = np.zeros(index.nlist if self._by_length else 0, np.float32)
        self._usual_settings = remembering(self._settings_for_all, 64)

    def _settings_for_all(self, k: int, effort: float) -> tuple[int, Any]:
        effort = min(max(effort, 1.0), MOST_EFFORT)
        return self._asked_for(k, effort), self._settings(self._index, k, effort, None)

    def _asked_for(self, k: int, effort: float) -> int:
        """How many FAISS is asked for: where it does not score again by itself what has rough codes, more than k."""
        if not self._by_length:
            return k
        most: int = self._index.ntotal
        return min(math.ceil(k * effort * self._parameters.get("k_factor", 1.0)), most)

    def growth(self, k: int, share: float) -> float:
        """How many times the usual work it takes to find as large a part of the best ``k`` of what a filter lets pass.

        The best k of a tenth of the items lie among the best 10 k of all, which is as deep.

        Args:
            k: how many items.
            share: of the items that pass, above 0.
        """
        depth = max(1.0, k / share / self._usual_k)
        return float(depth ** _GROWTH.get(self.kind, 0.0))

    def search(
        self, queries: Float32Array, k: int, effort: float = 1.0, allowed: AllowedItems | None = None
    ) -> tuple[Float32Array, Int64Array]:
        """The items of the greatest inner products, as far as the index finds them.

        Args:
            queries: (b, d) float32.
            k: how many items for each.
            effort: how many times as much of the index shall be searched as it takes by its manifest, 1 to
                ``MOST_EFFORT``; it makes no difference to an exact index.
            allowed: the only items that may be found; None for all, and where the index does not filter.

        Returns:
            (b, k) float32 inner products, best first, the i-th row belonging to the i-th query, and (b, k) int64 item
            rows; -inf and -1 where nothing was found. Where codes are so rough that more have to be scored again, more
            than k columns.

        Raises:
            ValueError: the queries have another number of columns than the vectors.
        """
        if allowed is None:
            k, settings = self._usual_settings(k, effort)
        else:
            effort = min(max(effort, 1.0), MOST_EFFORT)
            selector = _FAISS.IDSelectorBitmap(allowed.bitmap)
            settings = self._settings(self._index, k, effort, selector, allowed.share)
            k = self._asked_for(k, effort)
        if not self._augmented:
            scores, rows = self._ask(np.ascontiguousarray(queries, dtype=np.float32), k, settings)
        else:
            # |q - v|² = |q|² + |v|² - 2 q·v, where every augmented v has the same length.
            padded = np.zeros((len(queries), self._index.d), dtype=np.float32)
            padded[:, :-1] = queries
            distances, rows = self._ask(padded, k, settings)
            squared = np.einsum("bd,bd->b", queries, queries)[:, None] + np.float32(self._parameters[_SQUARED_LENGTH])
            scores = (squared - distances) / 2
        last = rows[:, -1]  # where there is less, it comes last
        if (last[0] if len(last) == 1 else last.min()) < 0:
            scores[rows < 0] = -np.inf
        return scores, rows

    def _ask(self, queries: Float32Array, k: int, settings: Any) -> tuple[Float32Array, Int64Array]:
        """(b, k) what FAISS answers; its Python wrapper would take 4 µs to look at the arguments."""
        count, size = queries.shape
        if size != self._size:
            raise ValueError(f"queries have {size} columns, and the index {self._size}")
        scores, rows = np.empty((count, k), np.float32), np.empty((count, k), np.int64)
        asked, answers = (count, _pointer(queries), k), (_pointer(scores), _pointer(rows))
        if self._lists is not None:
            lists, distances = self._lists, self._distances
            if count > 1:
                lists = np.tile(lists[: settings.nprobe], count)
                distances = np.zeros(len(lists), np.float32)
            self._index.search_preassigned_c(*asked, _pointer(lists), _pointer(distances), *answers, False, settings)
        else:
            self._index.search_c(*asked, *answers, settings)
        return scores, rows

    def _settings(self, index: Any, k: int, effort: float, selector: Any, share: float = 1.0) -> Any:
        """New FAISS search parameters, so that no call changes the index that others are searching."""
        index = _FAISS.downcast_index(index)
        if isinstance(index, _FAISS.IndexRefine):
            # So many times k are scored again: that grows with k by itself.
            factor = min(effort * self._parameters["k_factor"], max(1.0, index.ntotal / k))
            base = self._settings(index.base_index, k, effort, selector, share)
            return _FAISS.IndexRefineSearchParameters(k_factor=factor, base_index_params=base)
        effort *= self.growth(k, share)
        if isinstance(index, _FAISS.IndexIVF):
            lists = self._parameters["longest_lists" if self._by_length else "nprobe"]
            nprobe = round(min(max(effort * lists, 1), index.nlist))
            return _FAISS.SearchParametersIVF(nprobe=nprobe, sel=selector)
        if isinstance(index, _FAISS.IndexHNSW):
            ef_search = min(round(effort * self._parameters["efSearch"]), _MOST_EF_SEARCH)
            return _FAISS.SearchParametersHNSW(efSearch=max(ef_search, k), sel=selector)
        return None if selector is None else _FAISS.SearchParameters(sel=selector)


def read_faiss_index(path: Path, info: IndexDescription, shape: tuple[int, ...], usual_k: int = USUAL_K) -> FaissIndex:
    """Reads an index file. Its vectors are mapped into memory, which processes that serve the same version share.

    Args:
        path: the file.
        info: what the manifest says of it.
        shape: (items, d) of the vectors that it must be over.
        usual_k: for searches of how many items its parameters are.

    Raises:
        BadModel: it is no index, or another than the manifest describes; the text names the file.
    """

    def require(condition: bool, reason: str) -> None:
        if not condition:
            raise BadModel(f"{path.name} {reason}")

    augmented = info.transform == _L2_AUGMENTED
    parameters = dict(info.search_parameters)
    require(info.kind in _DIALS, f"is of a kind {info.kind!r} that this server does not know")
    require(info.transform in {"", "none", _L2_AUGMENTED}, f"has a transform {info.transform!r} that is not known")
    expected = _DIALS[info.kind] | ({_SQUARED_LENGTH} if augmented else set())
    index, content = read_faiss_file(path)
    held = (index.ntotal, index.d - augmented)
    require(held == shape, f"indexes vectors of shape {held}, but the embeddings are {shape}")
    metric = _FAISS.METRIC_L2 if augmented else _FAISS.METRIC_INNER_PRODUCT
    require(index.metric_type == metric, f"is not an {'L2' if augmented else 'inner-product'} index")
    found = _kind_of(index)
    require(found == _LIKE.get(info.kind, info.kind), f"is of kind {found!r}, but the manifest says {info.kind!r}")
    require(
        parameters.keys() == expected and all(0 < value < math.inf for value in parameters.values()),
        f"has search parameters {parameters}, but this server does not know kind {info.kind!r} to take other than "
        f"{sorted(expected)}",
    )
    return FaissIndex(index, info.kind, info.transform or "none", parameters, usual_k, content)


def _kind_of(index: Any) -> str:
    """The kind that FAISS's own types tell of."""
    index = _FAISS.downcast_index(index)
    if isinstance(index, _FAISS.IndexRefine):
        return f"{_kind_of(index.base_index)}-refine"
    return _KINDS.get(type(index).__name__, type(index).__name__)
