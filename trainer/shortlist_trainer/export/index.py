"""Vector indexes over item embeddings: the cheapest that returns as much of the truth as is asked for."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import faiss
import numpy as np

from shortlist_trainer.errors import ConfigError
from shortlist_trainer.export.index_candidates import NO_TRANSFORM
from shortlist_trainer.export.index_measuring import Float32Array, GroundTruth, RowArray, bfloat16_search, exact_search
from shortlist_trainer.export.index_tuning import IndexGoal, IndexPoint, exact_point, tune

__all__ = ["BuiltIndex", "Float32Array", "IndexGoal", "IndexPoint", "build_index", "parse_goal", "unit_length"]

RECALL_CUTOFFS = (10, 100)
RECALL_QUERIES = 1_000
_MOST_K = 1_000

WORTH = 0.9
"""What is not exact must cost less than this share of what is exact to be worth its losses, and the noise of clocks."""


@dataclass(frozen=True)
class BuiltIndex:
    """An index as it will be published.

    Attributes:
        index: the FAISS index; its i-th vector is the i-th item.
        kind: "flat" (exact), or the kind of a ``Candidate``.
        search_parameters: by FAISS's names; what the server shall search with.
        recalls: k to the measured share of the true best k that it returned.
        recall_queries: how many queries ``recalls`` was measured on, none of which had a say in the choice.
        transform: of the vectors before they went into the index: "none" or "l2-augmented".
        goal: what it was chosen by; None where nobody asked for anything.
        why: the reason of the choice in a sentence.
        curve: everything that was measured on the way.
        left_out: what was not measured at full size, each with the reason.
        scan_cost: how many times a search for the goal's k, nothing being left out, it takes to score every item; 0
            where that was not measured.
    """

    index: Any
    kind: str
    search_parameters: dict[str, float]
    recalls: dict[int, float]
    recall_queries: int
    transform: str = NO_TRANSFORM
    goal: IndexGoal | None = None
    why: str = ""
    curve: tuple[IndexPoint, ...] = ()
    left_out: tuple[str, ...] = ()
    scan_cost: float = 0.0


def parse_goal(target: str, memory_mb: float | None = None) -> IndexGoal:
    """What ``--recall-target`` and ``--index-memory-mb`` ask for.

    Args:
        target: the least recall and its k, such as "0.99@10".
        memory_mb: the most that an index may take, in millions of bytes; None for any size.

    Raises:
        ConfigError: one of them is none.
    """
    parts = re.fullmatch(r"(\d*\.?\d+)@(\d+)", target.strip())
    if parts is None or not 0 < float(parts[1]) <= 1 or not 1 <= int(parts[2]) <= _MOST_K:
        raise ConfigError(
            f"--recall-target takes RECALL@K such as 0.99@10, with a recall above 0 and up to 1 and K from 1 to "
            f"{_MOST_K:,}, not {target!r}"
        )
    if memory_mb is not None and not 0 < memory_mb < float("inf"):
        raise ConfigError(f"--index-memory-mb takes a number of megabytes above 0, not {memory_mb:g}")
    return IndexGoal(float(parts[1]), int(parts[2]), None if memory_mb is None else round(memory_mb * 1e6))


def unit_length(vectors: Float32Array) -> Float32Array:
    """(n, d) the same directions with length 1; zero vectors stay zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Float32Array = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return unit


def build_index(
    vectors: Float32Array,
    queries: Float32Array,
    seed: int,
    *,
    left_out: Callable[[int], RowArray] | None = None,
    goal: IndexGoal | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> BuiltIndex:
    """Builds the index that reaches a goal at the least cost; exact search where no other does or none is cheaper.

    Args:
        vectors: (items, d) float32.
        queries: (n, d) real query vectors to measure on; up to ``RECALL_QUERIES`` are drawn.
        seed: draws the queries, and k-means' first centroids.
        left_out: from the place of a query to the (m,) distinct item rows that its answer leaves out, such as what the
            user has seen; None for none.
        goal: what to reach; None for recall .99 at 10.
        say: is told how it goes, which is minutes for a million items.
    """
    goal = goal or IndexGoal()
    vectors = np.ascontiguousarray(vectors)
    drawn = np.random.default_rng(seed).permutation(len(queries))[:RECALL_QUERIES]
    rows = None if left_out is None else [left_out(place) for place in drawn.tolist()]
    cutoffs = sorted({*RECALL_CUTOFFS, goal.k})
    truth = GroundTruth(vectors, queries[drawn].astype(np.float32, copy=False), cutoffs[-1], rows)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    small = vectors.size < goal.exact_below
    exact = {"flat": exact_search(vectors)}
    if not small:
        exact |= {"flat-bf16": bfloat16_search(vectors), "flat-faiss": lambda asked, k: index.search(asked, k)[1]}
    curve = [exact_point(kind, truth, search, goal, vectors.nbytes) for kind, search in exact.items()]
    # The others are there to compare with: a server scores the vectors that it has as "flat", by itself and in float32.
    chosen = curve[0]
    search, judged = exact[chosen.kind], truth
    not_measured: tuple[str, ...] = ()
    scan_cost = 0.0
    why = "the catalogue is so small that exact search is quick, and nothing else was tried"
    if not small:
        say(f"exact search: {chosen}")
        tuning = tune(vectors, truth, goal, (chosen, search), WORTH, seed, say)
        chosen = tuning.exact
        curve = [chosen, *curve[1:], *tuning.points]
        not_measured, why = tuple(tuning.left_out), tuning.why
        if tuning.best is not None:
            index, chosen, search, judged = *tuning.best, truth.halves()[1]
            scan_cost = tuning.scan_cost
    say(f"chosen: {chosen}; {why}")
    return BuiltIndex(
        index=index,
        kind=chosen.kind,
        search_parameters=dict(chosen.search_parameters),
        recalls={k: float(judged.shares(search, k).mean()) for k in cutoffs},
        recall_queries=len(judged.queries),
        transform=chosen.transform,
        goal=goal,
        why=why,
        curve=tuple(replace(point, chosen=point is chosen) for point in curve),
        left_out=not_measured,
        scan_cost=scan_cost,
    )
