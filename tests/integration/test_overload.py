"""More comes than can be answered: who is refused, who is forgotten, and that the others are answered."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import grpc
import pytest

from shortlist.v1 import recommender_pb2_grpc
from shortlist.v1.recommender_pb2 import BatchRecommendRequest, RecommendRequest
from shortlist_client import Client, ShortlistError
from shortlist_server.access.config import AccessConfig
from shortlist_server.app import ServerApp
from shortlist_server.retrieval.exact import Found
from shortlist_server.retrieval.item_index import ItemIndex, Searches
from shortlist_server.service import answers, recommender_service
from shortlist_server.service.fast_calls import Call
from tests.callers import retry_seconds
from tests.running import HeldSearch, serving
from tests.scraping import patiently

SECONDS = 0.02
"""What each search of ``slow_server`` takes."""


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has each search of a caller's take a fixed time."""
    search = ItemIndex.search

    def slow(self: ItemIndex, searches: Searches) -> Found:
        if threading.current_thread().name not in ("MainThread", "models"):
            time.sleep(SECONDS * len(searches))
        return search(self, searches)

    monkeypatch.setattr(ItemIndex, "search", slow)


@pytest.fixture
def slow_app(small_models: Path, lane: str, slowly: None) -> Iterator[ServerApp]:
    """A server that takes a fixed time for each request, and lets 100 wait."""
    with serving(small_models, lane, working=1, waiting=100) as app:
        yield app


@pytest.fixture
def slow_server(slow_app: ServerApp) -> str:
    """Where it listens."""
    return slow_app.address


