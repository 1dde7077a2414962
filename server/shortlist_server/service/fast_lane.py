"""Calls answered in batches from a completion queue of our own, on the port of an ordinary grpc.server.

``grpc.server`` hands every call from the thread that polls to one of a pool, which costs more than the search for a
small catalogue. Here one thread takes every call that is ready, answers them together, and sends; at idle a call is
answered at once, and under load batches grow by themselves. docs/decisions/0014-two-lanes.md has the measurements.

This leans on ``grpc._cython.cygrpc``, which is not a public interface: ``self_test`` says whether this grpcio still has
it as it was, and nothing else of the server may depend on it.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import BoolValue
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # compiled, and without types

from shortlist_server.access.gate import Gate
from shortlist_server.admission import Admission
from shortlist_server.errors import DeadlinePassed, QueryError, QueueFull
from shortlist_server.service.answers import Answer, Outcome, answer_each
from shortlist_server.service.fast_streams import Stream, StreamMethod
from shortlist_server.service.guard import CallsUnderWay, failure
from shortlist_server.service.status import to_grpc

log = logging.getLogger(__name__)

_REQUESTED_CALLS = 256
"""Calls that gRPC may hand over before the next look at the queue."""

_BATCH = 64
"""Requests answered together at most: more would wait longer than they save."""

_EVENTS = 256
"""Events handled before what they brought is looked at."""

_LONG_SECONDS = 0.02
"""A batch that takes longer than this leaves the queue to the watch, so that calls are refused in time."""

_LOOK_SECONDS = 0.2
"""How often the lane looks whether it is to end."""

_LAST_ANSWER_SECONDS = 5.0

_NO_FLAGS = 0
_NO_METADATA: tuple[Any, ...] = ()


def _holds_several(method: "Method | StreamMethod") -> bool:
    return isinstance(method, Method) and method.entries is not _alone


def _alone(message: Any) -> Sequence[Any]:
    return [message]


def _only(outcomes: Sequence[Outcome]) -> Outcome:
    return outcomes[0]


@dataclass(frozen=True)
class Method:
    """A method of the lane that answers each call by one message.

    Attributes:
        request: its message class.
        answer: from requests to outcomes.
        entries: the requests in a message, at least one; may raise QueryError.
        joined: the message's outcome, made of those of its requests.
    """

    request: Any
    answer: Answer
    entries: Callable[[Any], Sequence[Any]] = _alone
    joined: Callable[[Sequence[Outcome]], Outcome] = _only


@dataclass(slots=True, eq=False)
class _Call:
    """A call that came in: the tag of its events.

    Attributes:
        path: "/package.Service/Method".
        method: what stands there.
        core: gRPC's own handle of it.
        deadline: seconds since the epoch; infinite where there is none.
        metadata: the caller's.
        arrived: by ``time.perf_counter``.
        entries: the requests in its message, once it is read.
        outcomes: of the first of them.
        has_place: among those that wait and work.
        answered: its answer is on its way, or it needs none.
    """

    path: str
    method: Any
    core: Any
    deadline: float
    metadata: Any
    arrived: float = field(default_factory=time.perf_counter)
    entries: Sequence[Any] = ()
    outcomes: list[Outcome] = field(default_factory=list)
    has_place: bool = False
    answered: bool = False

    def take(self, at_most: int) -> list[tuple[Any, float]]:
        """Requests to be answered now, and when each came."""
        done = len(self.outcomes)
        return [(entry, self.arrived) for entry in self.entries[done : done + at_most]]

    # As grpc.ServicerContext, for the gate.
    def invocation_metadata(self) -> Any:
        """The caller's."""
        return self.metadata

    def peer(self) -> str:
        """The caller's address."""
        address: bytes = self.core.peer()
        return address.decode()

    def peer_identities(self) -> Sequence[bytes] | None:
        """The names in the caller's certificate."""
        names: Sequence[bytes] | None = cygrpc.peer_identities(self.core)
        return names


_Requests = list[tuple[Any, float]]
"""Requests, and when each came."""


