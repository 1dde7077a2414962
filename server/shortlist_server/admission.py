"""How many requests may work and wait at once."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from shortlist_server.errors import DeadlinePassed, QueueFull


class Admission:
    """Lets a few requests work at a time, a bounded number wait, and nobody work past a deadline.

    Args:
        working: requests that may work at once.
        waiting: requests that may wait for their turn.
    """

    def __init__(self, working: int, waiting: int) -> None:
        self._turns = threading.Semaphore(working)
        self._places = threading.Semaphore(working + waiting)

    @contextmanager
    def turn(self, seconds_left: float | None) -> Iterator[float]:
        """Waits for a turn and holds it.

        Args:
            seconds_left: until the caller's deadline; None when it set none.

        Yields:
            Seconds spent waiting.

        Raises:
            QueueFull: too many wait already.
            DeadlinePassed: the deadline passed first.
        """
        if not self._places.acquire(blocking=False):
            raise QueueFull
        try:
            arrived = time.perf_counter()
            if seconds_left is not None and seconds_left <= 0:
                raise DeadlinePassed
            # Without a deadline gRPC tells of billions of seconds left, more than a lock can wait for.
            longest_wait = threading.TIMEOUT_MAX if seconds_left is None else min(seconds_left, threading.TIMEOUT_MAX)
            if not self._turns.acquire(timeout=longest_wait):
                raise DeadlinePassed
            try:
                yield time.perf_counter() - arrived
            finally:
                self._turns.release()
        finally:
            self._places.release()
