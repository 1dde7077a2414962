"""RecommenderService as an ordinary servicer: one request at a time, or many in one message or stream."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import grpc

from shortlist.v1 import recommender_pb2, recommender_pb2_grpc
from shortlist_server.admission import Admission, Line
from shortlist_server.errors import DeadlinePassed, QueryError
from shortlist_server.retrieval.queries import ClusterKind
from shortlist_server.service import requests
from shortlist_server.service.answers import Answer, Answers, Outcome, answer_each, cluster_message
from shortlist_server.service.guard import Guard
from shortlist_server.service.inbox import Inbox
from shortlist_server.service.outcomes import batch_response, stream_response
from shortlist_server.service.weights import first_of, weight

STREAM_RECOMMEND = f"/{recommender_pb2.DESCRIPTOR.services_by_name['RecommenderService'].full_name}/StreamRecommend"

TOGETHER = 64
"""So many requests of a batch or a stream are answered together. So many more of a stream are read ahead; the caller's
others are held back by gRPC's flow control."""


Written = Any
"""A response in bytes, for a server that does not serialize these again. Generated types know messages alone."""


class RecommenderService(recommender_pb2_grpc.RecommenderServiceServicer):
    """Answers from the models of a store.

    Args:
        answers: reads requests and writes responses.
        admission: says when a request may be worked on.
        streams: says whether one more stream may be open: each holds a thread, busy or not.
        guard: says whether a stream's caller may go on, and how requests of a batch or a stream fail.
    """

    def __init__(self, answers: Answers, admission: Admission, streams: Admission, guard: Guard) -> None:
        self._answers = answers
        self._admission = admission
        self._streams = streams
        self._guard = guard

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
        entries = requests.batch_entries(request)
        arrived = time.perf_counter()
        outcomes: list[Outcome] = []
        with self._admission.place(context.time_remaining(), len(entries), request.ByteSize()) as progress:
            while len(outcomes) < len(entries):  # turn by turn, so that nobody waits for a long batch
                some, cost = first_of(entries[len(outcomes) : len(outcomes) + TOGETHER], weight, TOGETHER)
                line = Line.GOES_ON if outcomes else Line.BATCHES
                with self._admission.work(context.time_remaining(), cost, line=line):
                    _require_caller(context)
                    outcomes += answer_each(self._answers.recommend, some, [arrived] * len(some))
                progress(len(some))
        return batch_response(outcomes, self._guard, context.invocation_metadata)

    def StreamRecommend(
        self, request_iterator: Iterator[recommender_pb2.StreamRecommendRequest], context: grpc.ServicerContext
    ) -> Iterator[Written]:
        """Answers as they are ready, those together that came together."""
        with self._streams.turn(None):
            inbox = Inbox(request_iterator, TOGETHER, recommender_pb2.StreamRecommendRequest.ByteSize)
            context.add_callback(inbox.close)
            yield from self._answer_stream(inbox, context)

    def _answer_stream(
        self, inbox: Inbox[recommender_pb2.StreamRecommendRequest], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        for came in inbox.batches():
            # A token may be taken back meanwhile.
            self._guard.gate.authorize(STREAM_RECOMMEND, context.invocation_metadata())
            entries = []
            for entry in came:
                try:
                    self._guard.gate.charge(context)
                    entries.append(entry)
                except QueryError as error:  # the caller asks too often
                    yield stream_response(entry[0].request_id, error, self._guard)
            while entries:
                some, _ = first_of(entries, lambda one: weight(one[0].request), TOGETHER)
                del entries[: len(some)]
                yield from self._answer_some(some, context)

    def _answer_some(
        self, entries: Sequence[tuple[recommender_pb2.StreamRecommendRequest, float]], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        messages, arrived = [entry.request for entry, _ in entries], [when for _, when in entries]
        outcomes: Sequence[Outcome]
        try:
            size = sum(message.ByteSize() for message, _ in entries)
            with self._admission.turn(context.time_remaining(), len(entries), size):
                _require_caller(context)
                outcomes = answer_each(self._answers.recommend, messages, arrived)
        except QueryError as error:  # too many are waiting
            outcomes = [error] * len(entries)
        for (message, _), outcome in zip(entries, outcomes, strict=True):
            yield stream_response(message.request_id, outcome, self._guard)

    def GetCluster(
        self, request: recommender_pb2.GetClusterRequest, context: grpc.ServicerContext
    ) -> recommender_pb2.GetClusterResponse:
        """One cluster, by its label or one of its members."""
        query = requests.cluster_query(request)
        member = request.member_id if query.kind is ClusterKind.USER else ""
        model = self._answers.model(request.model) if request.HasField("model") else self._answers.for_user(member)
        names = requests.attribute_names(request.attributes, model.recommender.attributes.names)
        with self._admission.turn(context.time_remaining()):
            _require_caller(context)
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
            _require_caller(context)
            clusters = model.recommender.all_clusters(kind, k)
            return recommender_pb2.ListClustersResponse(
                clusters=[cluster_message(model.recommender, cluster, names) for cluster in clusters],
                model_version=model.version,
            )

    def _one(self, answer: Answer, request: Any, context: grpc.ServicerContext) -> bytes:
        arrived = time.perf_counter()
        with self._admission.turn(context.time_remaining(), size=request.ByteSize()):
            _require_caller(context)
            (outcome,) = answer([request], [arrived])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def _require_caller(context: grpc.ServicerContext) -> None:
    """Before work begins: the caller may have gone away while it waited, or its deadline have passed.

    Raises:
        DeadlinePassed: nobody waits for the answer.
    """
    left = context.time_remaining()
    if not context.is_active() or (left is not None and left <= 0):
        raise DeadlinePassed
