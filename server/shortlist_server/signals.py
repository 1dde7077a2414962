"""Signals that ask a server to stop, heard by a thread of their own."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable

_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def on_stop_signals(stop: Callable[[], object]) -> None:
    """Has SIGTERM, SIGINT and SIGHUP call a function, once each time they come.

    No Python runs in a handler: to set an event takes a lock, which the code that the handler interrupts may hold, such
    as the handler of a signal just before, and then nobody hears of any signal any more. Nor does the main thread have
    to wake up first: Python's own handler, on whatever thread, writes the signal's number to a pipe.

    Args:
        stop: is called by another thread; of SIGHUP nobody is told under ``nohup``.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    # A shell has what it starts in the background ignore SIGINT; whoever sends it there by hand means it all the same.
    heard = [
        number for number in _STOPPING if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    ]

    def listen() -> None:
        while came := os.read(reading, 1):
            if came[0] in heard:
                stop()

    threading.Thread(target=listen, name="signals", daemon=True).start()
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in heard:
        signal.signal(number, lambda *_: None)


def end_by_alarm(seconds: int) -> None:
    """Has the system end this process after a time, whatever it is doing by then."""
    with contextlib.suppress(AttributeError):  # this is no Unix
        signal.alarm(seconds)
