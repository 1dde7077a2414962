"""Unary calls answered in batches from a completion queue of our own, on the port of an ordinary grpc.server.

``grpc.server`` hands every call from the thread that polls to one of a pool, which costs more than the search for a
small catalogue. Here one thread takes every call that is ready, answers them together, and sends; at idle a call is
answered at once, and under load batches grow by themselves. docs/decisions/0014-two-lanes.md has the measurements.

This leans on ``grpc._cython.cygrpc``, which is not a public interface: ``self_test`` says whether this grpcio still has
it as it was, and nothing else of the server may depend on it.
"""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import BoolValue
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # compiled, and without types

from shortlist_server.admission import Admission
from shortlist_server.errors import DeadlinePassed, MalformedRequest, QueueFull
from shortlist_server.service.answers import Answer, Outcome, answer_each
from shortlist_server.service.guard import CallsUnderWay, failure
from shortlist_server.service.status import to_grpc

log = logging.getLogger(__name__)

_REQUESTED_CALLS = 256
"""Calls that gRPC may hand over before the next look at the queue."""

_BATCH = 64
"""Calls answered together at most: more would wait longer than they save."""

_LONG_SECONDS = 0.02
"""A batch that takes longer than this leaves the queue to the watch, so that calls are refused in time."""

_LOOK_SECONDS = 0.2
"""How often the lane looks whether it is to end."""

_LAST_ANSWER_SECONDS = 5.0

_NO_FLAGS = 0
_NO_METADATA: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Method:
    """A unary method of the lane.

    Attributes:
        request: its message class.
        answer: from requests to outcomes.
    """

    request: Any
    answer: Answer


@dataclass(slots=True, eq=False)
class _Call:
    """A call that came in: the tag of its events.

    Attributes:
        path: "/package.Service/Method".
        core: gRPC's own handle of it.
        deadline: seconds since the epoch; infinite where there is none.
        metadata: the caller's.
        arrived: by ``time.perf_counter``.
        message: what is asked, once it is read.
        has_place: among those that wait and work.
        answered: its answer is on its way, or it needs none.
    """

    path: str
    core: Any
    deadline: float
    metadata: Any
    arrived: float = field(default_factory=time.perf_counter)
    message: Any = None
    has_place: bool = False
    answered: bool = False


