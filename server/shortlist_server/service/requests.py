"""From request messages to queries: every limit of the contract is checked here."""

import math
from collections.abc import Container, Sequence
from typing import Any, Protocol, TypeVar

from google.protobuf.descriptor import FieldDescriptor

from shortlist.v1 import common_pb2, recommender_pb2
from shortlist_server.errors import InvalidField
from shortlist_server.model.choices import is_label
from shortlist_server.retrieval.item_attributes import Condition, Filter, Scalar
from shortlist_server.retrieval.plans import RERANK_CANDIDATES
from shortlist_server.retrieval.queries import (
    ClusterKind,
    ClusterQuery,
    Diversity,
    Fallback,
    History,
    RecommendQuery,
    SimilarItemsQuery,
)

DEFAULT_K = 10
MAX_K = 1_000
MAX_ID_BYTES = 512
MAX_EXCLUDED = 10_000
MAX_QUERY_ITEMS = 100
MAX_SCORED_ITEMS = 10_000
MAX_ATTRIBUTES = 32
MAX_LISTED_ITEMS = 10_000
MAX_HISTORY = 10_000
MAX_WEIGHT = 1_000_000
"""Of more, the sums of a fold-in overflow."""
MAX_CONDITIONS = 16
MAX_VALUES = 1_000
MAX_EFFORT = 16
MAX_BATCH = 1_000
MAX_BATCH_ITEMS = 100_000

Q = TypeVar("Q")

_FALLBACKS = {
    recommender_pb2.FALLBACK_UNSPECIFIED: Fallback.NONE,
    recommender_pb2.FALLBACK_NONE: Fallback.NONE,
    recommender_pb2.FALLBACK_POPULAR: Fallback.POPULAR,
    recommender_pb2.FALLBACK_CLUSTER: Fallback.CLUSTER,
}
_CLUSTER_KINDS = {
    recommender_pb2.CLUSTER_KIND_USER: ClusterKind.USER,
    recommender_pb2.CLUSTER_KIND_ITEM: ClusterKind.ITEM,
}


class _HasK(Protocol):
    @property
    def k(self) -> int: ...


Asked = tuple[Q, common_pb2.ModelSelector | None, Sequence[str]]
"""What a request asks of a model; which model, None for the default; names of attributes to return."""


def recommend_query(request: recommender_pb2.RecommendRequest) -> Asked[RecommendQuery]:
    """Checks a RecommendRequest.

    Raises:
        InvalidField: a field is outside its limits.
    """
    # One question for all takes half the time of one for each.
    fields = request.ListFields()
    if len(fields) == 2 and fields[0][0] is _USER_ID and fields[1][0] is _K:  # most requests
        _check_id("user_id", fields[0][1])
        return RecommendQuery(fields[0][1], _checked_k(fields[1][1])), None, ()
    given: dict[FieldDescriptor, Any] = dict(fields)
    if (_USER_ID in given) == (_HISTORY in given):
        both = "both" if _HISTORY in given else "neither"
        raise InvalidField("user_id", f"set exactly one of user_id and history, not {both}")
    if _USER_ID in given:
        _check_id("user_id", request.user_id)
        query = RecommendQuery(request.user_id)
    else:
        query = RecommendQuery(_history(request.history))
        if request.rerank:
            raise InvalidField("rerank", "the network knows users by their id, not by a history")
    query.k, query.exclude_seen = _checked_k(given.get(_K, DEFAULT_K)), given.get(_EXCLUDE_SEEN, True)
    if not given.keys() <= _FREQUENT:
        _read_others(query, request, given)
    return query, given.get(_MODEL), given.get(_ATTRIBUTES, ())


_RECOMMEND_FIELDS = recommender_pb2.RecommendRequest.DESCRIPTOR.fields_by_name
_USER_ID, _HISTORY, _K, _EXCLUDE_SEEN, _MODEL, _ATTRIBUTES = (
    _RECOMMEND_FIELDS[name] for name in ("user_id", "history", "k", "exclude_seen", "model", "attributes")
)
_FREQUENT = {_USER_ID, _HISTORY, _K, _EXCLUDE_SEEN, _MODEL, _ATTRIBUTES}


def _read_others(
    query: RecommendQuery, request: recommender_pb2.RecommendRequest, given: Container[FieldDescriptor]
) -> None:
    """Reads those fields that few requests have."""
    query.offset = request.offset
    if not 0 <= query.offset <= MAX_K - query.k:
        raise InvalidField("offset", f"must lie between 0 and {MAX_K} - k")
    query.exclude_item_ids = request.exclude_item_ids
    _check_ids("exclude_item_ids", query.exclude_item_ids, at_most=MAX_EXCLUDED)
    if request.fallback not in _FALLBACKS:
        raise InvalidField("fallback", f"{request.fallback} is not a value of Fallback")
    query.fallback = _FALLBACKS[request.fallback]
    query.rerank = request.rerank
    if query.rerank and query.offset + query.k > RERANK_CANDIDATES:  # pages of one order only
        raise InvalidField("rerank", f"orders the best {RERANK_CANDIDATES} items: offset + k must be at most as many")
    if _RECOMMEND_FIELDS["min_score"] in given:
        query.min_score = request.min_score
        if math.isnan(query.min_score):
            raise InvalidField("min_score", "must be a number")
    if _RECOMMEND_FIELDS["filter"] in given:
        query.filter = _filter(request.filter)
    if _RECOMMEND_FIELDS["diversity"] in given:
        query.diversity = _diversity(request.diversity)
    if _RECOMMEND_FIELDS["search_effort"] in given:
        query.effort = _effort(request)


