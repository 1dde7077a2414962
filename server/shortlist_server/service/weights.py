"""How long requests take to answer, one against another: so that nobody waits long for a turn of others."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from shortlist.v1 import recommender_pb2
from shortlist_server.service.requests import MAX_K

T = TypeVar("T")

Weight = Callable[[Any], int]
"""About how many times as long a request takes to answer as a plain one for ten items; 1 at least."""

_FEW = 10
_SHORT_BYTES = 300


def plain(_: Any) -> int:
    """Of any request the same."""
    return 1


def weight(message: Any) -> int:
    """The weight of a RecommendRequest or SimilarItemsRequest.

    A guess, by what costs time: ids to be looked up, attributes to be written and items to be ordered once more. As
    measured on MovieLens-100K, 1,000 items take as long as 6 plain requests, and with four attributes of each as 150.
    """
    size: int = message.ByteSize()
    items: int = min(max(message.k, 0), MAX_K)
    if items <= _FEW and size < _SHORT_BYTES:  # as most are: this is asked of every request
        return 1
    ordered = isinstance(message, recommender_pb2.RecommendRequest) and (
        message.rerank or message.HasField("diversity")
    )
    each = 1 + 6 * len(message.attributes) + 4 * ordered
    return 1 + size // _SHORT_BYTES + items * each // 160


def first_of(entries: Sequence[T], weight_of: Callable[[T], int], room: int) -> tuple[Sequence[T], int]:
    """As many as there is room for, one at least, and their weight; the last may be too heavy."""
    taken = entries[:room]
    total = sum(map(weight_of, taken))
    if total <= room:
        return taken, total
    total = 0
    for place, entry in enumerate(taken):
        if total >= room:
            return taken[:place], total
        total += weight_of(entry)
    return taken, total
