"""What becomes of calls that are not answered: refused, let expire, or gone; each is over once and costs no answers."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from shortlist.v1 import recommender_pb2_grpc
from shortlist.v1.recommender_pb2 import RecommendRequest, SimilarItemsRequest
from shortlist_client import Client, ShortlistError
from shortlist_server.app import ServerApp
from shortlist_server.service.guard import Guard
from shortlist_server.service.intake import Fate
from tests.running import HeldSearch, serving
from tests.scraping import patiently


@contextmanager
def held(small_models: Path, slow_search: HeldSearch, waiting: int) -> Iterator[tuple[ServerApp, Any, Any]]:
    """A server whose fast lane works on a call until the search is let go, a stub, and that call."""
    with (
        serving(small_models, "fast", working=1, waiting=waiting) as app,
        grpc.insecure_channel(app.address) as channel,
    ):
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        first = stub.Recommend.future(RecommendRequest(user_id="u0"), timeout=20)
        assert slow_search.begun.wait(10)
        yield app, stub, first


def test_a_flood_whose_deadlines_have_passed_costs_no_answers(
    small_models: Path, slow_search: HeldSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    refusal = Guard.refusal

    def counted(self: Guard, error: Exception, method: str, call: Any) -> Any:
        told.append(method)
        return refusal(self, error, method, call)

    monkeypatch.setattr(Guard, "refusal", counted)
    monkeypatch.setattr("shortlist_server.service.intake._REFUSALS_PER_SECOND", 0)
    with held(small_models, slow_search, waiting=1) as (app, stub, first):
        flood = [stub.Recommend.future(RecommendRequest(user_id="u1"), timeout=0.5) for _ in range(1_000)]
        assert {call.code() for call in flood} <= {
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        }
        slow_search.let_go()
        assert first.code() is grpc.StatusCode.OK
        with Client(app.address, timeout_seconds=5) as client:
            assert len(client.recommend("u2").items) == 10
        assert len(told) < 300  # those that it may refuse before it knows of a flood


def test_who_went_away_while_it_waited_says_nothing_of_what_a_request_takes(
    small_models: Path, slow_search: HeldSearch
) -> None:
    with held(small_models, slow_search, waiting=100) as (app, stub, first):
        began = time.monotonic()
        calls = [stub.Recommend.future(RecommendRequest(user_id="u1"), timeout=20) for _ in range(60)]
        patiently(lambda: app._admission.taken == 61)
        time.sleep(0.5)  # from .1 s on it is looked whether callers are still there
        for call in calls:
            call.cancel()
        time.sleep(0.2)
        took = time.monotonic() - began
        slow_search.let_go()
        assert first.code() is grpc.StatusCode.OK
        patiently(lambda: app._admission.taken == 0)
        assert app._admission.seconds_per_request > 0.5 * took


def test_who_has_time_is_told_that_there_is_no_room_though_refusals_are_used_up(
    small_models: Path, slow_search: HeldSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shortlist_server.service.intake._REFUSALS_PER_SECOND", 0)
    with held(small_models, slow_search, waiting=4) as (_, stub, first):
        calls: list[Any] = [first]
        # Of each method gRPC may hand over as many as there is room for, which is too many of both together.
        for _ in range(300):
            calls.append(stub.Recommend.future(RecommendRequest(user_id="u1"), timeout=20))
            calls.append(stub.SimilarItems.future(SimilarItemsRequest(item_ids=["i1"]), timeout=20))
        time.sleep(0.5)
        slow_search.let_go()
        codes = Counter(call.code() for call in calls)
        assert codes.keys() == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}


def test_who_was_read_and_has_no_room_is_let_expire_when_refusals_are_used_up(
    small_models: Path, slow_search: HeldSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shortlist_server.service.intake._REFUSALS_PER_SECOND", 0)
    with held(small_models, slow_search, waiting=4) as (app, stub, first):
        calls: list[Any] = []
        for _ in range(250):  # of each method: as far as anybody knows, all may be refused
            calls.append(stub.Recommend.future(RecommendRequest(user_id="u1"), timeout=0.9))
            calls.append(stub.SimilarItems.future(SimilarItemsRequest(item_ids=["i1"]), timeout=0.9))
        codes = Counter(call.code() for call in calls)
        slow_search.let_go()
        assert first.code() is grpc.StatusCode.OK
        assert codes.keys() == {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert codes[grpc.StatusCode.RESOURCE_EXHAUSTED] <= 256  # so many refusals are kept
        patiently(lambda: app._telemetry.summary().failed == len(calls))
        patiently(lambda: app._admission.taken == 0)


def test_a_call_that_expired_is_over_once_though_the_rest_of_its_batch_fails(
    small_models: Path, slow_search: HeldSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held(small_models, slow_search, waiting=8) as (app, stub, first):
        lane = app._lane
        assert lane is not None
        monkeypatch.setattr(lane._lines, "_follow", lambda: None)
        expired = stub.Recommend.future(RecommendRequest(user_id="u1"), timeout=1.5)
        other = stub.Recommend.future(RecommendRequest(user_id="u2"), timeout=20)
        patiently(lambda: len(lane._lines._singles) == 2)
        monkeypatch.setattr(lane, "_tell_waiting", lambda: None)  # it expires just before its batch
        assert expired.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        monkeypatch.setattr("shortlist_server.service.fast_lane.answer_each", lambda *_: 1 / 0)
        slow_search.let_go()
        assert first.code() is grpc.StatusCode.OK
        assert other.code() is grpc.StatusCode.INTERNAL
        patiently(lambda: app._guard.under_way.count <= 0)
        time.sleep(0.3)
        assert app._guard.under_way.count == 0
        assert app._admission.taken == 0


def test_the_lane_lives_on_where_calls_that_expired_cannot_be_counted(
    small_models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(small_models, "fast") as app, Client(app.address, timeout_seconds=10) as client:
        with monkeypatch.context() as patch:
            patch.setattr(app._telemetry, "calls_expired", lambda *_: 1 / 0)
            patch.setattr("shortlist_server.service.intake.Intake.fate_of", lambda *_, **__: Fate.EXPIRE)
            with pytest.raises(ShortlistError) as expired:  # while the lane has nothing else to do
                client.with_timeout(0.3).recommend("u0")
            assert expired.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
            patiently(lambda: "calls that expired could not be counted" in caplog.messages)
        assert len(client.recommend("u0").items) == 10
