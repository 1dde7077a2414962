"""OpenTelemetry spans of calls, in the trace of the caller (W3C trace context). Needs the extra ``otel``.

A span is made when a call is over, of times that were taken anyway: a call that nobody traces costs one look at its
metadata. Where the spans go and how many are kept is said by OpenTelemetry's own environment variables.
"""

import logging
import os
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from shortlist_server.telemetry.logs import EndedCall

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

log = logging.getLogger(__name__)

_LAST_SPANS_SECONDS = 2.0
"""What is left is sent for so long at most: an exporter goes on trying for longer than a server may take to end."""

_PARENT = "traceparent"
_SAMPLER = "OTEL_TRACES_SAMPLER"
_PLACES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def tracing_of(wanted: str, services: Iterable[tuple[str, Iterable[str]]]) -> "Tracing | None":
    """Traces as they are wanted: "on", "off", or "auto", on where the environment says where to send them.

    Args:
        wanted: which.
        services: full names of services, each with the names of its methods.

    Raises:
        RuntimeError: they must be on and OpenTelemetry is not installed.
    """
    named = any(os.environ.get(name) for name in _PLACES)
    if wanted == "off" or (wanted == "auto" and not named) or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    try:
        return Tracing({method: service for service, methods in services for method in methods})
    except ImportError as error:
        raise RuntimeError(f"traces need OpenTelemetry ({error}): pip install 'shortlist[otel]'") from error


class Tracing:
    """Makes spans and sends them from a thread of its own.

    Which calls are kept: those whose caller keeps its own span, unless OTEL_TRACES_SAMPLER says otherwise.

    Args:
        service_of: the full name of each method's service.

    Raises:
        ImportError: OpenTelemetry is not installed.
    """

    def __init__(self, service_of: dict[str, str]) -> None:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased

        named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        self._provider = TracerProvider(
            sampler=None if _SAMPLER in os.environ else ParentBased(ALWAYS_OFF),
            resource=Resource.create({} if named else {SERVICE_NAME: "shortlist"}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer: Tracer = self._provider.get_tracer("shortlist_server")
        self._service_of = service_of
        self._roots = _SAMPLER in os.environ

    def concerns(self, metadata: Iterable[tuple[str, str | bytes]]) -> bool:
        """Whether a call may belong to a trace."""
        return self._roots or any(entry[0] == _PARENT for entry in metadata or ())

    def ended(self, call: EndedCall) -> None:
        """Makes the spans of a call: itself, the time it queued and the time it was computed, unless it is a stream."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        def nanoseconds(moment: float) -> int:
            return now - int((measured - moment) * 1e9)

        now, measured = time.time_ns(), time.perf_counter()
        carrier = {key: value for key, value in call.metadata or () if isinstance(value, str)}
        service = self._service_of.get(call.method, "")
        attributes: dict[str, str | int] = {
            "rpc.system": "grpc",
            "rpc.service": service,
            "rpc.method": call.method,
            "rpc.grpc.status": call.code,
            "shortlist.request_id": call.request_id,
        }
        if call.messages is not None:
            attributes["shortlist.messages"] = call.messages
        span = self._tracer.start_span(
            f"{service}/{call.method}",
            TraceContextTextMapPropagator().extract(carrier),
            SpanKind.SERVER,
            attributes,
            start_time=nanoseconds(call.arrived),
        )
        if span.is_recording():
            if call.started is not None:
                inside = set_span_in_context(span)
                for name, begin, end in (
                    ("queue", call.arrived, call.started),
                    ("compute", call.started, call.ended),
                ):
                    part = self._tracer.start_span(name, inside, start_time=nanoseconds(begin))
                    part.end(nanoseconds(end))
            if call.code != "OK":
                span.set_status(Status(StatusCode.ERROR, call.code))
        span.end(nanoseconds(call.ended))

    def close(self) -> None:
        """Sends what is left, if it is taken soon."""
        sending = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        sending.start()
        sending.join(_LAST_SPANS_SECONDS)
        if sending.is_alive():
            log.warning("the last spans could not be sent within %g s and are lost", _LAST_SPANS_SECONDS)
