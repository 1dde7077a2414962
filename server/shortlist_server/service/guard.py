"""What happens around every call: errors become statuses, callers are charged, calls are counted, telemetry is told."""

import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from shortlist.v1 import recommender_pb2
from shortlist_server.access.gate import Gate
from shortlist_server.errors import MalformedRequest, QueryError
from shortlist_server.service.requests import MAX_BATCH
from shortlist_server.service.status import CODE_NAMES, ending_of, internal_error, status_of
from shortlist_server.telemetry.logs import request_id_of
from shortlist_server.telemetry.observer import Call, Observer

log = logging.getLogger(__name__)

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


@dataclass(frozen=True)
class Guard:
    """What both lanes do around their calls.

    Attributes:
        gate: says who may call and how often.
        observer: is told of every call.
        under_way: counts the calls.
    """

    gate: Gate
    observer: Observer = field(default_factory=Observer)
    under_way: CallsUnderWay = field(default_factory=CallsUnderWay)

    def around(self, servicer: Any, service: ServiceDescriptor) -> None:
        """Wraps every method of a servicer, before it is added to a server.

        An interceptor could do the same, but would wrap anew at every call.
        """
        for method in service.methods:
            wrapped = self._stream if method.server_streaming else self._single
            setattr(servicer, method.name, wrapped(getattr(servicer, method.name)))

    def refusal(self, error: Exception, method: str, call: Call) -> grpc.Status:
        """How a call that failed is ended; telemetry is told."""
        request_id = request_id_of(call.metadata)
        ending = ending_of(error, request_id)
        self.observer.call_failed(method, call, ending.code.name, request_id, error)
        return ending

    def caller_left(self, method: str, call: Call) -> None:
        """Tells telemetry of a call that nobody waits for any more."""
        self.observer.call_failed(method, call, grpc.StatusCode.CANCELLED.name, request_id_of(call.metadata), _LEFT)

    def entry_failure(self, error: Exception, method: str, metadata: Callable[[], Any] = tuple) -> Any:
        """The google.rpc.Status of one request of many in a call with this metadata; telemetry is told."""
        request_id = request_id_of(metadata())
        status = status_of(error) if isinstance(error, QueryError) else internal_error(request_id)
        self.observer.entry_failed(method, CODE_NAMES[status.code], request_id, error)
        return status

    def _single(self, method: Method) -> Method:
        @functools.wraps(method)
        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            self.under_way.follow(context)
            call = PlainCall(context)
            try:
                self.gate.charge(context, _requests_in(request))
                if isinstance(request, MalformedRequest):
                    raise request
                response = method(request, context)
            except Exception as error:  # noqa: BLE001 # whatever it was, the caller gets a status and the log the rest
                context.abort_with_status(self.refusal(error, method.__name__, call))
            self.observer.calls_answered(method.__name__, [call])
            return response

        answer.guarded = True  # type: ignore[attr-defined]  # so that what cannot be read comes here as well
        return answer

    def _stream(self, method: Method) -> Method:
        name = method.__name__

        @functools.wraps(method)
        def answer(requests: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            call, told = PlainCall(context), threading.Event()

            def over() -> None:
                if not told.is_set():
                    told.set()
                    if _was_cancelled(context):
                        self.caller_left(name, call)
                    else:
                        self.observer.stream_answered(name, call)
                self.under_way.end()

            self.under_way.begin()
            if not context.add_callback(over):
                return over()  # it has ended already
            try:
                self.gate.charge(context)  # for opening it; the method charges for its messages
                call.messages = 0
                for response in method(requests, context):
                    call.messages += 1
                    yield response
            except Exception as error:  # whatever it was, the caller gets a status and the log the rest
                if told.is_set():  # there is no caller
                    log.debug("a stream whose caller went away failed", exc_info=error)
                    return None
                told.set()
                context.abort_with_status(self.refusal(error, name, call))

        answer.guarded = True  # type: ignore[attr-defined]  # so that what cannot be read comes here as well
        return answer


def _was_cancelled(context: grpc.ServicerContext) -> bool:
    """Whether a call that is over was cancelled, by its caller, its deadline or a server that stops.

    gRPC tells an ordinary servicer only whether a call goes on. If it one day keeps elsewhere how it ended, cancelled
    streams are counted as those that ended well, and a test fails.
    """
    return getattr(getattr(context, "_state", None), "client", None) == "cancelled"


_LEFT = QueryError("the caller went away")


class PlainCall:
    """A call of an ordinary servicer, as telemetry sees it."""

    def __init__(self, context: grpc.ServicerContext) -> None:
        self.arrived = time.perf_counter()
        self.messages: int | None = None
        self._context = context

    @property
    def metadata(self) -> Any:
        """The caller's: copied only where somebody asks."""
        return self._context.invocation_metadata()


def _requests_in(message: Any) -> int:
    """As how many requests a message counts; one that holds too many is refused later, and counts as the most."""
    if isinstance(message, recommender_pb2.BatchRecommendRequest):
        return min(max(len(message.requests), 1), MAX_BATCH)
    return 1
