"""Counts, traces and logs what happens in one server process."""

import functools
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from shortlist_server.errors import QueryError
from shortlist_server.model.folder import LoadedModel
from shortlist_server.retrieval.queries import BEST_UNSEEN, Remarks
from shortlist_server.telemetry.config import TelemetryConfig
from shortlist_server.telemetry.endpoint import Endpoint
from shortlist_server.telemetry.logs import TURNED_AWAY, EndedCall, RequestLog, request_id_of
from shortlist_server.telemetry.metrics import FALLBACKS, Metrics
from shortlist_server.telemetry.observer import Call, Load, Observer, Summary
from shortlist_server.telemetry.tracing import tracing_of

log = logging.getLogger(__name__)

PULSE_SECONDS = 1.0
"""How often is looked at what nobody tells: the load, and whether log lines were left out."""

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Telemetry(Observer):
    """Whom the server tells what happened, and who tells it on.

    Args:
        config: what is said, and where.
        services: full names of the services, each with the names of its methods.

    Raises:
        RuntimeError: traces must be on and OpenTelemetry is not installed.
    """

    def __init__(self, config: TelemetryConfig, services: Iterable[tuple[str, Sequence[str]]]) -> None:
        services = list(services)
        self._config = config
        self._known = frozenset(method for _, methods in services for method in methods)
        self._metrics = Metrics([method for _, methods in services for method in methods])
        self._log = RequestLog(config.slow_ms / 1e3, every_call=config.access_log)
        self._tracing = tracing_of(config.traces, services)
        self._load: Callable[[], Load] = Load
        self._endpoint: Endpoint | None = None
        self._stopping = threading.Event()
        self._pulse = threading.Thread(target=self._beat, name="telemetry", daemon=True)
        self._born = time.monotonic()
        self._default: int | None = None
        self._last_swap: float | None = None
        self._turns = _Turns()

    @property
    def metrics_url(self) -> str | None:
        """Where Prometheus may scrape; None for nowhere."""
        return None if self._endpoint is None else self._endpoint.url

    def listen(self) -> None:
        """Begins to answer scrapes, where that is wanted.

        Raises:
            OSError: the address cannot be listened on.
        """
        if self._config.metrics_port is not None:
            self._endpoint = Endpoint(self._metrics.registry, self._config.metrics_host, self._config.metrics_port)

    def start(self, load: Callable[[], Load]) -> None:
        """Begins to look at the load."""
        self._load = load
        self._pulse.start()

    def stop(self) -> None:
        """Says what is left to say, and ends."""
        self._stopping.set()
        if self._pulse.is_alive():
            self._pulse.join()
        self._log.flush()
        if self._endpoint is not None:
            self._endpoint.close()
        if self._tracing is not None:
            self._tracing.close()

    def summary(self) -> Summary:
        """What this process says of itself."""
        requests = self._metrics.requests.totals("code")
        answered = requests.get("OK", 0)
        return Summary(
            uptime_seconds=time.monotonic() - self._born,
            pid=os.getpid(),
            answered=answered,
            failed=sum(requests.values()) - answered,
            load=self._load(),
            last_swap=self._last_swap,
            answers={int(version): answers for version, answers in self._metrics.answers.totals("version").items()},
        )

    def calls_answered(self, method: str, calls: Sequence[Call]) -> None:
        """Counts calls, and looks whether one of them is worth more."""
        if not calls:
            return
        ended = time.perf_counter()
        self._metrics.requests[method, "OK"].inc(len(calls))
        seconds = [ended - call.arrived for call in calls]
        self._metrics.request_seconds[method,].observe_many(seconds)
        if self._log.concerns(max(seconds)) or self._tracing is not None:
            for call in calls:
                self._over(method, call, "OK", ended)

    def stream_answered(self, method: str, call: Call) -> None:
        """Counts a stream; how long it took was the caller's choice."""
        self._metrics.requests[method, "OK"].inc()
        self._over(method, call, "OK", time.perf_counter())

    def call_failed(self, method: str, call: Call, code: str, request_id: str, error: Exception) -> None:
        """Counts a call that failed."""
        # Strangers may call what they like, by names without end.
        method = method if method in self._known else "other"
        self._metrics.requests[method, code].inc()
        self._count_refusal(code, error)
        self._over(method, call, code, time.perf_counter(), request_id, error)

    def calls_expired(self, method: str, count: int) -> None:
        """Counts calls that were let expire: too many come at once for more."""
        self._metrics.requests[method, "DEADLINE_EXCEEDED"].inc(count)
        self._metrics.refused["deadline_passed",].inc(count)

    def entry_failed(self, method: str, code: str, request_id: str, error: Exception) -> None:
        """Counts a request of many that failed; its call goes on."""
        self._metrics.entry_errors[method, code].inc()
        self._count_refusal(code, error)
        now = time.perf_counter()
        self._log.entry_failed(EndedCall(method, code, request_id, now, None, now, (), error))

    def batch_began(self, query: str, arrived: Sequence[float]) -> float:
        """Takes down how long queries have queued; those of a call's later turns have waited for its earlier ones."""
        began, before = time.perf_counter(), self._turns.by_query.get(query, {})
        self._metrics.queue_seconds[query,].observe_many([began - moment for moment in arrived if moment not in before])
        self._metrics.batch_size[query,].observe(len(arrived))
        self._turns.last = self._turns.by_query[query] = {moment: before.get(moment, began) for moment in arrived}
        return began

    def batch_answered(self, query: str, version: int, answers: Sequence[Remarks | QueryError], began: float) -> None:
        """Counts answers, and what is unusual about them."""
        answered = len(answers)
        for remarks in answers:
            if remarks is BEST_UNSEEN:
                continue
            if isinstance(remarks, QueryError):
                answered -= 1
                continue
            if remarks.shortfall is not None:
                self._metrics.short_answers[remarks.shortfall.name.lower(),].inc()
            if remarks.source in FALLBACKS:
                self._metrics.fallbacks[remarks.source.name.lower(),].inc()
        self._metrics.answers[str(version), query].inc(answered)
        self._metrics.compute_seconds[query,].observe(time.perf_counter() - began)

    def shadow_compared(
        self, version: int, overlaps: Sequence[float], answer_seconds: float, shadow_seconds: float
    ) -> None:
        """Counts what a shadow answered."""
        requests = len(overlaps)
        self._metrics.shadow_overlap[str(version),].observe_many(overlaps)
        for source, seconds in (("answer", answer_seconds), ("shadow", shadow_seconds)):
            self._metrics.shadow_seconds[source,].observe_many([seconds / requests] * requests)

    def shadow_skipped(self, requests: int) -> None:
        """Counts what was not compared."""
        self._metrics.shadow_skipped.inc(requests)

    def model_event(self, event: str, version: int, model: LoadedModel | None = None) -> None:
        """Counts what became of versions and says which are loaded."""
        metrics, number = self._metrics, str(version)
        if event == "default":
            if self._default not in (None, version):
                metrics.model_default.forget(version=str(self._default))
            self._default, self._last_swap = version, time.time()
            metrics.model_default[number,].set(1)
            metrics.last_swap.set(self._last_swap)
            metrics.ready.set(1)
            return
        metrics.model_events[event,].inc()
        if model is not None and event == "ready":
            metrics.model_loaded[number, model.manifest.model_name].set(1)
            users = model.recommender.users
            metrics.user_table_bytes[number, users.device.type].set(users.size_bytes)
            model.recommender.items.on_search = metrics.search_seconds["items",].observe
            model.recommender.neighbours.on_search = metrics.search_seconds["neighbours",].observe
        elif event == "unloaded":
            for gauges in (metrics.model_loaded, metrics.user_table_bytes):
                gauges.forget(version=number)

    def _over(
        self, method: str, call: Call, code: str, ended: float, request_id: str = "", error: Exception | None = None
    ) -> None:
        """Logs and traces a call, where that is worth it."""
        traced = self._tracing is not None and self._tracing.concerns(call.metadata)
        if not (traced or error is not None or self._log.concerns(ended - call.arrived)):
            return
        first_turns = self._turns.last
        # A servicer takes down itself when a request came, but its thread has one call at a time.
        began = first_turns.get(call.arrived) or next(iter(first_turns.values()), 0.0)
        over = EndedCall(
            method,
            code,
            request_id or request_id_of(call.metadata),
            call.arrived,
            # What this thread began last has this call in it, unless the call never came so far, or had many.
            began if code not in TURNED_AWAY and call.messages is None and call.arrived <= began else None,
            ended,
            call.metadata,
            error,
            call.messages,
        )
        self._log.ended(over)
        if traced and self._tracing is not None:
            self._tracing.ended(over)

    def _count_refusal(self, code: str, error: Exception) -> None:
        if code in TURNED_AWAY:
            self._metrics.refused[_reason(type(error).__name__),].inc()

    def _beat(self) -> None:
        while not self._stopping.is_set():
            try:
                self._look()
                self._log.flush()
            except Exception:  # whatever it is, the next look may do better
                log.exception("the load could not be looked at")
            self._stopping.wait(PULSE_SECONDS)

    def _look(self) -> None:
        load, metrics = self._load(), self._metrics
        metrics.in_flight.set(load.in_flight)
        metrics.queue_depth.set(load.queue_depth)
        metrics.queue_places.set(load.queue_places)
        for kind, size in load.device_memory.items():
            metrics.device_memory[kind,].set(size)
        metrics.resident_memory.set(_resident_bytes())


@functools.cache
def _reason(kind: str) -> str:
    """The name of a kind of error as a label: queue_full."""
    return re.sub("(?<=[a-z])(?=[A-Z])", "_", kind).lower()


class _Turns(threading.local):
    """What a thread answered last: when the queries came, and when their call's first turn began.

    A call of many queries has several turns, and a thread that has begun with one goes on with it in its next batch.
    """

    def __init__(self) -> None:
        self.last: dict[float, float] = {}
        self.by_query: dict[str, dict[float, float]] = {}


def _resident_bytes() -> int:
    """The resident memory of this process; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm") as statm:  # noqa: PTH123 # read every second
            return int(statm.read().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0
