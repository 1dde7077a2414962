"""Several server processes on one port: the kernel deals connections out among them, and they share mapped models.

Each worker is an ordinary ``shortlist serve``; this process starts them, passes signals on and replaces those that die.
"""

import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from shortlist_server.telemetry.endpoint import WorkersEndpoint

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.2
_RESTART_SECONDS = 2.0
"""A worker that dies sooner than this is replaced only when so much time has passed: none is started in a loop."""


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
        command: what each runs; it prints a line when it listens.
        count: how many.
        metrics: where one scrape covers them all; None for nowhere.
    """

    def __init__(self, command: Sequence[str], count: int, metrics: WorkersEndpoint | None = None) -> None:
        self._metrics = metrics
        self._command = command
        self._count = count
        self._stop = threading.Event()
        self._processes: list[subprocess.Popen[str]] = []
        self._started: list[float] = []

    def stop(self, *_: object) -> None:
        """Ends ``run``; may be a signal handler."""
        self._stop.set()

    def run(self, address: str) -> int:
        """Starts the workers, says so, and keeps them running until ``stop``.

        Returns:
            0 when all ended well; 1 when one could not be started or did not end well.
        """
        for _ in range(self._count):
            self._processes.append(self._start())
            self._started.append(time.monotonic())
        try:
            for process in self._processes:
                if not _listens(process):
                    return 1
            sys.stdout.write(f"listening on {address}\n")
            sys.stdout.flush()
            while not self._stop.wait(_LOOK_SECONDS):
                self._replace_dead()
        finally:
            for process in self._processes:
                process.send_signal(signal.SIGTERM)
            codes = [process.wait() for process in self._processes]
        # A worker that has only just been started ends by the signal itself.
        return 0 if set(codes) <= {0, -signal.SIGTERM} else 1

    def _start(self) -> subprocess.Popen[str]:
        # A session of its own: Ctrl-C at a terminal reaches this process alone, which then stops the workers in order.
        # Nothing comes by its standard input, which ends when this process does, even by kill -9; the worker ends then.
        environment = None if self._metrics is None else self._metrics.environment
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=environment,
        )
        if self._metrics is not None:
            self._metrics.worker_started()
        return process

    def _replace_dead(self) -> None:
        for place, process in enumerate(self._processes):
            if process.poll() is None or time.monotonic() - self._started[place] < _RESTART_SECONDS:
                continue
            log.error("worker %d ended with %d and is started again", process.pid, process.returncode)
            if self._metrics is not None:
                self._metrics.worker_died(process.pid)
            self._processes[place], self._started[place] = self._start(), time.monotonic()


def _listens(process: subprocess.Popen[str]) -> bool:
    assert process.stdout is not None
    return process.stdout.readline().startswith("listening on ")
