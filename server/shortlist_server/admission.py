"""How many requests may work and wait at once."""

import threading
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
        self._places = working + waiting
        self._taken = 0
        self._counting = threading.Lock()

    @property
    def places(self) -> int:
        """How many requests may work and wait."""
        return self._places

    @property
    def taken(self) -> int:
        """How many do."""
        return self._taken

    def enter(self) -> None:
        """Takes a place among those that work and wait; ``leave`` gives it back.

        Raises:
            QueueFull: too many wait already.
        """
        with self._counting:
            if self._taken >= self._places:
                raise QueueFull
            self._taken += 1

    def leave(self) -> None:
        """Gives a place back."""
        with self._counting:
            self._taken -= 1

    @contextmanager
    def work(self, seconds_left: float | None = None) -> Iterator[None]:
        """Waits for a turn and holds it; for those who have a place.

        Args:
            seconds_left: until the caller's deadline; None when it set none.

        Raises:
            DeadlinePassed: the deadline passed first.
        """
        # Without a deadline gRPC tells of billions of seconds left, more than a lock can wait for.
        longest_wait = threading.TIMEOUT_MAX if seconds_left is None else min(seconds_left, threading.TIMEOUT_MAX)
        if longest_wait <= 0 or not self._turns.acquire(timeout=longest_wait):
            raise DeadlinePassed
        try:
            yield
        finally:
            self._turns.release()

    @contextmanager
    def turn(self, seconds_left: float | None) -> Iterator[None]:
        """Takes a place, waits for a turn and holds both.

        Args:
            seconds_left: until the caller's deadline; None when it set none.

        Raises:
            QueueFull: too many wait already.
            DeadlinePassed: the deadline passed first.
        """
        self.enter()
        try:
            with self.work(seconds_left):
                yield
        finally:
            self.leave()
