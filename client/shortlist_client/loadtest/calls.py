"""How a generator makes unary calls: by gRPC's core where this grpcio lets it, which takes two thirds of the time.

What one core made against a bare C++ echo, 64 calls in flight, in calls/s: threads that block 4,400; ``future`` 5,700,
and 7,100 from the callback of the call before; grpc.aio 7,900; the core 10,700 to 12,800
(docs/decisions/0020-load-by-grpc-core.md).

The core is ``grpc._cython.cygrpc``, which is not a public interface: ``connect`` tries it with a call and otherwise
takes ``future``; both call back on a thread of the channel's own.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # compiled, and without types

from shortlist_client.loadtest.connection import Target, open_channel

Done = Callable[[str, bytes, str], None]
"""Called once with a call's status, its answer (empty unless the status is "OK") and the error in words."""

_STATUSES = {code.value[0]: code.name for code in grpc.StatusCode}
_NO_FLAGS = 0
_CONNECT_SECONDS = 2.0
_REASON_SECONDS = 1.0
_logger = logging.getLogger(__name__)
_METHOD_OF_TRIAL = "/grpc.health.v1.Health/Check"  # any answer will do, also that there is no such method


class NotConnected(Exception):
    """No server could be reached; says where and why."""


class Calls(Protocol):
    """Unary calls over one connection."""

    name: str

    def start(self, path: str, message: bytes, done: Done) -> None:
        """Sends a call and returns at once; ``done`` is called on another thread and must be quick."""

    def close(self) -> None:
        """Closes the connection."""


def connect(target: Target, timeout_seconds: float, paths: Sequence[str]) -> Calls:
    """Connects and chooses the quickest way that works.

    Args:
        target: the server.
        timeout_seconds: the deadline of every call, and of connecting, which has 2 s at least.
        paths: "/package.Service/Method" of every method that will be called.

    Raises:
        NotConnected: the server could not be reached in time.
    """
    channel = open_channel(target)
    try:
        grpc.channel_ready_future(channel).result(timeout=max(timeout_seconds, _CONNECT_SECONDS))
    except grpc.FutureTimeoutError:
        why = _why_not_connected(channel)
        channel.close()
        raise NotConnected(f"{target.address} does not answer: {why}") from None
    try:
        calls = CoreCalls(channel, target, timeout_seconds, [*paths, _METHOD_OF_TRIAL])
        answered = threading.Event()
        calls.start(_METHOD_OF_TRIAL, b"", lambda *_: answered.set())
        if answered.wait(timeout_seconds + 1.0):
            return calls
    except (AttributeError, TypeError):
        pass
    return PlainCalls(channel, target, timeout_seconds, paths)


def _why_not_connected(channel: grpc.Channel) -> str:
    """What a call says at once that finds no connection: nobody listens, or TLS failed."""
    ask: Any = channel.unary_unary(_METHOD_OF_TRIAL)
    try:
        ask(b"", timeout=_REASON_SECONDS)
    except grpc.RpcError as failed:
        call: grpc.Call = failed  # type: ignore[assignment]  # every error a call raises is a call
        return call.details() or call.code().name
    return "it was too slow to connect to"


def tell(done: Done, status: str, message: bytes, details: str) -> None:
    """Calls back; what that raises is logged, so that whoever reads answers goes on to the next.

    Args:
        done: what is called.
        status: as Done says, and so the rest.
        message: the answer.
        details: the error in words.
    """
    try:
        done(status, message, details)
    except Exception:  # whatever it is: nobody else reads the answers that come after this one
        _logger.exception("an answer could not be counted")


class PlainCalls:
    """Calls by grpcio's public interface."""

    name = "grpc.Channel"

    def __init__(self, channel: grpc.Channel, target: Target, timeout_seconds: float, paths: Sequence[str]) -> None:
        self._channel, self._metadata, self._timeout_seconds = channel, target.metadata or None, timeout_seconds
        self._methods: dict[str, Any] = {path: channel.unary_unary(path) for path in paths}

    def start(self, path: str, message: bytes, done: Done) -> None:
        """See Calls."""

        def finished(call: Any) -> None:
            code = call.code()
            tell(done, code.name, call.result() if code is grpc.StatusCode.OK else b"", call.details() or "")

        future = self._methods[path].future(message, timeout=self._timeout_seconds, metadata=self._metadata)
        future.add_done_callback(finished)

    def close(self) -> None:
        """See Calls."""
        self._channel.close()


class CoreCalls:
    """Calls by gRPC's core: one batch of operations and one event each.

    Raises:
        AttributeError, TypeError: this grpcio is not as expected.
    """

    name = "gRPC core"

    def __init__(self, channel: grpc.Channel, target: Target, timeout_seconds: float, paths: Sequence[str]) -> None:
        self._channel, self._metadata, self._timeout_seconds = channel, target.metadata or None, timeout_seconds
        self._core = channel._channel  # type: ignore[attr-defined]  # gRPC core's own, which is not public
        self._handles = {path: (path.encode(), self._core.get_registered_call_handle(path.encode())) for path in paths}
        self._close = cygrpc.SendCloseFromClientOperation(_NO_FLAGS)
        # An entry for each event to wait for: the core's queue cannot be asked to wait for a while only.
        self._expected: queue.SimpleQueue[bool] = queue.SimpleQueue()
        threading.Thread(target=self._spin, name="answers", daemon=True).start()

    def start(self, path: str, message: bytes, done: Done) -> None:
        """See Calls."""

        def finished(event: Any) -> None:
            *_, received, status = event.batch_operations
            code = status.code()
            tell(
                done,
                _STATUSES.get(code, "UNKNOWN"),
                (received.message() or b"") if code == 0 else b"",
                "" if code == 0 else _text(status.details()),
            )

        operations = (
            cygrpc.SendInitialMetadataOperation(self._metadata, _NO_FLAGS),
            cygrpc.SendMessageOperation(message, _NO_FLAGS),
            self._close,
            cygrpc.ReceiveInitialMetadataOperation(_NO_FLAGS),
            cygrpc.ReceiveMessageOperation(_NO_FLAGS),
            cygrpc.ReceiveStatusOnClientOperation(_NO_FLAGS),
        )
        method, handle = self._handles[path]
        deadline = time.time() + self._timeout_seconds
        self._core.integrated_call(
            _NO_FLAGS, method, None, deadline, None, None, ((operations, finished),), None, handle
        )
        self._expected.put(True)

    def close(self) -> None:
        """See Calls."""
        self._expected.put(False)
        self._channel.close()

    def _spin(self) -> None:
        while self._expected.get():
            event = self._core.next_call_event()
            while event.completion_type == cygrpc.CompletionType.queue_timeout:
                event = self._core.next_call_event()
            event.tag(event)


def _text(details: Any) -> str:
    return details.decode(errors="replace") if isinstance(details, bytes) else details or ""