def counted_searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Has one more entry for every query that is searched from now on."""
    searched: list[int] = []
    search = ItemIndex.search

    def counted(self: ItemIndex, searches: Searches) -> Found:
        searched.extend(1 for _ in range(len(searches)))
        return search(self, searches)

    monkeypatch.setattr(ItemIndex, "search", counted)
    return searched


def test_who_would_not_be_answered_in_time_is_refused_at_once_and_told_when_to_come_back(slow_server: str) -> None:
    with Client(slow_server, timeout_seconds=20) as client, grpc.insecure_channel(slow_server) as channel:
        for _ in range(20):
            client.recommend("u0")  # by which the server learns what a request takes, though the first are slow
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        # Not by threads, which would take the time of the server's while they start.
        waiting = [stub.Recommend.future(RecommendRequest(user_id="u1"), timeout=20) for _ in range(60)]
        time.sleep(0.3)  # of the second and more that they take
        began = time.monotonic()
        refused = stub.Recommend.future(RecommendRequest(user_id="u2"), timeout=0.4)
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert time.monotonic() - began < 0.3
        assert all(len(answer.result().items) == 10 for answer in waiting)
        took = time.monotonic() - began
        assert took / 3 < retry_seconds(refused) < 3 * took  # it was told how long the others would take
        assert len(client.with_timeout(20 * SECONDS).recommend("u2").items) == 10


def test_what_is_accepted_is_answered_and_the_server_recovers_within_a_second(slow_server: str) -> None:
    answered: list[float] = []
    refused: list[float] = []
    callers = 150
    connected = threading.Barrier(callers)

    def ask() -> None:
        with grpc.insecure_channel(slow_server, [("grpc.enable_retries", 0)]) as channel:
            grpc.channel_ready_future(channel).result(30)
            connected.wait(60)
            stop = time.monotonic() + 2
            stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
            while time.monotonic() < stop:
                began = time.monotonic()
                code = stub.Recommend.future(RecommendRequest(user_id="u0"), timeout=10).code()
                assert code in (grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED)
                (answered if code is grpc.StatusCode.OK else refused).append(time.monotonic() - began)

    with ThreadPoolExecutor(callers) as pool:
        for asking in [pool.submit(ask) for _ in range(callers)]:
            asking.result()
    assert len(answered) >= 0.7 * 2 / SECONDS  # 2 s are worth so many, less what a slow machine takes
    assert refused
    assert max(answered) < 3 * 100 * SECONDS
    with Client(slow_server, timeout_seconds=1) as client:
        deadline = time.monotonic() + 1
        while True:
            began = time.monotonic()
            try:
                client.recommend("u0")
            except ShortlistError:
                assert time.monotonic() < deadline
            else:
                break
        assert time.monotonic() - began < 0.2


@pytest.mark.parametrize("patience", [0.0, 0.3])
def test_calls_whose_callers_went_away_while_they_waited_are_not_searched(
    small_models: Path, lane: str, slow_search: HeldSearch, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    with serving(small_models, lane, working=1, waiting=20) as app, grpc.insecure_channel(app.address) as channel:
        searched = counted_searches(monkeypatch)
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        calls = [stub.Recommend.future(RecommendRequest(user_id="u0"), timeout=20)]
        assert slow_search.begun.wait(10)
        calls += [stub.Recommend.future(RecommendRequest(user_id="u1"), timeout=20) for _ in range(8)]
        patiently(lambda: app._admission.taken == 9)
        time.sleep(patience)
        for call in calls[1:6]:
            call.cancel()
        time.sleep(0.3)
        slow_search.let_go()
        assert {call.code() for call in [calls[0], *calls[6:]]} == {grpc.StatusCode.OK}
        assert len(searched) == 4
        with Client(app.address, timeout_seconds=5) as client:
            assert len(client.recommend("u2").items) == 10


def test_batches_whose_callers_went_away_or_whose_deadline_passed_are_searched_no_further(
    small_models: Path, lane: str, slow_search: HeldSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = BatchRecommendRequest(requests=[RecommendRequest(user_id="u1")] * 256)
    with serving(small_models, lane, working=1, waiting=20) as app, grpc.insecure_channel(app.address) as channel:
        searched = counted_searches(monkeypatch)
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        calls = [stub.BatchRecommend.future(batch, timeout=timeout) for timeout in (20, 2, 20, 20)]
        assert slow_search.begun.wait(10)
        patiently(lambda: app._admission.taken == 4)
        for call in (calls[0], calls[2]):
            call.cancel()
        assert calls[1].code() is grpc.StatusCode.DEADLINE_EXCEEDED
        time.sleep(0.3)
        slow_search.let_go()
        assert calls[3].code() is grpc.StatusCode.OK
        assert len(searched) <= 2 * 256  # those of the last, and the turn that was under way
        patiently(lambda: app._admission.taken == 0)


def test_batches_are_answered_one_after_another_and_single_requests_beside_them(
    small_models: Path, slow_search: HeldSearch
) -> None:
    batch = BatchRecommendRequest(requests=[RecommendRequest(user_id="u1")] * 1_000)
    with serving(small_models, "fast", waiting=100) as app, grpc.insecure_channel(app.address) as channel:
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        calls = []
        for _ in range(10):
            calls.append(stub.BatchRecommend.future(batch, timeout=60))
            patiently(lambda: app._admission.taken == len(calls))  # gRPC hands over at once what came at once
        assert slow_search.begun.wait(10)
        lane = app._lane
        assert lane is not None
        turns: list[Any] = []
        again = lane._go_on

        def noted(call: Any, outcomes: Any) -> None:
            turns.append(call)
            again(call, outcomes)

        lane._go_on = noted  # type: ignore[method-assign]
        slow_search.let_go()
        single = stub.Recommend(RecommendRequest(user_id="u2"), timeout=20)
        assert len(single.items) == 10
        assert not calls[-1].done()
        assert [len(call.result().outcomes) for call in calls] == [1_000] * 10
    assert len(list(groupby(turns))) == len(set(turns)) == 10  # none begins before the one before it has ended


def test_a_batch_of_long_answers_lets_a_single_request_in_after_few_of_them(
    small_models: Path, lane: str, slow_search: HeldSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = RecommendRequest(user_id="u1", k=1_000, attributes=["title", "genres", "year", "price"])
    with serving(small_models, lane, working=1, waiting=20) as app, grpc.insecure_channel(app.address) as channel:
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        searched = counted_searches(monkeypatch)
        batch = stub.BatchRecommend.future(BatchRecommendRequest(requests=[slow] * 100), timeout=60)
        assert slow_search.begun.wait(10)
        single = stub.Recommend.future(RecommendRequest(user_id="u2"), timeout=20)
        before: list[int] = []
        single.add_done_callback(lambda _: before.append(len(searched)))
        patiently(lambda: app._admission.taken == 2)
        slow_search.let_go()
        assert single.code() is grpc.StatusCode.OK
        assert len(batch.result().outcomes) == 100
    assert before[0] <= 30


def test_the_plain_lane_answers_batches_one_after_another(
    small_models: Path, slow_search: HeldSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[str] = []
    answer = answers.answer_each

    def noted(to: Any, messages: Any, arrived: Any) -> Any:
        turns.append(messages[0].user_id)
        return answer(to, messages, arrived)

    monkeypatch.setattr(recommender_service, "answer_each", noted)
    options = {"working": 1, "waiting": 100}
    with serving(small_models, "plain", **options) as app, grpc.insecure_channel(app.address) as channel:
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        calls = []
        for number in range(6):
            batch = BatchRecommendRequest(requests=[RecommendRequest(user_id=f"u{number}")] * 640)
            calls.append(stub.BatchRecommend.future(batch, timeout=60))
            patiently(lambda: app._admission.taken == len(calls))
        assert slow_search.begun.wait(10)
        slow_search.let_go()
        assert [len(call.result().outcomes) for call in calls] == [640] * 6
    under_way = [len(set(turns[:turn]) & set(turns[turn:])) for turn in range(len(turns))]
    assert len(turns) == 60
    assert max(under_way) <= 2  # the one whose turn it is, and the one that has just ended its own


def test_a_single_request_beside_long_batches_is_not_refused_for_their_time(slow_app: ServerApp) -> None:
    batch = BatchRecommendRequest(requests=[RecommendRequest(user_id="u1")] * 320)
    address = slow_app.address
    with Client(address, timeout_seconds=20) as client, grpc.insecure_channel(address) as channel:
        for _ in range(5):
            client.recommend("u0")  # by which the server learns what a request takes
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        batches = [stub.BatchRecommend.future(batch, timeout=300) for _ in range(10)]
        time.sleep(0.3)  # of the minute that they take
        single = stub.Recommend.future(RecommendRequest(user_id="u2"), timeout=20)
        assert single.code() is grpc.StatusCode.OK
        assert not batches[0].done()
        for call in batches:
            call.cancel()
        patiently(lambda: slow_app._admission.taken == 0)


@pytest.mark.parametrize("lane", ["fast"])  # others answer none together
def test_what_a_request_takes_is_known_after_one_batch(slow_app: ServerApp) -> None:
    with grpc.insecure_channel(slow_app.address) as channel:
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        calls = [stub.Recommend.future(RecommendRequest(user_id="u1"), timeout=20) for _ in range(65)]
        assert all(call.code() is grpc.StatusCode.OK for call in calls)
        patiently(lambda: slow_app._admission.taken == 0)
        assert 0.9 * SECONDS < slow_app._admission.seconds_per_request < 3 * SECONDS


@contextmanager
def crowded(
    app: ServerApp, monkeypatch: pytest.MonkeyPatch, refusals: int
) -> Iterator[recommender_pb2_grpc.RecommenderServiceStub]:
    """A fast lane with more than a second's work, which knows it and may refuse so many; who waits is answered."""
    with Client(app.address, timeout_seconds=20) as client, grpc.insecure_channel(app.address) as channel:
        for _ in range(20):
            client.recommend("u0")  # by which the server learns what a request takes
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        waiting = [stub.Recommend.future(RecommendRequest(user_id="u1"), timeout=20) for _ in range(95)]
        patiently(lambda: app._admission.taken > 60)
        refused = stub.Recommend.future(RecommendRequest(user_id="u2"), timeout=0.4)
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # from now on it knows that too many come
        monkeypatch.setattr("shortlist_server.service.intake._REFUSALS_PER_SECOND", 0)
        assert app._lane is not None
        app._lane._intake._refusals = refusals
        yield stub
        assert all(len(answer.result().items) == 10 for answer in waiting)


