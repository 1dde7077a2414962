"""Vector-search libraries beside ours, each with the ways to build its index and the dial that trades recall for time.

Inner product throughout, as the embeddings are. Every library is optional: what is not installed is named and left out.
"""

import importlib.metadata
import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
RowArray = npt.NDArray[np.integer[Any]]

SearchOne = Callable[[Float32Array], RowArray]
"""A query (1, d) to the rows (k,) of the items found."""

K = 10
_LINKS = (16, 32)  # of an item in a graph
_EF_CONSTRUCTION = 200
_EXACT = (0,)


def _spread(least: int, most: int) -> tuple[int, ...]:
    """Values each about a tenth greater than the one before."""
    count = max(2, round(np.log(max(most, 2) / least) / np.log(1.1)) + 1)
    return tuple(np.unique(np.round(np.geomspace(least, max(most, 2), count)).astype(int)).tolist())


_EFS = _spread(K, 4_096)


@dataclass(frozen=True)
class Build:
    """An index that a library was asked to build.

    Attributes:
        name: how it was built.
        at: a setting of the dial to the search with that setting.
        dial: the settings, from the quickest to the one that finds the most; one alone for exact search.
        dial_name: the library's own name of it, or of what it does.
    """

    name: str
    at: Callable[[int], SearchOne]
    dial: tuple[int, ...] = _EXACT
    dial_name: str = ""


@dataclass(frozen=True)
class Library:
    """A library beside ours.

    Attributes:
        package: its name for pip.
        module: its import name.
        builds: (items, d) float32 to the indexes that are worth a try, built one after another.
    """

    package: str
    module: str
    builds: Callable[[Float32Array], Iterator[Build]]

    @property
    def version(self) -> str | None:
        """What is installed; None where it is not."""
        if importlib.util.find_spec(self.module) is None:
            return None
        return importlib.metadata.version(self.package)


def _faiss_flat(items: Float32Array) -> Iterator[Build]:
    import faiss

    index: Any = faiss.IndexFlatIP(items.shape[1])
    index.add(items)
    yield Build("exact", lambda _: lambda query: index.search(query, K)[1][0])


def _faiss_hnsw(items: Float32Array) -> Iterator[Build]:
    import faiss

    for links in _LINKS:
        index: Any = faiss.IndexHNSWFlat(items.shape[1], links, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = _EF_CONSTRUCTION
        index.add(items)

        def at(ef: int, index: Any = index) -> SearchOne:
            index.hnsw.efSearch = ef
            return lambda query: index.search(query, K)[1][0]

        yield Build(f"M {links}", at, _EFS, "efSearch")


def _hnswlib(items: Float32Array) -> Iterator[Build]:
    import hnswlib

    for links in _LINKS:
        index = hnswlib.Index("ip", items.shape[1])
        index.init_index(len(items), M=links, ef_construction=_EF_CONSTRUCTION, random_seed=0)
        index.add_items(items, num_threads=1)

        def at(ef: int, index: Any = index) -> SearchOne:
            index.set_ef(ef)
            return lambda query: index.knn_query(query, K, num_threads=1)[0][0]

        yield Build(f"M {links}", at, _EFS, "ef")


def _usearch(items: Float32Array) -> Iterator[Build]:
    from usearch.index import Index

    for links in _LINKS:
        for kind in ("f32", "bf16"):
            index = Index(
                ndim=items.shape[1], metric="ip", dtype=kind, connectivity=links, expansion_add=_EF_CONSTRUCTION
            )
            index.add(np.arange(len(items)), items, threads=1)

            def at(ef: int, index: Any = index) -> SearchOne:
                index.expansion_search = ef
                return lambda query: index.search(query[0], K, threads=1).keys

            yield Build(f"{kind} connectivity {links}", at, _EFS, "expansion_search")


def _voyager(items: Float32Array) -> Iterator[Build]:
    import voyager

    for links in _LINKS:
        space = voyager.Space.InnerProduct
        index = voyager.Index(space, items.shape[1], M=links, ef_construction=_EF_CONSTRUCTION, random_seed=0)
        index.add_items(items, num_threads=1)

        def at(ef: int, index: Any = index) -> SearchOne:
            return lambda query: index.query(query[0], K, query_ef=ef)[0]

        yield Build(f"M {links}", at, _EFS, "query_ef")


def _scann(items: Float32Array) -> Iterator[Build]:
    from scann.scann_ops.py import scann_ops_pybind

    def builder() -> Any:
        return scann_ops_pybind.builder(items, K, "dot_product").set_n_training_threads(1)

    exact = builder().score_brute_force().build()
    yield Build("exact", lambda _: lambda query: exact.search(query[0])[0])

    # What its documentation advises: below 100,000 items no partitions, above, about the root of their number.
    flat = builder().score_ah(2, anisotropic_quantization_threshold=0.2).reorder(K).build()

    def reordering(count: int) -> SearchOne:
        return lambda query: flat.search(query[0], pre_reorder_num_neighbors=count)[0]

    yield Build("anisotropic hashing", reordering, _spread(K, min(2_000, len(items))), "reorder")

    leaves = round(len(items) ** 0.5)
    tree = builder().tree(num_leaves=leaves, num_leaves_to_search=leaves, training_sample_size=len(items))
    tree = tree.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(K).build()
    for reorder in (50, 100, 300):

        def at(count: int, reorder: int = reorder) -> SearchOne:
            settings = {"leaves_to_search": count, "pre_reorder_num_neighbors": reorder}
            return lambda query: tree.search(query[0], **settings)[0]

        yield Build(f"tree of {leaves}, reorder {reorder}", at, _spread(1, leaves), "leaves")


def _svs(items: Float32Array) -> Iterator[Build]:
    import svs

    flat = svs.Flat(items, svs.DistanceType.MIP, num_threads=1)
    yield Build("exact", lambda _: lambda query: flat.search(query, K)[0][0])
    parameters = svs.VamanaBuildParameters(alpha=0.95, graph_max_degree=64, window_size=_EF_CONSTRUCTION)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "items.fvecs")
        svs.write_vecs(items, path)
        stored = svs.VectorDataLoader(path, svs.DataType.float32, items.shape[1])
        ways = {
            "float32": stored,
            "LVQ 8": svs.LVQLoader(stored, primary=8, padding=32),
            "LVQ 4x8": svs.LVQLoader(stored, primary=4, residual=8, padding=32),
        }
        for name, data in ways.items():
            index = svs.Vamana.build(parameters, data, svs.DistanceType.MIP, num_threads=1)

            def at(window: int, index: Any = index) -> SearchOne:
                index.search_window_size = window
                return lambda query: index.search(query, K)[0][0]

            yield Build(f"Vamana {name}, degree 64", at, _spread(K, 2_000), "window")


LIBRARIES = {
    "FAISS exact": Library("faiss-cpu", "faiss", _faiss_flat),
    "FAISS HNSW": Library("faiss-cpu", "faiss", _faiss_hnsw),
    "hnswlib": Library("hnswlib", "hnswlib", _hnswlib),
    "usearch": Library("usearch", "usearch", _usearch),
    "voyager": Library("voyager", "voyager", _voyager),
    "scann": Library("scann", "scann", _scann),
    "scalable-vs": Library("scalable-vs", "svs", _svs),
}
