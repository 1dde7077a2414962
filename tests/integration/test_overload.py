"""More comes than can be answered: who is refused, who is forgotten, and that the others are answered."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from shortlist.v1 import recommender_pb2_grpc
from shortlist.v1.recommender_pb2 import RecommendRequest
from shortlist_client import Client, ShortlistError
from shortlist_server.exact import Found
from shortlist_server.item_index import ItemIndex, Searches
from tests.callers import METHODS, retry_seconds
from tests.reliability.noise import asked, opened_without_window
from tests.running import HeldSearch, serving

SECONDS = 0.02
"""What each search of ``slow_server`` takes."""


@pytest.fixture
def slow_server(small_models: Path, lane: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that takes a fixed time for each request, and lets 100 wait."""
    search = ItemIndex.search

    def slow(self: ItemIndex, searches: Searches) -> Found:
        if threading.current_thread().name not in ("MainThread", "models"):
            time.sleep(SECONDS * len(searches))
        return search(self, searches)

    monkeypatch.setattr(ItemIndex, "search", slow)
    with serving(small_models, lane, working=1, waiting=100) as app:
        yield app.address


def test_who_would_not_be_answered_in_time_is_refused_at_once_and_told_when_to_come_back(slow_server: str) -> None:
    with Client(slow_server, timeout_seconds=20) as client, ThreadPoolExecutor(60) as pool:
        for _ in range(5):
            client.recommend("u0")  # by which the server learns what a request takes
        waiting = [pool.submit(client.recommend, "u1") for _ in range(60)]
        time.sleep(0.3)  # of the second and more that they take
        with grpc.insecure_channel(slow_server) as channel:
            stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
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
    stop = time.monotonic() + 2

    def ask() -> None:
        with grpc.insecure_channel(slow_server, [("grpc.enable_retries", 0)]) as channel:
            stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
            while time.monotonic() < stop:
                began = time.monotonic()
                code = stub.Recommend.future(RecommendRequest(user_id="u0"), timeout=10).code()
                assert code in (grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED)
                (answered if code is grpc.StatusCode.OK else refused).append(time.monotonic() - began)

    with ThreadPoolExecutor(150) as pool:
        for asking in [pool.submit(ask) for _ in range(150)]:
            asking.result()
    assert len(answered) >= 0.7 * 2 / SECONDS  # 2 s are worth so many; threads of callers take some of the time
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


def test_calls_whose_callers_went_away_while_they_waited_are_not_searched(
    small_models: Path, lane: str, slow_search: HeldSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[int] = []
    held = ItemIndex.search

    def counted(self: ItemIndex, searches: Searches) -> Found:
        searched.extend(1 for _ in range(len(searches)))
        return held(self, searches)

    with serving(small_models, lane, working=1, waiting=20) as app, grpc.insecure_channel(app.address) as channel:
        monkeypatch.setattr(ItemIndex, "search", counted)
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        calls = [stub.Recommend.future(RecommendRequest(user_id="u0"), timeout=20)]
        assert slow_search.begun.wait(10)
        calls += [stub.Recommend.future(RecommendRequest(user_id="u1"), timeout=20) for _ in range(8)]
        time.sleep(0.3)
        for call in calls[1:6]:
            call.cancel()
        time.sleep(0.3)
        slow_search.let_go()
        assert {call.code() for call in [calls[0], *calls[6:]]} == {grpc.StatusCode.OK}
        assert len(searched) == 4
        with Client(app.address, timeout_seconds=5) as client:
            assert len(client.recommend("u2").items) == 10


def test_answers_that_nobody_takes_keep_no_place(small_models: Path, lane: str) -> None:
    with serving(small_models, lane, working=1, waiting=4) as app:
        host, _, port = app.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as idle:
            idle.sendall(opened_without_window() + b"".join(asked(number) for number in range(1, 41, 2)))
            time.sleep(0.5)
            with Client(app.address, timeout_seconds=1) as client:
                for _ in range(10):
                    assert len(client.recommend("u0").items) == 10
            assert idle.fileno() > 0


def test_a_call_without_a_message_is_answered(small_models: Path, lane: str) -> None:
    with serving(small_models, lane) as app, grpc.insecure_channel(app.address) as channel:
        for path in METHODS:
            if path.endswith("StreamRecommend"):
                continue
            with pytest.raises(grpc.RpcError) as refused:
                channel.stream_unary(path)(iter(()), timeout=5)
            assert refused.value.code() in (
                grpc.StatusCode.INVALID_ARGUMENT,
                grpc.StatusCode.UNIMPLEMENTED,
                grpc.StatusCode.PERMISSION_DENIED,
            )
