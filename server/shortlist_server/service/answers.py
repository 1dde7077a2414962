"""From request messages to response messages, many at a time, whichever way they came in."""

import time
from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import numpy as np

from shortlist.v1 import common_pb2, recommender_pb2
from shortlist_server.errors import QueryError
from shortlist_server.item_attributes import Value
from shortlist_server.model.folder import LoadedModel
from shortlist_server.model.store import ModelStore
from shortlist_server.queries import Cluster, ClusterKind, Ranking, Recommendation, Shortfall, Source
from shortlist_server.recommend import Recommender
from shortlist_server.service import requests, wire
from shortlist_server.telemetry.observer import Observer

Q = TypeVar("Q")
Outcome = bytes | Exception
"""A written answer, or why there is none."""

Answer = Callable[[Sequence[Any], Sequence[float]], Sequence[Outcome]]
"""Request messages and when each came, by ``time.perf_counter``, to their outcomes, the i-th for the i-th."""

_SOURCES = {
    Source.PERSONALIZED: recommender_pb2.SOURCE_PERSONALIZED,
    Source.FOLDED_IN: recommender_pb2.SOURCE_FOLDED_IN,
    Source.POPULAR: recommender_pb2.SOURCE_POPULAR,
    Source.CLUSTER: recommender_pb2.SOURCE_CLUSTER,
}
_SHORTFALLS = {
    None: recommender_pb2.SHORTFALL_REASON_UNSPECIFIED,
    Shortfall.CATALOGUE_EXHAUSTED: recommender_pb2.SHORTFALL_REASON_CATALOGUE_EXHAUSTED,
    Shortfall.FILTER: recommender_pb2.SHORTFALL_REASON_FILTER,
    Shortfall.MIN_SCORE: recommender_pb2.SHORTFALL_REASON_MIN_SCORE,
    Shortfall.DIVERSITY: recommender_pb2.SHORTFALL_REASON_DIVERSITY,
    Shortfall.SUPPORT: recommender_pb2.SHORTFALL_REASON_SUPPORT,
}
_CLUSTER_KINDS = {
    ClusterKind.USER: recommender_pb2.CLUSTER_KIND_USER,
    ClusterKind.ITEM: recommender_pb2.CLUSTER_KIND_ITEM,
}

_ITEMS = recommender_pb2.RecommendResponse.ITEMS_FIELD_NUMBER  # and of SimilarItemsResponse


class Answers:
    """Answers from the models of a store; safe to be asked by several threads.

    Args:
        store: says which model answers.
        observer: is told of every batch.
    """

    def __init__(self, store: ModelStore, observer: Observer) -> None:
        self._store = store
        self._observer = observer

    def recommend(
        self, messages: Sequence[recommender_pb2.RecommendRequest], arrived: Sequence[float]
    ) -> list[bytes | QueryError]:
        """The best items for each user: RecommendResponses."""
        response, read = recommender_pb2.RecommendResponse(), requests.recommend_query
        return self._together(messages, arrived, read, Recommender.recommend, response, _of_recommendation)

    def similar_items(
        self, messages: Sequence[recommender_pb2.SimilarItemsRequest], arrived: Sequence[float]
    ) -> list[bytes | QueryError]:
        """The items nearest to each request's items: SimilarItemsResponses."""
        response, read = recommender_pb2.SimilarItemsResponse(), requests.similar_items_query
        return self._together(messages, arrived, read, Recommender.similar_items, response, _of_neighbours)

    def score(
        self,
        messages: Sequence[recommender_pb2.ScoreRequest],
        arrived: Sequence[float],
    ) -> list[bytes | QueryError]:
        """The model's predictions for each user and the items beside it: ScoreResponses."""
        answers: list[bytes | QueryError] = []
        self._observer.batch_began("score", arrived)
        for message in messages:
            began = time.perf_counter()
            try:
                requests.check_score_request(message)
                model = (
                    self.model(message.model)
                    if message.HasField("model")
                    else self.for_user(getattr(message, "user_id", ""))
                )
                scores = model.recommender.score(message.user_id, message.item_ids)
                self._observer.batch_answered("score", model.version, [scores], began)
                response = recommender_pb2.ScoreResponse(scores=scores.tolist(), model_version=model.version)
                answers.append(response.SerializeToString())
            except QueryError as error:
                answers.append(error.with_traceback(None))
        return answers

    def for_user(self, user_id: str) -> LoadedModel:
        """The model that answers a user's requests that name none; an empty id for requests that name no user.

        Raises:
            NoModelReady: there is none.
        """
        return self._store.for_user(user_id) if self._store.splits else self._store.default()

    def model(self, selector: common_pb2.ModelSelector) -> LoadedModel:
        """The model that a request names.

        Raises:
            QueryError: there is none.
        """
        version, label = requests.selected_version(selector)
        return self._store.select(version, label)

    def _together(
        self,
        messages: Sequence[Any],
        arrived: Sequence[float],
        read: Callable[[Any], requests.Asked[Q]],
        method: Callable[[Recommender, Sequence[Q]], Sequence[Any]],
        response: Any,
        description: Callable[[Any], bytes],
    ) -> list[bytes | QueryError]:
        """Asks each model once, for all requests that it is to answer.

        Args:
            messages: the requests.
            arrived: when each came.
            read: from a request to what it asks.
            method: from queries to rankings.
            response: an empty message of the answers' kind.
            description: what is said of a ranking beside its items, the model and the time, written.
        """
        started = self._observer.batch_began(method.__name__, arrived)
        answers: list[bytes | QueryError] = [b""] * len(messages)
        by_version: dict[int, tuple[LoadedModel, list[tuple[int, Q, Sequence[str]]]]] = {}
        for place, message in enumerate(messages):
            try:
                query, selector, names = read(message)
                model = self.for_user(getattr(message, "user_id", "")) if selector is None else self.model(selector)
                if names:
                    names = requests.attribute_names(names, model.recommender.attributes.names)
            except QueryError as error:
                answers[place] = error.with_traceback(None)  # which would hold this frame, and it the error
            else:
                by_version.setdefault(model.version, (model, []))[1].append((place, query, names))
        for model, entries in by_version.values():
            rankings = method(model.recommender, [query for _, query, _ in entries])
            found = []
            for (place, _, names), ranking in zip(entries, rankings, strict=True):
                if isinstance(ranking, QueryError):
                    answers[place] = ranking
                else:
                    found.append((place, ranking, names))
            items = _items(_ITEMS, model.recommender, [(ranking, names) for _, ranking, names in found])
            response.model_version = model.version
            response.timing.computed_micros = int((time.perf_counter() - started) * 1e6)
            ends = {}  # many come together
            for came in {arrived[place] for place, _, _ in found}:
                response.timing.queued_micros = int((started - came) * 1e6)
                ends[came] = response.SerializeToString()
            for (place, ranking, _), its_items in zip(found, items, strict=True):
                answers[place] = its_items + description(ranking) + ends[arrived[place]]
            self._observer.batch_answered(method.__name__, model.version, rankings, started)
        return answers


