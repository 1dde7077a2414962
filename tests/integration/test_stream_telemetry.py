"""Streams in metrics, log lines and traces: each is told of when it ends, however it does, in both lanes alike."""

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from shortlist_server.telemetry import logs
from shortlist_server.telemetry.config import TelemetryConfig
from shortlist_server.telemetry.logs import JsonFormatter
from tests.integration.test_streams import MESSAGE, STREAM
from tests.integration.test_traces import SAMPLED, Collector, attributes, collector
from tests.running import serving
from tests.scraping import Scrape, patiently, scrape_until

__all__ = ["collector"]  # a fixture

GOOD, MALFORMED = MESSAGE.SerializeToString(), b"\xff\xff"


def stream(channel: grpc.Channel, messages: Iterator[bytes], *metadata: tuple[str, str], seconds: float = 20) -> Any:
    method: Any = channel.stream_stream(STREAM)
    return method(messages, timeout=seconds, metadata=metadata)


def named(request_id: str) -> tuple[str, str]:
    return "x-request-id", request_id


def then_silent(over: threading.Event) -> Iterator[bytes]:
    yield GOOD
    over.wait(20)


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """What was logged of calls, as JSON would have it."""
    records = [record for record in caplog.records if record.name == logs.__name__]
    return [json.loads(JsonFormatter().format(record)) for record in records]


def counted(scrape: Scrape) -> dict[str, float]:
    """Streams that ended, by status."""
    return {
        sample.labels["code"]: sample.value
        for sample in scrape.samples
        if sample.name == "shortlist_requests_total" and sample.labels["method"] == "StreamRecommend"
    }


def test_a_stream_is_counted_and_logged_when_it_ends_by_how_it_ended_and_what_it_answered(
    small_models: Path, lane: str, caplog: pytest.LogCaptureFixture
) -> None:
    over = threading.Event()
    telemetry = TelemetryConfig(metrics_port=0, access_log=True, slow_ms=0.001)
    with (
        caplog.at_level(logging.INFO),
        serving(small_models, lane, telemetry=telemetry) as app,
        grpc.insecure_channel(app.address) as channel,
    ):
        assert len(list(stream(channel, iter([GOOD] * 3), named("whole")))) == 3

        left = stream(channel, then_silent(over), named("left"))
        next(left)
        left.cancel()
        late = stream(channel, then_silent(over), named("late"), seconds=0.5)
        next(late)

        malformed = stream(channel, iter([GOOD, GOOD, MALFORMED, GOOD]), named("malformed"))
        next(malformed)
        next(malformed)
        with pytest.raises(grpc.RpcError):
            next(malformed)
        assert malformed.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert dict(malformed.trailing_metadata())["x-request-id"] == "malformed"

        expected = {"OK": 1, "CANCELLED": 2, "INVALID_ARGUMENT": 1}
        assert app.metrics_url is not None
        scrape_until(app.metrics_url, lambda scrape: counted(scrape) == expected)
        over.set()
        patiently(lambda: len(lines(caplog)) == 4)
    told = {line["request_id"]: line for line in lines(caplog)}
    assert {name: (line["status"], line["messages"]) for name, line in told.items()} == {
        "whole": ("OK", 3),
        "left": ("CANCELLED", 1),
        "late": ("CANCELLED", 1),
        "malformed": ("INVALID_ARGUMENT", 2),
    }
    assert {(line["level"], line["method"]) for line in told.values()} == {("INFO", "StreamRecommend")}  # none is slow
    assert 300 <= told["late"]["ms"] < 20_000
    assert all("queued_ms" not in line for line in told.values())  # each message has its own
    assert ", messages answered: 3, request id whole" in told["whole"]["message"]
    assert told["left"]["message"].endswith("request id left: the caller went away")


def test_streams_are_not_logged_as_slow_calls(small_models: Path, lane: str, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO),
        serving(small_models, lane, telemetry=TelemetryConfig(metrics_port=0, slow_ms=0.001)) as app,
        grpc.insecure_channel(app.address) as channel,
    ):
        list(stream(channel, iter([GOOD])))
        assert app.metrics_url is not None
        scrape_until(app.metrics_url, lambda scrape: counted(scrape) == {"OK": 1})
    assert lines(caplog) == []


def test_a_stream_is_a_span_with_the_count_of_its_messages_and_without_parts(
    small_models: Path, lane: str, collector: Collector
) -> None:
    with serving(small_models, lane) as app, grpc.insecure_channel(app.address) as channel:
        list(stream(channel, iter([GOOD] * 2), SAMPLED))
        list(stream(channel, iter([GOOD] * 2)))
        left = stream(channel, then_silent(threading.Event()), SAMPLED)
        next(left)
        left.cancel()
    spans = {attributes(span)["rpc.grpc.status"]: span for span in collector.spans}
    assert len(collector.spans) == 2
    assert {status: messages(span) for status, span in spans.items()} == {"OK": 2, "CANCELLED": 1}
    assert spans["OK"].name == "shortlist.v1.RecommenderService/StreamRecommend"


def messages(span: Any) -> int:
    (count,) = [attribute.value.int_value for attribute in span.attributes if attribute.key == "shortlist.messages"]
    return int(count)
