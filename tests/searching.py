"""Searches one by one, for tests; the server keeps them in columns."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from shortlist_server.retrieval.exact import Neighbours
from shortlist_server.retrieval.item_attributes import AllowedItems
from shortlist_server.retrieval.item_index import NO_ROWS, ItemIndex, Searches


@dataclass(eq=False)
class Search:
    """One entry of each column of ``Searches``."""

    vector: npt.NDArray[np.float32]
    k: int
    excluded: npt.NDArray[np.integer] = field(default_factory=lambda: NO_ROWS)
    allowed: AllowedItems | None = None
    effort: float = 1.0


def found_by(index: ItemIndex, searches: Sequence[Search]) -> list[Neighbours]:
    """What each search finds, all asked for at once."""
    columns = Searches(
        vectors=np.stack([search.vector for search in searches]),
        ks=[search.k for search in searches],
        excluded=[search.excluded for search in searches],
        allowed=[search.allowed for search in searches],
        efforts=[search.effort for search in searches],
    )
    return list(index.search(columns))
