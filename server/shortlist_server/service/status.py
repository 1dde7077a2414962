"""The one table from what went wrong to what the caller is told: status code and google.rpc details.

The google.rpc messages come without types, hence ``Any`` for them.
"""

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from shortlist_server.errors import (
    DeadlinePassed,
    InvalidField,
    MalformedRequest,
    NoModelReady,
    NotFound,
    NotSupported,
    QueryError,
    QueueFull,
)

RETRY_WHEN_LOADED_SECONDS = 2
RETRY_WHEN_FULL_MILLIS = 50


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
    return error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=RETRY_WHEN_LOADED_SECONDS))


def _retry_when_full(_: QueryError) -> Any:
    return error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(nanos=RETRY_WHEN_FULL_MILLIS * 1_000_000))


TABLE: dict[type[QueryError], tuple[grpc.StatusCode, Callable[[QueryError], Any] | None]] = {
    MalformedRequest: (grpc.StatusCode.INVALID_ARGUMENT, None),
    InvalidField: (grpc.StatusCode.INVALID_ARGUMENT, _bad_request),
    NotFound: (grpc.StatusCode.NOT_FOUND, _resource),
    NotSupported: (grpc.StatusCode.UNIMPLEMENTED, None),
    NoModelReady: (grpc.StatusCode.UNAVAILABLE, _retry_when_loaded),
    QueueFull: (grpc.StatusCode.RESOURCE_EXHAUSTED, _retry_when_full),
    DeadlinePassed: (grpc.StatusCode.DEADLINE_EXCEEDED, None),
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


def to_grpc(status: Any) -> grpc.Status:
    """The status as gRPC sends it, its details in the trailing metadata."""
    return rpc_status.to_status(status)


def _packed(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
