"""Indexes tuned to a target: their recall, the choice, the curve, and tuning a published model again."""

from collections.abc import Callable
from dataclasses import replace

import faiss
import numpy as np
import pytest

from shortlist_trainer.errors import ConfigError
from shortlist_trainer.export import index as index_module
from shortlist_trainer.export import index_tuning
from shortlist_trainer.export.index import BuiltIndex, IndexGoal, build_index, parse_goal, unit_length
from shortlist_trainer.export.index_candidates import CANDIDATES, Candidate, IndexBuilder, dials, search_of
from shortlist_trainer.export.index_measuring import (
    Float32Array,
    GroundTruth,
    Int64Array,
    Search,
    bfloat16_search,
    exact_search,
)
from shortlist_trainer.models.base import Embeddings
from tests.small_world import low_rank, random_embeddings

GOAL = IndexGoal(recall=0.95, exact_below=0)


def tuned(vectors: Embeddings, goal: IndexGoal) -> BuiltIndex:
    return build_index(vectors.items, vectors.users, 0, goal=goal)


def share_found(search: Search, items: Float32Array, queries: Float32Array, k: int) -> float:
    """By brute force, without the code that is tested."""
    truth = np.argsort(-(queries @ items.T), axis=1)[:, :k]
    found = search(queries, k)
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(truth.tolist(), found.tolist(), strict=True)]))


def test_recall_is_the_share_that_was_found() -> None:
    vectors = np.eye(8, dtype=np.float32) * np.arange(8, 0, -1, dtype=np.float32)[:, None]
    query = np.ones((1, 8), np.float32)  # scores 8, 7, 6, …: the best four are rows 0 to 3
    half_blind = faiss.IndexFlatIP(8)
    blinded = vectors.copy()
    blinded[[1, 3]] = -1
    half_blind.add(blinded)
    search = search_of(half_blind, "none", {}, vectors)
    assert GroundTruth(vectors, query, 10).shares(search, 10).tolist() == [1.0]  # of 8 items, 10 hold them all
    assert GroundTruth(vectors, query, 10).shares(search, 4).tolist() == [0.5]


def test_of_items_that_are_equally_good_any_will_do() -> None:
    vectors = np.ones((6, 3), np.float32)
    truth = GroundTruth(vectors, np.ones((1, 3), np.float32), 2)
    assert truth.shares(lambda _, k: np.array([[5, 2]]), 2).tolist() == [1.0]
    assert truth.shares(lambda _, k: np.array([[5, -1]]), 2).tolist() == [0.5]


def test_an_item_is_not_counted_as_its_own_neighbour(rng: np.random.Generator) -> None:
    unit = unit_length(random_embeddings(1, 200, 6, rng).items)
    rows = np.arange(100)
    truth = GroundTruth(unit, unit[rows], 10, [*rows[:, None]])
    right, wrong = faiss.IndexFlatIP(6), faiss.IndexFlatIP(6)
    right.add(unit)
    wrong.add(-unit)
    assert truth.shares(search_of(right, "none", {}, unit), 10).mean() == 1.0
    assert truth.shares(search_of(wrong, "none", {}, unit), 10).mean() < 0.05

    # Finding the item itself and then what is worst is no recall at all.
    def itself_and_worst(queries: Float32Array, k: int) -> Int64Array:
        scores = queries @ unit.T
        return np.hstack([np.argmax(scores, axis=1)[:, None], np.argsort(scores, axis=1)[:, : k - 1]])

    assert truth.shares(itself_and_worst, 10).mean() < 0.05


def test_what_a_user_has_seen_is_asked_for_on_top_and_does_not_count(rng: np.random.Generator) -> None:
    vectors = low_rank(rng, items=300, users=70)
    ranked = np.argsort(-(vectors.users @ vectors.items.T), axis=1)
    seen = [order[:count] for order, count in zip(ranked, [0, 3, 40, 296, 300] * 14, strict=True)]
    truth = GroundTruth(vectors.items, vectors.users, 10, seen)
    asked: list[int] = []

    def exact(queries: Float32Array, k: int) -> Int64Array:
        asked.append(k)
        return np.argsort(-(queries @ vectors.items.T), axis=1)[:, :k]

    assert truth.shares(exact, 10).tolist() == [1.0] * 70
    assert set(asked) == {16, 64, 300}

    def ten_of_the_seen(queries: Float32Array, k: int) -> Int64Array:
        return exact(queries, 10)

    # Nothing new is found where ten or more were seen, unless nothing else was left to find.
    assert truth.shares(ten_of_the_seen, 10).tolist() == [1.0, 0.7, 0.0, 0.0, 1.0] * 14


