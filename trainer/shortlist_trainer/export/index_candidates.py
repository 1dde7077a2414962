"""The approximate indexes that FAISS has for item embeddings, each with the dial that trades recall for time."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from shortlist_trainer.export.index_measuring import Float32Array, Int64Array, Search

_FAISS: Any = faiss  # its stubs lack part of what it takes

NO_TRANSFORM = "none"
L2_AUGMENTED = "l2-augmented"
"""One more column gives every vector the length of the longest, so that the nearest by distance is the best by inner
product (Bachrach et al. 2014, "Speeding Up the Xbox Recommender System Using a Euclidean Transformation for
Inner-Product Spaces"). The query's own extra column is 0."""

SQUARED_LENGTH = "squared_length"
"""The search parameter that turns a distance over augmented vectors back into an inner product."""

LONGEST_LISTS = "longest_lists"
"""The search parameter of lists by length: how many of them are searched, the longest vectors first."""

_LISTS_BY_LENGTH = 64
_BLOCK = 32  # codes are scanned so many at a time
_ROUGH_K_FACTORS = (1.5, 2.0, 3.0, 4.0)
_LEARNED_FROM = 8, 4_096  # codes of lists by length are learned from one in so many items, or so many
_LINKS = 32  # of an item in HNSW's graph
_EF_CONSTRUCTION = 200
_MOST_EF_SEARCH = 2_048
_K_FACTORS = (4, 16, 64)
_LISTS = 4  # times the root of the number of items
_LISTS_GROWTH = 1 / 3  # by which power of the depth a server looks into more lists
_LISTS_OF_CODES = 1  # the same; codes are scanned 32 at a time, so that short lists of them are wasteful
_POINTS_PER_LIST = 64  # that k-means learns from; with FAISS's 256 it takes minutes for a million items
_LENGTH_GROWTH = 2 / 3  # the same of lists by length
_STEPS = 20  # of a dial, each a quarter to a half more than the one before


@dataclass(frozen=True, order=True)
class Candidate:
    """A kind of index over vectors as they are or augmented.

    Attributes:
        family: of those whose time grows alike with the catalogue.
        kind: "length", "length-pq", "ivf", "ivf-sq8", "ivf-pq-refine", "pq-refine", "hnsw" or "hnsw-sq8".
        transform: "none" or "l2-augmented".
    """

    family: str
    kind: str
    transform: str

    def __str__(self) -> str:
        return self.kind if self.transform == NO_TRANSFORM else f"{self.kind}, {self.transform}"


# In the order in which they are built: the quick ones first, so that the slow ones know what they have to beat.
CANDIDATES = tuple(
    Candidate(family, kind, transform)
    for family, kinds, transforms in (
        ("length", ("length", "length-pq"), (NO_TRANSFORM,)),
        ("ivf", ("ivf", "ivf-sq8"), (NO_TRANSFORM, L2_AUGMENTED)),
        ("pq", ("pq-refine",), (NO_TRANSFORM,)),
        ("ivf-pq", ("ivf-pq-refine",), (NO_TRANSFORM, L2_AUGMENTED)),
        ("hnsw", ("hnsw", "hnsw-sq8"), (NO_TRANSFORM, L2_AUGMENTED)),
    )
    for kind in kinds
    for transform in transforms
)


def augmented(vectors: Float32Array) -> Float32Array:
    """(n, d + 1) vectors of one length, which is that of the longest."""
    squared = np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)
    extra = np.sqrt(squared.max(initial=0) - squared).astype(np.float32)
    return np.hstack([vectors, extra[:, None]])


