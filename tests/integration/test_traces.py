"""OpenTelemetry spans, sent to a real collector's service."""

import signal
import sys
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from shortlist.v1 import recommender_pb2_grpc
from shortlist.v1.recommender_pb2 import RecommendRequest, ScoreRequest
from shortlist_server.app import ServerApp
from shortlist_server.config import ServerConfig
from shortlist_server.telemetry.config import TelemetryConfig
from tests.running import server_process, serving

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, NOT_SAMPLED = ("traceparent", f"00-{TRACE}-{PARENT}-01"), ("traceparent", f"00-{TRACE}-{PARENT}-00")


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans it is sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[Any] = []

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 # the contract's name
        for resource in request.resource_spans:
            self.resources.append(resource.resource)
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector that the environment names."""
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    yield collector
    server.stop(None).wait()


def attributes(span: Any) -> dict[str, str]:
    return {attribute.key: attribute.value.string_value for attribute in span.attributes}


def test_a_call_is_a_span_of_its_callers_trace_with_the_time_it_queued_and_computed(
    small_models: Path, lane: str, collector: Collector
) -> None:
    with serving(small_models, lane) as app, grpc.insecure_channel(app.address) as channel:
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        metadata = (SAMPLED, ("x-request-id", "page-17"))
        stub.Recommend(RecommendRequest(user_id="u0"), timeout=10, metadata=metadata)
        with pytest.raises(grpc.RpcError):
            stub.Score(ScoreRequest(user_id="nobody", item_ids=["i1"]), timeout=10, metadata=(SAMPLED,))
        for unsampled in ((NOT_SAMPLED,), ((NOT_SAMPLED[0], "nonsense"),), ()):
            stub.Recommend(RecommendRequest(user_id="u0"), timeout=10, metadata=unsampled)
    spans = {span.name: span for span in collector.spans}
    call = spans["shortlist.v1.RecommenderService/Recommend"]
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (TRACE, PARENT)
    assert attributes(call)["rpc.method"] == "Recommend"
    assert attributes(call)["shortlist.request_id"] == "page-17"
    failed = spans["shortlist.v1.RecommenderService/Score"]
    assert failed.status.code == 2
    assert attributes(failed)["rpc.grpc.status"] == "NOT_FOUND"
    # Each its queue and its computation, in this order, and no span of the calls whose caller keeps none.
    queue, compute = [
        next(span for span in collector.spans if span.name == name and span.parent_span_id == call.span_id)
        for name in ("queue", "compute")
    ]
    assert len(collector.spans) == 6
    begin, end = call.start_time_unix_nano, call.end_time_unix_nano
    times = [
        queue.start_time_unix_nano,
        queue.end_time_unix_nano,
        compute.start_time_unix_nano,
        compute.end_time_unix_nano,
    ]
    assert begin <= times[0] < times[1] <= times[2] < times[3] <= end
    (service,) = [a.value.string_value for a in collector.resources[0].attributes if a.key == "service.name"]
    assert service == "shortlist"


def test_traces_are_off_where_nothing_says_where_to_send_them_or_when_told_so(
    small_models: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(traces: str) -> None:
        config = TelemetryConfig(traces=traces)
        with serving(small_models, telemetry=config) as app, grpc.insecure_channel(app.address) as channel:
            stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
            stub.Recommend(RecommendRequest(user_id="u0"), timeout=10, metadata=(SAMPLED,))

    ask("off")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    ask("on")
    monkeypatch.delenv("OTEL_SDK_DISABLED")
    assert collector.spans == []
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
    ask("on")
    assert len(collector.spans) == 3
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT")
    ask("auto")
    assert len(collector.spans) == 3


def test_traces_that_must_be_on_without_opentelemetry_name_the_extra(
    small_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    config = ServerConfig(models_dir=small_models, port=0, telemetry=TelemetryConfig(traces="on"))
    with pytest.raises(RuntimeError, match=r"pip install 'shortlist\[otel\]'"):
        ServerApp(config)


def test_a_collector_that_is_not_there_does_not_keep_a_server_from_ending(
    small_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with server_process(small_models) as (process, address):
        with grpc.insecure_channel(address) as channel:
            stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
            stub.Recommend(RecommendRequest(user_id="u0"), timeout=10, metadata=(SAMPLED,))
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0
        assert time.monotonic() - began < 6
        assert said.count("the last spans could not be sent within 2 s and are lost") == 1


def test_what_strangers_write_into_headers_of_traces_makes_few_short_lines(
    small_models: Path, collector: Collector
) -> None:
    for members, calls in ((["FORGED by a stranger"] * 300, 5), (["x" * 5_000 + "@@=1"], 1)):
        with server_process(small_models) as (process, address):
            with grpc.insecure_channel(address) as channel:
                stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
                metadata = (SAMPLED, ("tracestate", ",".join(members)))
                began = time.monotonic()
                for _ in range(calls):
                    stub.Recommend(RecommendRequest(user_id="u0"), timeout=10, metadata=metadata)
                seconds = time.monotonic() - began
            process.terminate()
            _, said = process.communicate(timeout=60)
        told = [line for line in said.splitlines() if members[0][:20] in line]
        assert 1 <= len(told) <= 10 * (seconds + 2)
        assert all(len(line) < 300 and line.isprintable() for line in told)
