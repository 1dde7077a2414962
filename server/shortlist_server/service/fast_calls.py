"""Calls of the fast lane that are answered by one message. Streams are in ``fast_streams``."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from grpc._cython import cygrpc  # type: ignore[attr-defined]  # compiled, and without types

from shortlist_server.service.answers import Answer, Outcome
from shortlist_server.service.weights import Weight, first_of, plain

_NO_FLAGS = 0
_NO_METADATA: tuple[Any, ...] = ()

Requests = list[tuple[Any, float]]
"""Requests, and when each came."""


def start_batch(core: Any, tag: Any, *operations: Any) -> None:
    """Starts operations of a call; an event with the tag tells that they are done.

    Raises:
        RuntimeError: gRPC does not take them, so that no event comes. The call is cancelled: nobody shall wait for it.
    """
    error = core.start_server_batch(operations, tag)
    if error:
        core.cancel()
        raise RuntimeError(f"gRPC does not take operations of a call: error {error}")


def _alone(message: Any) -> Sequence[Any]:
    return [message]


def _only(outcomes: Sequence[Outcome], _metadata: Callable[[], Any]) -> Outcome:
    return outcomes[0]


@dataclass(frozen=True)
class Method:
    """A method of the lane that answers each call by one message.

    Attributes:
        request: its message class.
        answer: from requests to outcomes.
        entries: the requests in a message, at least one; may raise QueryError.
        joined: the message's outcome, made of those of its requests; the call's metadata can be asked for.
        weight: of a request.
    """

    request: Any
    answer: Answer
    entries: Callable[[Any], Sequence[Any]] = _alone
    joined: Callable[[Sequence[Outcome], Callable[[], Any]], Outcome] = _only
    weight: Weight = plain

    @property
    def holds_several(self) -> bool:
        """Whether a message may hold more than one request."""
        return self.entries is not _alone


@dataclass(slots=True, eq=False)
class Call:
    """A call that came in: the tag of its events.

    Attributes:
        path: "/package.Service/Method".
        method: what stands there.
        core: gRPC's own handle of it.
        deadline: seconds since the epoch; infinite where there is none.
        metadata: the caller's.
        arrived: by ``time.perf_counter``.
        entries: the requests in its message, once it is read.
        size: bytes of its message.
        outcomes: of the first of them.
        told: of how many Admission has been told that they are answered.
        has_place: among those that wait and work.
        followed: an event tells when its caller goes away.
        gone: its caller has gone away.
        answered: its answer is on its way, or it needs none.
        messages: those of a stream whose answers gRPC was given; None where it is none.
    """

    path: str
    method: Any
    core: Any
    deadline: float
    metadata: Any
    arrived: float = field(default_factory=time.perf_counter)
    entries: Sequence[Any] = ()
    size: int = 0
    outcomes: list[Outcome] = field(default_factory=list)
    told: int = 0
    has_place: bool = False
    followed: bool = False
    gone: bool = False
    answered: bool = False
    messages: int | None = None

    @property
    def name(self) -> str:
        """The method's name."""
        return self.path.rpartition("/")[2]

    @property
    def seconds_left(self) -> float | None:
        """Until the deadline; None where there is none."""
        left = self.deadline - time.time()
        return None if left == float("inf") else left

    def take(self, room: int) -> tuple[Requests, int]:
        """Requests to be answered now and when each came, and their weight."""
        left = self.entries[len(self.outcomes) : len(self.outcomes) + room]
        entries, weight = first_of(left, self.method.weight, room)
        return [(entry, self.arrived) for entry in entries], weight

    def receive(self) -> None:
        """Asks for its message; the call itself is the event's tag."""
        start_batch(self.core, self, cygrpc.ReceiveMessageOperation(_NO_FLAGS))

    def follow(self, tag: Callable[[Any], None]) -> None:
        """Asks to be told when the caller goes away."""
        self.followed = True
        start_batch(self.core, tag, cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS))

    def send(self, message: bytes | None, code: int, details: bytes, trailing: tuple[Any, ...] = _NO_METADATA) -> None:
        """Sends an answer and a status; the call itself is the tag of the event that tells they are sent."""
        operations: list[Any] = [cygrpc.SendInitialMetadataOperation(_NO_METADATA, _NO_FLAGS)]
        if message is not None:
            operations.append(cygrpc.SendMessageOperation(message, _NO_FLAGS))
        operations.append(cygrpc.SendStatusFromServerOperation(trailing, code, details, _NO_FLAGS))
        if not self.followed:
            operations.append(cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS))
        self.answered = True
        start_batch(self.core, self, *operations)

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
