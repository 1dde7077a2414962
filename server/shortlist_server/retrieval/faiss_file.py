"""Reads a FAISS file so that nothing in it can end the process, now or while it is searched.

A checksum tells a file that changed from one that did not, not a good file from one that was bad when its checksum was
taken. FAISS follows what a file says of ids, links and lengths.
"""

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from shortlist_server.errors import BadModel, unreadable

_FAISS: Any = faiss  # its stubs lack part of what it takes

_FLAT = frozenset({"IndexFlat", "IndexFlatIP", "IndexFlatL2"})
_STORAGE = _FLAT | {"IndexScalarQuantizer"}
_LISTS = frozenset({"ArrayInvertedLists", "BlockInvertedLists"})
"""What an index may be made of, of all that FAISS can read. Others name files, or hold indexes in their turn."""

_CODES_TOGETHER = 32
"""FAISS's fast scan compares as many codes at once, or a multiple of it."""


_MOST_FOR_TABLES = 1 << 24
"""Bytes."""


def read_faiss_file(path: Path) -> tuple[Any, object]:
    """The index in a file, its vectors mapped and not copied; what refers to them is checked.

    Returns:
        The index, and what must be kept for as long as it.

    Raises:
        BadModel: it is no index that could be searched; the text names the file.
    """
    try:
        content = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
        index = _read(content)
    except OSError as error:
        raise unreadable(path.name, error) from error
    except (ValueError, RuntimeError, MemoryError) as error:  # a file that is cut short asks for any amount of memory
        raise BadModel(f"{path.name} is not a readable FAISS index") from error
    fault = _fault(index, index.ntotal)
    if fault:
        raise BadModel(f"{path.name} {fault}")
    return index, content


def _read(content: npt.NDArray[np.uint8]) -> Any:
    if not hasattr(_FAISS, "ZeroCopyIOReader"):  # before 1.11, which copies
        return _FAISS.deserialize_index(content)
    # Not by IO_FLAG_MMAP_IFC: its reader runs over the end of a file that is cut short within a number.
    reader = _FAISS.ZeroCopyIOReader(_FAISS.swig_ptr(content), len(content))
    if not hasattr(_FAISS, "set_deserialization_vector_byte_limit"):
        return _FAISS.read_index(reader)
    # No array is longer than the file that holds it, whatever a damaged length says, but for tables that FAISS counts
    # in for PQ.
    usual = _FAISS.get_deserialization_vector_byte_limit()
    _FAISS.set_deserialization_vector_byte_limit(max(len(content), _MOST_FOR_TABLES))
    try:
        return _FAISS.read_index(reader)
    finally:
        _FAISS.set_deserialization_vector_byte_limit(usual)


def _fault(index: Any, items: int) -> str | None:
    """What is wrong with an index over so many items, or with one within it."""
    index = _FAISS.downcast_index(index)
    if index.ntotal != items:
        return f"holds an index of {index.ntotal:,} vectors within one of {items:,}"
    if not index.is_trained:
        return "holds an index that is not trained"
    if isinstance(index, _FAISS.IndexRefine):
        base = _fault(index.base_index, items) or _size_fault(index.base_index, index.d)
        return base or _part_fault(index.refine_index, items, index.d, _FLAT)
    if isinstance(index, _FAISS.IndexIVF):
        quantizer = _part_fault(index.quantizer, index.nlist, index.d, _FLAT)
        return quantizer or _lists_fault(index)
    if isinstance(index, _FAISS.IndexHNSW):
        return _part_fault(index.storage, items, index.d, _STORAGE) or _graph_fault(index)
    if isinstance(index, _FAISS.IndexFastScan):
        return _scanned_fault(index)
    if isinstance(index, _FAISS.IndexFlatCodes) and index.codes.size() != items * index.code_size:
        return "holds another number of codes than of vectors"
    return None


def _part_fault(part: Any, items: int, size: int, kinds: frozenset[str]) -> str | None:
    """What is wrong with a part of an index, which must be of one of these kinds, over so many items and columns."""
    part = _FAISS.downcast_index(part)
    kind = type(part).__name__
    if kind not in kinds:
        return f"holds an {kind}, where one of {', '.join(sorted(kinds))} is expected"
    return _fault(part, items) or _size_fault(part, size)


def _size_fault(part: Any, size: int) -> str | None:
    return None if part.d == size else f"holds an index of {part.d} columns within one of {size}"


def _scanned_fault(index: Any) -> str | None:
    """Whether there are as many codes as fast scan reads: half a byte for each part of each vector, in full blocks."""
    block, parts = index.bbs, index.M + index.M % 2
    sound = block > 0 and block % _CODES_TOGETHER == 0 and parts == index.M2
    sound = sound and index.ntotal2 == -(-index.ntotal // block) * block
    sound = sound and index.codes.size() == index.ntotal2 * parts // 2
    return None if sound else "holds another number of codes than of vectors"


def _lists_fault(index: Any) -> str | None:
    """Whether the lists hold every item once, and the quantizer leads to them."""
    kind = type(_FAISS.downcast_InvertedLists(index.invlists)).__name__
    if kind not in _LISTS:
        return f"holds lists of the kind {kind}, where one of {', '.join(sorted(_LISTS))} is expected"
    if not index.nlist == index.quantizer.ntotal == index.invlists.nlist:
        return "has another number of lists than of centroids"
    lengths = [index.invlists.list_size(number) for number in range(index.nlist)]
    if sum(lengths) != index.ntotal:
        return "has lists of another length than it has items"
    listed = np.zeros(index.ntotal, dtype=np.bool_)
    for number, length in enumerate(lengths):
        if length:
            ids = _FAISS.rev_swig_ptr(index.invlists.get_ids(number), length)
            if ids.min() < 0 or ids.max() >= index.ntotal:
                return "lists items that are not there"
            listed[ids] = True
    return None if listed.all() else "does not list every item once"


def _graph_fault(index: Any) -> str | None:
    """Whether every link of the graph leads to an item."""
    graph, items = index.hnsw, index.ntotal
    links, begins = (_view(array) for array in (graph.neighbors, graph.offsets))
    levels, per_level = (_view(array) for array in (graph.levels, graph.cum_nneighbor_per_level))
    sound = len(levels) == items and len(begins) == items + 1 and begins[0] == 0 and begins[-1] == len(links)
    sound = sound and (items == 0 or 0 <= graph.entry_point < items)
    sound = sound and bool((levels >= 1).all()) and levels.max(initial=0) < len(per_level)
    sound = sound and links.min(initial=-1) >= -1 and links.max(initial=-1) < items
    # Each item has room for the links of its levels.
    sound = sound and np.array_equal(np.diff(begins.astype(np.int64)), per_level[levels])
    sound = sound and (items == 0 or 0 <= graph.max_level < levels[graph.entry_point])
    return None if sound else "has a graph with links that lead nowhere"


def _view(array: Any) -> npt.NDArray[Any]:
    """One of FAISS's arrays, not copied."""
    return _FAISS.rev_swig_ptr(array.data(), array.size()) if array.size() else np.empty(0, np.int64)
