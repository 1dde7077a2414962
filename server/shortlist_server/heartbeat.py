"""Whoever answers calls says every second that it does: to the process that started this one, or to a watchdog here."""

import contextlib
import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor

from shortlist_server.signals import end_by_alarm
from shortlist_server.telemetry.logs import finish_log

log = logging.getLogger(__name__)

BEAT_SECONDS = 1.0

_LAST_WORDS_SECONDS = 5
"""Of a process that hangs."""


class Heartbeat:
    """Writes a byte a second to a pipe, which nobody may be reading.

    Args:
        pipe: file descriptor, which never blocks from now on.
    """

    def __init__(self, pipe: int) -> None:
        os.set_blocking(pipe, False)
        self._pipe = pipe
        self._next = 0.0

    def beat(self) -> None:
        """Says that the calling thread, which answers calls, has come round again; cheap enough for every round."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + BEAT_SECONDS
            with contextlib.suppress(OSError):  # it is full, as whoever reads it stands still, or is gone
                os.write(self._pipe, b".")


class Watchdog:
    """Ends this process when nobody answers calls any more, and says what every thread was doing.

    For a process that no other one watches: whoever started it is to start it again. It counts its own rounds instead
    of the time, so that a machine or a process that was stopped for a while is not taken for one that hangs.

    Args:
        hung_seconds: how long may pass without a beat.
    """

    def __init__(self, hung_seconds: float) -> None:
        self._hung_seconds = hung_seconds
        self._silent_seconds = 0.0
        self._watching = False

    def beat(self) -> None:
        """Says that the calling thread, which answers calls, has come round again; the first time begins the watch."""
        self._silent_seconds = 0.0
        if not self._watching:
            self._watching = True
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def _watch(self) -> None:
        while self._silent_seconds < self._hung_seconds:
            time.sleep(BEAT_SECONDS)
            self._silent_seconds += BEAT_SECONDS
        # Whoever reads what is said may stand still as well.
        end_by_alarm(_LAST_WORDS_SECONDS)
        log.critical("no calls have been answered for %.0f s, so the process ends", self._hung_seconds)
        finish_log()
        faulthandler.dump_traceback()
        os._exit(1)  # nothing that waits for the threads that hang would ever come to an end


def beat_from(pool: Executor, beat: Callable[[], None], stopping: threading.Event) -> None:
    """Has a pool's threads beat, for as long as there is one that is free in time; returns when it is to stop.

    Args:
        pool: answers calls.
        beat: to be called by one of its threads.
        stopping: ends it.
    """
    while not stopping.is_set():
        try:
            pool.submit(beat).result()
        except RuntimeError:  # the pool takes nothing any more
            return
        stopping.wait(BEAT_SECONDS)
