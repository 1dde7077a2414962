"""Asks a version real questions before callers do, by the code that answers them, so that the first find it warm."""

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shortlist.v1 import common_pb2
from shortlist.v1.recommender_pb2 import (
    FALLBACK_CLUSTER,
    FALLBACK_POPULAR,
    Condition,
    Diversity,
    Filter,
    History,
    HistoryItem,
    RecommendRequest,
    ScoreRequest,
    SimilarItemsRequest,
)
from shortlist_server.access.config import AccessConfig
from shortlist_server.access.gate import Gate
from shortlist_server.errors import QueryError
from shortlist_server.model.folder import LoadedModel
from shortlist_server.retrieval.id_table import IdTable
from shortlist_server.retrieval.queries import ClusterKind, ClusterQuery
from shortlist_server.service.answers import Answer, Answers, Outcome, attribute_message, cluster_message
from shortlist_server.service.guard import Guard
from shortlist_server.service.outcomes import batch_response, stream_response
from shortlist_server.service.requests import DEFAULT_K, MAX_ATTRIBUTES, MAX_EFFORT
from shortlist_server.telemetry.observer import Observer

_USERS = 256
_ITEMS = 64
_BATCHES = (1, 2, 64)
_FEW = 8
"""So many at once of what takes longer: callers who are answered meanwhile shall not wait long."""
_SINGLE = 8
"""So many of the users are asked for one by one."""

_NOBODY = "shortlist:nobody"
"""An id that is in no log of interactions."""

_BREATH_SECONDS = 0.002
"""After each batch, for the calls that another version answers meanwhile. With .5 ms, four times the single requests
and longer turns of Python (model/shelf.py), the 99th percentile of calls while small versions were swapped, with the
load of tests/reliability/test_swaps.py, was 1.4 to 1.7 times that of quiet times in three rounds, and is 1.2 to 1.4
times in six."""


class _Only:
    """A store of one version, which answers everything."""

    splits: Sequence[Any] = ()

    def __init__(self, model: LoadedModel) -> None:
        self._model = model

    def default(self) -> LoadedModel:
        return self._model

    def for_user(self, user_id: str) -> LoadedModel:  # noqa: ARG002 # all are answered by the one
        return self._model

    def select(self, version: int | None = None, label: str | None = None) -> LoadedModel:  # noqa: ARG002
        return self._model


def warm(model: LoadedModel, keep_going: Callable[[], None]) -> None:
    """Sends every kind of request through a version, on behalf of users and items from all over its tables.

    Args:
        model: the version.
        keep_going: is called after every batch, and may raise to end it.
    """
    recommender, answers = model.recommender, Answers(_Only(model), Observer())
    users, items = _spread(recommender.user_ids, _USERS), _spread(recommender.item_ids, _ITEMS)
    names = recommender.attributes.names[:MAX_ATTRIBUTES]
    guard = Guard(Gate(AccessConfig(), admin=False))

    def ask(answer: Answer, messages: Sequence[Any], size: int = _BATCHES[-1]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for begin in range(0, len(messages), size):
            some = messages[begin : begin + size]
            outcomes += answer(some, [time.perf_counter()] * len(some))
            keep_going()
            time.sleep(_BREATH_SECONDS)
        return outcomes

    for size in _BATCHES:
        ask(answers.recommend, [RecommendRequest(user_id=user) for user in users[: _SINGLE * size]], size)
        ask(answers.similar_items, [SimilarItemsRequest(item_ids=[item]) for item in items[:size]], size)
    thorough = [RecommendRequest(user_id=user, search_effort=MAX_EFFORT) for user in users[:_ITEMS]]
    ask(answers.recommend, thorough, _FEW)
    ask(answers.similar_items, [SimilarItemsRequest(item_ids=[item], search_effort=MAX_EFFORT) for item in items], _FEW)
    if users and items:
        rarer = _rarer_requests(model, users[0], items, names)
        ask(answers.recommend, rarer, 1)  # one that is alone goes other ways than one of many
        outcomes = ask(answers.recommend, rarer, _FEW)
        unlike = SimilarItemsRequest(item_ids=items[:1], negative_item_ids=items[1:2], attributes=names)
        ask(answers.similar_items, [unlike])
        ask(answers.score, [ScoreRequest(user_id=users[0], item_ids=items)])
        batch_response(outcomes, guard)
        for outcome in outcomes:
            stream_response("", outcome, guard)
    for kind, clusters in (recommender.clusters or {}).items():
        if len(clusters):
            cluster_message(recommender, recommender.cluster(ClusterQuery(kind, 0)), names)
            cluster_message(recommender, recommender.all_clusters(kind, DEFAULT_K)[-1], ())
            with contextlib.suppress(QueryError):  # a user or an item that has none
                recommender.cluster(ClusterQuery(kind, (users if kind is ClusterKind.USER else items)[0]))


def _rarer_requests(
    model: LoadedModel, user: str, items: Sequence[str], names: Sequence[str]
) -> list[RecommendRequest]:
    """One request of each kind that few callers send; what cannot be answered is refused, which is a path too."""
    recommender, attribute = model.recommender, names[0]
    value = next((one for one in recommender.attributes.values(attribute, recommender.popular[:1])), None)
    conditions = (
        []
        if value is None or isinstance(value, list)
        else [Condition(attribute=attribute, any_of=[attribute_message(value)])]
    )
    history = [HistoryItem(item_id=item) for item in items]
    weighted = [HistoryItem(item_id=item, weight=1) for item in items]
    return [
        RecommendRequest(user_id=""),
        RecommendRequest(user_id=_NOBODY),
        RecommendRequest(user_id=_NOBODY, fallback=FALLBACK_POPULAR),
        RecommendRequest(user_id=_NOBODY, fallback=FALLBACK_CLUSTER),
        RecommendRequest(user_id=user, attributes=names, k=len(items)),
        RecommendRequest(user_id=user, exclude_seen=False, model=common_pb2.ModelSelector(version=model.version)),
        RecommendRequest(history=History(items=history)),
        RecommendRequest(history=History(items=weighted)),
        RecommendRequest(user_id=user, exclude_item_ids=items, min_score=0),
        RecommendRequest(user_id=user, filter=Filter(must=conditions)),
        RecommendRequest(user_id=user, filter=Filter(must_not=conditions)),
        RecommendRequest(user_id=user, diversity=Diversity(attribute=attribute, max_per_value=1)),
        RecommendRequest(user_id=user, rerank=True),
    ]


def _spread(table: IdTable, count: int) -> list[str]:
    """So many ids from all over a table, or all where there are fewer."""
    return table.ids(np.linspace(0, len(table) - 1, min(count, len(table)), dtype=np.int64))
