"""Every metric of a server: its name, unit, labels and buckets.

Times are in seconds and sizes in bytes. Where several workers serve one port, prometheus_client keeps the values of
each in files that one scrape adds up (``endpoint``): hence the modes of the gauges, "livesum" for what adds up.
"""

import collections
import os
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any, Generic, Literal, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from shortlist_server.retrieval.queries import Shortfall, Source
from shortlist_server.telemetry.endpoint import FOLDER_VARIABLE

M = TypeVar("M", Counter, Gauge, "BatchHistogram")

_CALL_SECONDS = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
_WORK_SECONDS = (0.00005, 0.0001, 0.00025, *_CALL_SECONDS)
_OVERLAPS = (*(tenth / 10 for tenth in range(10)), 0.95, 0.99, 1.0)
_BATCH_SIZES = tuple(float(1 << power) for power in range(11))

Mode = Literal["livesum", "livemax", "liveall"]

FALLBACKS = (Source.POPULAR, Source.CLUSTER)


# They would be a second series for each one, which nobody asks for and workers do not have.
disable_created_metrics()  # type: ignore[no-untyped-call]


class BatchHistogram(Histogram):
    """A histogram that takes many observations for hardly more than the price of one."""

    def observe_many(self, amounts: Sequence[float]) -> None:
        """As ``observe`` of each."""
        self._sum.inc(sum(amounts))
        buckets: dict[int, int] = {}
        for amount, count in collections.Counter(amounts).items():  # many are the same where they came together
            bucket = bisect_left(self._upper_bounds, amount)
            buckets[bucket] = buckets.get(bucket, 0) + count
        for bucket, count in buckets.items():
            self._buckets[bucket].inc(count)


class Labelled(dict[tuple[str, ...], M], Generic[M]):
    """The time series of a metric by the values of its labels, each made once: looking one up is most of its cost."""

    def __init__(self, metric: M, first: Iterable[tuple[str, ...]] = ()) -> None:
        super().__init__()
        self._metric: Any = metric
        for values in first:  # a series that begins with 0 has a rate from its first event on
            self[values] = metric.labels(*values)

    def __missing__(self, values: tuple[str, ...]) -> M:
        series: M = self._metric.labels(*values)
        self[values] = series
        return series

    def forget(self, **labels: str) -> None:
        """Ends the series of a gauge that have these labels.

        Where several workers share a scrape they become 0, as their files only grow; ``endpoint`` leaves these out.
        """
        names = self._metric._labelnames
        for values in [
            values for values in list(self) if labels.items() <= dict(zip(names, values, strict=True)).items()
        ]:
            series: Any = self.pop(values)
            series.set(0)
            if FOLDER_VARIABLE not in os.environ:
                self._metric.remove(*values)

    def totals(self, label: str) -> dict[str, int]:
        """The sum over all series of a counter for each value of a label."""
        (family,) = self._metric.collect()
        sums: collections.Counter[str] = collections.Counter()
        for sample in family.samples:
            if sample.name.endswith("_total"):
                sums[sample.labels[label]] += int(sample.value)
        return sums


