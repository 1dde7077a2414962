"""What is asked: kinds of calls, their shares, and requests drawn and serialized beforehand."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from shortlist.v1 import recommender_pb2
from shortlist_client.loadtest.ids import Zipf
from shortlist_client.rpcs import recommend_request

MOST_DRAWN = 20_000
"""Requests that a process draws; after the last it begins again."""

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


def draw_calls(workload: Workload, rng: random.Random, most: int = MOST_DRAWN) -> list[Call]:
    """So many calls in the order in which they are to be made, of every kind in its share.

    A batch counts for as many as it asks for, so that drawing takes no longer; there are 100 calls at least.
    """
    users = Zipf(len(workload.users), workload.skew, rng)
    items = Zipf(len(workload.items), workload.skew, rng) if workload.items else None
    each = sum(share * (workload.batch_size if kind is Kind.BATCH else 1) for kind, share in workload.mix.items())
    kinds = rng.choices(list(workload.mix), list(workload.mix.values()), k=max(100, int(most / each)))
    calls = []
    for kind in kinds:
        if kind is Kind.SIMILAR:
            assert items is not None, "a mix with similar needs items"
            item = workload.items[items.draw()]
            request = recommender_pb2.SimilarItemsRequest(item_ids=[item], k=workload.k)
            calls.append(Call(kind, request.SerializeToString(), (item,)))
            continue
        asked = tuple(workload.users[users.draw()] for _ in range(workload.batch_size if kind is Kind.BATCH else 1))
        requests = [recommend_request(user, k=workload.k) for user in asked]
        if kind is Kind.BATCH:
            calls.append(
                Call(kind, recommender_pb2.BatchRecommendRequest(requests=requests).SerializeToString(), asked)
            )
        elif kind is Kind.STREAM:
            entry = recommender_pb2.StreamRecommendRequest(request=requests[0])
            calls.append(Call(kind, entry.SerializeToString(), asked))
        else:
            calls.append(Call(kind, requests[0].SerializeToString(), asked))
    return calls
