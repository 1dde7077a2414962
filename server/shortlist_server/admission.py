"""Who may work and wait: so many at once, a bounded queue, and nobody who would not be answered in time."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum, auto

from shortlist_server.errors import DeadlinePassed, QueueFull

_SHORTEST_RETRY_SECONDS = 0.01
_LONGEST_RETRY_SECONDS = 5.0
_WINDOW_SECONDS = 0.1
_MEMORY_SECONDS = 0.5
"""Of work, after which what was measured before counts e times less: one slow request among quick ones says little."""


_MOST_BYTES = 64 << 20
"""Of messages that wait and are worked on; read, they take five times as much memory."""

_BETWEEN = 64
"""So many requests of other calls, where they wait, are answered between two turns of batches, which are as long."""


class Line(Enum):
    """Where to wait for a turn.

    Attributes:
        FIRST: before all others; for whoever answers many callers in short turns.
        OTHERS: in the order of coming.
        BATCHES: the same, for turns of about ``_BETWEEN`` requests, which take turns with those of the others.
        GOES_ON: as the first of the batches: were all of them under way together, each that comes would put off those
            that were let in before it.
    """

    FIRST = auto()
    OTHERS = auto()
    BATCHES = auto()
    GOES_ON = auto()


class Admission:
    """Lets a few work at a time, a bounded number wait, and nobody begin who would end past a deadline.

    How long newcomers will wait is reckoned from how many requests are before them and how long requests have taken
    lately. Who cannot be answered in time by that is told so at once, and does not keep those waiting who can. Calls
    of several requests, batches, have half of the places at most, and half of the work where single requests wait.

    Args:
        working: how many may work at once.
        waiting: how many may wait for their turn.
    """

    def __init__(self, working: int, waiting: int) -> None:
        self._places = working + waiting
        self._taken = 0
        self._several = 0
        self._requests = 0
        self._bytes = 0
        self._free = working
        self._first: deque[_Ticket] = deque()
        self._others: deque[_Ticket] = deque()
        self._batches: deque[_Ticket] = deque()
        self._since_batch = 0  # so many requests of others were called up
        self._seconds_per_request = 0.0
        self._past_seconds = self._past_requests = 0.0
        self._window_began = 0.0
        self._window_requests = 0
        self._lock = threading.Lock()

    @property
    def waiting_seconds(self) -> float:
        """How long a newcomer will wait for its turn, as far as one can tell."""
        return self._requests * self._seconds_per_request

    @property
    def seconds_per_request(self) -> float:
        """How long requests have taken lately, where there were always some; 0 where that is not known yet."""
        return self._seconds_per_request

    def expected_seconds(self, together: int, *, coming: int = 0, several: bool = False) -> float:
        """How long a newcomer will take, who is answered together with others where many wait, as far as one can tell.

        Alone, it is worth a try whatever is expected of it: that is how expectations are corrected.

        Args:
            together: so many at a time, where as many wait; fewer are taken to be answered one by one.
            coming: so many will be before it that have no place yet.
            several: whether it may have several requests.
        """
        if not self._taken:
            return 0.0
        turn = together if self._requests + coming >= together else 1
        return self._seconds_until_turn(several=several) + (coming + turn) * self._seconds_per_request

    def _seconds_until_turn(self, *, several: bool) -> float:
        before = self._requests
        if self._several and not several:
            before = min(before, 2 * (self._taken - self._several) + _BETWEEN)
        return before * self._seconds_per_request

    @property
    def places(self) -> int:
        """How many calls may work and wait."""
        return self._places

    @property
    def taken(self) -> int:
        """How many do."""
        return self._taken

    def full(self) -> QueueFull:
        """What to tell who is refused."""
        return QueueFull(min(max(self.waiting_seconds, _SHORTEST_RETRY_SECONDS), _LONGEST_RETRY_SECONDS))

    def has_room_for(self, size: int) -> bool:
        """Whether one more message of so many bytes may enter."""
        return self._taken < self._places and (not self._taken or self._bytes + size <= _MOST_BYTES)

    def enter(self, seconds_left: float | None = None, requests: int = 1, size: int = 0) -> None:
        """Takes a place among those that work and wait; ``leave`` gives it back.

        Args:
            seconds_left: until the caller's deadline; None when it set none.
            requests: how much work it is.
            size: bytes of its message.

        Raises:
            QueueFull: too many wait already, or so many that this one would not be answered in time.
            DeadlinePassed: the deadline has passed already.
        """
        if seconds_left is not None and seconds_left <= 0:
            raise DeadlinePassed
        with self._lock:
            wait = self._seconds_until_turn(several=requests > 1)
            if not self.has_room_for(size) or (requests > 1 and self._several >= max(self._places // 2, 1)):
                raise self.full()
            # Alone, a call is worth a try whatever is expected of it: that is how expectations are corrected.
            if seconds_left is not None and self._taken and wait + requests * self._seconds_per_request > seconds_left:
                raise self.full()
            if self._taken == 0:
                self._reckon()
                self._window_began, self._window_requests = time.perf_counter(), 0
            self._taken += 1
            self._several += requests > 1
            self._requests += requests
            self._bytes += size

    def progress(self, requests: int) -> None:
        """Takes note that some requests of a call that has a place are answered."""
        with self._lock:
            self._requests -= requests
            self._window_requests += requests

    def leave(
        self, requests: int = 1, size: int = 0, done: int = 0, *, dropped: bool = False, together: bool = False
    ) -> None:
        """Gives a place back.

        Args:
            requests: as ``enter`` was told.
            size: the same.
            done: of how many of the requests ``progress`` was told.
            dropped: the others were not answered, which says nothing of how long answers take.
            together: with others, after the last of which ``reckon`` is called: of the seconds that they took together
                the first has not had all.
        """
        with self._lock:
            self._taken -= 1
            self._several -= requests > 1
            self._requests -= requests - done
            self._bytes -= size
            if not dropped:
                self._window_requests += requests - done
            if not together:
                self._reckon()

    def reckon(self) -> None:
        """Takes note of how long those took that have left together."""
        with self._lock:
            self._reckon()

    def _reckon(self) -> None:
        # How fast requests come out while there are always some is how fast a queue moves.
        now = time.perf_counter()
        seconds = now - self._window_began
        if self._window_requests and (self._taken == 0 or seconds > _WINDOW_SECONDS):
            kept = math.exp(-seconds / _MEMORY_SECONDS)
            past_seconds = self._past_seconds * kept + seconds
            past_requests = self._past_requests * kept + self._window_requests
            self._seconds_per_request = past_seconds / past_requests
            # However long it took, it counts as so much work: a server that stood still is soon itself again.
            part = _MEMORY_SECONDS / max(past_seconds, _MEMORY_SECONDS)
            self._past_seconds, self._past_requests = past_seconds * part, past_requests * part
            self._window_began, self._window_requests = now, 0

    @contextmanager
    def work(self, seconds_left: float | None = None, requests: int = 1, *, line: Line = Line.OTHERS) -> Iterator[None]:
        """Waits for a turn and holds it; for those who have a place.

        Args:
            seconds_left: until the caller's deadline; None when it set none.
            requests: how much work the turn is.
            line: where it waits.

        Raises:
            DeadlinePassed: the deadline passed first.
        """
        if not self._take_turn(seconds_left, requests, line):
            raise DeadlinePassed
        try:
            yield
        finally:
            self._give_turn_back()

    @contextmanager
    def place(self, seconds_left: float | None, requests: int = 1, size: int = 0) -> Iterator[Callable[[int], None]]:
        """Takes a place and holds it; arguments and errors as of ``enter``.

        Gives:
            What is to be told how many of the requests are answered, as long as there are more.
        """
        self.enter(seconds_left, requests, size)
        done, dropped = 0, False

        def progress(some: int) -> None:
            nonlocal done
            done += some
            self.progress(some)

        try:
            yield progress
        except DeadlinePassed:
            dropped = True
            raise
        finally:
            self.leave(requests, size, done, dropped=dropped)

    @contextmanager
    def turn(self, seconds_left: float | None, requests: int = 1, size: int = 0) -> Iterator[None]:
        """Takes a place, waits for a turn and holds both.

        Args:
            seconds_left: until the caller's deadline; None when it set none.
            requests: how much work it is.
            size: bytes of its message.

        Raises:
            QueueFull: too many wait already, or so many that this one would not be answered in time.
            DeadlinePassed: the deadline passed first.
        """
        with self.place(seconds_left, requests, size), self.work(seconds_left, requests):
            yield

    def _take_turn(self, seconds_left: float | None, requests: int, line: Line) -> bool:
        waiting = {Line.FIRST: self._first, Line.OTHERS: self._others}.get(line, self._batches)
        with self._lock:
            if self._free > 0:
                self._free -= 1
                return True
            ticket = _Ticket(requests)
            if line is Line.GOES_ON:
                waiting.appendleft(ticket)
            else:
                waiting.append(ticket)
        # Without a deadline gRPC tells of billions of seconds left, more than a lock can wait for.
        longest_wait = threading.TIMEOUT_MAX if seconds_left is None else min(seconds_left, threading.TIMEOUT_MAX)
        if ticket.called.acquire(timeout=max(longest_wait, 0)):
            return True
        with self._lock:
            if ticket in waiting:
                waiting.remove(ticket)
                return False
        # It was called up in the last moment, and gives the turn to the next.
        self._give_turn_back()
        return False

    def _give_turn_back(self) -> None:
        with self._lock:
            ticket = self._next()
            if ticket is None:
                self._free += 1
            else:
                ticket.called.release()  # whose turn it is now

    def _next(self) -> "_Ticket | None":
        if self._first:
            return self._first.popleft()
        if self._others and not (self._batches and self._since_batch >= _BETWEEN):
            ticket = self._others.popleft()
            self._since_batch += ticket.requests
            return ticket
        self._since_batch = 0
        return self._batches.popleft() if self._batches else None


class _Ticket:
    """Somebody who waits for a turn.

    Args:
        requests: how much work the turn is.

    Attributes:
        called: released when it has come.
    """

    def __init__(self, requests: int) -> None:
        self.requests = requests
        self.called = threading.Lock()
        self.called.acquire()
