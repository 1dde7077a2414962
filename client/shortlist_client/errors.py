"""What a call can fail with, and the one table from gRPC statuses to it.

ShortlistError
├── InvalidArgument      a field outside its limits
├── NotFound
│   ├── UserNotFound
│   ├── ItemNotFound
│   ├── ClusterNotFound
│   └── ModelNotFound
├── Unavailable          no server, or no model ready yet
├── ResourceExhausted    too many requests are waiting, or come from this caller
├── FailedPrecondition   what an operator asked for and the server's models folder does not allow
├── DeadlineExceeded     no answer within the client's timeout
├── Unauthenticated      no token that the server knows
├── PermissionDenied     the token does not allow it, or the operator has turned it off
├── Unimplemented        the server, or its model, cannot do what was asked
├── InternalError        anything unforeseen in the server
└── UnexpectedStatus     a status that Shortlist does not send
"""

from collections.abc import Mapping
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

M = TypeVar("M", bound=Message)


class ShortlistError(Exception):
    """A call that failed; the text is the server's.

    Attributes:
        code: the gRPC status code.
    """

    def __init__(self, message: str, code: grpc.StatusCode, status: status_pb2.Status) -> None:
        super().__init__(message)
        self.code = code
        self._read(status)

    def _read(self, status: status_pb2.Status) -> None:
        """Takes what the error's details say."""


class InvalidArgument(ShortlistError):
    """A field outside its limits.

    Attributes:
        violations: field path to what is wrong with it.
    """

    violations: Mapping[str, str]

    def _read(self, status: status_pb2.Status) -> None:
        details = _detail(status, error_details_pb2.BadRequest())
        self.violations = {one.field: one.description for one in details.field_violations}


class NotFound(ShortlistError):
    """A named thing that does not exist.

    Attributes:
        resource_type: "user", "item", "model" or "cluster".
        resource_name: what the call named it.
    """

    resource_type: str
    resource_name: str

    def _read(self, status: status_pb2.Status) -> None:
        details = _detail(status, error_details_pb2.ResourceInfo())
        self.resource_type, self.resource_name = details.resource_type, details.resource_name


class UserNotFound(NotFound):
    """The model knows no such user."""


class ItemNotFound(NotFound):
    """The model knows no such item."""


class ClusterNotFound(NotFound):
    """The model has no such cluster, or the user or item belongs to none."""


class ModelNotFound(NotFound):
    """The server has no such version or label."""


class _Retriable(ShortlistError):
    """A call that may succeed later.

    Attributes:
        retry_after_seconds: how long the server asks to wait; None when it does not say.
    """

    retry_after_seconds: float | None

    def _read(self, status: status_pb2.Status) -> None:
        details = _detail(status, error_details_pb2.RetryInfo())
        delay = details.retry_delay
        self.retry_after_seconds = delay.seconds + delay.nanos / 1e9 if details.HasField("retry_delay") else None


class Unavailable(_Retriable):
    """There is no server, or it has no model ready yet."""


class ResourceExhausted(_Retriable):
    """Too many requests are waiting or come from this caller, or a message is too large."""


class FailedPrecondition(ShortlistError):
    """What an operator asked for does not go with the server's models folder as it is."""


class DeadlineExceeded(ShortlistError):
    """No answer came within the client's timeout."""


class Unauthenticated(ShortlistError):
    """The call bears no token that the server knows."""


class PermissionDenied(ShortlistError):
    """The caller's token does not allow this, or the operator has not turned it on."""


class Unimplemented(ShortlistError):
    """The server, or its model, cannot do what was asked."""


class InternalError(ShortlistError):
    """Anything unforeseen in the server.

    Attributes:
        request_id: by which the server's log tells more; empty when it gave none.
    """

    request_id: str

    def _read(self, status: status_pb2.Status) -> None:
        self.request_id = _detail(status, error_details_pb2.RequestInfo()).request_id


class UnexpectedStatus(ShortlistError):
    """A status that Shortlist itself does not send."""


TABLE: Mapping[grpc.StatusCode, type[ShortlistError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.INTERNAL: InternalError,
}

_NOT_FOUND: Mapping[str, type[NotFound]] = {
    "user": UserNotFound,
    "item": ItemNotFound,
    "cluster": ClusterNotFound,
    "model": ModelNotFound,
}


_CODES = {code.value[0]: code for code in grpc.StatusCode}


def error_of(failed: grpc.RpcError) -> ShortlistError:
    """The typed error of a failed call, blocking or asyncio."""
    call: grpc.Call = failed  # type: ignore[assignment]  # every error a call raises is a call, which stubs do not say
    try:
        status = rpc_status.from_call(call) or status_pb2.Status()
    except (ValueError, DecodeError):  # details that do not belong to the status, as a proxy may leave them
        status = status_pb2.Status()
    return _typed(call.code(), call.details() or "", status)


def error_of_status(status: status_pb2.Status) -> ShortlistError:
    """The typed error of a status that came in an answer, such as a batch's."""
    return _typed(_CODES.get(status.code, grpc.StatusCode.UNKNOWN), status.message, status)


def _typed(code: grpc.StatusCode, message: str, status: status_pb2.Status) -> ShortlistError:
    kind = TABLE.get(code, UnexpectedStatus)
    if kind is NotFound:
        kind = _NOT_FOUND.get(_detail(status, error_details_pb2.ResourceInfo()).resource_type, NotFound)
    return kind(message, code, status)


def _detail(status: status_pb2.Status, message: M) -> M:
    """The detail of the message's type, or the empty message where there is none."""
    for packed in status.details:
        try:
            if packed.Unpack(message):
                break
        except DecodeError:
            message.Clear()
    return message
