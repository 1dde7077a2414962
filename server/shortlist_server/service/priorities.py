"""Who goes first when more comes than a core can do: answering before reading what is to be answered."""

import contextlib
import os
import sys
import threading
from concurrent import futures

import grpc

_NICENESS = 10
_kept: list[grpc.Server] = []


def read_when_there_is_time() -> None:
    """Makes gRPC's own threads, which read from sockets, give way to those that answer.

    Under a flood they would read, and refuse, more than the process can ever answer, and take the time for it from the
    answers; so the flood stays in the sockets, where TCP holds it back. gRPC starts these threads with whatever first
    needs them and a thread on Linux inherits the niceness of the one that starts it, which nobody but the superuser may
    lower again. To be called before anything else needs gRPC; elsewhere than on Linux it does nothing.
    """
    if sys.platform == "linux" and not _kept:
        beginning = threading.Thread(target=_begin)
        beginning.start()
        beginning.join()


def _begin() -> None:
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        _kept.append(grpc.server(futures.ThreadPoolExecutor(1)))  # it needs them, and keeps them