def similar_items_query(request: recommender_pb2.SimilarItemsRequest) -> Asked[SimilarItemsQuery]:
    """Checks a SimilarItemsRequest; raises as ``recommend_query`` does."""
    k = _k(request, request.HasField("k"))
    _check_ids("item_ids", request.item_ids, at_least=1, at_most=MAX_QUERY_ITEMS)
    _check_ids("negative_item_ids", request.negative_item_ids, at_most=MAX_QUERY_ITEMS)
    query = SimilarItemsQuery(
        item_ids=request.item_ids,
        negative_item_ids=request.negative_item_ids,
        k=k,
        filter=_filter(request.filter) if request.HasField("filter") else None,
        effort=_effort(request) if request.HasField("search_effort") else 1.0,
    )
    return query, request.model if request.HasField("model") else None, request.attributes


def batch_entries(request: recommender_pb2.BatchRecommendRequest) -> Sequence[recommender_pb2.RecommendRequest]:
    """The entries of a BatchRecommendRequest, if they are not too many and do not ask for too many items.

    Raises:
        InvalidField: it holds none or too many.
    """
    entries = list(request.requests)
    if not 1 <= len(entries) <= MAX_BATCH:
        raise InvalidField("requests", f"must hold 1 to {MAX_BATCH:,} requests, not {len(entries):,}")
    if len(entries) * MAX_K > MAX_BATCH_ITEMS:
        ks = [entry.k if entry.HasField("k") else DEFAULT_K for entry in entries]
        items = sum(k for k in ks if 1 <= k <= MAX_K)  # any other k is an error of its own entry
        if items > MAX_BATCH_ITEMS:
            raise InvalidField("requests", f"may ask for {MAX_BATCH_ITEMS:,} items in all, not {items:,}")
    return entries


def _history(message: recommender_pb2.History) -> History:
    items = message.items
    if not 1 <= len(items) <= MAX_HISTORY:
        raise InvalidField("history.items", f"must hold 1 to {MAX_HISTORY:,} items, not {len(items):,}")
    item_ids = [item.item_id for item in items]
    _check_ids("history.items", item_ids, at_most=MAX_HISTORY, within=".item_id")
    weighted = [item.HasField("weight") for item in items]
    if True not in weighted:
        return History(item_ids)
    if False in weighted:
        place = weighted.index(not weighted[0])
        raise InvalidField(f"history.items[{place}].weight", "set the weight of every item or of none")
    weights = [item.weight for item in items]
    for place, weight in enumerate(weights):
        if not -MAX_WEIGHT <= weight <= MAX_WEIGHT:
            reason = f"must lie between {-MAX_WEIGHT:,} and {MAX_WEIGHT:,}, not be {weight:g}"
            raise InvalidField(f"history.items[{place}].weight", reason)
    return History(item_ids, weights)


def _filter(message: recommender_pb2.Filter) -> Filter:
    return Filter(_conditions("filter.must", message.must), _conditions("filter.must_not", message.must_not))


def _conditions(path: str, messages: Sequence[recommender_pb2.Condition]) -> tuple[Condition, ...]:
    if len(messages) > MAX_CONDITIONS:
        raise InvalidField(path, f"has {len(messages):,} conditions, more than {MAX_CONDITIONS}")
    conditions = []
    for place, message in enumerate(messages):
        here = f"{path}[{place}]"
        if not 1 <= len(message.any_of) <= MAX_VALUES:
            raise InvalidField(f"{here}.any_of", f"must hold 1 to {MAX_VALUES:,} values, not {len(message.any_of):,}")
        values = tuple(_scalar(f"{here}.any_of[{number}]", value) for number, value in enumerate(message.any_of))
        conditions.append(Condition(here, message.attribute, values))
    return tuple(conditions)


def _scalar(path: str, value: common_pb2.AttributeValue) -> Scalar:
    kind = value.WhichOneof("kind")
    if kind is None or kind == "string_list":
        raise InvalidField(path, "must be a text, a number or a yes or no")
    scalar: Scalar = getattr(value, kind)
    return scalar


def _diversity(message: recommender_pb2.Diversity) -> Diversity:
    if message.max_per_value < 1:
        raise InvalidField("diversity.max_per_value", f"must be at least 1, not {message.max_per_value:,}")
    return Diversity(message.attribute, message.max_per_value)


