"""Every call once: its arguments, its request message and what its response becomes.

Both clients make their methods of these, so that a call is written, documented and typed in one place.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, ParamSpec, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

from shortlist.v1 import common_pb2, model_pb2, recommender_pb2
from shortlist_client.results import (
    AttributeValue,
    Cluster,
    ClusterKind,
    Fallback,
    Item,
    Model,
    ModelDetails,
    ModelState,
    Recommendations,
    Scores,
    Shortfall,
    SimilarItems,
    Source,
)

P = ParamSpec("P")
T = TypeVar("T")
Req = TypeVar("Req", bound=Message)
Resp = TypeVar("Resp", bound=Message)
E = TypeVar("E", bound=StrEnum)


@dataclass(frozen=True)
class Rpc(Generic[P, Req, Resp, T]):
    """One unary method.

    Attributes:
        path: its full gRPC name.
        request: makes the request message of the call's arguments; its signature and documentation are the call's.
        response_type: the response message.
        result: what a response becomes.
    """

    path: str
    request: Callable[P, Req]
    response_type: type[Resp]
    result: Callable[[Resp], T]


def _recommend(
    user_id: str,
    *,
    k: int = 10,
    exclude_seen: bool = True,
    exclude_item_ids: Sequence[str] = (),
    fallback: Fallback | str = Fallback.NONE,
    attributes: Sequence[str] = (),
    model_version: int | None = None,
    model_label: str | None = None,
) -> recommender_pb2.RecommendRequest:
    """The best items for a user.

    Args:
        user_id: the id the user had in the training data.
        k: how many items, 1 to 1,000.
        exclude_seen: leave out the items the user interacted with in training.
        exclude_item_ids: more items to leave out, at most 10,000; unknown ids are ignored.
        fallback: what to answer when the model does not know the user, or knows the id without any interaction: "none",
            "popular" or "cluster", which is what the largest cluster of users likes best.
        attributes: item attributes to return with each item, such as "title".
        model_version: the version that shall answer; None for the server's default.
        model_label: the label of the version that shall answer.

    Returns:
        Recommendations, best first.

    Raises:
        UserNotFound: the model does not know the user and there is no fallback.
        ModelNotFound: the server has no such version or label.
        InvalidArgument: an argument is outside its limits.
        ShortlistError: any other failure; see shortlist_client.errors.
    """
    return recommender_pb2.RecommendRequest(
        user_id=user_id,
        k=k,
        exclude_seen=exclude_seen,
        exclude_item_ids=_several("exclude_item_ids", exclude_item_ids),
        fallback=recommender_pb2.Fallback.Value(f"FALLBACK_{Fallback(fallback).name}"),
        attributes=_several("attributes", attributes),
        model=_selector(model_version, model_label),
    )


def _similar_items(
    item_ids: str | Sequence[str],
    *,
    negative_item_ids: Sequence[str] = (),
    k: int = 10,
    attributes: Sequence[str] = (),
    model_version: int | None = None,
    model_label: str | None = None,
) -> recommender_pb2.SimilarItemsRequest:
    """The items nearest to one or more items, by cosine; the items themselves are left out.

    Args:
        item_ids: one id, or 1 to 100 ids whose mean is the query.
        negative_item_ids: ids of items to be unlike, at most 100.
        k: how many items, 1 to 1,000.
        attributes: item attributes to return with each item, such as "title".
        model_version: the version that shall answer; None for the server's default.
        model_label: the label of the version that shall answer.

    Returns:
        SimilarItems, nearest first.

    Raises:
        ItemNotFound: the model does not know one of the items.
        ModelNotFound: the server has no such version or label.
        InvalidArgument: an argument is outside its limits.
        ShortlistError: any other failure; see shortlist_client.errors.
    """
    return recommender_pb2.SimilarItemsRequest(
        item_ids=[item_ids] if isinstance(item_ids, str) else item_ids,
        negative_item_ids=_several("negative_item_ids", negative_item_ids),
        k=k,
        attributes=_several("attributes", attributes),
        model=_selector(model_version, model_label),
    )


def _score(
    user_id: str,
    item_ids: Sequence[str],
    *,
    model_version: int | None = None,
    model_label: str | None = None,
) -> recommender_pb2.ScoreRequest:
    """The model's own prediction for a user and each of some items.

    Args:
        user_id: the id the user had in the training data.
        item_ids: 1 to 10,000 ids.
        model_version: the version that shall answer; None for the server's default.
        model_label: the label of the version that shall answer.

    Returns:
        Scores, in the order of ``item_ids``; for a rating model they are predicted ratings.

    Raises:
        UserNotFound: the model does not know the user.
        ItemNotFound: the model does not know one of the items.
        ShortlistError: any other failure; see shortlist_client.errors.
    """
    return recommender_pb2.ScoreRequest(
        user_id=user_id,
        item_ids=_several("item_ids", item_ids),
        model=_selector(model_version, model_label),
    )


def _list_clusters(
    kind: ClusterKind | str,
    *,
    k: int = 10,
    attributes: Sequence[str] = (),
    model_version: int | None = None,
    model_label: str | None = None,
) -> recommender_pb2.ListClustersRequest:
    """Every cluster of users or of items.

    Args:
        kind: "user" or "item".
        k: how many top items of each cluster, 1 to 1,000, and at most 10,000 in all clusters together.
        attributes: item attributes to return with each item, such as "title".
        model_version: the version that shall answer; None for the server's default.
        model_label: the label of the version that shall answer.

    Returns:
        A list of Cluster, in the order of their labels: the largest first.

    Raises:
        Unimplemented: the model was published without clusters.
        ModelNotFound: the server has no such version or label.
        InvalidArgument: an argument is outside its limits.
        ShortlistError: any other failure; see shortlist_client.errors.
    """
    return recommender_pb2.ListClustersRequest(
        kind=_cluster_kind(kind),
        k=k,
        attributes=_several("attributes", attributes),
        model=_selector(model_version, model_label),
    )


def _get_cluster(
    kind: ClusterKind | str,
    *,
    label: int | None = None,
    member_id: str | None = None,
    k: int = 10,
    exclude_seen: bool = True,
    attributes: Sequence[str] = (),
    model_version: int | None = None,
    model_label: str | None = None,
) -> recommender_pb2.GetClusterRequest:
    """One cluster of users or of items, by its label or by one of its members.

    Args:
        kind: "user" or "item".
        label: the cluster's label; give this or ``member_id``.
        member_id: the id of a user or of an item, as ``kind`` says.
        k: how many top items, 1 to 1,000.
        exclude_seen: with a user's ``member_id``, leave out the items that this user interacted with in training, so
            that the top items are recommendations.
        attributes: item attributes to return with each item, such as "title".
        model_version: the version that shall answer; None for the server's default.
        model_label: the label of the version that shall answer.

    Returns:
        Cluster.

    Raises:
        ClusterNotFound: there is no such cluster, or the member has no interactions and so no cluster.
        UserNotFound: the model does not know the user.
        ItemNotFound: the model does not know the item.
        Unimplemented: the model was published without clusters.
        ModelNotFound: the server has no such version or label.
        InvalidArgument: an argument is outside its limits.
        ShortlistError: any other failure; see shortlist_client.errors.
    """
    if (label is None) == (member_id is None):
        raise ValueError("give label or member_id, and not both")
    request = recommender_pb2.GetClusterRequest(
        kind=_cluster_kind(kind),
        k=k,
        exclude_seen=exclude_seen,
        attributes=_several("attributes", attributes),
        model=_selector(model_version, model_label),
    )
    if member_id is not None:
        request.member_id = member_id
    elif label is not None:
        request.label = label
    return request


def _list_models() -> model_pb2.ListModelsRequest:
    """Every version in the server's models folder.

    Returns:
        A list of Model, newest first.

    Raises:
        ShortlistError: see shortlist_client.errors.
    """
    return model_pb2.ListModelsRequest()


def _get_model(*, model_version: int | None = None, model_label: str | None = None) -> model_pb2.GetModelRequest:
    """One version with its manifest.

    Args:
        model_version: its number; None for the server's default.
        model_label: its label.

    Returns:
        ModelDetails.

    Raises:
        ModelNotFound: the server has no such version or label.
        ShortlistError: any other failure; see shortlist_client.errors.
    """
    return model_pb2.GetModelRequest(model=_selector(model_version, model_label))


def _several(name: str, values: Sequence[str]) -> Sequence[str]:
    """The values, unless they are one string, whose characters would be taken for values."""
    if isinstance(values, str):
        raise TypeError(f"{name} takes several strings, such as [{values!r}], not one")
    return values


def _cluster_kind(kind: ClusterKind | str) -> "recommender_pb2.ClusterKind.ValueType":
    return recommender_pb2.ClusterKind.Value(f"CLUSTER_KIND_{ClusterKind(kind).name}")


def _selector(version: int | None, label: str | None) -> common_pb2.ModelSelector | None:
    if version is not None and label is not None:
        raise ValueError("give model_version or model_label, not both")
    if version is not None:
        return common_pb2.ModelSelector(version=version)
    return None if label is None else common_pb2.ModelSelector(label=label)


def _to_recommendations(response: recommender_pb2.RecommendResponse) -> Recommendations:
    return Recommendations(
        items=_items(response.items),
        model_version=response.model_version,
        source=_enum(Source, "SOURCE_", recommender_pb2.Source.items(), response.source),
        shortfall=_shortfall(response.shortfall_reason),
    )


def _to_similar_items(response: recommender_pb2.SimilarItemsResponse) -> SimilarItems:
    return SimilarItems(
        items=_items(response.items),
        model_version=response.model_version,
        shortfall=_shortfall(response.shortfall_reason),
    )


def _to_scores(response: recommender_pb2.ScoreResponse) -> Scores:
    return Scores(scores=list(response.scores), model_version=response.model_version)


def _to_clusters(response: recommender_pb2.ListClustersResponse) -> list[Cluster]:
    return [_to_cluster(cluster, response.model_version) for cluster in response.clusters]


def _to_the_cluster(response: recommender_pb2.GetClusterResponse) -> Cluster:
    return _to_cluster(response.cluster, response.model_version)


def _to_cluster(cluster: recommender_pb2.Cluster, model_version: int) -> Cluster:
    return Cluster(
        kind=_enum(ClusterKind, "CLUSTER_KIND_", recommender_pb2.ClusterKind.items(), cluster.kind),
        label=cluster.label,
        size=cluster.size,
        top_items=_items(cluster.top_items),
        model_version=model_version,
    )


def _to_models(response: model_pb2.ListModelsResponse) -> list[Model]:
    return [_to_model(model) for model in response.models]


def _to_model(model: model_pb2.Model) -> Model:
    return Model(
        version=model.version,
        state=_enum(ModelState, "MODEL_STATE_", model_pb2.ModelState.items(), model.state),
        state_reason=model.state_reason,
        labels=list(model.labels),
        default=model.default,
        model_name=model.model_name,
    )


def _to_details(response: model_pb2.GetModelResponse) -> ModelDetails:
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


_RECOMMENDER = "/shortlist.v1.RecommenderService/"
_MODELS = "/shortlist.v1.ModelService/"

RECOMMEND = Rpc(f"{_RECOMMENDER}Recommend", _recommend, recommender_pb2.RecommendResponse, _to_recommendations)
SIMILAR_ITEMS = Rpc(
    f"{_RECOMMENDER}SimilarItems", _similar_items, recommender_pb2.SimilarItemsResponse, _to_similar_items
)
SCORE = Rpc(f"{_RECOMMENDER}Score", _score, recommender_pb2.ScoreResponse, _to_scores)
LIST_CLUSTERS = Rpc(f"{_RECOMMENDER}ListClusters", _list_clusters, recommender_pb2.ListClustersResponse, _to_clusters)
GET_CLUSTER = Rpc(f"{_RECOMMENDER}GetCluster", _get_cluster, recommender_pb2.GetClusterResponse, _to_the_cluster)
LIST_MODELS = Rpc(f"{_MODELS}ListModels", _list_models, model_pb2.ListModelsResponse, _to_models)
GET_MODEL = Rpc(f"{_MODELS}GetModel", _get_model, model_pb2.GetModelResponse, _to_details)
