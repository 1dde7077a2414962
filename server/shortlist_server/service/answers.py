"""From request messages to response messages, many at a time, whichever way they came in."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import Message

from shortlist.v1 import common_pb2, recommender_pb2
from shortlist_server.errors import QueryError
from shortlist_server.item_attributes import Value
from shortlist_server.model.folder import LoadedModel
from shortlist_server.model.store import ModelStore
from shortlist_server.queries import Cluster, ClusterKind, Ranking, Recommendation, Shortfall, Source
from shortlist_server.recommend import Recommender
from shortlist_server.service import requests

Q = TypeVar("Q")
_Items = list[dict[str, Any]]
Outcome = Message | Exception
"""An answer, or why there is none."""

Answer = Callable[[Sequence[Any], Sequence[float]], list[Any]]
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


class Answers:
    """Answers from the models of a store; safe to be asked by several threads.

    Args:
        store: says which model answers.
    """

    def __init__(self, store: ModelStore) -> None:
        self._store = store

    def recommend(
        self, messages: Sequence[recommender_pb2.RecommendRequest], arrived: Sequence[float]
    ) -> list[recommender_pb2.RecommendResponse | QueryError]:
        """The best items for each user."""
        started = time.perf_counter()

        def write(version: int, found: Recommendation, items: _Items, came: float) -> recommender_pb2.RecommendResponse:
            return recommender_pb2.RecommendResponse(
                items=items,  # type: ignore[arg-type]  # dicts are taken as well, at half the time
                model_version=version,
                source=_SOURCES[found.source],
                shortfall_reason=_SHORTFALLS[found.shortfall],
                unknown_history_items=found.unknown_history_items,
                timing=_timing(came, started),
            )

        return self._together(messages, arrived, requests.recommend_query, lambda model: model.recommend, write)

    def similar_items(
        self, messages: Sequence[recommender_pb2.SimilarItemsRequest], arrived: Sequence[float]
    ) -> list[recommender_pb2.SimilarItemsResponse | QueryError]:
        """The items nearest to each request's items."""
        started = time.perf_counter()

        def write(version: int, found: Ranking, items: _Items, came: float) -> recommender_pb2.SimilarItemsResponse:
            return recommender_pb2.SimilarItemsResponse(
                items=items,  # type: ignore[arg-type]  # dicts are taken as well, at half the time
                model_version=version,
                shortfall_reason=_SHORTFALLS[found.shortfall],
                timing=_timing(came, started),
            )

        return self._together(messages, arrived, requests.similar_items_query, lambda model: model.similar_items, write)

    def score(
        self,
        messages: Sequence[recommender_pb2.ScoreRequest],
        arrived: Sequence[float],  # noqa: ARG002 # its answer has no timing
    ) -> list[recommender_pb2.ScoreResponse | QueryError]:
        """The model's predictions for each user and the items beside it."""
        answers: list[recommender_pb2.ScoreResponse | QueryError] = []
        for message in messages:
            try:
                requests.check_score_request(message)
                model = self.model(message.model)
                scores = model.recommender.score(message.user_id, message.item_ids)
                answers.append(recommender_pb2.ScoreResponse(scores=scores.tolist(), model_version=model.version))
            except QueryError as error:
                answers.append(error)
        return answers

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
        read: Callable[[Any], Q],
        method: Callable[[Recommender], Callable[[Sequence[Q]], Sequence[Any]]],
        write: Callable[[int, Any, "_Items", float], Any],
    ) -> list[Any]:
        """Asks each model once, for all requests that it is to answer."""
        answers: list[Any] = [None] * len(messages)
        by_version: dict[int, tuple[LoadedModel, list[tuple[int, Q, list[str]]]]] = {}
        for place, message in enumerate(messages):
            try:
                query = read(message)
                model = self.model(message.model) if message.HasField("model") else self._store.select()
                names = []
                if message.attributes:
                    names = requests.attribute_names(message.attributes, model.recommender.attributes.names)
            except QueryError as error:
                answers[place] = error
            else:
                by_version.setdefault(model.version, (model, []))[1].append((place, query, names))
        for model, entries in by_version.values():
            all_found = method(model.recommender)([query for _, query, _ in entries])
            rankings = [(found, names) for found, (_, _, names) in zip(all_found, entries, strict=True)]
            written = _items_of(model.recommender, [pair for pair in rankings if not isinstance(pair[0], QueryError)])
            for (place, _, _), found in zip(entries, all_found, strict=True):
                is_error = isinstance(found, QueryError)
                answers[place] = found if is_error else write(model.version, found, next(written), arrived[place])
        return answers


def answer_each(answer: Answer, messages: Sequence[Any], arrived: Sequence[float]) -> list[Outcome]:
    """The outcomes of requests; one that fails in a way nobody foresaw fails alone."""
    try:
        return answer(messages, arrived)
    except Exception as error:  # noqa: BLE001 # told to whoever asked, and logged
        if len(messages) == 1:
            return [error]
        return [answer_each(answer, [message], [came])[0] for message, came in zip(messages, arrived, strict=True)]


def _items_of(recommender: Recommender, rankings: Sequence[tuple[Ranking, Sequence[str]]]) -> Iterator["_Items"]:
    """The items of each ranking, in its order, with the attributes named beside it: the fields of ScoredItem."""
    if not rankings:
        return
    # The ids of all are looked up at once.
    ids = recommender.item_ids.ids(np.concatenate([ranking.rows for ranking, _ in rankings]))
    end = 0
    for ranking, names in rankings:
        begin, end = end, end + len(ranking.rows)
        scores = ranking.scores.tolist()
        items: _Items = [
            {"item_id": item_id, "score": score} for item_id, score in zip(ids[begin:end], scores, strict=True)
        ]
        for item in items if names else ():
            item["attributes"] = {}
        for name in names:
            for item, value in zip(items, recommender.attributes.values(name, ranking.rows), strict=True):
                if value is not None:
                    item["attributes"][name] = _attribute(value)
        yield items


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
    return recommender_pb2.Cluster(
        kind=_CLUSTER_KINDS[cluster.kind],
        label=cluster.label,
        size=cluster.size,
        top_items=next(_items_of(recommender, [(cluster.top, attribute_names)])),  # type: ignore[arg-type]  # dicts
    )


def _timing(came: float, started: float) -> Any:
    """The fields of Timing."""
    now = time.perf_counter()
    return {"queued_micros": int((started - came) * 1e6), "computed_micros": int((now - started) * 1e6)}
