"""Search against brute force: any index, any exclusions, any k."""

from collections.abc import Iterator

import faiss
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shortlist_server.retrieval.exact import best_rows
from shortlist_server.retrieval.faiss_index import FaissIndex
from shortlist_server.retrieval.item_attributes import AllowedItems
from shortlist_server.retrieval.item_index import ItemIndex
from shortlist_trainer.export.index_candidates import CANDIDATES, IndexBuilder
from tests.searching import Search, found_by

ITEMS, SIZE = 300, 6


def flat(vectors: npt.NDArray[np.float32]) -> ItemIndex:
    index = faiss.IndexFlatIP(SIZE)
    index.add(vectors)
    return ItemIndex(FaissIndex(index, "flat", "none", {}), vectors)


def scaled_flat(vectors: npt.NDArray[np.float32]) -> ItemIndex:
    index = faiss.IndexFlatIP(SIZE)
    index.add(vectors)
    scale = np.linspace(0.5, 2, ITEMS, dtype=np.float32)
    return ItemIndex(FaissIndex(index, "flat", "none", {}), vectors / scale[:, None], scale)


def ivf(vectors: npt.NDArray[np.float32], lists: int, nprobe: int) -> ItemIndex:
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(SIZE), SIZE, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid = 1
    index.train(vectors)
    index.add(vectors)
    return ItemIndex(FaissIndex(index, "ivf", "none", {"nprobe": nprobe}), vectors)


VECTORS = np.random.default_rng(5).standard_normal((ITEMS, SIZE)).astype(np.float32)
EXACT = {"flat": flat(VECTORS), "scaled flat": scaled_flat(VECTORS), "all of ivf": ivf(VECTORS, 7, 7)}

