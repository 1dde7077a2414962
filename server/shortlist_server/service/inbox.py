"""The messages of a stream, as many at a time as have come."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from shortlist_server.errors import QueryError

T = TypeVar("T")

_LOOK_SECONDS = 0.1

BYTES_AHEAD = 1 << 20
"""Of a stream, read ahead by either lane: beyond this one message more at most."""


class Inbox(Generic[T]):
    """Reads a stream ahead on a thread of its own, by a bounded number of messages.

    Args:
        messages: blocks until the next message is there; raises QueryError when that one cannot be read, and anything
            else when the call is over.
        size: so many are read ahead, and given out at once, at most.
        bytes_of: of a message, of which so many are read ahead that one more at most is beyond ``BYTES_AHEAD``.
    """

    def __init__(self, messages: Iterator[T], size: int, bytes_of: Callable[[T], int]) -> None:
        self._messages = messages
        self._size = size
        self._bytes_of = bytes_of
        self._bytes_read = self._bytes_given = 0  # each counted by one thread
        self._read: queue.Queue[tuple[T, float] | None] = queue.Queue(size)  # None is the end
        self._closed = threading.Event()
        self._failure: QueryError | None = None
        threading.Thread(target=self._read_ahead, name="stream", daemon=True).start()

    def close(self) -> None:
        """Says that nobody takes messages any more."""
        self._closed.set()

    def batches(self) -> Iterator[list[tuple[T, float]]]:
        """What has come since the last time, one message at least, each with when it came by ``time.perf_counter``.

        Raises:
            QueryError: after the last message, when the one after it could not be read.
        """
        while True:
            entry = self._read.get()
            batch = []
            while entry is not None:
                batch.append(entry)
                if len(batch) == self._size or self._read.empty():
                    break
                entry = self._read.get()
            if batch:
                yield batch
                self._bytes_given += sum(self._bytes_of(message) for message, _ in batch)
            if entry is None:
                if self._failure is not None:
                    raise self._failure
                return

    def _read_ahead(self) -> None:
        try:
            for message in self._messages:
                self._bytes_read += self._bytes_of(message)
                self._put((message, time.perf_counter()))
                while self._bytes_read - self._bytes_given >= BYTES_AHEAD and not self._closed.wait(_LOOK_SECONDS):
                    pass
        except QueryError as error:
            self._failure = error
        except Exception:  # noqa: BLE001 # the call is over: there is nobody to tell
            self.close()
        self._put(None)

    def _put(self, entry: tuple[T, float] | None) -> None:
        while True:
            try:
                return self._read.put(entry, timeout=_LOOK_SECONDS)
            except queue.Full:
                if self._closed.is_set():
                    return None
