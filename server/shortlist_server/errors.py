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
│   ├── ModelNotFound
│   └── ServiceNotFound
├── FailedPrecondition      what an operator asks for and the models folder does not allow
│   ├── ModelRefused
│   ├── VersionInUse
│   ├── StoreNotWritable
│   └── ChoicesUnusable
├── NoModelReady
│   └── LoadingStopped      a version that was being read when the server was told to stop
├── QueueFull
├── DeadlinePassed
├── Unauthenticated         a call without a token that is known
├── PermissionDenied        a call that the token does not allow
│   └── AdminOff            a method that the operator has not turned on
└── RateLimited             a caller who asks too often
BadModel                    a model folder that must not be served
└── UnreadableModel         one that could not be read, for a reason that may pass
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


class ServiceNotFound(NotFound):
    """Health is asked of a service that is none of this server's."""

    resource_type = "service"

    def __init__(self, name: str) -> None:
        super().__init__(name, f"the server has no service {shown(name)}")


class FailedPrecondition(QueryError):
    """Something an operator asks for that the models folder does not allow as it is."""


class ModelRefused(FailedPrecondition):
    """A version that cannot be loaded."""

    def __init__(self, version: int, reason: str) -> None:
        super().__init__(f"version {version} cannot be loaded: {reason}")


class VersionInUse(FailedPrecondition):
    """A version that cannot be unloaded."""

    def __init__(self, version: int, reason: str) -> None:
        super().__init__(f"version {version} cannot be unloaded: it {reason}")


class StoreNotWritable(FailedPrecondition):
    """A models folder that this server can only read."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the models folder cannot be written by this server: {reason}")


class ChoicesUnusable(FailedPrecondition):
    """What operators chose before cannot be read or added to, so that nothing more is chosen; the text says why."""


class NoModelReady(QueryError):
    """No version is loaded yet."""

    def __init__(self) -> None:
        super().__init__("no model is ready yet")


class LoadingStopped(NoModelReady):
    """A version that was being read when the server was told to stop."""

    def __init__(self) -> None:
        QueryError.__init__(self, "the server is stopping")


class QueueFull(QueryError):
    """Too many requests are waiting.

    Attributes:
        retry_seconds: after so long there may be room.
    """

    def __init__(self, retry_seconds: float) -> None:
        super().__init__("too many requests are waiting")
        self.retry_seconds = retry_seconds


class DeadlinePassed(QueryError):
    """The caller's deadline passed before the search began."""

    def __init__(self) -> None:
        super().__init__("the deadline passed before the search began")


class Unauthenticated(QueryError):
    """The caller bears no token that is known."""

    def __init__(self) -> None:
        super().__init__("a token that this server knows is needed, as the metadata 'authorization: Bearer TOKEN'")


class PermissionDenied(QueryError):
    """The caller is known and may not do this."""


class AdminOff(PermissionDenied):
    """A method that steers the server, where the operator has not turned these on."""

    def __init__(self) -> None:
        super().__init__("the operator has not turned on what steers the server: `shortlist serve --admin` does")


class RateLimited(QueryError):
    """The caller has asked too often.

    Attributes:
        retry_seconds: after which it may ask again.
    """

    def __init__(self, retry_seconds: float, why: str) -> None:
        shown_seconds = f"{max(retry_seconds, 0.01):.2g}" if retry_seconds < 10 else f"{retry_seconds:,.0f}"
        super().__init__(f"{why}; try again in {shown_seconds} s")
        self.retry_seconds = retry_seconds


class BadModel(Exception):
    """A model folder that must not be served; the text names the file and what is wrong with it."""


class UnreadableModel(BadModel):
    """A model folder that could not be read, for a reason that may pass: too many open files, a disk, no memory."""


def unreadable(name: str, error: Exception) -> BadModel:
    """What to raise for a file that could not be read; the text names neither folders nor what libraries say.

    Args:
        name: the file's.
        error: why it could not.
    """
    if isinstance(error, FileNotFoundError):
        return BadModel(f"{name} is missing")
    if isinstance(error, OSError) and error.strerror:
        return UnreadableModel(f"{name} cannot be read: {error.strerror}")
    if isinstance(error, MemoryError):
        return UnreadableModel(f"{name} cannot be read: out of memory")
    return BadModel(f"{name} cannot be read")