class FastLane:
    """Answers some unary methods of a server that has not been started.

    Args:
        server: an ordinary server, which must not have the same methods among its handlers.
        methods: path to method.
        admission: says how many calls may wait, and when a batch may be worked on.
        under_way: counts the calls.

    Raises:
        AttributeError, TypeError: this grpcio is not as expected.
    """

    def __init__(
        self, server: grpc.Server, methods: Mapping[str, Method], admission: Admission, under_way: CallsUnderWay
    ) -> None:
        self._methods = methods
        self._admission = admission
        self._under_way = under_way
        self._core = server._state.server  # type: ignore[attr-defined]  # both lanes share it
        self._queue = cygrpc.CompletionQueue()
        self._core.register_completion_queue(self._queue)
        for path in methods:
            self._core.register_method(path)
        self._waiting: list[_Call] = []
        self._polling = threading.Lock()
        self._busy_since: float | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fast-lane", daemon=True)

    def start(self) -> None:
        """Takes calls; the server must have been started."""
        for path in self._methods:
            for _ in range(_REQUESTED_CALLS):
                self._request_call(path)
        self._thread.start()
        threading.Thread(target=self._watch, name="fast-lane-watch", daemon=True).start()

    def close(self) -> None:
        """Ends the threads, without waiting long for an answer nobody waits for; the server must have been stopped."""
        self._ended.set()
        self._thread.join(_LAST_ANSWER_SECONDS)

    def _request_call(self, path: str) -> None:
        try:
            self._core.request_registered_call(self._queue, self._queue, path, path)
        except ValueError:
            log.debug("the server is shutting down")

    def _run(self) -> None:
        while True:
            with self._polling:
                if self._ended.is_set():
                    # Here and not in close: whoever sends something to a queue that is shut down ends the process.
                    self._queue.shutdown()
                    return
                self._take(time.time() + _LOOK_SECONDS)
                batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
                self._busy_since = time.perf_counter()
            try:
                if batch:
                    with self._admission.work():
                        self._answer(batch)
            except Exception:  # whatever it is, the lane must live on: it is the only one
                log.exception("a batch of calls failed")
            self._busy_since = None

    def _watch(self) -> None:
        """While a batch takes long: refuses what is too much, and tells those whose deadline passes."""
        while not self._ended.wait(_LONG_SECONDS):
            since = self._busy_since
            if since is None or time.perf_counter() - since < _LONG_SECONDS:
                continue
            with self._polling:
                if self._busy_since != since or self._ended.is_set():
                    continue
                self._take(time.time() + _LONG_SECONDS)
                now = time.time()
                late = [call for call in self._waiting if call.deadline <= now]
                self._waiting = [call for call in self._waiting if call.deadline > now]
                for call in late:
                    self._fail(call, DeadlinePassed())

    def _take(self, until: float) -> None:
        """Takes every event that is ready; waits until a time, in seconds since the epoch, for the first."""
        deadline = 0 if self._waiting else until
        while True:
            event = self._queue.poll(deadline)
            if event.completion_type == cygrpc.CompletionType.queue_timeout:
                return
            try:
                self._handle(event)
            except Exception:  # whatever it is, the lane must live on: it is the only one
                log.exception("an event of the fast lane failed")
            # Once something is to be answered, only what is ready already.
            deadline = 0 if self._waiting else until

    def _handle(self, event: Any) -> None:
        tag = event.tag
        if isinstance(tag, str):
            if not event.success:  # the server is shutting down
                return
            self._request_call(tag)
            call = _Call(tag, event.call, event.call_details.deadline, event.invocation_metadata)
            event.call.start_server_batch((cygrpc.ReceiveMessageOperation(_NO_FLAGS),), call)
            self._under_way.begin()
        elif tag.answered:
            # The call is over. That a caller went away is learned here, with the answer: an event of its own would cost
            # every call, and deadlines tell the same.
            self._is_over(tag)
        else:
            self._received(tag, event.batch_operations[0].message())

    def _is_over(self, call: _Call) -> None:
        if call.has_place:
            self._admission.leave()
        self._under_way.end()

    def _received(self, call: _Call, message: bytes | None) -> None:
        if message is None:  # the caller went away, or sent too much
            call.answered = True
            call.core.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),), call)
            return None
        try:
            self._admission.enter()
        except QueueFull as error:
            return self._fail(call, error)
        call.has_place = True
        try:
            call.message = self._methods[call.path].request.FromString(message)
        except Exception:  # noqa: BLE001 # whatever protobuf has against it
            return self._fail(call, MalformedRequest())
        return self._waiting.append(call)

    def _answer(self, batch: Sequence[_Call]) -> None:
        now = time.time()
        by_path: dict[str, list[_Call]] = {}
        for call in batch:
            if call.deadline <= now:
                self._fail(call, DeadlinePassed())
            else:
                by_path.setdefault(call.path, []).append(call)
        for path, calls in by_path.items():
            outcomes = answer_each(
                self._methods[path].answer, [call.message for call in calls], [call.arrived for call in calls]
            )
            for call, outcome in zip(calls, outcomes, strict=True):
                try:
                    self._finish(call, outcome)
                except Exception:  # whatever gRPC has against this call, the others get their answers
                    log.exception("an answer could not be sent")
                    self._is_over(call)

    def _finish(self, call: _Call, outcome: Outcome) -> None:
        if isinstance(outcome, Exception):
            self._fail(call, outcome)
        else:
            self._send(call, outcome, 0, b"")

    def _fail(self, call: _Call, error: Exception) -> None:
        status = to_grpc(failure(error, call.path.rpartition("/")[2], call.metadata))
        code, details = status.code.value[0], status.details.encode()
        self._send(call, None, code, details, status.trailing_metadata or _NO_METADATA)

    def _send(
        self, call: _Call, message: bytes | None, code: int, details: bytes, trailing: tuple[Any, ...] = _NO_METADATA
    ) -> None:
        operations: list[Any] = [cygrpc.SendInitialMetadataOperation(_NO_METADATA, _NO_FLAGS)]
        if message is not None:
            operations.append(cygrpc.SendMessageOperation(message, _NO_FLAGS))
        operations.append(cygrpc.SendStatusFromServerOperation(trailing, code, details, _NO_FLAGS))
        operations.append(cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS))
        call.answered = True
        call.core.start_server_batch(operations, call)


def self_test() -> None:
    """Answers and refuses a call over a lane of its own.

    Raises:
        Exception: of any kind, when this grpcio cannot carry the lane.
    """

    def answer(messages: Sequence[Any], _arrived: Sequence[float]) -> list[Any]:
        return [message.SerializeToString() if message.value else QueueFull() for message in messages]

    server = grpc.server(futures.ThreadPoolExecutor(1))
    path = "/shortlist.SelfTest/Echo"
    lane = FastLane(server, {path: Method(BoolValue, answer)}, Admission(1, 1), CallsUnderWay())
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    lane.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            echo = channel.unary_unary(path, BoolValue.SerializeToString, BoolValue.FromString)
            assert echo(BoolValue(value=True), timeout=2).value
            assert echo.future(BoolValue(value=False), timeout=2).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    finally:
        server.stop(None).wait(_LAST_ANSWER_SECONDS)
        lane.close()
