"""Files of FAISS that hold what would end the process or lead a search astray."""

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from shortlist_server.errors import BadModel
from shortlist_server.faiss_file import read_faiss_file

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


def test_links_that_lead_to_no_item_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    def change(index: Any) -> None:
        links = index.hnsw.neighbors
        _FAISS.rev_swig_ptr(links.data(), links.size())[0] = 100

    assert read_faiss_file(written(tmp_path, "HNSW8", rng))[0].ntotal == 100
    with pytest.raises(BadModel, match=r"items\.faiss"):
        read_faiss_file(written(tmp_path, "HNSW8", rng, change))
