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
from shortlist_server.faiss_index import FaissIndex, read_faiss_index

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
    assert scores.shape == rows.shape == (50, 10)
    assert index.exact is (kind == "flat")
    assert index.rounded_scores is kind.endswith("sq8")
    assert (np.diff(scores, axis=1) <= 0).all()
    found = rows >= 0
    expected = np.einsum("bkd,bd->bk", vectors[rows], queries)
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
