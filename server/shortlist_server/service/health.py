"""gRPC's health service, kept from waiting for itself."""

import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

from grpc_health.v1 import health, health_pb2

from shortlist_server.errors import ServiceNotFound

_LAST_WORD_SECONDS = 1.0


class HealthService(health.HealthServicer):  # type: ignore[misc]  # it has no types
    """As the library's, but for two ways of waiting for ever.

    Telling a watcher of a new status takes a lock and waits until gRPC has sent the last one. The thread of gRPC that
    would say so waits for the same lock when another watcher goes away. And a watcher that takes nothing would keep a
    server from stopping.
    """

    def __init__(self) -> None:
        super().__init__()
        self._leaving = futures.ThreadPoolExecutor(1, "health")

    def answer(self, requests: Sequence[Any], _arrived: Sequence[float]) -> list[bytes | Exception]:
        """As ``Check``, for a lane."""
        with self._lock:
            states = [self._server_status.get(request.service) for request in requests]
        return [
            ServiceNotFound(request.service)
            if state is None
            else health_pb2.HealthCheckResponse(status=state).SerializeToString()
            for request, state in zip(requests, states, strict=True)
        ]

    def _on_close_callback(self, *arguments: Any) -> Callable[[], Any]:
        forget = super()._on_close_callback(*arguments)
        return lambda: self._leaving.submit(forget)

    def enter_graceful_shutdown(self) -> None:
        """Turns every status to NOT_SERVING, and waits a moment for watchers to be told."""
        telling = threading.Thread(target=super().enter_graceful_shutdown, name="health-stops", daemon=True)
        telling.start()
        telling.join(_LAST_WORD_SECONDS)
