"""Calls and streams of the fast lane that wait for their turn."""

import logging
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

from shortlist_server.service.fast_calls import Call, Requests
from shortlist_server.service.fast_streams import Stream

log = logging.getLogger(__name__)

_LONG_WAIT_SECONDS = 0.1
"""A call that waits for longer than this is dropped when its caller goes away."""


class Lines:
    """Who waits: single requests and streams in one line, calls of several requests in another.

    Args:
        gone: is told of a call whose caller has gone away, which has no turn any more.
    """

    def __init__(self, gone: Callable[[Call], None]) -> None:
        self._gone = gone
        self._singles: deque[Call | Stream] = deque()
        self._several: deque[Call] = deque()

    def __bool__(self) -> bool:
        """Whether anybody waits."""
        return bool(self._singles or self._several)

    def add(self, call: Call | Stream) -> None:
        """Puts a call at the end of its line."""
        if isinstance(call, Call) and len(call.entries) > 1:
            self._several.append(call)
        else:
            self._singles.append(call)

    def put_back(self, call: Call) -> None:
        """Puts a call of several requests, of which some have had their turn, before all others."""
        self._several.appendleft(call)
        self._follow()

    def next(self, room: int) -> list[tuple[Call | Stream, Requests]]:
        """The next requests, and whose they are.

        Calls with several requests have what the others leave, and half at least. They are answered one after another:
        were they all under way together, each that comes would put off those that were let in before it.

        Args:
            room: for so many plain requests; of others that take longer, for fewer.
        """
        batch, left = self._first_of(self._singles, room // 2 if self._several else room)
        if self._several:
            batch += self._first_of(self._several, max(left, 0) + room - room // 2)[0]
        self._follow()
        return batch

    def take_late(self, now: float) -> set[Call]:
        """Takes those whose deadline has passed; ``now`` is in seconds since the epoch."""
        late = {call for call in chain(self._singles, self._several) if isinstance(call, Call) and call.deadline <= now}
        self._singles = deque(call for call in self._singles if call not in late)
        self._several = deque(call for call in self._several if call not in late)
        self._follow()
        return late

    def _first_of(self, line: deque[Any], room: int) -> tuple[list[tuple[Call | Stream, Requests]], int]:
        """The first requests of a line, and the room that they leave; there may be none."""
        batch: list[tuple[Call | Stream, Requests]] = []
        while line and room > 0:
            call = line.popleft()
            if isinstance(call, Call) and call.gone:
                self._gone(call)
                continue
            requests, weight = call.take(room)
            room -= weight
            batch.append((call, requests))
        return batch, room

    def _follow(self) -> None:
        """Asks to be told who gives up, or has, of those that have waited for long; for all, it would cost a tenth."""
        long_since = time.perf_counter() - _LONG_WAIT_SECONDS
        for call in chain(self._singles, self._several):
            if isinstance(call, Call) and not call.followed and call.arrived < long_since:
                try:
                    call.follow(partial(_caller_left, call))
                except RuntimeError:
                    log.exception("a call could not be followed")
                    call.gone = True


def _caller_left(call: Call, _event: Any) -> None:
    call.gone = True