def answer_each(answer: Answer, messages: Sequence[Any], arrived: Sequence[float]) -> Sequence[Outcome]:
    """The outcomes of requests; one that fails in a way nobody foresaw fails alone."""
    try:
        return answer(messages, arrived)
    except Exception as error:  # noqa: BLE001 # told to whoever asked, and logged
        if len(messages) == 1:
            return [error]
        return [answer_each(answer, [message], [came])[0] for message, came in zip(messages, arrived, strict=True)]


def _of_recommendation(found: Recommendation) -> bytes:
    return _described(found.source, found.shortfall, found.unknown_history_items)


@lru_cache(1 << 10)
def _described(source: Source, shortfall: Shortfall | None, unknown_history_items: int) -> bytes:
    return recommender_pb2.RecommendResponse(
        source=_SOURCES[source],
        shortfall_reason=_SHORTFALLS[shortfall],
        unknown_history_items=unknown_history_items,
    ).SerializeToString()


def _of_neighbours(found: Ranking) -> bytes:
    return recommender_pb2.SimilarItemsResponse(shortfall_reason=_SHORTFALLS[found.shortfall]).SerializeToString()


def _items(number: int, recommender: Recommender, rankings: Sequence[tuple[Ranking, Sequence[str]]]) -> list[bytes]:
    """The items of each ranking, with the attributes named beside it, written as a repeated field."""
    if not rankings:
        return []
    # Those of all are written at once.
    rows = np.concatenate([ranking.rows for ranking, _ in rankings])
    if any(names for _, names in rankings):
        attributes = [written for ranking, names in rankings for written in _attributes(recommender, ranking, names)]
        ids = recommender.item_ids.encoded(rows)
        heads = [wire.item_head(number, *item) for item in zip(ids, attributes, strict=True)]
    else:
        heads = recommender.item_ids.encoded(rows, _bare_item(number))
    parts = wire.scored_items(heads, np.concatenate([ranking.scores for ranking, _ in rankings]))
    ends = accumulate(2 * len(ranking.rows) for ranking, _ in rankings)
    return [b"".join(parts[begin:end]) for begin, end in pairwise([0, *ends])]


@cache
def _bare_item(number: int) -> Callable[[bytes], bytes]:
    """Writes items without attributes: one function for each field, by which the written ones are remembered."""
    return partial(wire.item_head, number)


def _attributes(recommender: Recommender, ranking: Ranking, names: Sequence[str]) -> list[bytes]:
    """The attributes of each item, written as those of a ScoredItem."""
    if not names:
        return [b""] * len(ranking.rows)
    columns = [recommender.attributes.values(name, ranking.rows) for name in names]
    written = []
    for values in zip(*columns, strict=True):
        given = {name: _attribute(value) for name, value in zip(names, values, strict=True) if value is not None}
        written.append(recommender_pb2.ScoredItem(attributes=given).SerializeToString())
    return written


def _attribute(value: Value) -> common_pb2.AttributeValue:
    match value:
        case bool():  # before int, which it is as well
            return common_pb2.AttributeValue(bool_value=value)
        case str():
            return common_pb2.AttributeValue(string_value=value)
        case int():
            return common_pb2.AttributeValue(int_value=value)
        case float():
            return common_pb2.AttributeValue(double_value=value)
        case list():
            return common_pb2.AttributeValue(string_list=common_pb2.StringList(values=value))


def cluster_message(
    recommender: Recommender, cluster: Cluster, attribute_names: Sequence[str]
) -> recommender_pb2.Cluster:
    """A cluster as a message."""
    kind = _CLUSTER_KINDS[cluster.kind]
    message = recommender_pb2.Cluster(kind=kind, label=cluster.label, size=cluster.size)
    (top_items,) = _items(recommender_pb2.Cluster.TOP_ITEMS_FIELD_NUMBER, recommender, [(cluster.top, attribute_names)])
    message.MergeFromString(top_items)
    return message
