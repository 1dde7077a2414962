"""Streams of the fast lane: messages are received ahead, answered as a batch, and their answers sent one by one.

gRPC takes one message at a time from a call and one at a time for it, with an event for each; that is most of what a
message costs. docs/decisions/0014-two-lanes.md has the measurements. Like ``fast_lane``, which runs all of this in one
thread at a time, this leans on what is not a public interface of grpcio.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # compiled, and without types

from shortlist_server.admission import Admission
from shortlist_server.errors import MalformedRequest, QueueFull, RateLimited
from shortlist_server.service.answers import Answer, Outcome
from shortlist_server.service.fast_calls import Call, Requests, start_batch
from shortlist_server.service.inbox import BYTES_AHEAD
from shortlist_server.service.weights import Weight, first_of, plain

_AHEAD = 64
"""Messages of a stream received and not yet worked on. The caller's others are held back by gRPC's flow control."""

_NO_FLAGS = 0


@dataclass(frozen=True)
class StreamMethod:
    """A method of the lane that answers each message of a stream by one message.

    Attributes:
        request: its message class.
        answer: from requests to outcomes.
        entry: the request in a message.
        response: what is sent for a message, given its request's outcome.
        weight: of a request.
    """

    request: Any
    answer: Answer
    entry: Callable[[Any], Any]
    response: Callable[[Any, Outcome], bytes]
    weight: Weight = plain


class Stream:
    """An open stream. Its events are tagged with what handles them.

    What was received waits until the answers before it are sent: they would stand in its way, and meanwhile more come,
    which are then answered together.

    Args:
        call: what it is.
        method: what it is a call of.
        admission: of what waits and works; the stream has one place there, whatever it holds.
        wait: told when there is something to be taken.
        over: told once the call is over: whether it ended as it should, and whether it was refused.
        refusal: the status to end it with for an error.
        check: asked for every message whether it may be answered; raises RateLimited where that one may not, and
            another QueryError where the stream shall end. None where all may.
    """

    def __init__(
        self,
        call: Call,
        method: StreamMethod,
        admission: Admission,
        wait: Callable[["Stream"], None],
        over: Callable[..., None],
        refusal: Callable[[Exception], grpc.Status],
        check: Callable[[], None] | None = None,
    ) -> None:
        self.method = method
        self._call = call
        call.messages = 0
        self._admission = admission
        self._wait = wait
        self._over = over
        self._refusal = refusal
        self._check = check
        self._received: deque[tuple[Any, float, int]] = deque()
        self._worked_on: Sequence[tuple[Any, float, int]] = ()
        self._held = 0  # bytes of all messages and answers that are here
        self._size = 0  # of what was here when a place was taken
        self._answers: deque[bytes] = deque()
        self._events_due = 0
        self._has_place = self._receiving = self._sending = False
        self._ended = False  # no more messages are to come
        self._failure: Exception | None = None  # why no more are
        self._closing = False  # nothing more is to be sent
        self._answered = False  # everything there was
        self._refused = False

    def open(self) -> None:
        """Receives the first message.

        Raises:
            RuntimeError: gRPC does not take it; the stream is over.
        """
        self._receiving = True
        try:
            self._start(self._on_closed, cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS))
        except RuntimeError:
            self._over(answered=False, refused=False)
            raise
        # From here on that event comes, whatever else gRPC does not take, and ends the stream.
        start = cygrpc.SendInitialMetadataOperation((), _NO_FLAGS)
        self._start(self._on_message, start, cygrpc.ReceiveMessageOperation(_NO_FLAGS))

    def take(self, room: int) -> tuple[Requests, int]:
        """Requests to be answered now and when each came, and their weight."""
        method = self.method
        received, weight = first_of(
            [*islice(self._received, room)], lambda one: method.weight(method.entry(one[0])), room
        )
        for _ in received:
            self._received.popleft()
        self._worked_on = received
        return [(method.entry(message), came) for message, came, _ in received], weight

    def answered(self, outcomes: Sequence[Outcome]) -> None:
        """Sends the answers to what was taken."""
        for (message, _, size), outcome in zip(self._worked_on, outcomes, strict=True):
            self._held -= size
            if not self._closing:
                self._answer(message, outcome)
        self._worked_on = ()
        self._has_place = False
        self._admission.leave(size=self._size)
        self._go_on()

    def _answer(self, message: Any, outcome: Outcome) -> None:
        answer = self.method.response(message, outcome)
        self._answers.append(answer)
        self._held += len(answer)

    def _start(self, handler: Callable[[Any], None], *operations: Any) -> None:
        start_batch(self._call.core, handler, *operations)
        self._events_due += 1

    def _on_message(self, event: Any) -> None:
        self._events_due -= 1
        self._receiving = False
        message = event.batch_operations[-1].message()
        if message is None:
            self._ended = True
        elif not self._closing:
            self._read(message)
        self._go_on()

    def _read(self, content: bytes) -> None:
        try:
            message = self.method.request.FromString(content)
        except Exception:  # noqa: BLE001 # whatever protobuf has against it; what came before is answered
            self._ended, self._failure = True, MalformedRequest()
            return None
        try:
            if self._check is not None:
                self._check()
        except RateLimited as error:
            return self._answer(message, error)
        except Exception as error:  # noqa: BLE001 # refused, or whatever it is
            return self._close(error)
        self._held += len(content)
        return self._received.append((message, time.perf_counter(), len(content)))

    def _on_sent(self, _event: Any) -> None:
        self._events_due -= 1
        self._sending = False
        self._go_on()

    def _on_closed(self, event: Any) -> None:
        """The caller went away, or has been told everything."""
        self._events_due -= 1
        self._closing = True
        if event.batch_operations[-1].cancelled():
            self._answered = False
        self._received.clear()
        self._answers.clear()
        self._go_on()

    def _on_status(self, _event: Any) -> None:
        self._events_due -= 1
        self._go_on()

    def _close(self, failure: Exception | None = None) -> None:
        self._closing = True
        self._received.clear()
        self._answers.clear()
        code, details, trailing = grpc.StatusCode.OK.value[0], b"", ()
        if failure is None:
            self._answered = True
        else:
            self._refused = True
            status: Any = self._refusal(failure)
            code, details, trailing = status.code.value[0], status.details.encode(), status.trailing_metadata or ()
        self._start(self._on_status, cygrpc.SendStatusFromServerOperation(trailing, code, details, _NO_FLAGS))

    def _go_on(self) -> None:
        """Starts whatever can be started now."""
        if self._closing:
            if not self._events_due and not self._has_place:
                self._over(answered=self._answered, refused=self._refused)
            return
        if self._answers and not self._sending:
            self._sending = True
            self._call.messages = (self._call.messages or 0) + 1
            answer = self._answers.popleft()
            self._held -= len(answer)
            self._start(self._on_sent, cygrpc.SendMessageOperation(answer, _NO_FLAGS))
        if self._received and not self._answers and not self._has_place:
            self._enter()
        few = len(self._received) + len(self._answers) < 2 * _AHEAD and self._held < BYTES_AHEAD
        if few and not self._receiving and not self._ended:
            self._receiving = True
            self._start(self._on_message, cygrpc.ReceiveMessageOperation(_NO_FLAGS))
        if self._ended and not (self._received or self._has_place or self._sending):
            self._close(self._failure)

    def _enter(self) -> None:
        self._size = sum(size for _, _, size in self._received)
        try:
            self._admission.enter(size=self._size)
        except QueueFull as error:
            for message, _, size in self._received:
                self._held -= size
                self._answer(message, error)
            self._received.clear()
            self._go_on()
        else:
            self._has_place = True
            self._wait(self)
