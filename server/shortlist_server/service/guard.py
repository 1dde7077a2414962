"""What happens around every call: errors become statuses, calls under way are counted, and telemetry is told."""

import functools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from shortlist_server.errors import QueryError
from shortlist_server.service.status import CODE_NAMES, internal_error, status_of, to_grpc
from shortlist_server.telemetry.logs import request_id_of
from shortlist_server.telemetry.observer import Call, Observer

Method = Callable[[Any, grpc.ServicerContext], Any]


class CallsUnderWay:
    """Counts calls, so that shutting down can wait for them."""

    def __init__(self) -> None:
        self._count = 0
        self._changed = threading.Condition()

    @property
    def count(self) -> int:
        """How many are under way."""
        return self._count

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


def guard(servicer: Any, service: ServiceDescriptor, under_way: CallsUnderWay, observer: Observer) -> None:
    """Wraps every method of a servicer, before it is added to a server.

    An interceptor could do the same, but would wrap anew at every call.
    """
    for method in service.methods:
        guarded = _guarded_stream if method.server_streaming else _guarded
        setattr(servicer, method.name, guarded(getattr(servicer, method.name), under_way, observer))


class _PlainCall:
    """A call of an ordinary servicer, as telemetry sees it."""

    def __init__(self, context: grpc.ServicerContext) -> None:
        self.arrived = time.perf_counter()
        self._context = context

    @property
    def metadata(self) -> Any:
        """The caller's: copied only where somebody asks."""
        return self._context.invocation_metadata()


def _guarded(method: Method, under_way: CallsUnderWay, observer: Observer) -> Method:
    @functools.wraps(method)
    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        under_way.follow(context)
        call = _PlainCall(context)
        try:
            response = method(request, context)
        except Exception as error:  # noqa: BLE001 # whatever it was, the caller gets a status and the log the rest
            context.abort_with_status(refusal(error, method.__name__, call, observer))
        observer.calls_answered(method.__name__, [call])
        return response

    return answer


def _guarded_stream(method: Method, under_way: CallsUnderWay, observer: Observer) -> Method:
    @functools.wraps(method)
    def answer(requests: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        under_way.follow(context)
        call = _PlainCall(context)
        try:
            yield from method(requests, context)
        except Exception as error:  # noqa: BLE001 # whatever it was, the caller gets a status and the log the rest
            context.abort_with_status(refusal(error, method.__name__, call, observer))
        observer.stream_answered(method.__name__)

    return answer


def refusal(error: Exception, method: str, call: Call, observer: Observer) -> grpc.Status:
    """How a call that failed is ended; telemetry is told."""
    request_id = request_id_of(call.metadata)
    status = failure(error, request_id)
    observer.call_failed(method, call, CODE_NAMES[status.code], request_id, error)
    return to_grpc(status, request_id)


def failure(error: Exception, request_id: str) -> Any:
    """The google.rpc.Status of a request that failed."""
    return status_of(error) if isinstance(error, QueryError) else internal_error(request_id)
