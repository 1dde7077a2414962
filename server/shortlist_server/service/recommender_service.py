"""RecommenderService as an ordinary servicer: one request at a time, or many in one message or stream."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import grpc

from shortlist.v1 import recommender_pb2, recommender_pb2_grpc
from shortlist_server.admission import Admission
from shortlist_server.errors import QueryError
from shortlist_server.service import requests, wire
from shortlist_server.service.answers import Answer, Answers, Outcome, answer_each, cluster_message
from shortlist_server.service.guard import failure
from shortlist_server.service.inbox import Inbox
from shortlist_server.service.status import CODE_NAMES
from shortlist_server.telemetry.logs import request_id_of
from shortlist_server.telemetry.observer import Observer

_RESPONSE = recommender_pb2.RecommendOutcome.RESPONSE_FIELD_NUMBER
_OUTCOMES = recommender_pb2.BatchRecommendResponse.OUTCOMES_FIELD_NUMBER
_REQUEST_ID = recommender_pb2.StreamRecommendResponse.REQUEST_ID_FIELD_NUMBER
_OUTCOME = recommender_pb2.StreamRecommendResponse.OUTCOME_FIELD_NUMBER

STREAMED_AT_ONCE = 64
"""So many requests of a stream are answered together, and so many more are read ahead; the caller's are held back by
gRPC's flow control."""


Written = Any
"""A response in bytes, for a server that does not serialize these again. Generated types know messages alone."""


class RecommenderService(recommender_pb2_grpc.RecommenderServiceServicer):
    """Answers from the models of a store.

    Args:
        answers: reads requests and writes responses.
        admission: says when a request may be worked on.
        streams: says whether one more stream may be open: each holds a thread, busy or not.
        observer: is told of requests of batches and streams that fail.
    """

    def __init__(self, answers: Answers, admission: Admission, streams: Admission, observer: Observer) -> None:
        self._observer = observer
        self._answers = answers
        self._admission = admission
        self._streams = streams

    def Recommend(self, request: recommender_pb2.RecommendRequest, context: grpc.ServicerContext) -> Written:
        """The best items for a user."""
        return self._one(self._answers.recommend, request, context)

    def SimilarItems(self, request: recommender_pb2.SimilarItemsRequest, context: grpc.ServicerContext) -> Written:
        """The items nearest to the request's items."""
        return self._one(self._answers.similar_items, request, context)

    def Score(self, request: recommender_pb2.ScoreRequest, context: grpc.ServicerContext) -> Written:
        """The model's prediction for a user and each item."""
        return self._one(self._answers.score, request, context)

    def BatchRecommend(self, request: recommender_pb2.BatchRecommendRequest, context: grpc.ServicerContext) -> Written:
        """The best items for many users."""
        requests.check_batch(request)
        arrived = time.perf_counter()
        with self._admission.turn(context.time_remaining()):
            outcomes = self._outcomes(request.requests, [arrived] * len(request.requests), "BatchRecommend")
        return b"".join([wire.field(_OUTCOMES, outcome) for outcome in outcomes])

    def StreamRecommend(
        self, request_iterator: Iterator[recommender_pb2.StreamRecommendRequest], context: grpc.ServicerContext
    ) -> Iterator[Written]:
        """Answers as they are ready, those together that came together."""
        with self._streams.turn(None):
            inbox = Inbox(request_iterator, STREAMED_AT_ONCE)
            context.add_callback(inbox.close)
            yield from self._answer_stream(inbox, context)

    def _answer_stream(
        self, inbox: Inbox[recommender_pb2.StreamRecommendRequest], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        for entries in inbox.batches():
            try:
                with self._admission.turn(context.time_remaining()):
                    messages, arrived = [entry.request for entry, _ in entries], [came for _, came in entries]
                    outcomes = self._outcomes(messages, arrived, "StreamRecommend")
            except QueryError as error:  # too many are waiting
                outcomes = [self._outcome(error, "StreamRecommend") for _ in entries]
            for (entry, _), outcome in zip(entries, outcomes, strict=True):
                yield wire.field(_REQUEST_ID, entry.request_id.encode()) + wire.field(_OUTCOME, outcome)

    def GetCluster(
        self, request: recommender_pb2.GetClusterRequest, context: grpc.ServicerContext
    ) -> recommender_pb2.GetClusterResponse:
        """One cluster, by its label or one of its members."""
        query = requests.cluster_query(request)
        model = self._answers.model(request.model)
        names = requests.attribute_names(request.attributes, model.recommender.attributes.names)
        with self._admission.turn(context.time_remaining()):
            cluster = cluster_message(model.recommender, model.recommender.cluster(query), names)
            return recommender_pb2.GetClusterResponse(cluster=cluster, model_version=model.version)

    def ListClusters(
        self, request: recommender_pb2.ListClustersRequest, context: grpc.ServicerContext
    ) -> recommender_pb2.ListClustersResponse:
        """Every cluster of a kind."""
        kind, k = requests.list_clusters_query(request)
        model = self._answers.model(request.model)
        names = requests.attribute_names(request.attributes, model.recommender.attributes.names)
        requests.check_listed_items(model.recommender.cluster_count(kind), k)
        with self._admission.turn(context.time_remaining()):
            clusters = model.recommender.all_clusters(kind, k)
            return recommender_pb2.ListClustersResponse(
                clusters=[cluster_message(model.recommender, cluster, names) for cluster in clusters],
                model_version=model.version,
            )

    def _one(self, answer: Answer, request: Any, context: grpc.ServicerContext) -> bytes:
        arrived = time.perf_counter()
        with self._admission.turn(context.time_remaining()):
            (outcome,) = answer([request], [arrived])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _outcomes(
        self, messages: Sequence[recommender_pb2.RecommendRequest], arrived: Sequence[float], method: str
    ) -> list[bytes]:
        outcomes = answer_each(self._answers.recommend, messages, arrived)
        return [self._outcome(outcome, method) for outcome in outcomes]

    def _outcome(self, outcome: Outcome, method: str) -> bytes:
        """A RecommendOutcome."""
        if not isinstance(outcome, Exception):
            return wire.field(_RESPONSE, outcome)
        request_id = request_id_of()
        status = failure(outcome, request_id)
        self._observer.entry_failed(method, CODE_NAMES[status.code], request_id, outcome)
        return recommender_pb2.RecommendOutcome(error=status).SerializeToString()
