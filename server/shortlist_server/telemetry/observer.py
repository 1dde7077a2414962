"""What the rest of the server tells of what happens: here to nobody; ``recorder`` counts, traces and logs it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from shortlist_server.errors import QueryError
    from shortlist_server.model.folder import LoadedModel
    from shortlist_server.retrieval.queries import Remarks


class Call(Protocol):
    """A call as a lane has it.

    Attributes:
        arrived: when it came, by ``time.perf_counter``.
        metadata: the caller's, pairs of key and value.
        messages: those of a stream whose answers gRPC was given; None of other calls.
    """

    @property
    def arrived(self) -> float: ...  # noqa: D102
    @property
    def metadata(self) -> Any: ...  # noqa: D102
    @property
    def messages(self) -> int | None: ...  # noqa: D102


@dataclass(frozen=True)
class Load:
    """How busy a server process is.

    Attributes:
        in_flight: calls that have arrived and are not answered.
        queue_depth: requests that wait or are computed.
        queue_places: how many may, before others are refused.
        device_memory: bytes on the GPU by what for; empty without one.
    """

    in_flight: int = 0
    queue_depth: int = 0
    queue_places: int = 0
    device_memory: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """What a server process says of itself.

    Attributes:
        uptime_seconds: since it was started.
        pid: its process id.
        answered: calls that ended with OK.
        failed: calls that ended otherwise.
        load: how busy it is.
        last_swap: since when the default version answers, in seconds since the epoch; None where there is none yet.
        answers: queries answered, by version.
    """

    uptime_seconds: float
    pid: int
    answered: int
    failed: int
    load: Load
    last_swap: float | None
    answers: Mapping[int, int]


class Observer:
    """Whom the server tells what happened. Every method is quick, may be called by any thread, and never raises.

    An RPC goes by its name, such as "BatchRecommend"; a kind of query, of which such a call may hold many, by the name
    of the method that answers it: "recommend", "similar_items" or "score".
    """

    def calls_answered(self, method: str, calls: Sequence[Call]) -> None:
        """Calls of one RPC have been answered, together, by this thread."""

    def stream_answered(self, method: str, call: Call) -> None:
        """A stream has ended as it should."""

    def call_failed(self, method: str, call: Call, code: str, request_id: str, error: Exception) -> None:
        """A call fails, with the gRPC status of this name: CANCELLED where its caller went away."""

    def calls_expired(self, method: str, count: int) -> None:
        """So many calls were not answered before their deadlines, or could not have been, and were let be."""

    def entry_failed(self, method: str, code: str, request_id: str, error: Exception) -> None:
        """One request of many in a call is answered with an error."""

    def batch_began(self, query: str, arrived: Sequence[float]) -> float:  # noqa: ARG002 # for those who listen
        """This thread begins to answer queries that arrived then.

        Returns:
            Now, by ``time.perf_counter``.
        """
        return time.perf_counter()

    def batch_answered(self, query: str, version: int, answers: "Sequence[Remarks | QueryError]", began: float) -> None:
        """A model version has answered queries: what is to be said of each answer, or why there is none."""

    def shadow_compared(
        self, version: int, overlaps: Sequence[float], answer_seconds: float, shadow_seconds: float
    ) -> None:
        """A shadow version has answered again what callers were answered together.

        Args:
            version: its number.
            overlaps: for each request the share of the items answered that it answered too.
            answer_seconds: what all those answers took that callers got.
            shadow_seconds: what the shadow took for them.
        """

    def shadow_skipped(self, requests: int) -> None:
        """There was no time to compare the answers to so many requests."""

    def model_event(self, event: str, version: int, model: "LoadedModel | None" = None) -> None:
        """Something became of a version.

        Args:
            event: "ready", it is loaded; "default", it answers when none is named; "refused"; "unloaded".
            version: its number.
            model: the version, where it is ready.
        """
