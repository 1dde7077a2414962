"""Every call once: its arguments, its request message and what its response becomes.

Both clients make their methods of these, so that a call is written, documented and typed in one place.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Concatenate, Generic, ParamSpec, TypeVar

from google.protobuf.message import Message

from shortlist.v1 import common_pb2, model_pb2, recommender_pb2
from shortlist_client import responses
from shortlist_client.results import ClusterKind, Fallback

P = ParamSpec("P")
T = TypeVar("T")
Req = TypeVar("Req", bound=Message)
Resp = TypeVar("Resp", bound=Message)

Scalar = str | int | float | bool
Conditions = Mapping[str, Scalar | Sequence[Scalar]]
"""Attribute name to the value, or the several values of which any one will do."""


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


def recommend_request(
    user_id: str | None = None,
    *,
    history: Sequence[str] | Mapping[str, float] | None = None,
    k: int = 10,
    offset: int = 0,
    exclude_seen: bool = True,
    exclude_item_ids: Sequence[str] = (),
    must: Conditions | None = None,
    must_not: Conditions | None = None,
    min_score: float | None = None,
    diversity: tuple[str, int] | None = None,
    fallback: Fallback | str = Fallback.NONE,
    rerank: bool = False,
    search_effort: float | None = None,
    attributes: Sequence[str] = (),
    model_version: int | None = None,
    model_label: str | None = None,
) -> recommender_pb2.RecommendRequest:
    """The best items for a user whom the model knows, or for a history of items.

    Args:
        user_id: the id the user had in the training data; give this or ``history``.
        history: what a user new to the model has interacted with: 1 to 10,000 item ids, or each id with the strength of
            the interaction, which for a rating model is the rating. Ids that the model does not know are skipped.
        k: how many items, 1 to 1,000.
        offset: how many of the best to skip, for paging; ``offset + k`` is at most 1,000.
        exclude_seen: leave out the items the user interacted with in training, or the history's.
        exclude_item_ids: more items to leave out, at most 10,000; unknown ids are ignored.
        must: attribute to value or values, at most 16 attributes: only items that have, of each attribute, one of its
            values, such as {"genres": ["Comedy", "Romance"], "year": 1994}.
        must_not: the same; no item that has such a value.
        min_score: leave out items that score less.
        diversity: (attribute, n): of items that share a value of the attribute, only the best n.
        fallback: what to answer when the model does not know the user, or knows the id without any interaction, or
            knows nothing of the history: "none", "popular" or "cluster", which is what the largest cluster of users
            likes best.
        rerank: let the model's neural ranker order the best 500 candidates, offset + k being at most as many; not for
            a history.
        search_effort: of an approximate index, as a multiple of the published one, 1 to 16; None for 1.
        attributes: item attributes to return with each item, such as "title".
        model_version: the version that shall answer; None for the server's default.
        model_label: the label of the version that shall answer.

    Returns:
        Recommendations, best first; from ``recommend_request`` what ``stream_recommend`` takes.

    Raises:
        UserNotFound: the model does not know the user and there is no fallback.
        ItemNotFound: the model knows none of the history's items and there is no fallback.
        ModelNotFound: the server has no such version or label.
        Unimplemented: the model has no neural ranker to re-rank with, or no clusters to fall back on.
        InvalidArgument: an argument is outside its limits, or does not fit the items' attributes.
        ShortlistError: any other failure; see shortlist_client.errors.
    """
    if (user_id is None) == (history is None):
        raise ValueError("give user_id or history, and not both")
    return recommender_pb2.RecommendRequest(
        user_id=user_id,
        history=None if history is None else _history(history),
        k=k,
        offset=offset,
        exclude_seen=exclude_seen,
        exclude_item_ids=_several("exclude_item_ids", exclude_item_ids),
        filter=_filter(must, must_not),
        min_score=min_score,
        diversity=_diversity(diversity),
        fallback=recommender_pb2.Fallback.Value(f"FALLBACK_{Fallback(fallback).name}"),
        rerank=rerank,
        search_effort=search_effort,
        attributes=_several("attributes", attributes),
        model=_selector(model_version, model_label),
    )


def _for_each_user(
    request: Callable[Concatenate[str, P], recommender_pb2.RecommendRequest],
) -> Callable[Concatenate[Sequence[str], P], recommender_pb2.BatchRecommendRequest]:
    """The call for many users, with the arguments of the call for one."""

    def batch(user_ids: Sequence[str], /, *args: P.args, **options: P.kwargs) -> recommender_pb2.BatchRecommendRequest:
        """The best items for each of many users, asked for in one message.

        Args:
            user_ids: 1 to 1,000 ids; at most 100,000 items in all.
            args: none.
            options: those of ``recommend`` except ``history``, the same for every user.

        Returns:
            A list of Recommendations, the i-th for the i-th user, with a ShortlistError in the place of each that has
            no answer: the one that ``recommend`` would have raised.

        Raises:
            InvalidArgument: there are no users, or too many, or too many items.
            ShortlistError: any other failure of them all; see shortlist_client.errors.
        """
        users = _several("user_ids", user_ids)
        return recommender_pb2.BatchRecommendRequest(requests=[request(user, *args, **options) for user in users])

    return batch


def _similar_items(
    item_ids: str | Sequence[str],
    *,
    negative_item_ids: Sequence[str] = (),
    k: int = 10,
    must: Conditions | None = None,
    must_not: Conditions | None = None,
    search_effort: float | None = None,
    attributes: Sequence[str] = (),
    model_version: int | None = None,
    model_label: str | None = None,
) -> recommender_pb2.SimilarItemsRequest:
    """The items nearest to one or more items, by cosine; the items themselves are left out.

    Args:
        item_ids: one id, or 1 to 100 ids whose mean is the query.
        negative_item_ids: ids of items to be unlike, at most 100.
        k: how many items, 1 to 1,000.
        must: attribute to value or values, as for ``recommend``: only items that have one of each attribute's.
        must_not: the same; no item that has such a value.
        search_effort: of an approximate index, as a multiple of the published one, 1 to 16; None for 1.
        attributes: item attributes to return with each item, such as "title".
        model_version: the version that shall answer; None for the server's default.
        model_label: the label of the version that shall answer.

    Returns:
        SimilarItems, nearest first.

    Raises:
        ItemNotFound: the model does not know one of the items.
        ModelNotFound: the server has no such version or label.
        InvalidArgument: an argument is outside its limits, or does not fit the items' attributes.
        ShortlistError: any other failure; see shortlist_client.errors.
    """
    return recommender_pb2.SimilarItemsRequest(
        item_ids=[item_ids] if isinstance(item_ids, str) else item_ids,
        negative_item_ids=_several("negative_item_ids", negative_item_ids),
        k=k,
        filter=_filter(must, must_not),
        search_effort=search_effort,
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


def _server_status() -> model_pb2.ListModelsRequest:
    """How the server is doing; of several processes on one port, the one that answers.

    Returns:
        ServerStatus, or None from a server that is too old to say.

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