def test_halves_have_no_query_in_common_and_measure_like_the_whole(rng: np.random.Generator) -> None:
    vectors = low_rank(rng, items=200, users=100)
    truth = GroundTruth(vectors.items, vectors.users, 5)
    first, last = truth.halves()
    assert not {row.tobytes() for row in first.queries} & {row.tobytes() for row in last.queries}

    def some(queries: Float32Array, k: int) -> Int64Array:
        return np.argsort(-(queries @ vectors.items[::2].T), axis=1)[:, :k] * 2

    whole = truth.shares(some, 5)
    assert 0.1 < whole.mean() < 0.9
    assert np.concatenate([first.shares(some, 5), last.shares(some, 5)]).tolist() == whole.tolist()


@pytest.mark.parametrize("make", [exact_search, bfloat16_search])
def test_exact_searches_find_everything_alone_and_in_batches(
    rng: np.random.Generator, make: Callable[[Float32Array], Search]
) -> None:
    vectors = low_rank(rng)
    assert share_found(make(vectors.items), vectors.items, vectors.users[:50], 10) > 0.995
    assert share_found(make(vectors.items), vectors.items, vectors.users[:1], 10) == 1


@pytest.mark.parametrize("candidate", CANDIDATES, ids=str)
@pytest.mark.parametrize("size", [16, 17])
def test_every_candidate_finds_more_with_its_dial_turned_up(
    rng: np.random.Generator, candidate: Candidate, size: int
) -> None:
    vectors = low_rank(rng, size=size)
    index = IndexBuilder(vectors.items, 0).build(candidate)
    dial = dials(candidate, index, 10)[-1]
    least, most = (
        share_found(search_of(index, candidate.transform, dial[place], vectors.items), vectors.items, vectors.users, 10)
        for place in (0, -1)
    )
    assert least < most
    assert most > 0.9


def test_a_small_catalogue_is_searched_exactly_and_nothing_is_built(rng: np.random.Generator) -> None:
    vectors = random_embeddings(50, 300, 8, rng)
    built = build_index(vectors.items, vectors.users, 0)
    assert (built.kind, built.search_parameters) == ("flat", {})
    assert built.recalls == {10: 1.0, 100: 1.0}
    assert built.recall_queries == 50
    assert [(point.kind, point.chosen) for point in built.curve] == [("flat", True)]
    assert "small" in built.why


@pytest.mark.parametrize("pilot_items", [500, 100_000])
@pytest.mark.usefixtures("free_approximation")
def test_the_target_is_met_on_queries_that_nobody_measured_on(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, pilot_items: int
) -> None:
    monkeypatch.setattr(index_tuning, "_PILOT_ITEMS", pilot_items)
    vectors = low_rank(rng, users=1_400)
    fresh = vectors.users[1_000:]
    built = tuned(replace(vectors, users=vectors.users[:1_000]), GOAL)
    assert built.kind != "flat"
    assert built.recalls[10] >= 0.95
    assert built.recall_queries == 500
    search = search_of(built.index, built.transform, built.search_parameters, vectors.items)
    assert share_found(search, vectors.items, fresh, 10) >= 0.94
    assert "cheapest that reaches recall 0.95 at 10" in built.why


@pytest.mark.usefixtures("free_approximation")
def test_the_chosen_point_is_the_cheapest_of_those_that_reach_the_target(rng: np.random.Generator) -> None:
    built = tuned(low_rank(rng), GOAL)
    (chosen,) = [point for point in built.curve if point.chosen]
    assert (chosen.kind, chosen.transform, dict(chosen.search_parameters)) == (
        built.kind,
        built.transform,
        built.search_parameters,
    )
    assert chosen.recall == pytest.approx(built.recalls[10])
    assert {"flat", "flat-bf16", "flat-faiss", "ivf", "hnsw"} <= {point.kind for point in built.curve}
    assert {"none", "l2-augmented"} == {point.transform for point in built.curve}
    (exact,) = [point for point in built.curve if point.kind == "flat"]
    assert 1 / 3 < built.scan_cost / (exact.cost / chosen.cost) < 3  # timed anew
    # Each kind's own choice may be dearer than one of its points that reached the target by luck.
    assert chosen.cost <= 3 * min(p.cost for p in built.curve if p.recall >= 0.97 and not p.kind.startswith("flat"))


