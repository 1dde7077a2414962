"""Files of FAISS that hold what would end the process or lead a search astray."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from shortlist_server.errors import BadModel
from shortlist_server.retrieval.faiss_file import read_faiss_file

_FAISS: Any = faiss


def written(tmp_path: Path, kind: str, rng: np.random.Generator, change: Any = lambda _: None) -> Path:
    """An index of 100 vectors as a file, changed before it is written."""
    vectors = rng.standard_normal((100, 4)).astype(np.float32)
    index = _FAISS.index_factory(4, kind, _FAISS.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    change(index)
    path = tmp_path / "items.faiss"
    _FAISS.write_index(index, str(path))
    return path


@pytest.mark.parametrize("kind", ["Flat", "IVF2,Flat", "HNSW8"])
@pytest.mark.parametrize("length", [0, 3, 26, 47, 79, 95, 131, 300])
def test_a_file_that_is_cut_short_anywhere_is_refused(
    tmp_path: Path, rng: np.random.Generator, kind: str, length: int
) -> None:
    path = written(tmp_path, kind, rng)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(BadModel, match=r"items\.faiss is not a readable FAISS index"):
        read_faiss_file(path)


@pytest.mark.parametrize("item", [-1, 100, 7])
def test_lists_that_name_items_which_are_not_there_or_one_twice_are_refused(
    tmp_path: Path, rng: np.random.Generator, item: int
) -> None:
    def change(index: Any) -> None:
        for number in range(2):
            ids = _FAISS.rev_swig_ptr(index.invlists.get_ids(number), index.invlists.list_size(number))
            ids[ids == 3] = item

    assert read_faiss_file(written(tmp_path, "IVF2,Flat", rng))[0].ntotal == 100
    with pytest.raises(BadModel, match=r"items\.faiss (lists items that are not there|does not list every item once)"):
        read_faiss_file(written(tmp_path, "IVF2,Flat", rng, change))


def other_quantizer(index: Any) -> None:
    """A graph in place of the centroids, which is an index in its turn."""
    graph = _FAISS.IndexHNSWFlat(index.d, 4, _FAISS.METRIC_INNER_PRODUCT)
    graph.add(np.eye(index.nlist, index.d, dtype=np.float32))
    graph.this.disown()  # the index frees it
    index.quantizer = graph


def longer_blocks(index: Any) -> None:
    index.bbs *= 1_000


def more_codes_than_there_are(index: Any) -> None:
    index.ntotal2 = 10**9


def fewer_codes(index: Any) -> None:
    index.codes.resize(16)


@pytest.mark.parametrize(
    ("kind", "change", "fault"),
    [
        ("IVF2,Flat", other_quantizer, "holds an IndexHNSWFlat, where one of IndexFlat, "),
        ("PQ2x4fs", longer_blocks, "holds another number of codes than of vectors"),
        ("PQ2x4fs", more_codes_than_there_are, "holds another number of codes than of vectors"),
        ("PQ2x4fs", fewer_codes, "holds another number of codes than of vectors"),
    ],
)
def test_a_file_whose_parts_do_not_belong_together_is_refused_before_it_is_searched(
    tmp_path: Path, rng: np.random.Generator, kind: str, change: Callable[[Any], None], fault: str
) -> None:
    assert read_faiss_file(written(tmp_path, kind, rng))[0].ntotal == 100
    with pytest.raises(BadModel, match=rf"items\.faiss {fault}"):
        read_faiss_file(written(tmp_path, kind, rng, change))


def test_lists_that_are_in_another_file_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    elsewhere = tmp_path / "elsewhere"

    def change(index: Any) -> None:
        lists = _FAISS.OnDiskInvertedLists(index.nlist, index.code_size, str(elsewhere))
        lists.merge_from_1(index.invlists)
        lists.this.disown()  # the index frees it
        index.replace_invlists(lists, True)

    with pytest.raises(BadModel, match=r"items\.faiss holds lists of the kind OnDiskInvertedLists"):
        read_faiss_file(written(tmp_path, "IVF2,Flat", rng, change))


def test_links_that_lead_to_no_item_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    def change(index: Any) -> None:
        links = index.hnsw.neighbors
        _FAISS.rev_swig_ptr(links.data(), links.size())[0] = 100

    assert read_faiss_file(written(tmp_path, "HNSW8", rng))[0].ntotal == 100
    with pytest.raises(BadModel, match=r"items\.faiss"):
        read_faiss_file(written(tmp_path, "HNSW8", rng, change))
