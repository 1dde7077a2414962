"""Several server processes on one port: the kernel deals connections out among them, and they share mapped models.

Each worker is an ordinary ``shortlist serve``; this process starts them, passes signals on and replaces those that die
or hang.
"""

import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence

from shortlist_server.standard_streams import say
from shortlist_server.telemetry.endpoint import WorkersEndpoint

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.2
_END_LOOK_SECONDS = 0.05
_READ_BYTES = 65_536
_RESTART_SECONDS = 2.0
"""A worker that dies sooner than this is replaced only when so much time has passed: none is started in a loop."""

_LOADING_SECONDS = 60.0
"""How often is said that a worker is not ready. It may take its time: a large model is long to read."""

_LATE_SECONDS = 10.0
"""More than calls under way may take: closing takes a few seconds as well, longer on a busy machine."""

_LAST_WORDS_SECONDS = 5.0
"""From SIGTERM to SIGKILL, for a worker that hangs."""


def reserve_port(host: str, port: int) -> socket.socket:
    """Takes a port that nobody listens on, and keeps it for processes that share it.

    Args:
        host: the address.
        port: 0 for any free one.

    Raises:
        OSError: somebody listens there, or it is no address of this machine.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    with socket.socket(family, socket.SOCK_STREAM) as alone:  # sharing would hide that somebody listens already
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        alone.bind(address)
        address = alone.getsockname()
    kept = socket.socket(family, socket.SOCK_STREAM)
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    kept.bind(address)
    return kept


class Workers:
    """Processes that serve the same.

    Args:
        command: what each runs; it prints a line when it listens, and from then on whatever it likes, now and then, as
            long as it answers calls.
        count: how many.
        metrics: where one scrape covers them all; None for nowhere.
        hung_seconds: a worker that has printed nothing for so long is replaced; 0 for never.
        ending_seconds: how long calls under way may take when all is to end; a worker that takes much longer is killed.
    """

    def __init__(
        self,
        command: Sequence[str],
        count: int,
        metrics: WorkersEndpoint | None,
        hung_seconds: float,
        ending_seconds: float = 0.0,
    ) -> None:
        self._ending_seconds = ending_seconds
        self._metrics = metrics
        self._command = command
        self._count = count
        self._hung_seconds = hung_seconds or float("inf")
        self._stop = threading.Event()
        self._workers: list[_Worker] = []

    def stop(self) -> None:
        """Ends ``run``, also while it waits for workers to listen; any thread may call it."""
        self._stop.set()

    def run(self, address: str) -> int:
        """Starts the workers, says so, and keeps them running until ``stop``.

        Returns:
            0 when all ended well; 1 when one could not be started or did not end well.
        """
        self._workers = [self._start() for _ in range(self._count)]
        said = False
        try:
            while not self._stop.wait(_LOOK_SECONDS):
                for worker in self._workers:
                    worker.look()
                if not said and all(worker.ready for worker in self._workers):
                    said = True
                    say(f"listening on {address}")
                elif not said and any((worker.process.poll() or 0) > 0 for worker in self._workers):
                    return 1  # it has said why
                self._replace_dead()
                self._end_hung()
        finally:
            ended_well = self._end_all()
        return 0 if ended_well else 1

    def _start(self) -> "_Worker":
        worker = _Worker(self._command, None if self._metrics is None else self._metrics.environment)
        if self._metrics is not None:
            self._metrics.worker_started()
        return worker

    def _replace_dead(self) -> None:
        for place, worker in enumerate(self._workers):
            process = worker.process
            now = time.monotonic()
            if process.poll() is None or now - max(worker.started, worker.tried) < _RESTART_SECONDS:
                continue
            worker.tried = now
            try:
                successor = self._start()
            except OSError as error:  # for want of memory or files, perhaps: the others go on, and soon it may do
                if worker.refused != str(error):
                    worker.refused = str(error)
                    log.error(
                        "worker %d ended with %d, and none can be started in its place yet: %s",
                        *(process.pid, process.returncode, error),
                    )
                continue
            log.error("worker %d ended with %d and is started again", process.pid, process.returncode)
            self._workers[place] = successor
            worker.close()
            if self._metrics is not None:
                self._metrics.worker_died(process.pid)

    def _end_hung(self) -> None:
        """Ends workers that answer no calls any more; those that are dead are replaced."""
        for worker in self._workers:
            if worker.process.poll() is not None or worker.silent_seconds < self._hung_seconds:
                continue
            if worker.told_to_end is None:
                log.error(
                    "worker %d has answered no calls for %.0f s and is ended",
                    *(worker.process.pid, worker.silent_seconds),
                )
                worker.end()
            elif time.monotonic() - worker.told_to_end >= _LAST_WORDS_SECONDS:
                log.error("worker %d did not end by itself and is killed", worker.process.pid)
                worker.process.kill()

    def _end_late(self, worker: "_Worker") -> None:
        """Kills a worker that was told to end and has had the time for its calls, and more, whatever it is doing."""
        if worker.told_to_end is None or worker.process.poll() is not None:
            return
        if time.monotonic() - worker.told_to_end >= self._ending_seconds + _LATE_SECONDS:
            log.error("worker %d was told to end and did not, so it is killed", worker.process.pid)
            worker.process.kill()

    def _end_all(self) -> bool:
        """Ends every worker, and waits for those that have calls to answer; says whether all ended well."""
        for worker in self._workers:
            worker.look()
            if worker.ready:
                worker.end()
            else:  # it has no calls, and might read its model for minutes before it sees a signal
                worker.process.kill()
        while any(worker.process.poll() is None for worker in self._workers):
            time.sleep(_END_LOOK_SECONDS)
            for worker in self._workers:
                worker.look()
                self._end_late(worker)
            self._end_hung()
        for worker in self._workers:
            worker.close()
        # A worker that has only just been started ends by the signal itself.
        return all(worker.process.returncode in {0, -signal.SIGTERM} or not worker.ready for worker in self._workers)


class _Worker:
    """A worker process, and what is known of it.

    Args:
        command: what it runs.
        environment: its variables; None for this process's own.

    Attributes:
        process: it.
        started: when, by ``time.monotonic``.
        ready: it has said that it listens.
        silent_seconds: since it last said something, as far as this process has been there to listen.
        told_to_end: when, by ``time.monotonic``; None if it was not.
        tried: when was last tried to start another in its place.
        refused: why that could not be done.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str] | None) -> None:
        # A session of its own: Ctrl-C at a terminal reaches this process alone, which then stops the workers in order.
        # Nothing comes by its standard input, which ends when this process does, even by kill -9; the worker ends then.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env=environment,
        )
        assert self.process.stdout is not None
        self._output = self.process.stdout.fileno()
        os.set_blocking(self._output, False)
        self._said = b""
        self.started = self._looked = self._reminded = time.monotonic()
        self.ready = False
        self.silent_seconds = 0.0
        self.told_to_end: float | None = None
        self.tried = float("-inf")
        self.refused = ""

    def look(self) -> None:
        """Takes what it has said since the last look, which should not be long ago."""
        try:
            came = os.read(self._output, _READ_BYTES)
        except BlockingIOError:
            came = b""
        now = time.monotonic()
        # If this process, or the whole machine, stood still, that says nothing of the worker.
        passed, self._looked = min(now - self._looked, 2 * _LOOK_SECONDS), now
        if not self.ready:
            self._said += came
            self.ready = b"listening on " in self._said
            if now - self._reminded >= _LOADING_SECONDS:
                self._reminded = now
                log.warning("worker %d is not ready after %.0f s", self.process.pid, now - self.started)
        self.silent_seconds = 0.0 if came or not self.ready else self.silent_seconds + passed

    def end(self) -> None:
        """Asks it to end, once it has answered its calls."""
        if self.told_to_end is None:
            self.told_to_end = time.monotonic()
            self.process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        """Closes what was between this process and the one that has ended."""
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
