"""Where Prometheus scrapes: one process by itself, or many through the one that starts them.

Several workers share a port, and a scrape of one of them would tell of that one alone. So they write their values into
files of a folder (prometheus_client's multiprocess mode), and the process that started them answers for all.
"""

import io
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

log = logging.getLogger(__name__)

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Names the folder where workers keep their values, in their environment."""


class WorkersCollector:
    """What all workers have in their files, but for the gauges of versions that none has any more.

    Args:
        folder: where the files are.
    """

    def __init__(self, folder: Path) -> None:
        self._files = MultiProcessCollector(None, str(folder))  # type: ignore[no-untyped-call]

    def collect(self) -> Iterator[Metric]:
        """Every metric; called at each scrape."""
        for metric in self._files.collect():  # type: ignore[no-untyped-call]
            if metric.type == "gauge":
                metric.samples = [each for each in metric.samples if each.value or "version" not in each.labels]
            yield metric


class Endpoint:
    """Answers GET /metrics with what a registry has, until it is closed.

    Raises:
        OSError: the address cannot be listened on.
    """

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise OSError(
                f"cannot listen on {host}:{port} for metrics: {error.strerror}; "
                "choose another with --metrics-host and --metrics-port"
            ) from error
        self._server.RequestHandlerClass = _Scrape
        self._server.handle_error = _scrape_failed  # type: ignore[assignment, method-assign]  # not print it
        shown_host = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown_host}:{self._server.server_port}/metrics"
        log.info("metrics are at %s", self.url)

    def close(self) -> None:
        """Listens no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Scrape(WSGIRequestHandler):
    """A connection to the metrics' port, which holds a thread: one that says nothing for long is closed."""

    timeout = 10.0

    def log_message(self, *_: Any) -> None:
        """Says nothing of requests."""

    def get_stderr(self) -> io.StringIO:
        """Takes the traceback of a request that failed, which is answered with 500: strangers may ask anything."""
        return _Traceback()


class _Traceback(io.StringIO):
    def flush(self) -> None:
        log.debug("a scrape failed:\n%s", self.getvalue())


def _scrape_failed(_request: object, client_address: object) -> None:
    """Whoever scrapes may go away at any time."""
    log.debug("a connection of %s to the metrics' port failed", client_address, exc_info=True)


class WorkersEndpoint:
    """One scrape for all workers of a server.

    Raises:
        OSError: the address cannot be listened on.
    """

    def __init__(self, host: str, port: int) -> None:
        registry = CollectorRegistry()
        self._running = Gauge("shortlist_workers", "Worker processes that run.", registry=registry)
        self._restarts = Counter(
            "shortlist_worker_restarts", "Worker processes that died or hung and were started again.", registry=registry
        )
        self._folder = Path(tempfile.mkdtemp(prefix="shortlist-metrics-"))
        try:
            registry.register(WorkersCollector(self._folder))
            self._endpoint = Endpoint(registry, host, port)
        except OSError:
            shutil.rmtree(self._folder)
            raise

    @property
    def url(self) -> str:
        """Where Prometheus may scrape."""
        return self._endpoint.url

    @property
    def environment(self) -> dict[str, str]:
        """What a worker must be started with to be counted."""
        return {**os.environ, FOLDER_VARIABLE: str(self._folder)}

    def worker_started(self) -> None:
        """Counts a worker that runs."""
        self._running.inc()

    def worker_died(self, pid: int) -> None:
        """Counts a worker no more, and forgets its gauges; what it counted stays counted."""
        self._running.dec()
        self._restarts.inc()
        # Somebody may have cleaned temporary folders up, and no worker starts without this one.
        with suppress(OSError):  # of which the next worker tells
            self._folder.mkdir(mode=0o700, exist_ok=True)
            mark_process_dead(pid, str(self._folder))  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Listens no more and removes the folder."""
        self._endpoint.close()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def workers_endpoint(host: str, port: int | None) -> Iterator[WorkersEndpoint | None]:
    """The endpoint of all workers while they run; None where no port is given.

    Raises:
        OSError: the address cannot be listened on.
    """
    if port is None:
        yield None
        return
    endpoint = WorkersEndpoint(host, port)
    try:
        yield endpoint
    finally:
        endpoint.close()
