"""RecommenderService: checks each request, waits for a turn, asks the model, writes the answer."""

import time
from collections.abc import Iterator, Sequence

import grpc

from shortlist.v1 import common_pb2, recommender_pb2, recommender_pb2_grpc
from shortlist_server.admission import Admission
from shortlist_server.errors import NotSupported
from shortlist_server.item_attributes import Value
from shortlist_server.model.folder import LoadedModel
from shortlist_server.model.store import ModelStore
from shortlist_server.recommend import Cluster, ClusterKind, Ranking, Recommender, Source
from shortlist_server.service import requests

_SOURCES = {
    Source.PERSONALIZED: recommender_pb2.SOURCE_PERSONALIZED,
    Source.POPULAR: recommender_pb2.SOURCE_POPULAR,
    Source.CLUSTER: recommender_pb2.SOURCE_CLUSTER,
}
_CLUSTER_KINDS = {
    ClusterKind.USER: recommender_pb2.CLUSTER_KIND_USER,
    ClusterKind.ITEM: recommender_pb2.CLUSTER_KIND_ITEM,
}


class RecommenderService(recommender_pb2_grpc.RecommenderServiceServicer):
    """Answers from the models of a store."""

    def __init__(self, store: ModelStore, admission: Admission) -> None:
        self._store = store
        self._admission = admission

    def Recommend(
        self, request: recommender_pb2.RecommendRequest, context: grpc.ServicerContext
    ) -> recommender_pb2.RecommendResponse:
        """The best items for a user."""
        query = requests.recommend_query(request)
        model = self._model(request.model)
        names = requests.attribute_names(request.attributes, model.recommender.attributes.names)
        with self._admission.turn(context.time_remaining()) as waited:
            started = time.perf_counter()
            ranking = model.recommender.recommend(query)
            items = scored_items(model.recommender, ranking, names)
            return recommender_pb2.RecommendResponse(
                items=items,
                model_version=model.version,
                source=_SOURCES[ranking.source],
                shortfall_reason=_shortfall(len(items), query.k, ranking.source),
                timing=_timing(waited, started),
            )

    def SimilarItems(
        self, request: recommender_pb2.SimilarItemsRequest, context: grpc.ServicerContext
    ) -> recommender_pb2.SimilarItemsResponse:
        """The items nearest to the request's items."""
        query = requests.similar_items_query(request)
        model = self._model(request.model)
        names = requests.attribute_names(request.attributes, model.recommender.attributes.names)
        with self._admission.turn(context.time_remaining()) as waited:
            started = time.perf_counter()
            ranking = model.recommender.similar_items(query)
            items = scored_items(model.recommender, ranking, names)
            return recommender_pb2.SimilarItemsResponse(
                items=items,
                model_version=model.version,
                shortfall_reason=_shortfall(len(items), query.k),
                timing=_timing(waited, started),
            )

    def Score(
        self, request: recommender_pb2.ScoreRequest, context: grpc.ServicerContext
    ) -> recommender_pb2.ScoreResponse:
        """The model's prediction for a user and each item."""
        requests.check_score_request(request)
        model = self._model(request.model)
        with self._admission.turn(context.time_remaining()):
            scores = model.recommender.score(request.user_id, request.item_ids)
            return recommender_pb2.ScoreResponse(scores=scores.tolist(), model_version=model.version)

    def BatchRecommend(
        self, request: recommender_pb2.BatchRecommendRequest, context: grpc.ServicerContext
    ) -> recommender_pb2.BatchRecommendResponse:
        """Not built yet."""
        raise NotSupported("BatchRecommend")

    def StreamRecommend(
        self, request_iterator: Iterator[recommender_pb2.StreamRecommendRequest], context: grpc.ServicerContext
    ) -> Iterator[recommender_pb2.StreamRecommendResponse]:
        """Not built yet."""
        raise NotSupported("StreamRecommend")

    def GetCluster(
        self, request: recommender_pb2.GetClusterRequest, context: grpc.ServicerContext
    ) -> recommender_pb2.GetClusterResponse:
        """One cluster, by its label or one of its members."""
        query = requests.cluster_query(request)
        model = self._model(request.model)
        names = requests.attribute_names(request.attributes, model.recommender.attributes.names)
        with self._admission.turn(context.time_remaining()):
            cluster = cluster_message(model.recommender, model.recommender.cluster(query), names)
            return recommender_pb2.GetClusterResponse(cluster=cluster, model_version=model.version)

    def ListClusters(
        self, request: recommender_pb2.ListClustersRequest, context: grpc.ServicerContext
    ) -> recommender_pb2.ListClustersResponse:
        """Every cluster of a kind."""
        kind, k = requests.list_clusters_query(request)
        model = self._model(request.model)
        names = requests.attribute_names(request.attributes, model.recommender.attributes.names)
        requests.check_listed_items(model.recommender.cluster_count(kind), k)
        with self._admission.turn(context.time_remaining()):
            clusters = model.recommender.all_clusters(kind, k)
            return recommender_pb2.ListClustersResponse(
                clusters=[cluster_message(model.recommender, cluster, names) for cluster in clusters],
                model_version=model.version,
            )

    def _model(self, selector: common_pb2.ModelSelector) -> LoadedModel:
        return self._store.select(*requests.selected_version(selector))


def scored_items(
    recommender: Recommender, ranking: Ranking, attribute_names: Sequence[str]
) -> list[recommender_pb2.ScoredItem]:
    """The items of a ranking as messages, in its order."""
    ids = recommender.item_ids.ids(ranking.rows.tolist())
    items = [
        recommender_pb2.ScoredItem(item_id=item_id, score=score)
        for item_id, score in zip(ids, ranking.scores.tolist(), strict=True)
    ]
    for name in attribute_names:
        for item, value in zip(items, recommender.attributes.values(name, ranking.rows), strict=True):
            if value is not None:
                _set_value(item.attributes[name], value)
    return items


def _set_value(message: common_pb2.AttributeValue, value: Value) -> None:
    match value:
        case bool():  # before int, which it is as well
            message.bool_value = value
        case str():
            message.string_value = value
        case int():
            message.int_value = value
        case float():
            message.double_value = value
        case list():
            message.string_list.values.extend(value)


def cluster_message(
    recommender: Recommender, cluster: Cluster, attribute_names: Sequence[str]
) -> recommender_pb2.Cluster:
    """A cluster as a message."""
    return recommender_pb2.Cluster(
        kind=_CLUSTER_KINDS[cluster.kind],
        label=cluster.label,
        size=cluster.size,
        top_items=scored_items(recommender, cluster.top, attribute_names),
    )


def _shortfall(found: int, asked: int, source: Source | None = None) -> "recommender_pb2.ShortfallReason.ValueType":
    if found == asked:
        return recommender_pb2.SHORTFALL_REASON_UNSPECIFIED
    if source is Source.CLUSTER:
        return recommender_pb2.SHORTFALL_REASON_SUPPORT
    return recommender_pb2.SHORTFALL_REASON_CATALOGUE_EXHAUSTED


def _timing(waited_seconds: float, started: float) -> recommender_pb2.Timing:
    return recommender_pb2.Timing(
        queued_micros=round(waited_seconds * 1e6), computed_micros=round((time.perf_counter() - started) * 1e6)
    )
