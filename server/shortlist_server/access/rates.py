"""How many requests a second a caller may make, for a bounded number of callers."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

_CALLERS = 10_000
"""Callers remembered: some 2 MB. Beyond them the one that was not heard of for longest starts anew."""

_ROUNDING = 1e-9


class Rates:
    """Token buckets, kept as the generic cell rate algorithm does: of each caller the time when its bucket is full.

    Args:
        burst_seconds: a full bucket holds the requests of so many seconds, and one at least.
        callers: remembered at most.
        clock: seconds.
    """

    def __init__(
        self, burst_seconds: float = 1.0, callers: int = _CALLERS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst_seconds = burst_seconds
        self._callers = callers
        self._clock = clock
        self._full_at: OrderedDict[str, tuple[float, float]] = OrderedDict()  # and at which rate it fills
        self._taking = threading.Lock()

    def take(self, caller: str, rate: float, requests: int = 1) -> float:
        """Takes requests out of a caller's bucket, if they are there.

        More than a full bucket holds are let through when it is full, and the caller waits the longer for the next: a
        batch is never refused for good, and the rate holds all the same.

        Args:
            caller: whose bucket.
            rate: requests/s at which it fills.
            requests: how many.

        Returns:
            0 where they were taken, or the seconds after which they can be.
        """
        burst = max(self._burst_seconds, 1 / rate)
        with self._taking:
            now = self._clock()
            full_at, old_rate = self._full_at.get(caller, (now, rate))
            # All of these in seconds of filling. What was taken before the operator raised the rate fills faster too;
            # who had emptied a large bucket before it was lowered need not wait for all of that at the new rate.
            missing = max(full_at - now, 0) * min(old_rate / rate, 1)
            wait = missing + min(requests / rate, burst) - burst
            if wait > _ROUNDING:
                self._full_at[caller] = now + missing, rate
                return wait
            self._full_at[caller] = now + missing + requests / rate, rate
            self._full_at.move_to_end(caller)
            if len(self._full_at) > self._callers:
                self._full_at.popitem(last=False)
            return 0.0


class BoundedLog:
    """Warnings at a bounded rate, whoever causes them; those left out are counted.

    Args:
        log: takes the warnings.
        rate: lines/s; ten seconds' worth may come at once.
    """

    def __init__(self, log: logging.Logger, rate: float = 1.0) -> None:
        self._log = log
        self._rate = rate
        self._rates = Rates(burst_seconds=10.0)
        self._left_out = 0
        self._counting = threading.Lock()

    def warning(self, message: str, *arguments: object) -> None:
        """Logs as ``logging.Logger.warning`` does, or counts."""
        with self._counting:
            if self._rates.take("", self._rate) > 0:
                self._left_out += 1
                return
            left_out, self._left_out = self._left_out, 0
        if left_out:
            message, arguments = f"{message} (and %d more since the last such line)", (*arguments, left_out)
        self._log.warning(message, *arguments)