@pytest.mark.parametrize("lane", ["fast"])  # grpc.server tells of a call when its message has come
@pytest.mark.parametrize(("refusals", "code"), [(0, "DEADLINE_EXCEEDED"), (100, "RESOURCE_EXHAUSTED")])
def test_once_calls_are_refused_nothing_is_read_of_who_cannot_be_answered_in_time(
    slow_app: ServerApp, monkeypatch: pytest.MonkeyPatch, refusals: int, code: str
) -> None:
    read: list[float] = []
    receive = Call.receive

    def counted(call: Call) -> None:
        read.append(call.deadline)
        receive(call)

    with crowded(slow_app, monkeypatch, refusals) as stub:
        monkeypatch.setattr(Call, "receive", counted)
        flood = [stub.Recommend.future(RecommendRequest(user_id="u2"), timeout=0.4) for _ in range(40)]
        assert {call.code().name for call in flood} == {code}
        assert not read


def test_a_batch_that_is_refused_unread_is_charged_to_its_caller(
    small_models: Path,
    slowly: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    access = AccessConfig(rate_limit=150)  # of which those who wait use up 116
    with serving(small_models, "fast", working=1, waiting=100, access=access) as app:
        with crowded(app, monkeypatch, refusals=255) as stub:
            batch = BatchRecommendRequest(requests=[RecommendRequest(user_id="u2")])
            flood = [stub.BatchRecommend.future(batch, timeout=0.4) for _ in range(250)]
            details = {call.details().partition(";")[0] for call in flood}
        assert "too many requests are waiting" in details
        assert len(details) == 2, details  # and that the caller asks too often