def _history(history: Sequence[str] | Mapping[str, float]) -> recommender_pb2.History:
    weights = history if isinstance(history, Mapping) else dict.fromkeys(_several("history", history))
    items = [recommender_pb2.HistoryItem(item_id=item_id, weight=weight) for item_id, weight in weights.items()]
    return recommender_pb2.History(items=items)


def _filter(must: Conditions | None, must_not: Conditions | None) -> recommender_pb2.Filter | None:
    if not must and not must_not:
        return None
    return recommender_pb2.Filter(must=_conditions(must or {}), must_not=_conditions(must_not or {}))


def _conditions(given: Conditions) -> list[recommender_pb2.Condition]:
    return [
        recommender_pb2.Condition(
            attribute=name,
            any_of=[_value(value) for value in ([values] if isinstance(values, str | int | float) else values)],
        )
        for name, values in given.items()
    ]


def _value(value: Scalar) -> common_pb2.AttributeValue:
    match value:
        case bool():  # before int, which it is as well
            return common_pb2.AttributeValue(bool_value=value)
        case int():
            return common_pb2.AttributeValue(int_value=value)
        case float():
            return common_pb2.AttributeValue(double_value=value)
        case str():
            return common_pb2.AttributeValue(string_value=value)
    raise TypeError(f"an attribute's value is a str, int, float or bool, not {value!r}")


def _diversity(diversity: tuple[str, int] | None) -> recommender_pb2.Diversity | None:
    if diversity is None:
        return None
    attribute, at_most = diversity
    return recommender_pb2.Diversity(attribute=attribute, max_per_value=at_most)


def _cluster_kind(kind: ClusterKind | str) -> "recommender_pb2.ClusterKind.ValueType":
    return recommender_pb2.ClusterKind.Value(f"CLUSTER_KIND_{ClusterKind(kind).name}")


def _selector(version: int | None, label: str | None) -> common_pb2.ModelSelector | None:
    if version is not None and label is not None:
        raise ValueError("give model_version or model_label, not both")
    if version is not None:
        return common_pb2.ModelSelector(version=version)
    return None if label is None else common_pb2.ModelSelector(label=label)


_RECOMMENDER = "/shortlist.v1.RecommenderService/"
_MODELS = "/shortlist.v1.ModelService/"

RECOMMEND = Rpc(
    f"{_RECOMMENDER}Recommend",
    recommend_request,
    recommender_pb2.RecommendResponse,
    responses.to_recommendations,
)
BATCH_RECOMMEND = Rpc(
    f"{_RECOMMENDER}BatchRecommend",
    _for_each_user(recommend_request),
    recommender_pb2.BatchRecommendResponse,
    responses.to_outcomes,
)
STREAM_RECOMMEND_PATH = f"{_RECOMMENDER}StreamRecommend"
SIMILAR_ITEMS = Rpc(
    f"{_RECOMMENDER}SimilarItems", _similar_items, recommender_pb2.SimilarItemsResponse, responses.to_similar_items
)
SCORE = Rpc(f"{_RECOMMENDER}Score", _score, recommender_pb2.ScoreResponse, responses.to_scores)
LIST_CLUSTERS = Rpc(
    f"{_RECOMMENDER}ListClusters", _list_clusters, recommender_pb2.ListClustersResponse, responses.to_clusters
)
GET_CLUSTER = Rpc(
    f"{_RECOMMENDER}GetCluster", _get_cluster, recommender_pb2.GetClusterResponse, responses.to_the_cluster
)
LIST_MODELS = Rpc(f"{_MODELS}ListModels", _list_models, model_pb2.ListModelsResponse, responses.to_models)
SERVER_STATUS = Rpc(f"{_MODELS}ListModels", _server_status, model_pb2.ListModelsResponse, responses.to_status)
GET_MODEL = Rpc(f"{_MODELS}GetModel", _get_model, model_pb2.GetModelResponse, responses.to_details)