class FastLane:
    """Answers some methods of a server that has not been started.

    Args:
        server: an ordinary server, which must not have the same methods among its handlers.
        methods: path to method.
        admission: says how many calls may wait, and when a batch may be worked on.
        under_way: counts the calls.
        streams: says whether one more stream may be open.
        gate: says which calls are let in; None for all of them.

    Raises:
        AttributeError, TypeError: this grpcio is not as expected.
    """

    def __init__(
        self,
        server: grpc.Server,
        methods: Mapping[str, Method | StreamMethod],
        admission: Admission,
        under_way: CallsUnderWay,
        streams: Admission,
        gate: Gate | None = None,
    ) -> None:
        self._methods = methods
        self._gate = gate
        self._admission = admission
        self._under_way = under_way
        self._streams = streams
        self._core = server._state.server  # type: ignore[attr-defined]  # both lanes share it
        self._queue = cygrpc.CompletionQueue()
        self._core.register_completion_queue(self._queue)
        for path in methods:
            self._core.register_method(path)
        self._waiting: deque[_Call | Stream] = deque()
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
        worked_on: list[tuple[_Call | Stream, Sequence[Outcome]]] = []
        while True:
            with self._polling:
                for call, outcomes in worked_on:
                    self._go_on(call, outcomes)
                if self._ended.is_set():
                    # Here and not in close: whoever sends something to a queue that is shut down ends the process.
                    self._queue.shutdown()
                    return
                self._take(time.time() + _LOOK_SECONDS)
                batch, worked_on = self._next(), []
                self._busy_since = time.perf_counter()
            try:
                if batch:
                    with self._admission.work():
                        worked_on = self._answer(batch)
            except Exception:  # whatever it is, the lane must live on: it is the only one
                log.exception("a batch of calls failed")
            self._busy_since = None

    def _next(self) -> list[tuple["_Call | Stream", _Requests]]:
        """The next requests, as many as one batch may have."""
        batch, room = [], _BATCH
        while self._waiting and room:
            call = self._waiting.popleft()
            requests = call.take(room)
            room -= len(requests)
            batch.append((call, requests))
        return batch

    def _go_on(self, call: "_Call | Stream", outcomes: Sequence[Outcome]) -> None:
        """With what is left to be done of a call that has had its turn."""
        if isinstance(call, _Call):
            self._waiting.append(call)  # behind the others, so that long batches keep nobody waiting
            return
        try:
            call.answered(outcomes)
        except Exception:  # whatever it is, the lane must live on: it is the only one
            log.exception("a stream failed")

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
                late = [call for call in self._waiting if isinstance(call, _Call) and call.deadline <= now]
                self._waiting = deque(call for call in self._waiting if call not in late)
                for call in late:
                    self._fail(call, DeadlinePassed())

    def _take(self, until: float) -> None:
        """Takes every event that is ready; waits until a time, in seconds since the epoch, for the first."""
        deadline = 0 if self._waiting else until
        for _ in range(_EVENTS):
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
                return None
            self._request_call(tag)
            self._under_way.begin()
            method = self._methods[tag]
            call = _Call(tag, method, event.call, event.call_details.deadline, event.invocation_metadata)
            if self._gate is not None:
                try:
                    self._gate.admit(tag, call, requests=0 if _holds_several(method) else 1)
                except Exception as error:  # noqa: BLE001 # refused, or whatever it is: nothing is read of what it sends
                    return self._fail(call, error)
            if isinstance(method, StreamMethod):
                self._open(call, method)
            else:
                event.call.start_server_batch((cygrpc.ReceiveMessageOperation(_NO_FLAGS),), call)
        elif not isinstance(tag, _Call):
            tag(event)  # a stream's
        elif tag.answered:
            # The call is over. That a caller went away is learned here, with the answer: an event of its own would cost
            # every call, and deadlines tell the same.
            self._is_over(tag)
        else:
            self._received(tag, event.batch_operations[0].message())
        return None

    def _open(self, call: _Call, method: StreamMethod) -> None:
        try:
            self._streams.enter()
        except QueueFull as error:
            return self._fail(call, error)
        check = None if self._gate is None else partial(self._check, self._gate, call)
        return Stream(call.core, method, self._admission, self._waiting_too, self._stream_is_over, check).open()

    @staticmethod
    def _check(gate: Gate, call: _Call) -> None:
        """Whether one more message of a stream may be answered: a token may have been taken back meanwhile."""
        gate.authorize(call.path, call.metadata)
        gate.charge(call)

    def _waiting_too(self, stream: Stream) -> None:
        self._waiting.append(stream)

    def _stream_is_over(self) -> None:
        self._streams.leave()
        self._under_way.end()

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
            call.entries = call.method.entries(call.method.request.FromString(message))
            if self._gate is not None and _holds_several(call.method):
                self._gate.charge(call, len(call.entries))
        except QueryError as error:
            return self._fail(call, error)
        except Exception:  # noqa: BLE001 - told as grpc.server does
            return self._send(call, None, grpc.StatusCode.INTERNAL.value[0], b"Exception deserializing request!")
        return self._waiting.append(call)

    def _answer(
        self, batch: Sequence[tuple["_Call | Stream", _Requests]]
    ) -> list[tuple["_Call | Stream", Sequence[Outcome]]]:
        """Answers requests; gives back the calls that have more to do, with the outcomes."""
        now = time.time()
        by_answer: dict[Answer, list[tuple[_Call | Stream, _Requests]]] = {}
        for call, requests in batch:
            if isinstance(call, _Call) and call.deadline <= now:
                self._fail(call, DeadlinePassed())
            else:
                by_answer.setdefault(call.method.answer, []).append((call, requests))
        left: list[tuple[_Call | Stream, Sequence[Outcome]]] = []
        for answer, calls in by_answer.items():
            messages = [message for _, requests in calls for message, _ in requests]
            arrived = [came for _, requests in calls for _, came in requests]
            all_outcomes = iter(answer_each(answer, messages, arrived))
            for call, requests in calls:
                outcomes = list(islice(all_outcomes, len(requests)))
                if isinstance(call, Stream) or not self._finish(call, outcomes):
                    left.append((call, outcomes))
        return left

    def _finish(self, call: _Call, outcomes: Sequence[Outcome]) -> bool:
        """Sends a call's answer, unless some of its requests are still to be answered."""
        call.outcomes.extend(outcomes)
        if len(call.outcomes) < len(call.entries):
            return False
        try:
            outcome = call.method.joined(call.outcomes)
            if isinstance(outcome, Exception):
                self._fail(call, outcome)
            else:
                self._send(call, outcome, 0, b"")
        except Exception:  # whatever gRPC has against this call, the others get their answers
            log.exception("an answer could not be sent")
            self._is_over(call)
        return True

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
        return [message.SerializeToString() if message.value else QueueFull(1.0) for message in messages]

    server = grpc.server(futures.ThreadPoolExecutor(1))
    path, streamed = "/shortlist.SelfTest/Echo", "/shortlist.SelfTest/EchoEach"

    def echo(value: BoolValue, outcome: Outcome) -> bytes:
        return outcome if isinstance(outcome, bytes) else value.SerializeToString()

    methods: dict[str, Method | StreamMethod] = {
        path: Method(BoolValue, answer),
        streamed: StreamMethod(BoolValue, answer, lambda value: value, echo),
    }
    lane = FastLane(server, methods, Admission(1, 1), CallsUnderWay(), Admission(1, 0))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    lane.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            ask = channel.unary_unary(path, BoolValue.SerializeToString, BoolValue.FromString)
            assert ask(BoolValue(value=True), timeout=2).value
            assert ask.future(BoolValue(value=False), timeout=2).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            ask_each = channel.stream_stream(streamed, BoolValue.SerializeToString, BoolValue.FromString)
            values = [BoolValue(value=value) for value in (True, False, True)]
            assert list(ask_each(iter(values), timeout=2)) == values
    finally:
        server.stop(None).wait(_LAST_ANSWER_SECONDS)
        lane.close()
