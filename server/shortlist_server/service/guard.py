"""What happens around every call: errors become statuses, callers are charged, and calls under way are counted."""

import functools
import logging
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from shortlist.v1 import recommender_pb2
from shortlist_server.access.gate import Gate
from shortlist_server.errors import QueryError
from shortlist_server.service.requests import MAX_BATCH
from shortlist_server.service.status import internal_error, status_of, to_grpc

log = logging.getLogger(__name__)

REQUEST_ID_HEADER = "x-request-id"
_MAX_REQUEST_ID = 128

Method = Callable[[Any, grpc.ServicerContext], Any]


class CallsUnderWay:
    """Counts calls, so that shutting down can wait for them."""

    def __init__(self) -> None:
        self._count = 0
        self._changed = threading.Condition()

    def follow(self, context: grpc.ServicerContext) -> None:
        """Counts a call until gRPC has sent its answer, which is later than its method returns."""
        self.begin()
        if not context.add_callback(self.end):
            self.end()  # it has ended already

    def begin(self) -> None:
        """Counts a call."""
        with self._changed:
            self._count += 1

    def end(self) -> None:
        """Counts a call no more: its answer is sent."""
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    def wait_for_none(self, timeout_seconds: float) -> bool:
        """Waits until no call is under way; says whether that came within the time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._count == 0, timeout_seconds)


def guard(servicer: Any, service: ServiceDescriptor, under_way: CallsUnderWay, gate: Gate) -> None:
    """Wraps every method of a servicer, before it is added to a server.

    An interceptor could do the same, but would wrap anew at every call.
    """
    for method in service.methods:
        guarded = _guarded_stream if method.server_streaming else _guarded
        setattr(servicer, method.name, guarded(getattr(servicer, method.name), under_way, gate))


def _guarded(method: Method, under_way: CallsUnderWay, gate: Gate) -> Method:
    @functools.wraps(method)
    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        under_way.follow(context)
        try:
            gate.charge(context, _requests_in(request))
            return method(request, context)
        except Exception as error:  # noqa: BLE001 # whatever it was, the caller gets a status and the log the rest
            context.abort_with_status(to_grpc(failure(error, method.__name__, context.invocation_metadata())))

    return answer


def _guarded_stream(method: Method, under_way: CallsUnderWay, gate: Gate) -> Method:
    @functools.wraps(method)
    def answer(requests: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        under_way.follow(context)
        try:
            gate.charge(context)  # for opening it; the method charges for its messages
            yield from method(requests, context)
        except Exception as error:  # noqa: BLE001 # whatever it was, the caller gets a status and the log the rest
            context.abort_with_status(to_grpc(failure(error, method.__name__, context.invocation_metadata())))

    return answer


def _requests_in(message: Any) -> int:
    """As how many requests a message counts; one that holds too many is refused later, and counts as the most."""
    if isinstance(message, recommender_pb2.BatchRecommendRequest):
        return min(max(len(message.requests), 1), MAX_BATCH)
    return 1


def failure(error: Exception, what: str, metadata: Iterable[tuple[str, str | bytes]] = ()) -> Any:
    """The google.rpc.Status of a request that failed; what nobody foresaw is logged.

    Args:
        error: why.
        what: the method's name.
        metadata: the request's, which may bear the caller's own id of it.
    """
    if isinstance(error, QueryError):
        return status_of(error)
    request_id = _request_id(metadata)
    log.error("%s failed, request id %s", what, request_id, exc_info=error)
    return internal_error(request_id)


def _request_id(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The caller's own id where it is fit to be logged, or a new one."""
    given = dict(metadata).get(REQUEST_ID_HEADER)
    if isinstance(given, str) and 0 < len(given) <= _MAX_REQUEST_ID and given.isprintable():
        return given
    return uuid.uuid4().hex
