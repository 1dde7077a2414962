"""The standard gRPC health check, https://github.com/grpc/grpc/blob/master/doc/health-checking.md."""

from collections.abc import Sequence
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import Int32Value

_STATES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
SERVING = "SERVING"


def check(channel: Any, timeout_seconds: float, metadata: Sequence[tuple[str, str]] = ()) -> str:
    """The health of a server as a whole.

    Its messages are written as these two are: a request without a field, and an answer with a number as field 1. So
    that the client needs no package for them.

    Args:
        channel: a blocking one.
        timeout_seconds: for the answer.
        metadata: to send along.

    Returns:
        "SERVING", or another name of the ServingStatus.

    Raises:
        grpc.RpcError: no answer came.
    """
    ask = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=Empty.SerializeToString,
        response_deserializer=Int32Value.FromString,
    )
    status = ask(Empty(), timeout=timeout_seconds, metadata=metadata).value
    return _STATES[status] if 0 <= status < len(_STATES) else str(status)
