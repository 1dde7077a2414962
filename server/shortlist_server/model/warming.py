"""Asks a model real questions before callers do, so that the first of them finds code and pages warm."""

import time

import numpy as np

from shortlist_server.id_table import IdTable
from shortlist_server.item_attributes import Condition, Filter
from shortlist_server.queries import (
    ClusterQuery,
    Diversity,
    Fallback,
    History,
    RecommendQuery,
    SimilarItemsQuery,
)
from shortlist_server.recommend import Recommender

_USERS = 256
_ITEMS = 64
_BATCHES = (1, 2, 64)
_BREATH_SECONDS = 0.0005
"""After each batch, for the calls that another version answers meanwhile."""
_THOROUGH = 16.0
"""The effort of searches that shall touch most of an index."""


def warm(recommender: Recommender) -> None:
    """Sends every kind of query through a model, on behalf of users and items from all over its tables."""
    users, items = _spread(recommender.user_ids, _USERS), _spread(recommender.item_ids, _ITEMS)
    for size in _BATCHES:
        for begin in range(0, len(users), size if size > 1 else 8):
            recommender.recommend([RecommendQuery(user) for user in users[begin : begin + size]])
            time.sleep(_BREATH_SECONDS)
        recommender.similar_items([SimilarItemsQuery([item]) for item in items[:size]])
    recommender.recommend([RecommendQuery(user, effort=_THOROUGH) for user in users[:_ITEMS]])
    recommender.similar_items([SimilarItemsQuery([item], effort=_THOROUGH) for item in items])
    if users and items:
        recommender.recommend(_rarer_queries(recommender, users[0], items))
        recommender.score(users[0], items)
    for kind, clusters in (recommender.clusters or {}).items():
        if len(clusters):
            recommender.cluster(ClusterQuery(kind, 0))


def _rarer_queries(recommender: Recommender, user: str, items: list[str]) -> list[RecommendQuery]:
    """One query of each kind that few callers ask; what cannot be answered is refused, which is a path too."""
    attribute = recommender.attributes.names[0]
    value = next((one for one in recommender.attributes.values(attribute, recommender.popular[:1])), None)
    conditions = () if value is None or isinstance(value, list) else (Condition("filter", attribute, (value,)),)
    return [
        RecommendQuery("", fallback=Fallback.POPULAR),
        RecommendQuery("", fallback=Fallback.CLUSTER),
        RecommendQuery(History(items)),
        RecommendQuery(History(items, [1.0] * len(items))),
        RecommendQuery(user, exclude_item_ids=items, min_score=0.0),
        RecommendQuery(user, filter=Filter(must=conditions)),
        RecommendQuery(user, filter=Filter(must_not=conditions)),
        RecommendQuery(user, diversity=Diversity(attribute, 1)),
        RecommendQuery(user, rerank=True),
    ]


def _spread(table: IdTable, count: int) -> list[str]:
    """So many ids from all over a table, or all where there are fewer."""
    return table.ids(np.linspace(0, len(table) - 1, min(count, len(table)), dtype=np.int64))
