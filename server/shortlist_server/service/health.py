"""gRPC's health service, kept from waiting for itself."""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

from grpc_health.v1 import health, health_pb2

from shortlist_server.access.gate import address_of
from shortlist_server.errors import InvalidField, QueueFull, ServiceNotFound
from shortlist_server.service.status import status_of, to_grpc

_LAST_WORD_SECONDS = 1.0

_WATCHERS = 1_024
_WATCHERS_OF_ADDRESS = 64
"""Anybody may watch, for as long as they like: each takes some 20 KB."""

_RETRY_SECONDS = 5.0

_MAX_NAME = 256
"""Characters of a service's name, which is kept for as long as somebody watches it."""


class HealthService(health.HealthServicer):  # type: ignore[misc]  # it has no types
    """As the library's, but with a bounded number of watchers, and but for two ways of waiting for ever.

    Telling a watcher of a new status takes a lock and waits until gRPC has sent the last one. The thread of gRPC that
    would say so waits for the same lock when another watcher goes away. And a watcher that takes nothing would keep a
    server from stopping.
    """

    def __init__(self) -> None:
        super().__init__()
        self._watchers: Counter[str] = Counter()
        self._leaving = futures.ThreadPoolExecutor(1, "health")

    def answer(self, requests: Sequence[Any], _arrived: Sequence[float]) -> list[bytes | Exception]:
        """As ``Check``, for a lane."""
        with self._lock:
            states = [self._server_status.get(request.service) for request in requests]
        return [
            _too_long(request) or ServiceNotFound(request.service)
            if state is None
            else health_pb2.HealthCheckResponse(status=state).SerializeToString()
            for request, state in zip(requests, states, strict=True)
        ]

    def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        """As the library's; INVALID_ARGUMENT for a name that is too long."""
        if error := _too_long(request):
            context.abort_with_status(to_grpc(status_of(error)))
        return super().Check(request, context)

    def Watch(self, request: Any, context: Any, send_response_callback: Any = None) -> Any:  # noqa: N802
        """As the library's; RESOURCE_EXHAUSTED for one too many, INVALID_ARGUMENT for a name that is too long."""
        if error := _too_long(request):
            context.abort_with_status(to_grpc(status_of(error)))
        address = address_of(context.peer())
        with self._lock:
            room = self._watchers.total() < _WATCHERS and self._watchers[address] < _WATCHERS_OF_ADDRESS
            if room:
                self._watchers[address] += 1
        if not room:
            context.abort_with_status(to_grpc(status_of(QueueFull(_RETRY_SECONDS))))
        if not context.add_callback(lambda: self._leaving.submit(self._left, address)):
            return self._left(address)  # it has ended already
        return super().Watch(request, context, send_response_callback)

    def _left(self, address: str) -> None:
        with self._lock:
            self._watchers[address] -= 1
            self._watchers += Counter()  # keeps those that have some

    def _on_close_callback(self, send: Any, service: str) -> Callable[[], Any]:
        forget = super()._on_close_callback(send, service)

        def leave() -> None:
            forget()
            with self._lock:  # of names that somebody made up, nothing is kept
                if not self._send_response_callbacks.get(service, True):
                    del self._send_response_callbacks[service]

        return lambda: self._leaving.submit(leave)

    def enter_graceful_shutdown(self) -> None:
        """Turns every status to NOT_SERVING, and waits a moment for watchers to be told."""
        telling = threading.Thread(target=super().enter_graceful_shutdown, name="health-stops", daemon=True)
        telling.start()
        telling.join(_LAST_WORD_SECONDS)


def _too_long(request: Any) -> InvalidField | None:
    """Why a service of this name is not looked for, if that is so."""
    if len(request.service) <= _MAX_NAME:
        return None
    return InvalidField("service", f"must have at most {_MAX_NAME} characters")
