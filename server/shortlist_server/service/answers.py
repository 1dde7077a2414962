"""From request messages to response messages, many at a time, whichever way they came in."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, Protocol, TypeVar

import numpy as np

from shortlist.v1 import common_pb2, recommender_pb2
from shortlist_server.errors import QueryError
from shortlist_server.model.folder import LoadedModel
from shortlist_server.model.traffic import Split
from shortlist_server.retrieval.item_attributes import Value
from shortlist_server.retrieval.queries import BEST_UNSEEN, Cluster, ClusterKind, Ranking, Remarks, Shortfall, Source
from shortlist_server.retrieval.rankings import Rankings
from shortlist_server.retrieval.recommend import Recommender
from shortlist_server.service import requests, wire
from shortlist_server.telemetry.observer import Observer

Q = TypeVar("Q")
Outcome = bytes | Exception
"""A written answer, or why there is none."""

Entry = tuple[int, Q, Sequence[str]]
"""A request's place among others, what it asks, and names of attributes to return."""

Answer = Callable[[Sequence[Any], Sequence[float]], Sequence[Outcome]]
"""Request messages and when each came, by ``time.perf_counter``, to their outcomes, the i-th for the i-th."""

_SOURCES = {
    None: recommender_pb2.SOURCE_UNSPECIFIED,
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

_SCORED = Remarks()

_ITEMS = recommender_pb2.RecommendResponse.ITEMS_FIELD_NUMBER  # and of SimilarItemsResponse


class Models(Protocol):
    """Says which model answers, as a ModelStore does."""

    @property
    def splits(self) -> Sequence[Split]: ...  # noqa: D102
    def default(self) -> LoadedModel: ...  # noqa: D102
    def for_user(self, user_id: str) -> LoadedModel: ...  # noqa: D102
    def select(self, version: int | None = None, label: str | None = None) -> LoadedModel: ...  # noqa: D102


class Answers:
    """Answers from the models of a store; safe to be asked by several threads.

    Args:
        store: says which model answers.
        observer: is told of every batch.
    """

    def __init__(self, store: Models, observer: Observer) -> None:
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
                self._observer.batch_answered("score", model.version, [_SCORED], began)
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
        method: Callable[[Recommender, Sequence[Q]], Rankings],
        response: Any,
        description: Callable[[Remarks], bytes],
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
        answers, asked = self._by_model(messages, read)
        for model, entries in asked:
            places, queries, names = zip(*entries, strict=True)
            rankings = method(model.recommender, queries)
            items = _items(_ITEMS, model.recommender, rankings, names)
            response.model_version = model.version
            response.timing.computed_micros = int((time.perf_counter() - started) * 1e6)
            ends = {}  # many come together
            for came in {arrived[place] for place in places}:
                response.timing.queued_micros = int((started - came) * 1e6)
                ends[came] = response.SerializeToString()
            usual = description(BEST_UNSEEN)
            for place, its_items, remarks in zip(places, items, rankings.remarks, strict=True):
                if remarks is BEST_UNSEEN:
                    answers[place] = its_items + usual + ends[arrived[place]]
                elif isinstance(remarks, Remarks):
                    answers[place] = its_items + description(remarks) + ends[arrived[place]]
                else:
                    answers[place] = remarks
            self._observer.batch_answered(method.__name__, model.version, rankings.remarks, started)
        return answers

    def _by_model(
        self, messages: Sequence[Any], read: Callable[[Any], requests.Asked[Q]]
    ) -> tuple[list[bytes | QueryError], list[tuple[LoadedModel, list[Entry[Q]]]]]:
        """The answers to requests, those that are errors filled in, and what each model is to be asked for the rest."""
        answers: list[bytes | QueryError] = [b""] * len(messages)
        splits, default = self._store.splits, None
        models: dict[int, LoadedModel] = {}
        asked: defaultdict[int, list[Entry[Q]]] = defaultdict(list)
        for place, message in enumerate(messages):
            try:
                query, selector, names = read(message)
                if selector is not None:
                    model = self.model(selector)
                elif splits:
                    model = self.for_user(getattr(message, "user_id", ""))
                else:
                    model = default = default or self._store.default()  # one for all, which is one look as well
                if names:
                    names = requests.attribute_names(names, model.recommender.attributes.names)
            except QueryError as error:
                answers[place] = error.with_traceback(None)  # which would hold this frame, and it the error
            else:
                models[model.version] = model
                asked[model.version].append((place, query, names))
        return answers, [(model, asked[version]) for version, model in models.items()]


def answer_each(answer: Answer, messages: Sequence[Any], arrived: Sequence[float]) -> Sequence[Outcome]:
    """The outcomes of requests; one that fails in a way nobody foresaw fails alone."""
    try:
        return answer(messages, arrived)
    except Exception as error:  # noqa: BLE001 # told to whoever asked, and logged
        if len(messages) == 1:
            return [error]
        return [answer_each(answer, [message], [came])[0] for message, came in zip(messages, arrived, strict=True)]


@lru_cache(1 << 10)
def _of_recommendation(remarks: Remarks) -> bytes:
    return recommender_pb2.RecommendResponse(
        source=_SOURCES[remarks.source],
        shortfall_reason=_SHORTFALLS[remarks.shortfall],
        unknown_history_items=remarks.unknown_history_items,
    ).SerializeToString()


@lru_cache(1 << 10)
def _of_neighbours(remarks: Remarks) -> bytes:
    return recommender_pb2.SimilarItemsResponse(shortfall_reason=_SHORTFALLS[remarks.shortfall]).SerializeToString()


def _items(number: int, recommender: Recommender, rankings: Rankings, names: Sequence[Sequence[str]]) -> list[bytes]:
    """The items of each ranking, with the attributes named beside it, written as a repeated field."""
    padded = None if any(names) else recommender.item_ids.padded(rankings.rows, wire.LONGEST_ID)
    if padded is None:
        return _items_one_by_one(number, recommender, rankings, names)
    written, sizes = wire.scored_items(number, *padded, rankings.scores)
    ends = np.zeros(len(sizes) + 1, dtype=np.int64)
    sizes.cumsum(out=ends[1:])
    bounds = ends[rankings.lengths.cumsum()].tolist()
    return [written[begin:end] for begin, end in pairwise([0, *bounds])]


def _items_one_by_one(
    number: int, recommender: Recommender, rankings: Rankings, names: Sequence[Sequence[str]]
) -> list[bytes]:
    written = []
    for ranking, wanted in zip(rankings, names, strict=True):
        if isinstance(ranking, QueryError):
            written.append(b"")
            continue
        ids, scores = recommender.item_ids.encoded(ranking.rows), ranking.scores.tolist()
        attributes = _attributes(recommender, ranking, wanted)
        items = zip(ids, scores, attributes, strict=True)
        written.append(b"".join([wire.scored_item(number, *item) for item in items]))
    return written


def _attributes(recommender: Recommender, ranking: Ranking, names: Sequence[str]) -> list[bytes]:
    """The attributes of each item, written as those of a ScoredItem."""
    if not names:
        return [b""] * len(ranking.rows)
    columns = [recommender.attributes.values(name, ranking.rows) for name in names]
    written = []
    for values in zip(*columns, strict=True):
        given = {name: attribute_message(value) for name, value in zip(names, values, strict=True) if value is not None}
        written.append(recommender_pb2.ScoredItem(attributes=given).SerializeToString())
    return written


def attribute_message(value: Value) -> common_pb2.AttributeValue:
    """A value of an attribute as a message."""
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
    (top_items,) = _items(
        recommender_pb2.Cluster.TOP_ITEMS_FIELD_NUMBER, recommender, Rankings.of([cluster.top]), [attribute_names]
    )
    message.MergeFromString(top_items)
    return message
