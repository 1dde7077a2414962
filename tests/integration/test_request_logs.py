"""Log lines about requests."""

import json
import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from shortlist.v1 import recommender_pb2_grpc
from shortlist.v1.recommender_pb2 import BatchRecommendRequest, RecommendRequest
from shortlist_client import Client, InternalError, UserNotFound
from shortlist_server.retrieval.queries import RecommendQuery
from shortlist_server.retrieval.rankings import Rankings
from shortlist_server.retrieval.recommend import Recommender
from shortlist_server.telemetry import logs
from shortlist_server.telemetry.config import TelemetryConfig
from shortlist_server.telemetry.logs import EndedCall, JsonFormatter, RequestLog, request_id_of
from shortlist_server.telemetry.observer import Load
from shortlist_server.telemetry.recorder import Telemetry
from tests.running import server_process, serving
from tests.scraping import Scrape, patiently


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    """What was logged, as JSON would have it."""
    records = [record for record in caplog.records if record.name == logs.__name__]
    return [json.loads(JsonFormatter().format(record)) for record in records]


def ended(code: str = "OK", seconds: float = 0.01) -> EndedCall:
    return EndedCall("Recommend", code, "abc", 5.0, None, 5.0 + seconds)


def test_a_failed_call_is_told_its_request_id_in_trailing_metadata(
    stub: recommender_pb2_grpc.RecommenderServiceStub,
) -> None:
    made_up = "[0-9a-f]{32}"
    for given, expected in ((None, made_up), ("page-17", "page-17"), ("x" * 128, "x" * 128), ("x" * 129, made_up)):
        metadata = () if given is None else (("x-request-id", given),)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Recommend(RecommendRequest(user_id="nobody"), timeout=5, metadata=metadata)
        trailing: Any = caught.value.trailing_metadata()
        assert re.fullmatch(expected, dict(trailing)["x-request-id"])


@pytest.mark.parametrize("given", ["", "a\tb", "a\nb", "é", b"bytes"])
def test_an_id_that_no_header_or_line_can_carry_is_replaced(given: str | bytes) -> None:
    assert re.fullmatch("[0-9a-f]{32}", request_id_of([("x-request-id", given)]))


