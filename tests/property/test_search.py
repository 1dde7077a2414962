"""Search against brute force: any index, any exclusions, any k."""

from collections.abc import Iterator

import faiss
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shortlist_server.faiss_index import FaissIndex
from shortlist_server.item_index import ItemIndex

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


def ivf(vectors: npt.NDArray[np.float32]) -> ItemIndex:
    """Searches every list, so that it is exact as long as it is asked for enough."""
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(SIZE), SIZE, 7, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    return ItemIndex(FaissIndex(index, "ivf", "none", {"nprobe": 7}), vectors)


def starved_ivf(vectors: npt.NDArray[np.float32]) -> ItemIndex:
    """Looks into one list of 40, so that it hardly ever finds enough by itself."""
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(SIZE), SIZE, 40, faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid = 1
    index.train(vectors)
    index.add(vectors)
    return ItemIndex(FaissIndex(index, "ivf", "none", {"nprobe": 1}), vectors)


VECTORS = np.random.default_rng(5).standard_normal((ITEMS, SIZE)).astype(np.float32)
EXACT = {"flat": flat(VECTORS), "scaled flat": scaled_flat(VECTORS), "ivf": ivf(VECTORS)}

queries = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).standard_normal(SIZE).astype(np.float32)
)
exclusions = st.one_of(
    st.sets(st.integers(0, ITEMS - 1), max_size=20),
    st.sets(st.integers(0, ITEMS - 1), min_size=ITEMS - 15),
    st.just(set(range(ITEMS))),
)


@pytest.fixture(scope="module", autouse=True)
def both_ways_of_searching() -> Iterator[None]:
    """Lets the index be asked for up to half of so small a catalogue, so that it and the scan are both met."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shortlist_server.item_index._SCAN_SHARE", 2)
        yield


def brute_force(query: npt.NDArray[np.float32], k: int, excluded: set[int]) -> list[int]:
    scores = VECTORS.astype(np.float64) @ query
    allowed = [row for row in range(ITEMS) if row not in excluded]
    return sorted(allowed, key=lambda row: -scores[row])[:k]


@pytest.mark.parametrize("name", EXACT)
@settings(max_examples=150, deadline=None)
@given(query=queries, k=st.integers(1, ITEMS + 50), excluded=exclusions)
def test_an_exact_index_gives_the_best_that_are_not_excluded(
    name: str, query: npt.NDArray[np.float32], k: int, excluded: set[int]
) -> None:
    found = EXACT[name].search(query, k, np.array(sorted(excluded), dtype=np.int64))
    assert found.rows.tolist() == brute_force(query, k, excluded)
    np.testing.assert_allclose(found.scores, (VECTORS[found.rows] @ query), rtol=1e-4, atol=1e-5)


STARVED = starved_ivf(VECTORS)


@settings(max_examples=150, deadline=None)
@given(query=queries, k=st.integers(1, ITEMS + 50), excluded=exclusions)
def test_an_approximate_index_never_brings_too_few_or_what_is_excluded(
    query: npt.NDArray[np.float32], k: int, excluded: set[int]
) -> None:
    found = STARVED.search(query, k, np.array(sorted(excluded), dtype=np.int64))
    assert len(found.rows) == min(k, ITEMS - len(excluded))
    assert len(set(found.rows.tolist())) == len(found.rows)
    assert not excluded & set(found.rows.tolist())
    assert (np.diff(found.scores) <= 0).all()
