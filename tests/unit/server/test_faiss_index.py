"""FAISS indexes as manifests describe them: inner products, effort, threads and refusals."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pytest

from shortlist_server.errors import BadModel
from shortlist_server.retrieval.faiss_index import FaissIndex, read_faiss_index
from shortlist_server.retrieval.item_attributes import AllowedItems
from shortlist_server.retrieval.item_index import NO_ROWS, ItemIndex, Searches
from shortlist_trainer.export.index_candidates import CANDIDATES, IndexBuilder

ITEMS, SIZE = 2_000, 8
Float32Array = npt.NDArray[np.float32]
FAISS: Any = faiss  # its stubs lack part of what it takes
IP, L2 = faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2


@dataclass
class Info:
    kind: str
    transform: str = "none"
    search_parameters: dict[str, float] = field(default_factory=dict)


@pytest.fixture
def vectors(rng: np.random.Generator) -> Float32Array:
    """Of very different lengths."""
    return (rng.standard_normal((ITEMS, SIZE)) * rng.lognormal(0, 0.7, (ITEMS, 1))).astype(np.float32)


@pytest.fixture
def queries(rng: np.random.Generator) -> Float32Array:
    return rng.standard_normal((50, SIZE)).astype(np.float32)


def augmented(vectors: Float32Array) -> tuple[Float32Array, float]:
    squared = (vectors.astype(np.float64) ** 2).sum(1)
    return np.hstack([vectors, np.sqrt(squared.max() - squared)[:, None]]).astype(np.float32), float(squared.max())


def filled(index: Any, vectors: Float32Array) -> Any:
    index.train(vectors)
    index.add(vectors)
    return index


def ivf(vectors: Float32Array, metric: int, lists: int = 20) -> Any:
    size = vectors.shape[1]
    return filled(FAISS.IndexIVFFlat(FAISS.IndexFlat(size, metric), size, lists, metric), vectors)


def by_length(vectors: Float32Array, kind: str) -> Any:
    return IndexBuilder(vectors, 0).build(next(candidate for candidate in CANDIDATES if candidate.kind == kind))


KINDS: dict[str, tuple[Callable[[Float32Array], Any], dict[str, float]]] = {
    "flat": (lambda v: filled(FAISS.IndexFlatIP(SIZE), v), {}),
    "ivf": (lambda v: ivf(v, IP), {"nprobe": 2}),
    "ivf-sq8": (
        lambda v: filled(
            FAISS.IndexIVFScalarQuantizer(FAISS.IndexFlatIP(SIZE), SIZE, 20, FAISS.ScalarQuantizer.QT_8bit, IP), v
        ),
        {"nprobe": 2},
    ),
    "ivf-pq-refine": (
        lambda v: filled(
            FAISS.IndexRefineFlat(FAISS.IndexIVFPQFastScan(FAISS.IndexFlatIP(SIZE), SIZE, 20, 4, 4, IP)), v
        ),
        {"nprobe": 3, "k_factor": 4},
    ),
    "pq-refine": (lambda v: filled(FAISS.IndexRefineFlat(FAISS.IndexPQFastScan(SIZE, 4, 4, IP)), v), {"k_factor": 2}),
    "hnsw": (lambda v: filled(FAISS.IndexHNSWFlat(SIZE, 4, IP), v), {"efSearch": 10}),
    "hnsw-sq8": (
        lambda v: filled(FAISS.IndexHNSWSQ(SIZE, FAISS.ScalarQuantizer.QT_8bit, 4, IP), v),
        {"efSearch": 10},
    ),
    "length": (lambda v: by_length(v, "length"), {"longest_lists": 4}),
    "length-pq": (lambda v: by_length(v, "length-pq"), {"longest_lists": 4, "k_factor": 1.5}),
}
APPROXIMATE = [kind for kind in KINDS if kind != "flat"]


def read(folder: Path, kind: str, vectors: Float32Array) -> FaissIndex:
    make, parameters = KINDS[kind]
    faiss.write_index(make(vectors), str(folder / "items.faiss"))
    return read_faiss_index(folder / "items.faiss", Info(kind, "none", parameters), vectors.shape)


def recall(index: FaissIndex, vectors: Float32Array, queries: Float32Array, effort: float) -> float:
    truth = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    _, rows = index.search(queries, 10, effort)
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(truth.tolist(), rows.tolist(), strict=True)]))


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_the_inner_products_of_the_rows(
    tmp_path: Path, vectors: Float32Array, queries: Float32Array, kind: str
) -> None:
    index = read(tmp_path, kind, vectors)
    scores, rows = index.search(queries, 10)
    assert (scores.dtype.name, rows.dtype.name) == ("float32", "int64")
    assert scores.shape == rows.shape == (50, 15 if kind == "length-pq" else 10)  # the rough codes' best are a start
    assert index.exact is (kind == "flat")
    assert index.rounded_scores is (kind.endswith("sq8") or kind == "length-pq")
    assert (np.diff(scores, axis=1) <= 0).all()
    found = rows >= 0
    expected = np.einsum("bkd,bd->bk", vectors[rows], queries)
    if kind == "length-pq":
        assert np.corrcoef(scores[found], expected[found])[0, 1] > 0.9
    else:
        tolerance = 0.5 if index.rounded_scores else 1e-4
        np.testing.assert_allclose(scores[found], expected[found], atol=tolerance)


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_effort_raises_recall_up_to_a_limit(
    tmp_path: Path, vectors: Float32Array, queries: Float32Array, kind: str
) -> None:
    index = read(tmp_path, kind, vectors)
    asked, more = recall(index, vectors, queries, 1), recall(index, vectors, queries, 10)
    assert asked < more
    assert more > 0.8
    assert recall(index, vectors, queries, 1e9) == recall(index, vectors, queries, 16)
    assert recall(index, vectors, queries, 0.01) == asked  # never less than the manifest promises


def test_distances_over_augmented_vectors_come_back_as_the_same_inner_products(
    tmp_path: Path, vectors: Float32Array, queries: Float32Array
) -> None:
    longer, squared_length = augmented(vectors)
    faiss.write_index(ivf(longer, L2), str(tmp_path / "items.faiss"))
    info = Info("ivf", "l2-augmented", {"nprobe": 20, "squared_length": squared_length})
    index = read_faiss_index(tmp_path / "items.faiss", info, vectors.shape)
    scores, rows = index.search(queries, 10)
    exact = queries @ vectors.T
    np.testing.assert_array_equal(rows, np.argsort(-exact, axis=1)[:, :10])
    np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :10], atol=1e-5 * squared_length)
    assert index.rounded_scores


def test_what_is_not_found_is_no_row_with_no_score(
    tmp_path: Path, vectors: Float32Array, queries: Float32Array
) -> None:
    for metric, indexed, parameters in (
        (IP, vectors, {}),
        (L2, augmented(vectors)[0], {"squared_length": augmented(vectors)[1]}),
    ):
        faiss.write_index(ivf(indexed, metric, lists=200), str(tmp_path / "items.faiss"))
        info = Info("ivf", "none" if metric == IP else "l2-augmented", {"nprobe": 1, **parameters})
        scores, rows = read_faiss_index(tmp_path / "items.faiss", info, vectors.shape).search(queries, 500)
        assert (rows[:, -1] == -1).all()
        assert (scores[rows == -1] == -np.inf).all()
        assert np.isfinite(scores[rows >= 0]).all()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "pq-refine"])
@pytest.mark.parametrize("asking", [1, 50])
def test_what_a_filter_leaves_too_little_of_comes_first_and_nothing_after_it(
    tmp_path: Path, vectors: Float32Array, queries: Float32Array, kind: str, asking: int
) -> None:
    few = AllowedItems(np.arange(len(vectors)) % (len(vectors) // 4) == 1)
    scores, rows = read(tmp_path, kind, vectors).search(queries[:asking], 12, 16.0, few)
    there = rows >= 0
    assert (there.sum(axis=1) <= len(few.rows)).all()
    assert (np.diff(there.astype(int), axis=1) <= 0).all()
    assert set(rows[there].tolist()) <= set(few.rows.tolist())
    assert (scores[~there] == -np.inf).all()
    assert np.isfinite(scores[there]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("asking", [1, 50])
def test_every_kind_finds_as_many_as_are_asked_for_of_those_that_a_filter_lets_pass(
    tmp_path: Path, vectors: Float32Array, queries: Float32Array, kind: str, asking: int
) -> None:
    half = AllowedItems(np.arange(len(vectors)) % 2 == 0)
    index = ItemIndex(read(tmp_path, kind, vectors), vectors)
    searches = Searches(queries[:asking], [10] * asking, [NO_ROWS] * asking, [half] * asking, [16.0] * asking)
    found = index.search(searches)
    assert found.lengths.tolist() == [10] * asking
    assert (found.rows % 2 == 0).all()
    best = np.argsort(-(queries[:asking] @ vectors[::2].T), axis=1)[:, :10] * 2
    assert (
        np.mean([len(set(a) & set(b)) for a, b in zip(best.tolist(), found.rows.reshape(-1, 10).tolist(), strict=True)])
        > 7
    )


def test_hnsw_searches_for_at_least_as_many_as_are_asked_for(
    tmp_path: Path, vectors: Float32Array, queries: Float32Array
) -> None:
    _, rows = read(tmp_path, "hnsw", vectors).search(queries, 300)
    assert ((rows >= 0).sum(1) == 300).all()


@pytest.mark.parametrize("kind", KINDS)
def test_calls_of_different_efforts_at_once_do_not_disturb_one_another(
    tmp_path: Path, vectors: Float32Array, queries: Float32Array, kind: str
) -> None:
    index = read(tmp_path, kind, vectors)
    efforts = [1.0, 2.0, 8.0] * 20
    alone = {effort: index.search(queries, 10, effort)[1].tolist() for effort in set(efforts)}
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda effort: index.search(queries, 10, effort)[1].tolist(), efforts))
    assert found == [alone[effort] for effort in efforts]


@pytest.mark.parametrize("transform", ["", "none"])
def test_an_index_of_an_older_trainer_is_read(tmp_path: Path, vectors: Float32Array, transform: str) -> None:
    faiss.write_index(ivf(vectors, IP), str(tmp_path / "items.faiss"))
    info = Info("ivf", transform, {"nprobe": 5})
    assert read_faiss_index(tmp_path / "items.faiss", info, vectors.shape).kind == "ivf"


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (Info("annoy"), "kind 'annoy' that this server does not know"),
        (Info("ivf", "cosine", {"nprobe": 1}), "transform 'cosine'"),
        (Info("ivf"), "search parameters"),
        (Info("ivf", "none", {"nprobe": 0}), "search parameters"),
        (Info("ivf", "none", {"nprobe": 1, "k_factor": 2}), "search parameters"),
        (Info("ivf", "none", {"nprobe": float("nan")}), "search parameters"),
        (Info("ivf", "none", {"nprobe": float("inf")}), "search parameters"),
        (Info("ivf", "l2-augmented", {"nprobe": 1, "squared_length": 9.0}), "shape"),
        (Info("flat"), "is of kind 'ivf', but the manifest says 'flat'"),
        (Info("hnsw", "none", {"efSearch": 9}), "is of kind 'ivf', but the manifest says 'hnsw'"),
    ],
)
def test_an_index_that_is_not_what_the_manifest_says_is_refused_by_name(
    tmp_path: Path, vectors: Float32Array, info: Info, message: str
) -> None:
    faiss.write_index(ivf(vectors, IP), str(tmp_path / "items.faiss"))
    with pytest.raises(BadModel, match=rf"items\.faiss .*{message}"):
        read_faiss_index(tmp_path / "items.faiss", info, vectors.shape)


def test_an_index_over_other_vectors_or_by_another_measure_is_refused(tmp_path: Path, vectors: Float32Array) -> None:
    faiss.write_index(ivf(vectors, L2), str(tmp_path / "items.faiss"))
    with pytest.raises(BadModel, match="not an inner-product index"):
        read_faiss_index(tmp_path / "items.faiss", Info("ivf", "none", {"nprobe": 1}), vectors.shape)
    with pytest.raises(BadModel, match=r"shape \(2000, 8\), but the embeddings are \(2000, 9\)"):
        read_faiss_index(tmp_path / "items.faiss", Info("ivf", "none", {"nprobe": 1}), (2_000, 9))
    faiss.write_index(ivf(augmented(vectors)[0], IP), str(tmp_path / "items.faiss"))
    info = Info("ivf", "l2-augmented", {"nprobe": 1, "squared_length": 9.0})
    with pytest.raises(BadModel, match="not an L2 index"):
        read_faiss_index(tmp_path / "items.faiss", info, vectors.shape)


def test_augmented_vectors_without_their_length_are_refused(tmp_path: Path, vectors: Float32Array) -> None:
    faiss.write_index(ivf(augmented(vectors)[0], L2), str(tmp_path / "items.faiss"))
    with pytest.raises(BadModel, match="squared_length"):
        read_faiss_index(tmp_path / "items.faiss", Info("ivf", "l2-augmented", {"nprobe": 1}), vectors.shape)


@pytest.mark.parametrize("content", [b"", b"no index at all"])
def test_a_file_that_is_no_index_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "items.faiss").write_bytes(content)
    with pytest.raises(BadModel, match=r"items\.faiss is not a readable FAISS index"):
        read_faiss_index(tmp_path / "items.faiss", Info("flat"), (1, 1))


@pytest.mark.parametrize("kind", ["length", "length-pq"])
def test_the_longest_vectors_are_searched_and_no_others(
    tmp_path: Path, vectors: Float32Array, queries: Float32Array, kind: str
) -> None:
    index = read(tmp_path, kind, vectors)
    longest = np.argsort(-np.linalg.norm(vectors, axis=1))[: 4 * 32]  # 63 lists of 32
    for asked in (queries, queries[:1]):
        _, rows = index.search(asked, 16)
        assert np.isin(rows, longest).all()
        _, deeper = index.search(asked, 64)  # four times as deep, in more lists
        assert not np.isin(deeper, longest).all()


def test_queries_of_another_length_are_refused(tmp_path: Path, vectors: Float32Array, queries: Float32Array) -> None:
    with pytest.raises(ValueError, match="queries have 7 columns, and the index 8"):
        read(tmp_path, "hnsw", vectors).search(queries[:, :7], 10)


@pytest.mark.parametrize("scaled", [False, True])
def test_what_rough_codes_find_is_scored_again_alone_and_in_batches(
    vectors: Float32Array, queries: Float32Array, scaled: bool
) -> None:
    scale = np.linspace(0.5, 1.5, ITEMS, dtype=np.float32) if scaled else None
    indexed = vectors if scale is None else vectors * scale[:, None]
    whole = {"longest_lists": 63.0, "k_factor": 6.0}
    index = ItemIndex(FaissIndex(by_length(indexed, "length-pq"), "length-pq", "none", whole), vectors, scale)
    exact = queries @ indexed.T
    best = np.argsort(-exact, axis=1)[:, :10]
    for asked in (slice(None), slice(0, 1)):
        count = len(queries[asked])
        found = index.search(Searches(queries[asked], [10] * count, [NO_ROWS] * count, [None] * count, [1.0] * count))
        rows = found.rows.reshape(count, 10)
        np.testing.assert_allclose(
            found.scores.reshape(count, 10), np.take_along_axis(exact[asked], rows, axis=1), rtol=1e-5
        )
        assert np.mean(rows == best[asked]) > 0.95