def test_slow_calls_and_unforeseen_errors_are_logged_with_id_method_status_and_time(
    small_models: Path, lane: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = TelemetryConfig(slow_ms=0.001)
    with (
        caplog.at_level(logging.INFO),
        serving(small_models, lane, telemetry=config) as app,
        Client(app.address, timeout_seconds=10) as client,
    ):
        client.recommend("u0")
        patiently(lambda: len(lines(caplog)) == 1)
        monkeypatch.setattr(Recommender, "recommend", lambda *_: 1 / 0)
        with pytest.raises(InternalError) as caught:
            client.recommend("u0")
        patiently(lambda: len(lines(caplog)) == 2)
    slow, failed = lines(caplog)
    assert (slow["level"], slow["method"], slow["status"]) == ("WARNING", "Recommend", "OK")
    assert 0 <= float(str(slow["queued_ms"])) < float(str(slow["ms"])) < 10_000
    assert str(slow["message"]).startswith("slow: Recommend ended with OK after ")
    assert (failed["level"], failed["status"], failed["request_id"]) == (
        *("ERROR", "INTERNAL"),
        caught.value.request_id,
    )
    assert "ZeroDivisionError" in str(failed["exception"])


def test_a_call_of_many_turns_has_queued_until_the_first_of_them(
    small_models: Path, lane: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recommend = Recommender.recommend

    def slowly(recommender: Recommender, queries: Sequence[RecommendQuery]) -> Rankings:
        time.sleep(0.05)
        return recommend(recommender, queries)

    config = TelemetryConfig(access_log=True, metrics_port=0)
    with (
        caplog.at_level(logging.INFO),
        serving(small_models, lane, telemetry=config) as app,
        Client(app.address, timeout_seconds=20) as client,
    ):
        monkeypatch.setattr(Recommender, "recommend", slowly)
        answers = client.batch_recommend(["u0"] * 1000)
        patiently(lambda: len(lines(caplog)) == 1)
        assert app.metrics_url is not None
        scrape = Scrape(app.metrics_url)
    (call,) = lines(caplog)
    seconds = float(str(call["ms"])) / 1e3
    assert seconds > 0.2  # four turns at least
    assert float(str(call["queued_ms"])) / 1e3 < seconds / 2
    queued = [scrape.value(f"shortlist_queue_duration_seconds_{what}") for what in ("sum", "count")]
    assert 0 < queued[1] <= 256
    assert queued[0] / queued[1] < seconds / 2
    assert len(answers) == 1000


def test_callers_mistakes_and_quick_calls_are_logged_only_by_the_access_log(
    small_models: Path, lane: str, caplog: pytest.LogCaptureFixture
) -> None:
    for access_log in (False, True):
        config = TelemetryConfig(access_log=access_log, slow_ms=0)
        with (
            caplog.at_level(logging.INFO),
            serving(small_models, lane, telemetry=config) as app,
            Client(app.address, timeout_seconds=10) as client,
        ):
            client.recommend("u0")
            with pytest.raises(UserNotFound):
                client.recommend("nobody")
            client.list_models()
        told = [(line["method"], line["status"]) for line in lines(caplog)]
        every = [("Recommend", "OK"), ("Recommend", "NOT_FOUND"), ("ListModels", "OK")]
        assert sorted(told) == (sorted(every) if access_log else [])


def test_a_batch_is_one_line_of_the_access_log_and_only_unforeseen_errors_in_it_have_more(
    small_models: Path, lane: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = BatchRecommendRequest(requests=[RecommendRequest(user_id="nobody")] * 100)
    config = TelemetryConfig(access_log=True, slow_ms=0, metrics_port=0)
    with (
        caplog.at_level(logging.INFO),
        serving(small_models, lane, telemetry=config) as app,
        grpc.insecure_channel(app.address) as channel,
    ):
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        stub.BatchRecommend(asked, timeout=10, metadata=(("x-request-id", "page-17"),))
        patiently(lambda: len(lines(caplog)) >= 1)
        monkeypatch.setattr(Recommender, "recommend", lambda *_: 1 / 0)
        asked.requests[0].user_id = "u0"
        answer = stub.BatchRecommend(asked, timeout=10, metadata=(("x-request-id", "page-18"),))
        patiently(
            lambda: any((line.get("request_id"), line.get("status")) == ("page-18", "OK") for line in lines(caplog))
        )
        assert app.metrics_url is not None
        scrape = Scrape(app.metrics_url)
    whole, *others = (line for line in lines(caplog) if "status" in line)  # and not how many were left out
    assert (whole["request_id"], whole["status"]) == ("page-17", "OK")
    unforeseen = [line for line in others if line["status"] == "INTERNAL"]
    assert 1 <= len(unforeseen) == len(others) - 1 <= 30  # ten a second
    assert {line["request_id"] for line in unforeseen} == {"page-18"}
    assert "under request id page-18" in answer.outcomes[0].error.message
    failed = [
        scrape.value("shortlist_entry_errors_total", method="BatchRecommend", code=code)
        for code in ("NOT_FOUND", "INTERNAL")
    ]
    assert sum(failed) == 200
    assert failed[1] >= 1


def test_a_call_that_is_let_expire_is_counted_without_a_line(caplog: pytest.LogCaptureFixture) -> None:
    telemetry = Telemetry(TelemetryConfig(access_log=True, metrics_port=0), [("Service", ["Recommend"])])
    telemetry.listen()
    telemetry.start(Load)
    try:
        with caplog.at_level(logging.INFO):
            telemetry.calls_expired("Recommend", 1)
        assert telemetry.metrics_url is not None
        scrape = Scrape(telemetry.metrics_url)
    finally:
        telemetry.stop()
    assert scrape.value("shortlist_requests_total", method="Recommend", code="DEADLINE_EXCEEDED") == 1
    assert scrape.value("shortlist_refused_total", reason="deadline_passed") == 1
    assert lines(caplog) == []


def test_only_so_many_lines_a_second_are_said_and_the_rest_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    log = RequestLog(slow_seconds=0.005, every_call=False)
    with caplog.at_level(logging.INFO):
        for _ in range(1_000):
            log.ended(ended())
            log.ended(ended("RESOURCE_EXHAUSTED"))
        log.ended(ended("INTERNAL"))  # what others fill is not taken from this one
        log.flush()
        log.flush()
    told = [record.getMessage() for record in caplog.records]
    slow = sum(line.startswith("slow: ") for line in told)
    assert logs.LINES_A_SECOND <= slow <= 3 * logs.LINES_A_SECOND  # the clock may turn meanwhile
    assert sum("INTERNAL" in line for line in told) == 1
    assert told.count(f"{1_000 - slow} more lines about slow requests were left out") == 1
    assert sum("failed requests were left out" in line for line in told) == 1


def test_a_server_process_logs_json_that_bears_the_request_id(small_models: Path) -> None:
    options = ["--log-format", "json", "--access-log", "--metrics-port", "0"]
    with server_process(small_models, *options) as (process, address):
        with grpc.insecure_channel(address) as channel:
            stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
            stub.Recommend(RecommendRequest(user_id="u0"), timeout=10, metadata=(("x-request-id", "page-17"),))
        process.terminate()
        assert process.wait(20) == 0
        assert process.stderr is not None
        told = [json.loads(line) for line in process.stderr]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in told)
    (request,) = [line for line in told if "request_id" in line]
    assert (request["request_id"], request["method"], request["status"]) == ("page-17", "Recommend", "OK")
    assert request["ms"] > 0
    assert any(re.match("metrics are at http://127.0.0.1:[0-9]+/metrics", line["message"]) for line in told)


def test_a_message_that_is_none_is_no_slow_request(
    small_models: Path, lane: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = TelemetryConfig(slow_ms=0.001, metrics_port=0)
    with (
        caplog.at_level(logging.INFO),
        serving(small_models, lane, telemetry=config) as app,
        Client(app.address, timeout_seconds=10) as client,
        grpc.insecure_channel(app.address) as channel,
    ):
        recommend: Any = channel.unary_unary("/shortlist.v1.RecommenderService/Recommend")
        with pytest.raises(grpc.RpcError, match="malformed"):
            recommend(b"\xff", timeout=10)
        client.recommend("u0")
        patiently(lambda: len(lines(caplog)) > 0)
    assert [line["status"] for line in lines(caplog)] == ["OK"]
