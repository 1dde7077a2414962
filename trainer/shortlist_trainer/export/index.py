"""Vector indexes over item embeddings, and how much of the truth they return."""

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]

EXACT_BELOW_ITEMS = 50_000
"""Catalogues smaller than this get an exact index. At 64 dimensions a search of 40,000 items takes under a millisecond
on one core (benchmarks/over_fetch.py), so that an approximate index has little to win there and recall to lose."""

RECALL_CUTOFFS = (10, 100)
RECALL_QUERIES = 1_000


@dataclass(frozen=True)
class BuiltIndex:
    """An inner-product index as it will be published.

    Attributes:
        index: the FAISS index; its i-th vector is the i-th item.
        kind: "flat" (exact) or "ivf" (approximate).
        search_parameters: by FAISS's names; what the server shall search with.
        recalls: k to the measured share of the true best k that it returned.
        recall_queries: how many queries ``recalls`` was measured on.
    """

    index: Any
    kind: str
    search_parameters: dict[str, int]
    recalls: dict[int, float]
    recall_queries: int


def unit_length(vectors: Float32Array) -> Float32Array:
    """(n, d) the same directions with length 1; zero vectors stay zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Float32Array = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return unit


def build_index(vectors: Float32Array, queries: Float32Array, seed: int, *, queries_are_vectors: bool) -> BuiltIndex:
    """Builds an inner-product index, exact below ``EXACT_BELOW_ITEMS`` and approximate from there on.

    Args:
        vectors: (items, d) float32.
        queries: (n, d) float32 real query vectors to measure recall on; up to ``RECALL_QUERIES`` are drawn.
        seed: draws the queries.
        queries_are_vectors: ``queries`` are the indexed vectors themselves, whose best match, themselves, is left out.
    """
    vectors = np.ascontiguousarray(vectors)
    items, size = vectors.shape
    index: Any = faiss.IndexFlatIP(size)
    kind, parameters = "flat", {}
    if items >= EXACT_BELOW_ITEMS:
        lists = round(4 * items**0.5)
        # A quarter of the lists: inner product spreads the best items over many more lists than distance does.
        kind, parameters = "ivf", {"nprobe": lists // 4}
        index = faiss.IndexIVFFlat(index, size, lists, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        index.nprobe = parameters["nprobe"]
    index.add(vectors)

    count = min(RECALL_QUERIES, len(queries))
    drawn = np.random.default_rng(seed).permutation(len(queries))[:count]
    recalls = measure_recall(index, vectors, queries[drawn], drawn if queries_are_vectors else None)
    return BuiltIndex(index, kind, parameters, recalls, count)


def measure_recall(
    index: Any, vectors: Float32Array, queries: Float32Array, own_rows: npt.NDArray[np.int64] | None = None
) -> dict[int, float]:
    """The share of the true best k that an index returns, for each k of ``RECALL_CUTOFFS``.

    An item counts as one of the best k if its exact score reaches the k-th best exact score, so that ties do no harm.

    Args:
        index: a FAISS index over ``vectors``.
        vectors: (items, d) float32.
        queries: (n, d) float32.
        own_rows: (n,) the item that each query itself is and that does not count; None where queries are no items.
    """
    queries = np.ascontiguousarray(queries)
    recalls: dict[int, list[float]] = {}
    for start in range(0, len(queries), 256):  # exact scores of 256 queries and a million items are 1 GB
        block = queries[start : start + 256]
        exact = block @ vectors.T  # (b, items)
        if own_rows is not None:
            np.put_along_axis(exact, own_rows[start : start + 256, None], -np.inf, axis=1)
        for cutoff in RECALL_CUTOFFS:
            k = min(cutoff, len(vectors) - (own_rows is not None))
            kth_best = -np.partition(-exact, k - 1, axis=1)[:, k - 1]  # (b,)
            _, found = index.search(block, k + (own_rows is not None))  # (b, k or k + 1), -1 where there is none
            scores = np.where(found >= 0, np.take_along_axis(exact, np.maximum(found, 0), axis=1), -np.inf)
            rounding = 1e-5 * np.abs(kth_best)
            good = (scores >= (kth_best - rounding)[:, None]).sum(1)
            recalls.setdefault(cutoff, []).extend(np.minimum(good, k) / k)
    return {cutoff: float(np.mean(shares)) for cutoff, shares in recalls.items()}
