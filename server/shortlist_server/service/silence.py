"""Callers who begin a call and do not send what it is about, or do not take what they are told: each holds a thread."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

SILENT_SECONDS = 20.0
"""For a request to come whole. Of 16 MiB, the longest, it takes a line of 7 Mbit/s."""

SILENT_PROBE_SECONDS = 1.0
"""The same of a probe, which is some bytes."""

_LOOK_SECONDS = 0.5


class Silence:
    """Cancels the calls of grpc.server that keep it waiting for too long; a thread of its own looks after them."""

    def __init__(self) -> None:
        self._until: dict[grpc.ServicerContext, float] = {}

    def first(self, requests: Iterator[object], context: grpc.ServicerContext, seconds: float) -> object | None:
        """The one request of a call; None where it ends without.

        Args:
            requests: of the call.
            context: its.
            seconds: how long it may take.

        Raises:
            grpc.RpcError: the call was cancelled meanwhile.
        """
        with self.bounded(context, seconds):
            return next(requests, None)

    @contextmanager
    def bounded(self, context: grpc.ServicerContext, seconds: float) -> Iterator[None]:
        """Cancels a call if the block, of which a call has one at a time, takes longer than so many seconds."""
        self._until[context] = time.monotonic() + seconds
        try:
            yield
        finally:
            del self._until[context]

    def watch(self, stop: threading.Event) -> None:
        """Hangs up on those who have been silent for too long, until an event is set."""
        while not stop.wait(_LOOK_SECONDS):
            now = time.monotonic()
            for context, until in self._until.copy().items():
                if until < now:
                    context.cancel()
