"""Calls answered in batches from a completion queue of our own, on the port of an ordinary grpc.server.

``grpc.server`` hands every call from the thread that polls to one of a pool, which costs more than the search for a
small catalogue. Here one thread takes every call that is ready, answers them together, and sends; at idle a call is
answered at once, and under load batches grow by themselves. docs/decisions/0014-two-lanes.md has the measurements, and
0018-overload.md says what happens when more comes than can be answered.

This leans on ``grpc._cython.cygrpc``, which is not a public interface: ``self_test`` says whether this grpcio still has
it as it was, and nothing else of the server may depend on it.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent import futures
from functools import partial
from itertools import islice
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import BoolValue
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # compiled, and without types

from shortlist_server.access.config import AccessConfig
from shortlist_server.access.gate import Gate
from shortlist_server.admission import Admission
from shortlist_server.errors import DeadlinePassed, MalformedRequest, QueueFull
from shortlist_server.service.answers import Answer, Outcome, answer_each
from shortlist_server.service.fast_calls import Call, Method, Requests
from shortlist_server.service.fast_streams import Stream, StreamMethod
from shortlist_server.service.guard import Guard

log = logging.getLogger(__name__)

_CALLS_AT_ONCE = 256
"""Calls of a method that gRPC may hand over before the next look at the queue."""

_REFUSALS_PER_SECOND = 500
"""Refusing a call takes almost as long as answering one, 150 us: a twelfth of a core goes into refusals at most. The
other calls wait in gRPC."""

_BATCH = 64
"""Requests answered together at most: more would wait longer than they save."""

_EVENTS = 256
"""Events handled before what they brought is looked at."""

_LONG_SECONDS = 0.02
"""A batch that takes longer than this leaves the queue to the watch, so that calls are refused in time."""

_LOOK_SECONDS = 0.2
"""How often the lane looks whether it is to end."""

_LAST_ANSWER_SECONDS = 5.0


class FastLane:
    """Answers some methods of a server that has not been started.

    Args:
        server: an ordinary server, which must not have the same methods among its handlers.
        methods: path to method.
        admission: says how many calls may wait, and when a batch may be worked on.
        streams: says whether one more stream may be open.
        guard: what happens around calls.

    Raises:
        AttributeError, TypeError: this grpcio is not as expected.
    """

    def __init__(
        self,
        server: grpc.Server,
        methods: Mapping[str, Method | StreamMethod],
        admission: Admission,
        streams: Admission,
        guard: Guard,
    ) -> None:
        self._methods = methods
        self._guard = guard
        self._gate = guard.gate if guard.gate.asks_readers else None
        self._admission = admission
        self._streams = streams
        self._core = server._state.server  # type: ignore[attr-defined]  # both lanes share it
        self._queue = cygrpc.CompletionQueue()
        self._core.register_completion_queue(self._queue)
        for path in methods:
            self._core.register_method(path)
        self._asked_for = dict.fromkeys(methods, 0)
        self._may_refuse = float(_CALLS_AT_ONCE)
        self._last_asked = time.perf_counter()
        self._waiting: deque[Call | Stream] = deque()
        self._polling = threading.Lock()
        self._busy_since: float | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fast-lane", daemon=True)

    def start(self) -> None:
        """Takes calls; the server must have been started."""
        self._ask_for_calls()
        self._thread.start()
        threading.Thread(target=self._watch, name="fast-lane-watch", daemon=True).start()

    def close(self) -> None:
        """Ends the threads, without waiting long for an answer nobody waits for; the server must have been stopped."""
        self._ended.set()
        self._thread.join(_LAST_ANSWER_SECONDS)

    def _ask_for_calls(self) -> None:
        """Lets gRPC hand over as many calls as there is room for, and a few to refuse."""
        now = time.perf_counter()
        earned = (now - self._last_asked) * _REFUSALS_PER_SECOND
        self._may_refuse = min(self._may_refuse + earned, _CALLS_AT_ONCE)
        self._last_asked = now
        room = max(self._admission.places - self._admission.taken, 0) + int(self._may_refuse)
        for path, asked_for in self._asked_for.items():
            for _ in range(min(room, _CALLS_AT_ONCE) - asked_for):
                try:
                    self._core.request_registered_call(self._queue, self._queue, path, path)
                    self._asked_for[path] += 1
                except ValueError:
                    log.debug("the server is shutting down")
                    return

    def _run(self) -> None:
        worked_on: list[tuple[Call | Stream, Sequence[Outcome]]] = []
        while True:
            with self._polling:
                for call, outcomes in worked_on:
                    self._go_on(call, outcomes)
                if self._ended.is_set():
                    # Here and not in close: whoever sends something to a queue that is shut down ends the process.
                    self._queue.shutdown()
                    return
                self._ask_for_calls()
                self._take(time.time() + _LOOK_SECONDS)
                batch, worked_on = self._next(), []
                self._busy_since = time.perf_counter()
            try:
                if batch:
                    with self._admission.work(first=True):
                        worked_on = self._answer(batch)
            except Exception as error:  # whatever it is, the lane must live on: it is the only one
                log.exception("a batch of calls failed")
                worked_on = self._give_up(batch, error)
            self._busy_since = None

    def _give_up(
        self, batch: Sequence[tuple[Call | Stream, Requests]], error: Exception
    ) -> list[tuple[Call | Stream, Sequence[Outcome]]]:
        """Ends those calls of a batch that are not answered; gives back the streams, with the outcomes."""
        for call, _ in batch:
            if isinstance(call, Call) and not call.answered:
                try:
                    self._fail(call, error)
                except Exception:  # gRPC has something against this call
                    log.exception("a call could not be ended")
                    self._is_over(call)
        return [(call, [error] * len(requests)) for call, requests in batch if isinstance(call, Stream)]

    def _next(self) -> list[tuple[Call | Stream, Requests]]:
        """The next requests, as many as one batch may have."""
        batch, room = [], _BATCH
        while self._waiting and room:
            call = self._waiting.popleft()
            if isinstance(call, Call) and call.gone:
                self._guard.caller_left(call.name, call)
                self._is_over(call)
                continue
            requests = call.take(room)
            room -= len(requests)
            batch.append((call, requests))
        self._follow_waiting()
        return batch

    def _follow_waiting(self) -> None:
        """Asks to be told who gives up of those that wait for more than a batch; for all, that would cost too much."""
        for call in self._waiting:
            if isinstance(call, Call) and not call.followed:
                call.follow(partial(self._caller_left, call))

    def _caller_left(self, call: Call, _event: Any) -> None:
        call.gone = True

    def _go_on(self, call: Call | Stream, outcomes: Sequence[Outcome]) -> None:
        """With what is left to be done of a call that has had its turn."""
        if isinstance(call, Call):
            self._waiting.append(call)  # behind the others, so that long batches keep nobody waiting
            self._follow_waiting()
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
                try:
                    self._tell_waiting()
                except Exception:  # whatever it is, the next look may do better
                    log.exception("calls that wait could not be looked at")

    def _tell_waiting(self) -> None:
        self._ask_for_calls()
        self._take(time.time())
        now = time.time()
        late = [call for call in self._waiting if isinstance(call, Call) and call.deadline <= now]
        self._waiting = deque(call for call in self._waiting if call not in late)
        for call in late:
            self._fail(call, DeadlinePassed())
        self._follow_waiting()

    def _take(self, until: float) -> None:
        """Takes events that are ready; waits until a time, in seconds since the epoch, for the first."""
        deadline: float = 0 if self._waiting else until
        for _ in range(_EVENTS):
            event = self._queue.poll(deadline)
            if event.completion_type == cygrpc.CompletionType.queue_timeout:
                return
            try:
                self._handle(event)
            except Exception:  # whatever it is, the lane must live on: it is the only one
                log.exception("an event of the fast lane failed")
            deadline = 0  # from now on only what is ready already

    def _handle(self, event: Any) -> None:
        tag = event.tag
        if isinstance(tag, str):
            self._asked_for[tag] -= 1
            if event.success:  # otherwise the server is shutting down
                self._came(tag, event)
        elif not isinstance(tag, Call):
            tag(event)  # a stream's, or of a caller who left
        elif tag.answered:
            self._is_over(tag)
        else:
            self._received(tag, event.batch_operations[0].message())

    def _came(self, path: str, event: Any) -> None:
        self._guard.under_way.begin()
        method = self._methods[path]
        call = Call(path, method, event.call, event.call_details.deadline, event.invocation_metadata)
        if self._gate is not None:
            several = isinstance(method, Method) and method.holds_several  # charged for when they are read
            try:
                self._gate.admit(path, call, requests=0 if several else 1)
            except Exception as error:  # noqa: BLE001 # refused, or whatever it is: nothing is read of what it sends
                return self._fail(call, error)
        if isinstance(method, StreamMethod):
            return self._open(call, method)
        return call.receive()

    def _open(self, call: Call, method: StreamMethod) -> None:
        try:
            self._streams.enter()
        except QueueFull as error:
            return self._fail(call, error)
        check = None if self._gate is None else partial(self._check, self._gate, call)
        refusal = partial(self._guard.refusal, method=call.name, call=call)
        over = partial(self._stream_is_over, call)
        return Stream(call.core, method, self._admission, self._wait, over, refusal, check).open()

    def _wait(self, stream: Stream) -> None:
        self._waiting.append(stream)

    @staticmethod
    def _check(gate: Gate, call: Call) -> None:
        """Whether one more message of a stream may be answered: a token may have been taken back meanwhile."""
        gate.authorize(call.path, call.metadata)
        gate.charge(call)

    def _stream_is_over(self, call: Call, *, answered: bool) -> None:
        if answered:
            self._guard.observer.stream_answered(call.name)
        self._streams.leave()
        self._guard.under_way.end()

    def _is_over(self, call: Call) -> None:
        self._leave(call)
        self._guard.under_way.end()

    def _leave(self, call: Call) -> None:
        """Gives a call's place back: once it is answered, whenever its caller takes the answer."""
        if call.has_place:
            call.has_place = False
            self._admission.leave(len(call.entries))

    def _received(self, call: Call, message: bytes | None) -> None:
        if message is None:  # the caller went away, or sent nothing, or too much
            return self._fail(call, MalformedRequest())
        try:
            if not self._admission.has_room:  # nothing is read of it
                raise self._admission.full()
            call.entries = self._entries(call, message)
            self._admission.enter(call.seconds_left, len(call.entries))
        except Exception as error:  # noqa: BLE001 # refused, or whatever it is
            return self._fail(call, error)
        call.has_place = True
        return self._waiting.append(call)

    def _entries(self, call: Call, message: bytes) -> Sequence[Any]:
        """The requests in a message; of what cannot be read, one is charged for."""
        entries: Sequence[Any] = ()
        try:
            entries = call.method.entries(_read(call.method.request, message))
        finally:
            if self._gate is not None and call.method.holds_several:
                self._gate.charge(call, max(len(entries), 1))
        return entries

    def _answer(self, batch: Sequence[tuple[Call | Stream, Requests]]) -> list[tuple[Call | Stream, Sequence[Outcome]]]:
        """Answers requests; gives back the calls that have more to do, with the outcomes."""
        now = time.time()
        by_answer: dict[Answer, list[tuple[Call | Stream, Requests]]] = {}
        for call, requests in batch:
            if isinstance(call, Call) and call.deadline <= now:
                self._fail(call, DeadlinePassed())
            else:
                by_answer.setdefault(call.method.answer, []).append((call, requests))
        left: list[tuple[Call | Stream, Sequence[Outcome]]] = []
        for answer, calls in by_answer.items():
            messages = [message for _, requests in calls for message, _ in requests]
            arrived = [came for _, requests in calls for _, came in requests]
            all_outcomes = iter(answer_each(answer, messages, arrived))
            sent: dict[str, list[Call]] = {}
            for call, requests in calls:
                outcomes = list(islice(all_outcomes, len(requests)))
                if isinstance(call, Stream) or not self._finish(call, outcomes, sent):
                    left.append((call, outcomes))
            for path, answered in sent.items():
                self._guard.observer.calls_answered(path.rpartition("/")[2], answered)
        return left

    def _finish(self, call: Call, outcomes: Sequence[Outcome], sent: dict[str, list[Call]]) -> bool:
        """Sends a call's answer, unless some of its requests are still to be answered."""
        call.outcomes.extend(outcomes)
        if len(call.outcomes) < len(call.entries):
            return False
        try:
            outcome = call.method.joined(call.outcomes)
            if isinstance(outcome, Exception):
                self._fail(call, outcome)
            else:
                call.send(outcome, 0, b"")
                self._leave(call)
                sent.setdefault(call.path, []).append(call)
        except Exception:  # whatever gRPC has against this call, the others get their answers
            log.exception("an answer could not be sent")
            self._is_over(call)
        return True

    def _fail(self, call: Call, error: Exception) -> None:
        if isinstance(error, QueueFull):
            self._may_refuse = max(self._may_refuse - 1, 0)
        status = self._guard.refusal(error, call.name, call)
        self._leave(call)
        call.send(None, status.code.value[0], status.details.encode(), status.trailing_metadata or ())


def _read(request: Any, message: bytes) -> Any:
    try:
        return request.FromString(message)
    except Exception:  # noqa: BLE001 # whatever protobuf has against it
        raise MalformedRequest from None


def self_test() -> None:
    """Answers and refuses a call, and answers a stream, over a lane of its own.

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
    lane = FastLane(server, methods, Admission(1, 1), Admission(1, 0), Guard(Gate(AccessConfig(), admin=False)))
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
