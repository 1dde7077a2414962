"""Client of Shortlist, the retrieval stage of a recommender. Needs gRPC and protobuf only.

from shortlist_client import Client

with Client("127.0.0.1:50051") as client:
    for item in client.recommend("196", k=10, attributes=["title"]).items:
        print(item.id, item.score, item.attributes["title"])
"""

from shortlist_client.client import AsyncClient, Client
from shortlist_client.errors import (
    ClusterNotFound,
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    InvalidArgument,
    ItemNotFound,
    ModelNotFound,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    ShortlistError,
    Unauthenticated,
    Unavailable,
    UnexpectedStatus,
    Unimplemented,
    UserNotFound,
)
from shortlist_client.results import (
    AttributeValue,
    Cluster,
    ClusterKind,
    Fallback,
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
from shortlist_client.rpcs import recommend_request

__all__ = [
    "AsyncClient",
    "AttributeValue",
    "Client",
    "Cluster",
    "ClusterKind",
    "ClusterNotFound",
    "DeadlineExceeded",
    "FailedPrecondition",
    "Fallback",
    "InternalError",
    "InvalidArgument",
    "Item",
    "ItemNotFound",
    "Model",
    "ModelDetails",
    "ModelList",
    "ModelNotFound",
    "ModelState",
    "NotFound",
    "PermissionDenied",
    "Recommendations",
    "ResourceExhausted",
    "Scores",
    "ServerStatus",
    "Shadow",
    "Shortfall",
    "ShortlistError",
    "SimilarItems",
    "Source",
    "Unauthenticated",
    "Unavailable",
    "UnexpectedStatus",
    "Unimplemented",
    "UserNotFound",
    "recommend_request",
]
