"""gRPC's health service (grpc.health.v1), in which a watcher that takes nothing holds nobody up.

The one of grpcio-health-checking waits, with the lock that probes take, until a watcher has taken what it is told.
"""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent import futures
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shortlist_server.access.gate import address_of
from shortlist_server.errors import InvalidField, QueryError, QueueFull, ServiceNotFound
from shortlist_server.service.pool import SteadyPool
from shortlist_server.service.silence import SILENT_PROBE_SECONDS, Silence
from shortlist_server.service.status import status_of, to_grpc
from shortlist_server.service.wire import serialized

_LAST_WORD_SECONDS = 1.0

_WATCHERS = 1_024
_WATCHERS_OF_ADDRESS = 64
"""Anybody may watch, for as long as they like: each takes some 20 KB."""

_TELLERS = 4
"""Threads that tell watchers: one that takes nothing holds up one of them, until it is hung up on."""

_RETRY_SECONDS = 5.0

_MAX_NAME = 256
"""Characters of a service's name, which is kept for as long as somebody watches it."""


@dataclass(eq=False, slots=True)
class _Watcher:
    service: str
    address: str
    context: grpc.ServicerContext
    send: Callable[[Any], None]
    told: int | None = None
    being_told: "futures.Future[None] | None" = None


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it has no types
    """How far each service is, for who asks and for a bounded number of those who watch.

    Args:
        silence: hangs up on watchers that do not take what they are told.
    """

    def __init__(self, silence: Silence) -> None:
        self._silence = silence
        self._lock = threading.Lock()
        self._statuses: dict[str, int] = {}
        self._watchers: dict[_Watcher, None] = {}
        self._of_address: Counter[str] = Counter()
        self._telling = SteadyPool(_TELLERS, "health-tell")
        self._final = False

    def answer(self, requests: Sequence[Any], _arrived: Sequence[float]) -> list[bytes | Exception]:
        """As ``Check``, for a lane."""
        answers = [_checked(request, self._statuses.get(request.service)) for request in requests]
        return [answer if isinstance(answer, QueryError) else serialized(answer) for answer in answers]

    def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The status of a service; NOT_FOUND for one there is not, INVALID_ARGUMENT for a name that is too long."""
        answer = _checked(request, self._statuses.get(request.service))
        if isinstance(answer, QueryError):
            context.abort_with_status(to_grpc(status_of(answer)))
        return answer

    def Watch(self, request: Any, context: Any, send: Callable[[Any], None]) -> None:  # noqa: N802
        """The status of a service, and each that it turns to, SERVICE_UNKNOWN where there is none.

        RESOURCE_EXHAUSTED for one too many, INVALID_ARGUMENT for a name that is too long.
        """
        if error := _too_long(request):
            context.abort_with_status(to_grpc(status_of(error)))
        watcher = _Watcher(request.service, address_of(context.peer()), context, send)
        with self._lock:
            room = len(self._watchers) < _WATCHERS and self._of_address[watcher.address] < _WATCHERS_OF_ADDRESS
            if room:
                self._watchers[watcher] = None
                self._of_address[watcher.address] += 1
        if not room:
            context.abort_with_status(to_grpc(status_of(QueueFull(_RETRY_SECONDS))))
        if not context.add_callback(lambda: self._left(watcher)):
            self._left(watcher)  # it has ended already
        with self._lock:
            self._tell(watcher)

    # So that a watcher takes no thread: gRPC hands over what sends a message, which waits until it is sent.
    Watch.experimental_non_blocking = True  # type: ignore[attr-defined]

    def set(self, service: str, status: int) -> None:
        """Tells whoever asks, and soon those who watch, how far a service is; nothing any more at the end."""
        with self._lock:
            if not self._final:
                self._statuses[service] = status
                for watcher in self._watchers:
                    self._tell(watcher)

    def enter_graceful_shutdown(self) -> None:
        """Turns every status to NOT_SERVING for good, and waits a moment for watchers to be told."""
        with self._lock:
            self._final = True
            self._statuses = dict.fromkeys(self._statuses, health_pb2.HealthCheckResponse.NOT_SERVING)
            for watcher in self._watchers:
                self._tell(watcher)
            being_told = [watcher.being_told for watcher in self._watchers if watcher.being_told is not None]
        futures.wait(being_told, _LAST_WORD_SECONDS)

    def close(self) -> None:
        """Ends the threads that tell watchers, once there are none."""
        self._telling.shutdown(wait=False, cancel_futures=True)

    def _status(self, watcher: _Watcher) -> int:
        unknown: int = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        return self._statuses.get(watcher.service, unknown)

    def _tell(self, watcher: _Watcher) -> None:
        """Has a watcher told what it does not know yet; to be called with the lock."""
        if watcher in self._watchers and watcher.being_told is None and watcher.told != self._status(watcher):
            watcher.being_told = self._telling.submit(self._tell_on, watcher)

    def _tell_on(self, watcher: _Watcher) -> None:
        """Tells a watcher until it knows: never two things at once, and never with the lock."""
        while True:
            with self._lock:
                status = self._status(watcher)
                if watcher.told == status or watcher not in self._watchers:
                    watcher.being_told = None
                    return
                watcher.told = status
            with self._silence.bounded(watcher.context, SILENT_PROBE_SECONDS):
                watcher.send(health_pb2.HealthCheckResponse(status=status))

    def _left(self, watcher: _Watcher) -> None:
        with self._lock:
            if self._watchers.pop(watcher, watcher) is None:
                self._of_address[watcher.address] -= 1
                self._of_address += Counter()  # keeps those that have some


def _checked(request: Any, status: int | None) -> Any:
    if error := _too_long(request):
        return error
    return ServiceNotFound(request.service) if status is None else health_pb2.HealthCheckResponse(status=status)


def _too_long(request: Any) -> InvalidField | None:
    """Why a service of this name is not looked for, if that is so."""
    if len(request.service) <= _MAX_NAME:
        return None
    return InvalidField("service", f"must have at most {_MAX_NAME} characters")
