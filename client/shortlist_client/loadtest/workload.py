"""What is asked: kinds of calls, their shares, and requests drawn and serialized beforehand."""

import itertools
import random
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from shortlist.v1 import recommender_pb2
from shortlist_client.loadtest.ids import Zipf
from shortlist_client.rpcs import recommend_request

MOST_DRAWN = 20_000
"""Users, or items, that a process draws for each kind of call; after the last it begins again."""
_FEWEST_REQUESTS = 100  # of a kind, however large its batches are

MOST_ASKED_FOR = 1_000
"""Of the wire contract: items of an answer, and requests of a batch."""

_SERVICE = "/shortlist.v1.RecommenderService"


class Kind(StrEnum):
    """A kind of call."""

    UNARY = "unary"
    BATCH = "batch"
    STREAM = "stream"
    SIMILAR = "similar"

    __hash__ = str.__hash__  # an enumeration's own is ten times slower, and calls are counted by kind


PATHS: Mapping[Kind, str] = {
    Kind.UNARY: f"{_SERVICE}/Recommend",
    Kind.BATCH: f"{_SERVICE}/BatchRecommend",
    Kind.STREAM: f"{_SERVICE}/StreamRecommend",
    Kind.SIMILAR: f"{_SERVICE}/SimilarItems",
}


@dataclass(frozen=True)
class Workload:
    """What the calls ask.

    Attributes:
        mix: share of the calls of each kind, adding up to 1.
        users: their ids.
        items: ids of the items whose neighbours are asked for; empty where the mix has no such calls.
        k: items per answer.
        batch_size: users of a batch.
        skew: of the popularity of users and items, as of ``ids.Zipf``.
    """

    mix: Mapping[Kind, float]
    users: Sequence[str]
    items: Sequence[str] = ()
    k: int = 10
    batch_size: int = 64
    skew: float = 0.99


@dataclass(frozen=True, slots=True)
class Call:
    """A request that can be sent, many times if need be.

    Attributes:
        kind: what it asks.
        message: the request, serialized; of a stream, an entry that lacks its id.
        asked: the ids that it asks about.
    """

    kind: Kind
    message: bytes
    asked: tuple[str, ...]


def parse_mix(text: str) -> dict[Kind, float]:
    """Reads ``unary=80,batch=10,similar=10``: weights, which need not add up to anything.

    Raises:
        ValueError: says what is wrong and what it should be.
    """
    weights: dict[Kind, float] = {}
    for part in text.split(","):
        name, equals, number = part.partition("=")
        try:
            kind, weight = Kind(name.strip()), float(number) if equals else 1.0
        except ValueError:
            raise ValueError(
                f"a mix is KIND=WEIGHT,… of {', '.join(Kind)}, such as unary=80,batch=20; not {part!r}"
            ) from None
        if kind in weights:
            raise ValueError(f"the mix names {kind} twice")
        if not 0 < weight < float("inf"):
            raise ValueError(f"the weight of {kind} must be above 0, not {number}")
        weights[kind] = weight
    total = sum(weights.values())
    return {kind: weight / total for kind, weight in weights.items()}


def endless_calls(workload: Workload, rng: random.Random, most: int = MOST_DRAWN) -> Iterator[Call]:
    """Calls in the order in which they are to be made, without end; safe to share between threads.

    The kind of each is drawn by itself, so that the shares hold in the long run whatever they are. Its request is the
    next of those that were drawn for that kind beforehand: to draw one for each call would cost a twentieth of it.

    Args:
        workload: what is asked.
        rng: draws, now and later.
        most: users, or items, of each kind that are drawn; of batches, 100 at least.
    """
    lists = [_drawn(kind, workload, rng, most) for kind in workload.mix]
    if len(lists) == 1:
        return itertools.cycle(lists[0])
    return _Mixed(lists, list(workload.mix.values()), rng)


def bounds(workload: Workload, processes: int) -> dict[str, str]:
    """In words, how many of the users and items can come up, where there are more than so many processes draw.

    Returns:
        "distinct users" and "distinct items", or neither, to the words.
    """
    found = {}
    for name, ids, kinds in (
        ("distinct users", workload.users, workload.mix.keys() - {Kind.SIMILAR}),
        ("distinct items", workload.items, workload.mix.keys() & {Kind.SIMILAR}),
    ):
        sizes = [_size(kind, workload) for kind in kinds]
        most = processes * sum(size * _requests(size, MOST_DRAWN) for size in sizes)
        if kinds and most < len(ids):
            found[name] = f"{most:,} of {len(ids):,} at most; every process draws its requests once and repeats them"
    return found


class _Mixed(Iterator[Call]):
    """Draws from which list the next call comes. No generator, which threads could not share."""

    def __init__(self, lists: Sequence[Sequence[Call]], shares: Sequence[float], rng: random.Random) -> None:
        self._cycles = [itertools.cycle(calls) for calls in lists]
        self._ends = list(itertools.accumulate(shares))[:-1]  # the last is 1, but for rounding
        self._random = rng.random

    def __next__(self) -> Call:
        return next(self._cycles[bisect_right(self._ends, self._random())])


def _drawn(kind: Kind, workload: Workload, rng: random.Random, most: int) -> list[Call]:
    size = _size(kind, workload)
    ids = workload.items if kind is Kind.SIMILAR else workload.users
    assert ids, "a mix with similar needs items"
    zipf = Zipf(len(ids), workload.skew, rng)
    return [_call(kind, tuple(ids[zipf.draw()] for _ in range(size)), workload.k) for _ in range(_requests(size, most))]


def _size(kind: Kind, workload: Workload) -> int:
    """Ids that a request asks about."""
    return workload.batch_size if kind is Kind.BATCH else 1


def _requests(size: int, most: int) -> int:
    """How many of such a size are drawn."""
    return max(_FEWEST_REQUESTS, most // size)


def _call(kind: Kind, asked: tuple[str, ...], k: int) -> Call:
    if kind is Kind.SIMILAR:
        return Call(kind, recommender_pb2.SimilarItemsRequest(item_ids=asked, k=k).SerializeToString(), asked)
    requests = [recommend_request(user, k=k) for user in asked]
    if kind is Kind.BATCH:
        return Call(kind, recommender_pb2.BatchRecommendRequest(requests=requests).SerializeToString(), asked)
    if kind is Kind.STREAM:
        return Call(kind, recommender_pb2.StreamRecommendRequest(request=requests[0]).SerializeToString(), asked)
    return Call(kind, requests[0].SerializeToString(), asked)