def _effort(request: recommender_pb2.RecommendRequest | recommender_pb2.SimilarItemsRequest) -> float:
    if not 1 <= request.search_effort <= MAX_EFFORT:
        raise InvalidField("search_effort", f"must lie between 1 and {MAX_EFFORT}, not be {request.search_effort:g}")
    return request.search_effort


def check_score_request(request: recommender_pb2.ScoreRequest) -> None:
    """Checks a ScoreRequest.

    Raises:
        InvalidField: a field is outside its limits.
    """
    _check_id("user_id", request.user_id)
    _check_ids("item_ids", request.item_ids, at_least=1, at_most=MAX_SCORED_ITEMS)


def cluster_query(request: recommender_pb2.GetClusterRequest) -> ClusterQuery:
    """Checks a GetClusterRequest.

    Raises:
        InvalidField: a field is outside its limits.
    """
    kind = cluster_kind(request.kind)
    k = _k(request, request.HasField("k"))
    named_by = request.WhichOneof("cluster")
    if named_by is None:
        raise InvalidField("label", "set label or member_id")
    if named_by == "member_id":
        _check_id("member_id", request.member_id)
    elif request.label < 0:
        raise InvalidField("label", f"must not be negative, as {request.label:,} is")
    return ClusterQuery(
        kind=kind,
        cluster=request.label if named_by == "label" else request.member_id,
        k=k,
        exclude_seen=request.exclude_seen if request.HasField("exclude_seen") else True,
    )


def list_clusters_query(request: recommender_pb2.ListClustersRequest) -> tuple[ClusterKind, int]:
    """The kind and the number of top items of a ListClustersRequest; raises as ``cluster_query`` does."""
    return cluster_kind(request.kind), _k(request, request.HasField("k"))


def check_listed_items(clusters: int, k: int) -> None:
    """Checks how many items a list of clusters may hold.

    Raises:
        InvalidField: it may hold too many.
    """
    if clusters * k > MAX_LISTED_ITEMS:
        most = MAX_LISTED_ITEMS // clusters
        raise InvalidField("k", f"must be at most {most:,}: {clusters:,} clusters may have {MAX_LISTED_ITEMS:,} items")


def cluster_kind(kind: "recommender_pb2.ClusterKind.ValueType") -> ClusterKind:
    """What a cluster groups.

    Raises:
        InvalidField: it is not set, or no value of ClusterKind.
    """
    if kind not in _CLUSTER_KINDS:
        raise InvalidField("kind", "must be CLUSTER_KIND_USER or CLUSTER_KIND_ITEM")
    return _CLUSTER_KINDS[kind]


def attribute_names(request_names: Sequence[str], known: Sequence[str]) -> list[str]:
    """Checks the names of attributes to return.

    Raises:
        InvalidField: there are too many, or the model lacks one.
    """
    if len(request_names) > MAX_ATTRIBUTES:
        raise InvalidField("attributes", f"has {len(request_names):,} names, more than {MAX_ATTRIBUTES}")
    for place, name in enumerate(request_names):
        if name not in known:
            raise InvalidField(f"attributes[{place}]", f"the model's items have only {', '.join(known)}")
    return list(dict.fromkeys(request_names))


def selected_version(selector: common_pb2.ModelSelector) -> tuple[int | None, str | None]:
    """The version number and the label that a selector names, at most one of them not None.

    Raises:
        InvalidField: the label is none that a version could bear.
    """
    chosen = selector.WhichOneof("selector")
    if chosen == "version":
        return selector.version, None
    if chosen == "label":
        return None, checked_label("model.label", selector.label)
    return None, None


def checked_label(field: str, label: str) -> str:
    """The label, if a version may bear it.

    Raises:
        InvalidField: it may not.
    """
    if not is_label(label):
        raise InvalidField(field, "must be 1 to 63 of a-z, 0-9 and '-'")
    return label


def _k(request: _HasK, is_set: bool) -> int:
    return _checked_k(request.k if is_set else DEFAULT_K)


def _checked_k(k: int) -> int:
    if not 1 <= k <= MAX_K:
        raise InvalidField("k", f"must lie between 1 and {MAX_K:,}, not be {k:,}")
    return k


def _check_id(field: str, external_id: str) -> None:
    if not external_id:
        raise InvalidField(field, "must not be empty")
    # A character takes at least one byte, so that most ids need not be encoded to be measured.
    if len(external_id) * 4 > MAX_ID_BYTES and len(external_id.encode()) > MAX_ID_BYTES:
        raise InvalidField(field, f"is longer than {MAX_ID_BYTES} bytes")


def _check_ids(field: str, external_ids: Sequence[str], *, at_most: int, at_least: int = 0, within: str = "") -> None:
    if not at_least <= len(external_ids) <= at_most:
        raise InvalidField(field, f"must hold {at_least:,} to {at_most:,} ids, not {len(external_ids):,}")
    # One by one only where one of them may be bad.
    if not all(external_ids) or max(map(len, external_ids), default=0) * 4 > MAX_ID_BYTES:
        for place, external_id in enumerate(external_ids):
            _check_id(f"{field}[{place}]{within}", external_id)