class Metrics:
    """The metrics of one server process, in a registry of their own.

    Args:
        methods: the RPCs that are served.
    """

    def __init__(self, methods: Sequence[str]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Labelled(
            self._counter("requests", "Calls that ended, by RPC and gRPC status.", "method", "code"),
            [(method, "OK") for method in methods],
        )
        self.request_seconds = Labelled(
            self._histogram(
                "request_duration_seconds",
                "From arrival to answer of calls that ended with OK, streams left out.",
                *("method",),
                buckets=_CALL_SECONDS,
            )
        )
        self.queue_seconds = Labelled(
            self._histogram(
                "queue_duration_seconds",
                "From a query's arrival to the beginning of its batch, of a call's first turn, by kind of query.",
                *("query",),
                buckets=_WORK_SECONDS,
            )
        )
        self.compute_seconds = Labelled(
            self._histogram(
                "compute_duration_seconds",
                "What a batch of queries took from its beginning to its answers, by kind of query.",
                *("query",),
                buckets=_WORK_SECONDS,
            )
        )
        self.batch_size = Labelled(
            self._histogram("batch_size", "Queries answered together, by kind of query.", "query", buckets=_BATCH_SIZES)
        )
        self.search_seconds = Labelled(
            self._histogram(
                "search_duration_seconds",
                "What searching an index for a batch took: items, for users; neighbours, for items.",
                *("index",),
                buckets=_WORK_SECONDS,
            ),
            [("items",), ("neighbours",)],
        )
        self.answers = Labelled(
            self._counter("answers", "Queries that were answered, by model version and kind.", "version", "query")
        )
        self.fallbacks = Labelled(
            self._counter("fallbacks", "Answers that are not made for the user, by their source.", "source"),
            [(source.name.lower(),) for source in FALLBACKS],
        )
        self.short_answers = Labelled(
            self._counter("short_answers", "Answers with fewer than k items, by reason.", "reason"),
            [(shortfall.name.lower(),) for shortfall in Shortfall],
        )
        self.refused = Labelled(
            self._counter("refused", "Calls and entries that were turned away before any work, by reason.", "reason"),
            [("queue_full",), ("deadline_passed",), ("no_model_ready",)],
        )
        self.entry_errors = Labelled(
            self._counter(
                *("entry_errors", "Entries of BatchRecommend and StreamRecommend that failed, by status."),
                *("method", "code"),
            )
        )
        self._make_shadow()
        self._make_gauges()

    def _make_shadow(self) -> None:
        self.shadow_overlap = Labelled(
            self._histogram(
                "shadow_overlap",
                "For each request compared, the share of the items answered that the shadow version answered too.",
                *("version",),
                buckets=_OVERLAPS,
            )
        )
        self.shadow_seconds = Labelled(
            self._histogram(
                "shadow_duration_seconds",
                "What each request compared took, as its part of its batch: answer, what the caller got; shadow.",
                *("source",),
                buckets=_WORK_SECONDS,
            )
        )
        self.shadow_skipped = self._counter(
            "shadow_skipped", "Requests that were not compared, since there was no time."
        )

    def _make_gauges(self) -> None:
        self.model_loaded = Labelled(
            self._gauge("model_loaded", "Workers that have the version loaded.", "version", "model")
        )
        self.model_default = Labelled(
            self._gauge("model_default", "Workers whose answers come from the version if none is named.", "version")
        )
        self.model_events = Labelled(
            self._counter("model_events", "What became of versions: ready, refused, unloaded.", "event"),
            [("ready",), ("refused",), ("unloaded",)],
        )
        self.last_swap = self._gauge(
            "model_last_swap_timestamp_seconds", "Since when the default version answers.", mode="livemax"
        )
        self.ready = self._gauge("ready", "Workers that have a model to answer from.")
        self.in_flight = self._gauge("requests_in_flight", "Calls that have arrived and are not answered.")
        self.queue_depth = self._gauge("queue_depth", "Queries that wait or are computed.")
        self.queue_places = self._gauge("queue_places", "How many may wait or be computed before others are refused.")
        self.user_table_bytes = Labelled(
            self._gauge("user_table_bytes", "Size of the user embeddings.", "version", "device", mode="livemax")
        )
        self.device_memory = Labelled(
            # Workers share the GPU: what is used of it must not be added up.
            self._gauge(
                "device_memory_bytes", "Memory of the GPU, by what for; none without one.", "kind", mode="livemax"
            )
        )
        self.resident_memory = self._gauge(
            "resident_memory_bytes", "Resident memory, the mapped model included.", mode="liveall"
        )

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(name, documentation, labels, namespace="shortlist", registry=self.registry)

    def _histogram(self, name: str, documentation: str, *labels: str, buckets: Sequence[float]) -> BatchHistogram:
        return BatchHistogram(
            name, documentation, labels, namespace="shortlist", registry=self.registry, buckets=buckets
        )

    def _gauge(self, name: str, documentation: str, *labels: str, mode: Mode = "livesum") -> Gauge:
        return Gauge(name, documentation, labels, namespace="shortlist", registry=self.registry, multiprocess_mode=mode)
