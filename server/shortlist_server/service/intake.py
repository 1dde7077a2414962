"""What the fast lane takes of the calls that wait in gRPC: as many as there is room for, and a few more to refuse.

docs/decisions/0018-overload.md says why not all.
"""

import logging
import time
from collections import deque
from collections.abc import Iterable
from enum import Enum, auto
from typing import Any

from shortlist_server.admission import Admission
from shortlist_server.service.fast_calls import Call

log = logging.getLogger(__name__)

_CALLS_AT_ONCE = 64
"""Calls of a method that gRPC may hand over before the next look at the queue: as many as are answered together."""

_REFUSALS_AT_ONCE = 256
"""After a while without any; and so many too many at most are taken off those to come."""

_REFUSALS_PER_SECOND = 500
"""Refusing a call takes as long as answering one, 90 us: a twentieth of a core goes into refusals at most. The other
calls wait in gRPC."""

_SOON_SECONDS = 1.0
"""Silence for as long is as good as a refusal; who has more time is told, though refusals are used up."""

_READING_SECONDS = 1.0
"""No refusal is kept for longer than this for a caller who begins a call and sends nothing."""

_LAST_WORD_SECONDS = 0.1
"""A call that is let go of sooner after its deadline than gRPC ends it would be cancelled instead."""

_TOO_LATE = 1_024
"""Calls that are kept until gRPC has ended them, the latest ones: each holds some 40 KB."""


class Fate(Enum):
    """What is to be done about a call that has come.

    Attributes:
        READ: its message is read; whether it is answered in time is seen then.
        REFUSE: it is refused, unread.
        EXPIRE: nothing, until gRPC ends it at its deadline.
    """

    READ = auto()
    REFUSE = auto()
    EXPIRE = auto()


class Intake:
    """Asks gRPC for calls, and knows which of them are to be refused, and which to be let expire.

    Args:
        core: gRPC's own handle of the server.
        queue: where calls come to; the tag of a call that comes is its path.
        paths: of the methods, "/package.Service/Method".
        admission: says how many calls there is room for, and how long one takes.
        silent_seconds: so long a message may take to come whole.
    """

    def __init__(
        self, core: Any, queue: Any, paths: Iterable[str], admission: Admission, silent_seconds: float
    ) -> None:
        self._silent_seconds = silent_seconds
        self._core = core
        self._queue = queue
        self._admission = admission
        self._asked_for = dict.fromkeys(paths, 0)
        self._refusals = float(_REFUSALS_AT_ONCE)
        # Calls whose message is asked for, the longest first.
        self._being_read: dict[Call, None] = {}
        self._silent: dict[Call, None] = {}
        self._last_asked = time.perf_counter()
        self._too_late: deque[tuple[float, Any]] = deque(maxlen=_TOO_LATE)

    def ask(self) -> None:
        """Lets gRPC hand over as many calls as there is room for, and a few to refuse."""
        now = time.perf_counter()
        self._refusals = min(self._refusals + (now - self._last_asked) * _REFUSALS_PER_SECOND, _REFUSALS_AT_ONCE)
        self._last_asked = now
        while self._being_read and (call := next(iter(self._being_read))).arrived < now - _READING_SECONDS:
            del self._being_read[call]
            self._silent[call] = None
        # A refusal is kept for each call that is being read; a place is not, or slow senders would take them all.
        refusals = max(int(self._refusals) - len(self._being_read), 0)
        room = max(self._admission.places - self._admission.taken, 0) + refusals
        for path, asked_for in self._asked_for.items():
            for _ in range(min(room, _CALLS_AT_ONCE) - asked_for):
                if not self.ask_for_one(path):
                    return

    def ask_for_one(self, path: str) -> bool:
        """Lets gRPC hand over one more call of a method; says whether it will."""
        try:
            self._core.request_registered_call(self._queue, self._queue, path, path)
        except ValueError:
            log.debug("the server is shutting down")
            return False
        self._asked_for[path] += 1
        return True

    def came(self, path: str) -> None:
        """Takes note of a call that was handed over, or of none when the server shuts down."""
        self._asked_for[path] -= 1

    def reads(self, call: Call) -> None:
        """Takes note of a call whose message is asked for."""
        self._being_read[call] = None

    def has_read(self, call: Call) -> None:
        """Takes note that the message has come, or will not."""
        self._being_read.pop(call, None)
        self._silent.pop(call, None)

    def hang_up(self) -> None:
        """Cancels the calls whose callers have sent nothing for too long."""
        long_since = time.perf_counter() - self._silent_seconds
        while self._silent and (call := next(iter(self._silent))).arrived < long_since:
            del self._silent[call]
            call.core.cancel()  # which says, as its message, that there will be none

    def fate_of(self, deadline: float, together: int, *, several: bool) -> Fate:
        """What is to be done about a call that has come.

        As long as nobody is refused, every message is read. From then on who cannot be answered in time is not to cost
        as much as an answer.

        Args:
            deadline: seconds since the epoch.
            together: how many are answered at a time where as many wait.
            several: whether it may have several requests.
        """
        left = deadline - time.time()
        if left <= 0:
            return Fate.EXPIRE
        if self._refusals >= _REFUSALS_AT_ONCE:
            return Fate.READ
        # Those who keep silent are among those that are read: they shall not turn everybody away.
        coming = min(len(self._being_read), _REFUSALS_AT_ONCE)
        if left >= self._admission.expected_seconds(together, coming=coming, several=several):
            return Fate.READ
        return Fate.EXPIRE if self.keeps_silent(left) else Fate.REFUSE

    def keeps_silent(self, seconds_left: float) -> bool:
        """Whether who cannot be answered in time is let expire instead of refused."""
        return seconds_left <= _SOON_SECONDS and self._refusals < 1

    def refused(self) -> None:
        """Takes note of a refusal for lack of room: one too many is one less later, as who came is told at once."""
        self._refusals = max(self._refusals - 1, -_REFUSALS_AT_ONCE)

    def let_expire(self, core: Any, deadline: float) -> None:
        """Keeps a call about which nothing is done: gRPC ends it at its deadline, for less.

        Args:
            core: gRPC's own handle of it; letting it go would cancel the call.
            deadline: seconds since the epoch.
        """
        self._too_late.append((deadline, core))

    def let_go(self) -> None:
        """Lets go of the calls that gRPC has ended."""
        long_since = time.time() - _LAST_WORD_SECONDS
        while self._too_late and self._too_late[0][0] <= long_since:
            self._too_late.popleft()
