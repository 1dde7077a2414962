"""What can keep a query from being answered. service/status.py maps each to its gRPC status.

QueryError
├── MalformedRequest        bytes that are not the message they should be
├── InvalidField            a field outside its stated limits
├── NotSupported            a field or method that this server cannot do
│   ├── NoClusters          a model that was published without clusters
│   └── NoRanker            a model without a network to re-rank with
├── NotFound
│   ├── UserNotFound
│   ├── ItemNotFound
│   ├── ClusterNotFound
│   └── ModelNotFound
├── NoModelReady
├── QueueFull
└── DeadlinePassed
BadModel                    a model folder that must not be served
"""

from typing import ClassVar

_SHOWN_CHARACTERS = 64


def shown(text: str) -> str:
    """Text from a caller as it may stand in a message: quoted, escaped and cut."""
    return repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…")


class QueryError(Exception):
    """A query that cannot be answered; the text is for the caller."""


class MalformedRequest(QueryError):
    """Bytes that are not the message they should be."""

    def __init__(self) -> None:
        super().__init__("the request is malformed: it cannot be read as the message that this method takes")


class InvalidField(QueryError):
    """A field outside its stated limits.

    Attributes:
        field: its path in the request, such as "exclude_item_ids[3]".
        description: what is wrong with it.
    """

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description


class NotSupported(QueryError):
    """Something the contract has and this server, or its model, cannot do."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is not supported by this server")


class NoClusters(NotSupported):
    """A question about clusters to a model that was published without them."""

    def __init__(self) -> None:
        QueryError.__init__(self, "the model has no clusters; one that is trained again will have them")


class NoRanker(NotSupported):
    """A request to re-rank to a model that has no network."""

    def __init__(self) -> None:
        QueryError.__init__(self, "the model has no network to re-rank with; ncf and ncf-rating have one")


class NotFound(QueryError):
    """A named thing that does not exist.

    Attributes:
        name: what the caller called it.
        description: what is missing, for people.
    """

    resource_type: ClassVar[str]

    def __init__(self, name: str, description: str) -> None:
        super().__init__(description)
        self.name = name
        self.description = description


class UserNotFound(NotFound):
    """The model knows no such user."""

    resource_type = "user"

    def __init__(self, user_id: str) -> None:
        super().__init__(user_id, f"the model knows no user {shown(user_id)}")


class ItemNotFound(NotFound):
    """The model knows no such item."""

    resource_type = "item"

    def __init__(self, item_id: str) -> None:
        super().__init__(item_id, f"the model knows no item {shown(item_id)}")


class ClusterNotFound(NotFound):
    """The model has no such cluster, or the user or item belongs to none."""

    resource_type = "cluster"


class ModelNotFound(NotFound):
    """The server has no such version or label."""

    resource_type = "model"


class NoModelReady(QueryError):
    """No version is loaded yet."""

    def __init__(self) -> None:
        super().__init__("no model is ready yet")


class QueueFull(QueryError):
    """Too many requests are waiting."""

    def __init__(self) -> None:
        super().__init__("too many requests are waiting")


class DeadlinePassed(QueryError):
    """The caller's deadline passed before the search began."""

    def __init__(self) -> None:
        super().__init__("the deadline passed before the search began")


class BadModel(Exception):
    """A model folder that must not be served; the text names the file and what is wrong with it."""
