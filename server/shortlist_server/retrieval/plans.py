"""What to search for on behalf of queries for recommendations, in columns."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from shortlist_server.retrieval.item_index import Searches
from shortlist_server.retrieval.queries import Fallback, RecommendQuery, Source

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
RowArray = npt.NDArray[np.integer]

RERANK_CANDIDATES = 500
"""How many of the best by inner product the network puts in order."""

DEEPER = 4
"""Where a limit on diversity leaves too few of the candidates, so many times as many are looked at."""


@dataclass(slots=True, eq=False)
class Plans(Searches):
    """Searches on behalf of queries.

    Attributes:
        queries: what is asked.
        special: whether a query asks for something else than what a user has not seen and likes best.
        users: (b,) the users' rows, ``UNKNOWN`` for a history.
        biases: (b,) float64, added to every score.
        sources: what the vectors were made of.
        unknown_history_items: ids of the histories that the model does not know.
    """

    queries: Sequence[RecommendQuery]
    special: list[bool]
    users: Int64Array
    biases: Float64Array
    sources: list[Source]
    unknown_history_items: list[int]

    @classmethod
    def for_users(
        cls,
        queries: Sequence[RecommendQuery],
        users: Int64Array,
        vectors: Float32Array,
        biases: Float64Array,
        seen: list[RowArray],
    ) -> "Plans":
        """For the best that users have not seen, as if nothing else were asked.

        Args:
            queries: what is asked.
            users: (b,) their rows.
            vectors: (b, d) float32, theirs.
            biases: (b,) float64, theirs.
            seen: the rows of the items that they have seen, ascending.
        """
        count = len(queries)
        return cls(
            vectors=vectors,
            ks=[query.k for query in queries],
            excluded=seen,
            allowed=[None] * count,
            efforts=[1.0] * count,
            queries=queries,
            special=[*map(_is_special, queries)],
            users=users,
            biases=biases,
            sources=[Source.PERSONALIZED] * count,
            unknown_history_items=[0] * count,
        )

    def take(self, places: Sequence[int]) -> "Plans":
        """Those at some places, ascending."""
        if len(places) == len(self):
            return self
        taken: dict[str, Any] = {}
        for field in fields(self):
            column = getattr(self, field.name)
            taken[field.name] = (
                column[places] if isinstance(column, np.ndarray) else [column[place] for place in places]
            )
        return Plans(**taken)


def _is_special(query: RecommendQuery) -> bool:
    """Whether a query asks for something else than what a user has not seen and likes best."""
    return bool(
        query.offset
        or not query.exclude_seen
        or query.exclude_item_ids
        or query.rerank
        or query.filter is not None
        or query.min_score is not None
        or query.diversity is not None
        or query.fallback is not Fallback.NONE
        or query.effort != 1.0
    )


def candidates(query: RecommendQuery) -> int:
    """How many of the best by inner product an answer is likely to need."""
    count = query.offset + query.k
    if query.diversity is not None:
        count *= DEEPER
    return max(count, RERANK_CANDIDATES) if query.rerank else count
