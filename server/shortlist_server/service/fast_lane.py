"""Calls answered in batches from a completion queue of our own, on the port of an ordinary grpc.server.

``grpc.server`` hands every call from the thread that polls to one of a pool, which costs more than the search for a
small catalogue. Here one thread takes every call that is ready, answers them together, and sends; at idle a call is
answered at once, and under load batches grow by themselves. docs/decisions/0014-two-lanes.md has the measurements, and
0018-overload.md says what happens when more comes than can be answered.

This leans on ``grpc._cython.cygrpc``, which is not a public interface: self_test.py says whether this grpcio
still has it as it was, and nothing else of the server may depend on it.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # compiled, and without types

from shortlist_server.access.gate import Gate
from shortlist_server.admission import Admission, Line
from shortlist_server.errors import DeadlinePassed, MalformedRequest, QueueFull
from shortlist_server.service import silence
from shortlist_server.service.answers import Answer, Outcome, answer_each
from shortlist_server.service.fast_calls import Call, Method, Requests
from shortlist_server.service.fast_lines import Lines
from shortlist_server.service.fast_streams import Stream, StreamMethod
from shortlist_server.service.guard import Guard
from shortlist_server.service.intake import Fate, Intake

log = logging.getLogger(__name__)

_BATCH = 64
"""Requests answered together, or fewer where no more wait or some take much longer than others."""

_MOST = 256
"""Requests answered together at most. The more, the less each costs; they come of long batches and of streams."""

_TURN_SECONDS = 0.01
"""More than ``_BATCH`` are answered together as far as they take no longer than this, so that nobody waits for long."""

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
        beat: called by the thread that answers, every time it comes round.
        silent_seconds: so long a message may take to come whole; None for as long as any may.

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
        beat: Callable[[], None] | None = None,
        silent_seconds: float | None = None,
    ) -> None:
        self._methods = methods
        self._beat = beat
        self._guard = guard
        self._gate = guard.gate if guard.gate.asks_readers else None
        self._admission = admission
        self._streams = streams
        core = server._state.server  # type: ignore[attr-defined]  # both lanes share it
        self._queue = cygrpc.CompletionQueue()
        core.register_completion_queue(self._queue)
        for path in methods:
            core.register_method(path)
        self._intake = Intake(core, self._queue, methods, admission, silent_seconds or silence.SILENT_SECONDS)
        self._lines = Lines(self._has_gone)
        self._expired: dict[str, int] = {}
        self._polling = threading.Lock()
        self._busy_since: float | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fast-lane", daemon=True)

    def start(self) -> None:
        """Takes calls; the server must have been started."""
        self._intake.ask()
        self._thread.start()
        threading.Thread(target=self._watch, name="fast-lane-watch", daemon=True).start()

    def close(self) -> None:
        """Ends the threads, without waiting long for an answer nobody waits for; the server must have been stopped."""
        self._ended.set()
        self._thread.join(_LAST_ANSWER_SECONDS)

    def _run(self) -> None:
        worked_on: list[tuple[Call | Stream, Sequence[Outcome]]] = []
        while True:
            if self._beat is not None:
                self._beat()
            with self._polling:
                for call, outcomes in worked_on:
                    self._go_on(call, outcomes)
                if self._ended.is_set():
                    # Here and not in close: whoever sends something to a queue that is shut down ends the process.
                    self._queue.shutdown()
                    return
                self._intake.ask()
                self._take(time.time() + _LOOK_SECONDS)
                batch, worked_on = self._lines.next(self._room()), []
                self._busy_since = time.perf_counter()
            try:
                if batch:
                    with self._admission.work(line=Line.FIRST):
                        worked_on = self._answer(batch)
            except Exception as error:  # whatever it is, the lane must live on: it is the only one
                log.exception("a batch of calls failed")
                worked_on = self._give_up(batch, error)
            self._admission.reckon()
            self._busy_since = None

    def _give_up(
        self, batch: Sequence[tuple[Call | Stream, Requests]], error: Exception
    ) -> list[tuple[Call | Stream, Sequence[Outcome]]]:
        """Ends those calls of a batch that are not answered; gives back the streams, with the outcomes."""
        for call, _ in batch:
            if isinstance(call, Call) and not call.answered:
                self._fail(call, error)
        return [(call, [error] * len(requests)) for call, requests in batch if isinstance(call, Stream)]

    def _room(self) -> int:
        """How many requests the next batch may have."""
        each = self._admission.seconds_per_request
        if each * _BATCH >= _TURN_SECONDS:
            return _BATCH
        return min(int(_TURN_SECONDS / each) // _BATCH * _BATCH, _MOST) if each else _BATCH

    def _go_on(self, call: Call | Stream, outcomes: Sequence[Outcome]) -> None:
        """With what is left to be done of a call that has had its turn."""
        if isinstance(call, Call):
            self._lines.put_back(call)
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
        self._intake.ask()
        self._take(time.time())
        for call in self._lines.take_late(time.time()):
            self._drop(call)

    def _take(self, until: float) -> None:
        """Takes events that are ready; waits until a time, in seconds since the epoch, for the first."""
        self._intake.let_go()
        self._intake.hang_up()
        deadline: float = 0 if self._lines else until
        for _ in range(_EVENTS):
            event = self._queue.poll(deadline)
            if event.completion_type == cygrpc.CompletionType.queue_timeout:
                break
            try:
                self._handle(event)
            except Exception:  # whatever it is, the lane must live on: it is the only one
                log.exception("an event of the fast lane failed")
            deadline = 0  # from now on only what is ready already
        if self._expired:
            self._tell_expired()

    def _tell_expired(self) -> None:
        """Has calls counted that were let expire unread: together, as so many may come."""
        expired, self._expired = self._expired, {}
        try:
            for path, count in expired.items():
                self._guard.observer.calls_expired(path.rpartition("/")[2], count)
        except Exception:  # whatever it is, the lane must live on: it is the only one
            log.exception("calls that expired could not be counted")

    def _handle(self, event: Any) -> None:
        tag = event.tag
        if isinstance(tag, str):
            self._intake.came(tag)
            if event.success:  # otherwise the server is shutting down
                self._came(tag, event)
        elif not isinstance(tag, Call):
            tag(event)  # a stream's, or of a caller who left
        elif tag.answered:
            self._is_over(tag)
        else:
            self._received(tag, event.batch_operations[0].message())

    def _came(self, path: str, event: Any) -> None:
        method, deadline = self._methods[path], event.call_details.deadline
        several = isinstance(method, Method) and method.holds_several
        fate = self._intake.fate_of(deadline, _BATCH, several=several)
        if fate is Fate.EXPIRE:
            self._intake.let_expire(event.call, deadline)
            self._expired[path] = self._expired.get(path, 0) + 1
            self._intake.ask_for_one(path)  # whoever comes next may have more time
            return None
        self._guard.under_way.begin()
        call = Call(path, method, event.call, deadline, event.invocation_metadata)
        if self._gate is not None:
            try:
                # Of several, when they are read.
                self._gate.admit(path, call, requests=0 if several and fate is Fate.READ else 1)
            except Exception as error:  # noqa: BLE001 # refused, or whatever it is: nothing is read of what it sends
                return self._fail(call, error)
        if isinstance(method, StreamMethod):
            return self._open(call, method)
        if fate is Fate.REFUSE:
            return self._fail(call, self._admission.full())
        try:
            call.receive()
        except RuntimeError:
            self._is_over(call)
            raise
        return self._intake.reads(call)

    def _open(self, call: Call, method: StreamMethod) -> None:
        try:
            self._streams.enter()
        except QueueFull as error:
            return self._fail(call, error)
        check = None if self._gate is None else partial(self._check, self._gate, call)
        refusal = partial(self._guard.refusal, method=call.name, call=call)
        over = partial(self._stream_is_over, call)
        return Stream(call, method, self._admission, self._lines.add, over, refusal, check).open()

    @staticmethod
    def _check(gate: Gate, call: Call) -> None:
        """Whether one more message of a stream may be answered: a token may have been taken back meanwhile."""
        gate.authorize(call.path, call.metadata)
        gate.charge(call)

    def _has_gone(self, call: Call) -> None:
        self._guard.caller_left(call.name, call)
        self._is_over(call, dropped=True)

    def _stream_is_over(self, call: Call, *, answered: bool, refused: bool) -> None:
        if answered:
            self._guard.observer.stream_answered(call.name, call)
        elif not refused:  # of which telemetry was told
            self._guard.caller_left(call.name, call)
        self._streams.leave()
        self._guard.under_way.end()

    def _is_over(self, call: Call, *, dropped: bool = False) -> None:
        self._leave(call, dropped=dropped)
        self._guard.under_way.end()

    def _leave(self, call: Call, *, dropped: bool = False) -> None:
        """Gives a call's place back: once it is answered, whenever its caller takes the answer."""
        if call.has_place:
            call.has_place = False
            self._admission.leave(len(call.entries), call.size, call.told, dropped=dropped, together=True)

    def _received(self, call: Call, message: bytes | None) -> None:
        self._intake.has_read(call)
        if message is None:  # the caller went away, or sent nothing, or too much
            return self._fail(call, MalformedRequest())
        try:
            if not self._admission.has_room_for(len(message)):  # nothing is read of it
                raise self._admission.full()
            call.entries = self._entries(call, message)
            call.size = len(message)
            self._admission.enter(call.seconds_left, len(call.entries), call.size)
        except Exception as error:  # noqa: BLE001 # refused, or whatever it is
            silent = isinstance(error, QueueFull) and self._intake.keeps_silent(call.deadline - time.time())
            return self._drop(call) if silent else self._fail(call, error)
        call.has_place = True
        return self._lines.add(call)

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
        # Single requests first, and by themselves: they shall not wait for the others.
        by_answer: dict[tuple[bool, Answer], list[tuple[Call | Stream, Requests]]] = {}
        for call, requests in batch:
            if isinstance(call, Call) and call.deadline <= now:
                self._drop(call)
            else:
                several = isinstance(call, Stream) or len(call.entries) > 1
                by_answer.setdefault((several, call.method.answer), []).append((call, requests))
        left: list[tuple[Call | Stream, Sequence[Outcome]]] = []
        for (_, answer), calls in sorted(by_answer.items(), key=lambda group: group[0][0]):
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
            self._admission.progress(len(outcomes))
            call.told += len(outcomes)
            return False
        try:
            outcome = call.method.joined(call.outcomes, call.invocation_metadata)
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

    def _drop(self, call: Call) -> None:
        """Does nothing about a call that cannot be answered in time: gRPC ends it at its deadline, for less."""
        call.answered = True  # so that nobody answers it when the rest of its batch fails
        self._intake.let_expire(call.core, call.deadline)
        self._guard.observer.calls_expired(call.name, 1)
        self._is_over(call, dropped=True)

    def _fail(self, call: Call, error: Exception) -> None:
        if isinstance(error, DeadlinePassed):
            self._drop(call)
            return
        if isinstance(error, QueueFull):
            self._intake.refused()
        status = self._guard.refusal(error, call.name, call)
        self._leave(call)
        try:
            call.send(None, status.code.value[0], status.details.encode(), status.trailing_metadata or ())
        except Exception:  # gRPC has something against this call
            log.exception("a call could not be ended")
            self._is_over(call)


def _read(request: Any, message: bytes) -> Any:
    try:
        return request.FromString(message)
    except Exception:  # noqa: BLE001 # whatever protobuf has against it
        raise MalformedRequest from None