@pytest.mark.usefixtures("free_approximation")
def test_a_target_that_no_index_meets_gives_exact_search_and_says_so(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    poor = tuple(candidate for candidate in CANDIDATES if candidate.kind in {"hnsw-sq8", "ivf-sq8"})
    monkeypatch.setattr(index_tuning, "CANDIDATES", poor)
    built = tuned(low_rank(rng), IndexGoal(recall=1.0, k=128, exact_below=0))
    assert built.kind.startswith("flat")
    assert built.scan_cost == 0
    assert built.recalls == {10: 1.0, 100: 1.0, 128: 1.0}
    assert "no approximate index reaches recall 1 at 128" in built.why
    assert {point.kind for point in built.curve if point.recall < 1} == {"hnsw-sq8", "ivf-sq8"}


@pytest.mark.usefixtures("free_approximation")
def test_the_memory_budget_leaves_indexes_out_with_their_sizes(rng: np.random.Generator) -> None:
    vectors = low_rank(rng)
    within = tuned(vectors, replace(GOAL, memory_bytes=120_000))
    assert within.kind in {"length-pq", "ivf-sq8"}
    assert faiss.serialize_index(within.index).nbytes <= 120_000
    assert any(text.startswith("hnsw: takes") for text in within.left_out)
    assert all(point.bytes <= 120_000 for point in within.curve if not point.kind.startswith("flat"))
    none = tuned(vectors, replace(GOAL, memory_bytes=1_000))
    assert none.kind.startswith("flat")
    assert len(none.left_out) == len(CANDIDATES)
    assert "within 0.001 MB" in none.why


def test_an_approximate_index_that_is_no_cheaper_is_not_taken(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "WORTH", 0.0)
    assert tuned(low_rank(rng), GOAL).kind == "flat"


def test_an_index_that_would_take_too_long_is_left_out(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_tuning, "_PILOT_ITEMS", 500)
    built = tuned(low_rank(rng), replace(GOAL, seconds=0.0))
    assert built.kind.startswith("flat")
    assert any("too long" in text for text in built.left_out)


@pytest.mark.usefixtures("free_approximation")
def test_neighbours_have_a_recall_of_their_own_without_the_item_itself(rng: np.random.Generator) -> None:
    unit = unit_length(low_rank(rng).items)
    built = build_index(unit, unit, 0, left_out=lambda row: np.array([row]), goal=GOAL)
    assert built.kind != "flat"
    assert {point.transform for point in built.curve} == {"none"}  # of one length already
    search = search_of(built.index, built.transform, built.search_parameters, unit)
    rows = rng.permutation(len(unit))[:300]
    cosines = unit[rows] @ unit.T
    cosines[np.arange(300), rows] = -np.inf
    truth = np.argsort(-cosines, axis=1)[:, :10]
    found = [set(row) - {own} for row, own in zip(search(unit[rows], 11).tolist(), rows.tolist(), strict=True)]
    assert np.mean([len(set(a) & b) / 10 for a, b in zip(truth.tolist(), found, strict=True)]) >= 0.94


@pytest.mark.parametrize("target", ["", "0.99", "99@10", "0@10", "1.01@10", "0.9@0", "0.9@1001", "nan@10", "0.9@ten"])
def test_a_target_that_is_none_is_refused_with_what_is_right(target: str) -> None:
    with pytest.raises(ConfigError, match=r"--recall-target takes RECALL@K such as 0\.99@10"):
        parse_goal(target)


@pytest.mark.parametrize("memory", [0, -1, float("nan"), float("inf")])
def test_a_memory_limit_that_is_none_is_refused(memory: float) -> None:
    with pytest.raises(ConfigError, match="--index-memory-mb"):
        parse_goal("0.99@10", memory)


def test_a_target_is_read() -> None:
    assert parse_goal(".95@100", 1.5) == IndexGoal(0.95, 100, 1_500_000)
    assert parse_goal("1@1") == IndexGoal(1.0, 1, None)
