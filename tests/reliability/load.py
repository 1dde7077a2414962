"""Load for tests: workers that ask without a pause, or at given times, and keep what became of every request."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import grpc
import numpy as np

from shortlist.v1 import recommender_pb2, recommender_pb2_grpc

_OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request.

    Attributes:
        sent: when it was sent, or should have been at a given rate, by ``time.perf_counter``.
        seconds: from then to its answer.
        code: its status.
        details: of the status.
        user_id: whom it was for.
        version: of the model that answered; 0 where none did.
        item_ids: what came back.
    """

    sent: float
    seconds: float
    code: grpc.StatusCode
    details: str
    user_id: str
    version: int
    item_ids: tuple[str, ...]


class Load:
    """Asks a server for recommendations until it is left.

    Args:
        address: the server's.
        user_ids: whom to ask for, in turn.
        workers: threads, each with a connection of its own.
        rate: requests a second of all workers, at Poisson times; a late one counts from when it was due. None: each
            worker asks again as soon as it is answered.
        timeout: of each request, in seconds.
        seed: of the times.

    Attributes:
        outcomes: of the requests that have ended, each worker's in order.
    """

    def __init__(
        self,
        address: str,
        user_ids: Sequence[str],
        *,
        workers: int = 4,
        rate: float | None = None,
        timeout: float = 10.0,
        seed: int = 0,
    ) -> None:
        self.outcomes: list[Outcome] = []
        self._address = address
        self._user_ids = user_ids
        self._timeout = timeout
        self._pause = None if rate is None else workers / rate
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(number, np.random.default_rng([seed, number])))
            for number in range(workers)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def failures(self) -> list[str]:
        """The statuses of requests that were not answered, each with its details."""
        return [f"{one.code.name}: {one.details}" for one in self.outcomes if one.code is not grpc.StatusCode.OK]

    def _ask(self, number: int, rng: np.random.Generator) -> None:
        with grpc.insecure_channel(self._address, _OWN_CONNECTION) as channel:
            recommend = recommender_pb2_grpc.RecommenderServiceStub(channel).Recommend
            due = time.perf_counter()
            turn = number
            while not self._stop.is_set():
                if self._pause is None:
                    due = time.perf_counter()
                else:
                    due += rng.exponential(self._pause)
                    if self._stop.wait(max(0.0, due - time.perf_counter())):
                        return
                user_id = self._user_ids[turn % len(self._user_ids)]
                turn += len(self._threads)
                self.outcomes.append(self._one(recommend, user_id, due))

    def _one(self, recommend: "grpc.UnaryUnaryMultiCallable", user_id: str, due: float) -> Outcome:  # type: ignore[type-arg]
        request = recommender_pb2.RecommendRequest(user_id=user_id)
        try:
            answer = recommend(request, timeout=self._timeout)
        except grpc.RpcError as error:
            seconds = time.perf_counter() - due
            return Outcome(due, seconds, error.code(), error.details() or "", user_id, 0, ())
        item_ids = tuple(item.item_id for item in answer.items)
        seconds = time.perf_counter() - due
        return Outcome(due, seconds, grpc.StatusCode.OK, "", user_id, answer.model_version, item_ids)
