"""The one table from what went wrong to what the caller is told: status code and google.rpc details.

The google.rpc messages come without types, hence ``Any`` for them.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from shortlist_server.errors import (
    DeadlinePassed,
    FailedPrecondition,
    InvalidField,
    MalformedRequest,
    NoModelReady,
    NotFound,
    NotSupported,
    PermissionDenied,
    QueryError,
    QueueFull,
    RateLimited,
    Unauthenticated,
)
from shortlist_server.telemetry.logs import REQUEST_ID_HEADER

RETRY_WHEN_LOADED_SECONDS = 2


def _bad_request(error: QueryError) -> Any:
    assert isinstance(error, InvalidField)
    violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.description)
    return error_details_pb2.BadRequest(field_violations=[violation])


def _resource(error: QueryError) -> Any:
    assert isinstance(error, NotFound)
    return error_details_pb2.ResourceInfo(
        resource_type=error.resource_type, resource_name=error.name, description=error.description
    )


def _retry_when_loaded(_: QueryError) -> Any:
    return _retry_info(RETRY_WHEN_LOADED_SECONDS * 1_000)


def _retry_later(error: QueryError) -> Any:
    assert isinstance(error, QueueFull | RateLimited)
    return _retry_info(_milliseconds(error))


def _milliseconds(error: QueueFull | RateLimited) -> int:
    return math.ceil(error.retry_seconds * 1e3)


def _retry_info(milliseconds: int) -> Any:
    delay = duration_pb2.Duration()
    delay.FromMilliseconds(milliseconds)
    return error_details_pb2.RetryInfo(retry_delay=delay)


TABLE: dict[type[QueryError], tuple[grpc.StatusCode, Callable[[QueryError], Any] | None]] = {
    MalformedRequest: (grpc.StatusCode.INVALID_ARGUMENT, None),
    InvalidField: (grpc.StatusCode.INVALID_ARGUMENT, _bad_request),
    NotFound: (grpc.StatusCode.NOT_FOUND, _resource),
    NotSupported: (grpc.StatusCode.UNIMPLEMENTED, None),
    FailedPrecondition: (grpc.StatusCode.FAILED_PRECONDITION, None),
    NoModelReady: (grpc.StatusCode.UNAVAILABLE, _retry_when_loaded),
    QueueFull: (grpc.StatusCode.RESOURCE_EXHAUSTED, _retry_later),
    DeadlinePassed: (grpc.StatusCode.DEADLINE_EXCEEDED, None),
    Unauthenticated: (grpc.StatusCode.UNAUTHENTICATED, None),
    PermissionDenied: (grpc.StatusCode.PERMISSION_DENIED, None),
    RateLimited: (grpc.StatusCode.RESOURCE_EXHAUSTED, _retry_later),
}
"""Every kind of error; one that is not listed goes by its nearest listed ancestor."""


def status_of(error: QueryError) -> Any:
    """The status of a query that cannot be answered."""
    code, details_of = next(TABLE[kind] for kind in type(error).__mro__ if kind in TABLE)
    details = [] if details_of is None else [_packed(details_of(error))]
    return status_pb2.Status(code=code.value[0], message=str(error), details=details)


def internal_error(request_id: str) -> Any:
    """The status of anything unforeseen. It names the request, so that the log can be searched, and nothing else."""
    return status_pb2.Status(
        code=grpc.StatusCode.INTERNAL.value[0],
        message=f"internal error; the server's log tells more under request id {request_id}",
        details=[_packed(error_details_pb2.RequestInfo(request_id=request_id))],
    )


CODE_NAMES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}
"""Number of a status to its name."""


def to_grpc(status: Any) -> grpc.Status:
    """The status as gRPC sends it, its details in the trailing metadata."""
    sent: grpc.Status = rpc_status.to_status(status)
    return sent


def ending_of(error: Exception, request_id: str) -> grpc.Status:
    """How gRPC ends a call that failed: its status, and the request's id in the trailing metadata."""
    if isinstance(error, QueueFull | RateLimited) and type(error) in TABLE:
        ending = _to_come_again(TABLE[type(error)][0], str(error), _milliseconds(error))
    else:
        ending = to_grpc(status_of(error) if isinstance(error, QueryError) else internal_error(request_id))
    with_id = (*ending.trailing_metadata, (REQUEST_ID_HEADER, request_id))
    made: Any = type(ending)  # a named tuple, which its types do not tell
    answer: grpc.Status = made(ending.code, ending.details, with_id)
    return answer


# The less time there is, the more callers are told so: making this anew took half of the time that it takes to refuse.
@functools.lru_cache(maxsize=1_024)
def _to_come_again(code: grpc.StatusCode, message: str, milliseconds: int) -> grpc.Status:
    details = [_packed(_retry_info(milliseconds))]
    return to_grpc(status_pb2.Status(code=code.value[0], message=message, details=details))


def _packed(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