class IndexBuilder:
    """Builds candidates over one set of vectors; those that can share a coarse quantizer do.

    Args:
        vectors: (items, d) float32.
        seed: of k-means.
    """

    def __init__(self, vectors: Float32Array, seed: int) -> None:
        self._seed = seed
        self._vectors = {NO_TRANSFORM: np.ascontiguousarray(vectors)}
        self._coarse: dict[tuple[str, int], Any] = {}
        self._lengths = np.linalg.norm(vectors, axis=1)

    def suits(self, candidate: Candidate) -> bool:
        """Whether it is worth a try: vectors of one length have the same neighbours by any measure, and no longest."""
        by_length = candidate.transform == L2_AUGMENTED or candidate.family == "length"
        return not by_length or bool(np.ptp(self._lengths) > 1e-3 * self._lengths.max())

    def build(self, candidate: Candidate) -> Any:
        """The FAISS index of a candidate, holding every vector."""
        if candidate.family == "length":
            return self._by_length(candidate.kind == "length-pq")
        vectors, metric = self._prepared(candidate.transform)
        size = vectors.shape[1]
        # Fast scan reads four bits a sub-vector: of two columns each, or of one where their number is odd.
        parts = size // 2 if size % 2 == 0 else size
        eight_bits = _FAISS.ScalarQuantizer.QT_8bit
        match candidate.kind:
            case "ivf":
                index = _FAISS.IndexIVFFlat(*self._lists(candidate.transform, _LISTS), metric)
            case "ivf-sq8":
                index = _FAISS.IndexIVFScalarQuantizer(*self._lists(candidate.transform, _LISTS), eight_bits, metric)
            case "ivf-pq-refine":
                index = _FAISS.IndexIVFPQFastScan(*self._lists(candidate.transform, _LISTS_OF_CODES), parts, 4, metric)
            case "pq-refine":
                index = _FAISS.IndexPQFastScan(size, parts, 4, metric)
            case "hnsw":
                index = _FAISS.IndexHNSWFlat(size, _LINKS, metric)
            case _:
                index = _FAISS.IndexHNSWSQ(size, eight_bits, _LINKS, metric)
        if candidate.family == "hnsw":
            index.hnsw.efConstruction = _EF_CONSTRUCTION
        if candidate.kind.endswith("refine"):
            index = _FAISS.IndexRefineFlat(index)
        index.train(vectors)
        index.add(vectors)
        return index

    def _by_length(self, coded: bool) -> Any:
        """Lists of the longest vectors, the next longest and so on: long ones have most of the greatest inner products.

        Codes are four bits a column. They only tell which vectors are worth scoring.
        """
        vectors = self.vectors
        items, size = vectors.shape
        in_list = _BLOCK * math.ceil(items / (_BLOCK * _LISTS_BY_LENGTH))
        order = np.argsort(-self._lengths, kind="stable")
        lists = np.empty(items, np.int64)
        lists[order] = np.arange(items) // in_list
        means = np.add.reduceat(vectors[order], np.arange(0, items, in_list)) / in_list  # none asks for them
        quantizer = _FAISS.IndexFlatIP(size)
        quantizer.add(means)
        if coded:
            index = _FAISS.IndexIVFPQ(quantizer, size, len(means), size, 4, _FAISS.METRIC_INNER_PRODUCT)
            index.by_residual = False
            share, least = _LEARNED_FROM
            index.train(vectors[order[: max(items // share, least)]])
        else:
            index = _FAISS.IndexIVFFlat(quantizer, size, len(means), _FAISS.METRIC_INNER_PRODUCT)
        rows = np.arange(items)
        index.add_core(items, *(_FAISS.swig_ptr(array) for array in (vectors, rows, lists)))
        # A copy has all that it refers to.
        return _FAISS.clone_index(_FAISS.IndexIVFPQFastScan(index) if coded else index)

    def _prepared(self, transform: str) -> tuple[Float32Array, int]:
        if transform not in self._vectors:
            self._vectors[transform] = augmented(self._vectors[NO_TRANSFORM])
        metric = _FAISS.METRIC_INNER_PRODUCT if transform == NO_TRANSFORM else _FAISS.METRIC_L2
        return self._vectors[transform], metric

    def _lists(self, transform: str, per_root: int) -> tuple[Any, int, int]:
        """A trained coarse quantizer, the number of columns and the number of lists."""
        vectors, metric = self._prepared(transform)
        items, size = vectors.shape
        lists = min(round(per_root * items**0.5), items)
        if (transform, lists) not in self._coarse:
            quantizer = _FAISS.IndexFlat(size, metric)
            kmeans = _FAISS.Clustering(size, lists)
            kmeans.niter, kmeans.seed = 10, self._seed
            kmeans.min_points_per_centroid, kmeans.max_points_per_centroid = 1, _POINTS_PER_LIST
            kmeans.spherical = metric == _FAISS.METRIC_INNER_PRODUCT
            kmeans.train(vectors, quantizer)
            self._coarse[transform, lists] = quantizer
        return self._coarse[transform, lists], size, lists

    @property
    def vectors(self) -> Float32Array:
        """(items, d) float32 as they are."""
        return self._vectors[NO_TRANSFORM]

    def squared_length(self, transform: str) -> dict[str, float]:
        """The search parameter of that name where the transform needs it."""
        if transform == NO_TRANSFORM:
            return {}
        vectors = self._vectors[NO_TRANSFORM]
        return {SQUARED_LENGTH: float(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64).max())}


def dials(candidate: Candidate, index: Any, k: int) -> list[list[dict[str, float]]]:
    """The settings to try: of each list, the first is the quickest and the last finds the most."""
    if candidate.family == "pq":
        most = max(1, min(256, index.ntotal // k))
        return [[{"k_factor": value} for value in _spread(1, most)]]
    if candidate.family == "hnsw":
        return [[{"efSearch": value} for value in _spread(max(k, 8), max(_MOST_EF_SEARCH, 4 * k))]]
    ivf = _FAISS.extract_index_ivf(index)
    if candidate.family == "length":
        lists = [{LONGEST_LISTS: value} for value in _spread(1, ivf.nlist)]
        if candidate.kind == "length":
            return [lists]
        return [[longest | {"k_factor": factor} for longest in lists] for factor in _ROUGH_K_FACTORS]
    probes = [{"nprobe": value} for value in _spread(1, ivf.nlist)]
    if candidate.family == "ivf":
        return [probes]
    return [[probe | {"k_factor": factor} for probe in probes] for factor in _K_FACTORS if factor * k <= index.ntotal]


def _spread(least: float, most: float) -> list[float]:
    values: list[float] = np.unique(np.round(np.geomspace(least, most, _STEPS))).tolist()
    return values


def search_of(
    index: Any,
    transform: str,
    parameters: Mapping[str, float],
    vectors: Float32Array,
    usual_k: int | None = None,
) -> Search:
    """How a candidate searches with a setting of its dial, as a server does.

    Args:
        index: the FAISS index.
        transform: as in ``Candidate``.
        parameters: the setting.
        vectors: (items, d) float32, by which is scored again what codes have found.
        usual_k: for searches of how many items the setting is; None for any. Those of more look further.
    """

    def search(queries: Float32Array, k: int) -> Int64Array:
        if transform == L2_AUGMENTED:
            queries = np.hstack([queries, np.zeros((len(queries), 1), np.float32)])
        depth = 1.0 if usual_k is None else max(1.0, k / usual_k)
        if LONGEST_LISTS in parameters:
            return _longest_first(index, parameters, vectors, queries, k, depth)
        rows: Int64Array = index.search(queries, k, params=_search_parameters(index, parameters, k, depth))[1]
        return rows

    return search


def _longest_first(
    index: Any, parameters: Mapping[str, float], vectors: Float32Array, queries: Float32Array, k: int, depth: float
) -> Int64Array:
    """The rows of the best of the longest vectors."""
    found = min(math.ceil(k * parameters.get("k_factor", 1.0)), index.ntotal)
    nprobe = min(round(parameters[LONGEST_LISTS] * depth**_LENGTH_GROWTH), index.nlist)
    queries = np.ascontiguousarray(queries)
    lists = np.tile(np.arange(nprobe), (len(queries), 1))
    distances = np.zeros(lists.shape, np.float32)  # to centroids, from which these kinds take nothing
    scores, rows = np.empty((len(queries), found), np.float32), np.empty((len(queries), found), np.int64)
    inputs, outputs = map(_FAISS.swig_ptr, (lists, distances)), map(_FAISS.swig_ptr, (scores, rows))
    settings = _FAISS.SearchParametersIVF(nprobe=nprobe)
    index.search_preassigned_c(len(queries), _FAISS.swig_ptr(queries), found, *inputs, *outputs, False, settings)
    if "k_factor" not in parameters:
        return rows
    pointers = map(_FAISS.swig_ptr, (scores, queries, vectors, rows))
    _FAISS.fvec_inner_products_by_idx(*pointers, vectors.shape[1], *rows.shape)
    order = np.argsort(-scores, axis=1, kind="stable") + np.arange(len(rows))[:, None] * found
    best: Int64Array = rows.take(order[:, :k])
    return best


def _search_parameters(index: Any, parameters: Mapping[str, float], k: int, depth: float) -> Any:
    index = _FAISS.downcast_index(index)
    if isinstance(index, _FAISS.IndexRefine):
        base = _search_parameters(index.base_index, parameters, k, depth)
        return _FAISS.IndexRefineSearchParameters(k_factor=parameters["k_factor"], base_index_params=base)
    if isinstance(index, _FAISS.IndexIVF):
        nprobe = min(round(parameters["nprobe"] * depth**_LISTS_GROWTH), index.nlist)
        return _FAISS.SearchParametersIVF(nprobe=nprobe)
    if isinstance(index, _FAISS.IndexHNSW):
        return _FAISS.SearchParametersHNSW(efSearch=max(round(parameters["efSearch"] * depth), k))
    return None


def bytes_of(index: Any) -> int:
    """How long the index is as a file, and about as large in memory."""
    return int(_FAISS.serialize_index(index).nbytes)
