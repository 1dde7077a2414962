"""What each response message becomes."""

import dataclasses
from collections.abc import Sequence
from enum import StrEnum
from typing import TypeVar

from google.protobuf import json_format

from shortlist.v1 import common_pb2, model_pb2, recommender_pb2
from shortlist_client.errors import ShortlistError, error_of_status
from shortlist_client.results import (
    AttributeValue,
    Cluster,
    ClusterKind,
    Item,
    Model,
    ModelDetails,
    ModelList,
    ModelState,
    Recommendations,
    Scores,
    ServerStatus,
    Shadow,
    Shortfall,
    SimilarItems,
    Source,
)

E = TypeVar("E", bound=StrEnum)


def to_recommendations(response: recommender_pb2.RecommendResponse) -> Recommendations:
    """The best items for a user."""
    return Recommendations(
        items=_items(response.items),
        model_version=response.model_version,
        source=_enum(Source, "SOURCE_", recommender_pb2.Source.items(), response.source),
        shortfall=_shortfall(response.shortfall_reason),
        unknown_history_items=response.unknown_history_items,
    )


def to_outcome(outcome: recommender_pb2.RecommendOutcome) -> Recommendations | ShortlistError:
    """One entry of a batch or a stream: its answer, or the error that the call for it alone would have raised."""
    if outcome.HasField("error"):
        return error_of_status(outcome.error)
    return to_recommendations(outcome.response)


def to_outcomes(response: recommender_pb2.BatchRecommendResponse) -> list[Recommendations | ShortlistError]:
    """The i-th for the i-th request."""
    return [to_outcome(outcome) for outcome in response.outcomes]


def to_similar_items(response: recommender_pb2.SimilarItemsResponse) -> SimilarItems:
    """The nearest items."""
    return SimilarItems(
        items=_items(response.items),
        model_version=response.model_version,
        shortfall=_shortfall(response.shortfall_reason),
    )


def to_scores(response: recommender_pb2.ScoreResponse) -> Scores:
    """Predictions, in the order of the items asked for."""
    return Scores(scores=list(response.scores), model_version=response.model_version)


def to_clusters(response: recommender_pb2.ListClustersResponse) -> list[Cluster]:
    """In the order of their labels."""
    return [_to_cluster(cluster, response.model_version) for cluster in response.clusters]


def to_the_cluster(response: recommender_pb2.GetClusterResponse) -> Cluster:
    """The cluster that was named."""
    return _to_cluster(response.cluster, response.model_version)


def _to_cluster(cluster: recommender_pb2.Cluster, model_version: int) -> Cluster:
    return Cluster(
        kind=_enum(ClusterKind, "CLUSTER_KIND_", recommender_pb2.ClusterKind.items(), cluster.kind),
        label=cluster.label,
        size=cluster.size,
        top_items=_items(cluster.top_items),
        model_version=model_version,
    )


def to_models(response: model_pb2.ListModelsResponse) -> ModelList:
    """Newest first."""
    shadow = None
    if response.HasField("shadow"):
        shadow = Shadow(**{field.name: getattr(response.shadow, field.name) for field in dataclasses.fields(Shadow)})
    splits = {split.label: split.percent for split in response.splits}
    return ModelList((_to_model(model) for model in response.models), splits, shadow)


def to_model(response: model_pb2.LoadModelResponse | model_pb2.UnloadModelResponse) -> Model:
    """The one version of a response."""
    return _to_model(response.model)


def to_model_or_none(response: model_pb2.SetLabelResponse) -> Model | None:
    """The version of a response; None where it has none."""
    return _to_model(response.model) if response.HasField("model") else None


def _to_model(model: model_pb2.Model) -> Model:
    return Model(
        version=model.version,
        state=_enum(ModelState, "MODEL_STATE_", model_pb2.ModelState.items(), model.state),
        state_reason=model.state_reason,
        labels=list(model.labels),
        default=model.default,
        model_name=model.model_name,
        answers=model.answers,
    )


def to_status(response: model_pb2.ListModelsResponse) -> ServerStatus | None:
    """How the process that answered is doing."""
    if not response.HasField("status"):
        return None
    status = response.status
    return ServerStatus(
        uptime_seconds=status.uptime_seconds,
        pid=status.pid,
        lane=status.lane,
        calls_answered=status.calls_answered,
        calls_failed=status.calls_failed,
        calls_in_flight=status.calls_in_flight,
        queue_depth=status.queue_depth,
        queue_places=status.queue_places,
        last_swap_unix_seconds=status.last_swap_unix_seconds if status.HasField("last_swap_unix_seconds") else None,
    )


def to_details(response: model_pb2.GetModelResponse) -> ModelDetails:
    """A version with its manifest as a dictionary."""
    manifest = json_format.MessageToDict(response.manifest, preserving_proto_field_name=True)
    return ModelDetails(model=_to_model(response.model), manifest=manifest)


def _items(items: Sequence[recommender_pb2.ScoredItem]) -> list[Item]:
    return [
        Item(item.item_id, item.score, {name: _value(value) for name, value in item.attributes.items()})
        for item in items
    ]


def _value(value: common_pb2.AttributeValue) -> AttributeValue:
    kind = value.WhichOneof("kind")
    if kind == "string_list":
        return list(value.string_list.values)
    plain: AttributeValue = "" if kind is None else getattr(value, kind)
    return plain


def _shortfall(reason: int) -> Shortfall | None:
    if reason == recommender_pb2.SHORTFALL_REASON_UNSPECIFIED:
        return None
    return _enum(Shortfall, "SHORTFALL_REASON_", recommender_pb2.ShortfallReason.items(), reason)


def _enum(kind: type[E], prefix: str, names: Sequence[tuple[str, int]], number: int) -> E:
    """The member for a number of the wire, or UNSPECIFIED for one that this client is too old to know."""
    name = next((name for name, value in names if value == number), f"{prefix}UNSPECIFIED")
    return kind.__members__.get(name.removeprefix(prefix), kind.__members__["UNSPECIFIED"])