queries = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).standard_normal(SIZE).astype(np.float32)
)
exclusions = st.one_of(
    st.sets(st.integers(0, ITEMS - 1), max_size=20),
    st.sets(st.integers(0, ITEMS - 1), min_size=ITEMS - 15),
    st.just(set(range(ITEMS))),
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As ``shortlist serve`` computes; many threads are slower for so little."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def both_ways_of_searching() -> Iterator[None]:
    """Lets the index be asked for up to half of so small a catalogue, so that it and the scan are both met."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shortlist_server.retrieval.item_index._SCAN_SHARE", 2)
        yield


masks = st.one_of(
    st.none(),
    st.tuples(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 0.05, 0.005, 0.0])).map(
        lambda drawn: AllowedItems(np.random.default_rng(drawn[0]).random(ITEMS) < drawn[1])
    ),
)
searches = st.lists(
    st.builds(
        lambda query, k, excluded, allowed: Search(query, k, np.array(sorted(excluded), dtype=np.int64), allowed),
        *(queries, st.integers(1, ITEMS + 50), exclusions, masks),
    ),
    min_size=1,
    max_size=5,
)


def allowed_rows(search: Search) -> list[int]:
    excluded = set(search.excluded.tolist())
    return [row for row in range(ITEMS) if row not in excluded and (search.allowed is None or search.allowed.mask[row])]


@pytest.mark.parametrize("name", EXACT)
@settings(max_examples=150, deadline=None)
@given(searches=searches)
def test_an_exact_index_gives_the_best_that_may_come_back(name: str, searches: list[Search]) -> None:
    for search, found in zip(searches, found_by(EXACT[name], searches), strict=True):
        exact = VECTORS.astype(np.float64) @ search.vector
        best = sorted(allowed_rows(search), key=lambda row: -exact[row])[: search.k]
        assert len(set(found.rows.tolist())) == len(found.rows) == len(best)
        assert set(found.rows.tolist()) <= set(allowed_rows(search))
        np.testing.assert_allclose(exact[found.rows], exact[best], atol=1e-5)  # float32 may swap what is nearly equal
        np.testing.assert_allclose(found.scores, VECTORS[found.rows] @ search.vector, rtol=1e-4, atol=1e-5)


# Looks into one list of 40, so that it hardly ever finds enough by itself.
STARVED = ivf(VECTORS, 40, 1)


@settings(max_examples=150, deadline=None)
@given(searches=searches)
def test_an_approximate_index_never_brings_too_few_or_what_may_not_come_back(searches: list[Search]) -> None:
    for search, found in zip(searches, found_by(STARVED, searches), strict=True):
        allowed = allowed_rows(search)
        assert len(found.rows) == min(search.k, len(allowed))
        assert len(set(found.rows.tolist())) == len(found.rows)
        assert set(found.rows.tolist()) <= set(allowed)
        assert (np.diff(found.scores) <= 0).all()


@pytest.mark.parametrize(("kind", "factory"), [("ivf-sq8", "IVF4,SQ8"), ("hnsw-sq8", "HNSW16,SQ8")])
def test_scores_are_those_of_the_vectors_where_the_index_rounds_them(
    kind: str, factory: str, rng: np.random.Generator
) -> None:
    index = faiss.index_factory(SIZE, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(VECTORS)
    index.add(VECTORS)
    parameters = {"nprobe": 4.0} if kind == "ivf-sq8" else {"efSearch": 300.0}
    searched = ItemIndex(FaissIndex(index, kind, "none", parameters), VECTORS)
    for query in rng.standard_normal((20, SIZE)).astype(np.float32):
        (found,) = found_by(searched, [Search(query, 12)])
        np.testing.assert_allclose(found.scores, VECTORS[found.rows] @ query, rtol=1e-5, atol=1e-6)
        assert (np.diff(found.scores) <= 0).all()


@pytest.mark.parametrize(("items", "k"), [(5_000, 10), (5_003, 17), (70_001, 10), (70_001, 400), (6_400, 100)])
def test_the_best_of_many_are_found_however_many_are_wanted_or_left_out(
    items: int, k: int, rng: np.random.Generator
) -> None:
    vectors = rng.standard_normal((items, SIZE)).astype(np.float32)
    vectors[rng.permutation(items)[:50]] *= 3
    queries = rng.standard_normal((40, SIZE)).astype(np.float32)
    excluded = [np.sort(rng.permutation(items)[:30]) for _ in queries]
    excluded[7] = np.sort(rng.permutation(items)[4:])
    excluded[8] = np.arange(items)
    ranked = best_rows(vectors, None, queries, [k] * len(queries), excluded)
    for query, left_out, (rows, scores) in zip(queries, excluded, ranked, strict=True):
        exact = vectors @ query
        exact[left_out] = -np.inf
        best = np.sort(exact)[::-1][:k]
        np.testing.assert_allclose(scores, best[best > -np.inf], rtol=1e-4)
        np.testing.assert_allclose(exact[rows], scores, rtol=1e-4)


@pytest.mark.parametrize("share", [0.5, 0.05, 0.005, 0.0001])
def test_filters_of_any_selectivity_bring_the_best_of_what_they_allow(share: float, rng: np.random.Generator) -> None:
    """An approximate index stays one under a permissive filter; under a restrictive one the scores are exact."""
    items, size, k = 20_000, 24, 10
    basis = rng.standard_normal((8, size))
    vectors = (rng.standard_normal((items, 8)) @ basis * rng.lognormal(0, 0.4, (items, 1))).astype(np.float32)
    queries = (rng.standard_normal((60, 8)) @ basis).astype(np.float32)
    ivf_index = faiss.index_factory(size, "IVF64,Flat", faiss.METRIC_INNER_PRODUCT)
    ivf_index.train(vectors)
    ivf_index.add(vectors)
    index = ItemIndex(FaissIndex(ivf_index, "ivf", "none", {"nprobe": 32}), vectors)
    allowed = AllowedItems(rng.random(items) < share)
    excluded = np.sort(rng.permutation(items)[:20])
    found = found_by(index, [Search(query, k, excluded, allowed) for query in queries])
    hits = wanted = 0
    for query, neighbours in zip(queries, found, strict=True):
        exact = np.where(allowed.mask, vectors @ query, -np.inf)
        exact[excluded] = -np.inf
        best = [row for row in np.argsort(-exact)[:k].tolist() if exact[row] > -np.inf]
        assert len(neighbours.rows) == len(best)
        assert allowed.mask[neighbours.rows].all()
        hits += len(set(best) & set(neighbours.rows.tolist()))
        wanted += len(best)
    assert hits >= (0.97 * wanted if share == 0.5 else wanted)


def share_found(index: ItemIndex, vectors: npt.NDArray[np.float32], searches: list[Search]) -> float:
    """The mean share of the best that may come back, by brute force."""
    shares = []
    for search, found in zip(searches, found_by(index, searches), strict=True):
        exact = vectors @ search.vector
        exact[search.excluded] = -np.inf
        if search.allowed is not None:
            exact[~search.allowed.mask] = -np.inf
        best = np.argpartition(-exact, search.k)[: search.k]
        shares.append(len(set(best.tolist()) & set(found.rows.tolist())) / search.k)
    return float(np.mean(shares))


@pytest.mark.parametrize("kind", ["ivf", "hnsw", "length", "length-pq"])
def test_what_lies_deep_is_found_as_well_as_what_lies_on_top(kind: str, rng: np.random.Generator) -> None:
    items, size = 20_000, 16
    vectors = (rng.standard_normal((items, size)) * rng.lognormal(0, 0.3, (items, 1))).astype(np.float32)
    queries = rng.standard_normal((60, size)).astype(np.float32)
    if kind.startswith("length"):
        built = IndexBuilder(vectors, 0).build(next(one for one in CANDIDATES if one.kind == kind))
        parameters = {"longest_lists": 6.0} | ({"k_factor": 6.0} if kind == "length-pq" else {})
    else:
        factory, parameters = {"ivf": ("IVF200,Flat", {"nprobe": 75.0}), "hnsw": ("HNSW24", {"efSearch": 40.0})}[kind]
        built = faiss.index_factory(size, factory, faiss.METRIC_INNER_PRODUCT)
        built.train(vectors)
        built.add(vectors)
    index = ItemIndex(FaissIndex(built, kind, "none", parameters), vectors)
    on_top = share_found(index, vectors, [Search(query, 10) for query in queries])
    assert 0.93 < on_top < 1

    best = np.argsort(-(queries @ vectors.T), axis=1)
    seen = [Search(query, 10, np.sort(ranked[:100])) for query, ranked in zip(queries, best, strict=True)]
    allowed = AllowedItems(rng.random(items) < 0.2)
    for searches in (
        seen,
        [Search(query, 100) for query in queries],
        [Search(q, 10, allowed=allowed) for q in queries],
    ):
        assert share_found(index, vectors, searches) > on_top - 0.02


def test_a_search_that_would_cost_more_than_scoring_every_item_scores_every_item() -> None:
    built = faiss.IndexIVFFlat(faiss.IndexFlatIP(SIZE), SIZE, 40, faiss.METRIC_INNER_PRODUCT)
    built.cp.min_points_per_centroid = 1
    built.train(VECTORS)
    built.add(VECTORS)
    index = ItemIndex(FaissIndex(built, "ivf", "none", {"nprobe": 1}), VECTORS, scan_cost=1.5)
    some = np.random.default_rng(2).standard_normal((50, SIZE)).astype(np.float32)
    assert share_found(index, VECTORS, [Search(query, 3) for query in some]) < 0.9
    assert share_found(index, VECTORS, [Search(query, 3, effort=1.6) for query in some]) == 1
