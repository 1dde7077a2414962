"""Threads for calls, which a machine that has no more of them to give does not end."""

import logging
from concurrent.futures import ThreadPoolExecutor

log = logging.getLogger(__name__)


class SteadyPool(ThreadPoolExecutor):
    """A pool that makes do with the threads it has where another cannot be started: ``pids.max`` of a container, say.

    The library's own raises from ``submit`` then, though the work is queued, and in gRPC that ends the thread which
    takes calls: the server would never answer again. The first thread is started at once, so that there is one.

    Args:
        threads: at most.
        name: of the threads, which have a number behind it.
    """

    def __init__(self, threads: int, name: str) -> None:
        super().__init__(threads, name)
        self._short = False
        self._waiting = 0
        self.submit(int)

    def _adjust_thread_count(self) -> None:
        # Whoever does work that had to wait is counted as idle once more afterwards, as if there were one thread more.
        while self._waiting and self._idle_semaphore.acquire(blocking=False):
            self._waiting -= 1
        before = len(self._threads)
        try:
            super()._adjust_thread_count()
        except RuntimeError as error:
            if not self._threads:
                raise
            self._waiting += 1
            if not self._short:  # said once, until one could be started again: calls come thousands a second
                log.error("calls have %d threads and get no more: %s", before, error)
            self._short = True
        else:
            self._short = self._short and len(self._threads) == before
