"""Calls that wait for their turn: how many may, for how long, and who gives up."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from shortlist.v1 import recommender_pb2, recommender_pb2_grpc
from shortlist_client import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    ResourceExhausted,
)
from shortlist_server.retrieval.exact import Found
from shortlist_server.retrieval.item_index import ItemIndex, Searches
from shortlist_server.service.guard import Guard
from shortlist_server.telemetry.observer import Call
from tests.running import HeldSearch, serving


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(
    small_models: Path, lane: str, slow_search: HeldSearch
) -> None:
    with serving(small_models, lane, working=1, waiting=1) as app, Client(app.address, timeout_seconds=20) as client:
        answers: list[int] = []
        threads = [threading.Thread(target=lambda: answers.append(len(client.recommend("u0").items))) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)  # one works, one waits
        with pytest.raises(ResourceExhausted) as caught:
            client.recommend("u1")
        assert caught.value.retry_after_seconds is not None
        assert 0 < caught.value.retry_after_seconds < 2
        assert client.list_models()  # what does not search is still answered
        slow_search.let_go()
        for thread in threads:
            thread.join()
        assert answers == [10, 10]


def test_idle_streams_beyond_the_limit_are_refused_and_keep_nobody_else_waiting(small_models: Path, lane: str) -> None:
    with serving(small_models, lane, streams=2) as app, grpc.insecure_channel(app.address) as channel:
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        over = threading.Event()

        def one_request() -> Iterator[recommender_pb2.StreamRecommendRequest]:
            yield recommender_pb2.StreamRecommendRequest(request=recommender_pb2.RecommendRequest(user_id="u0"))
            over.wait(20)

        streams = [stub.StreamRecommend(one_request(), timeout=20) for _ in range(2)]
        for stream in streams:
            assert next(stream).outcome.response.items
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.StreamRecommend(one_request(), timeout=20))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert stub.BatchRecommend(
            recommender_pb2.BatchRecommendRequest(requests=[recommender_pb2.RecommendRequest(user_id="u0")])
        )
        over.set()
        assert [list(stream) for stream in streams] == [[], []]
        assert next(stub.StreamRecommend(one_request(), timeout=20)).outcome.response.items


def test_a_request_whose_deadline_passes_in_the_queue_is_never_searched(
    small_models: Path, lane: str, slow_search: HeldSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[int] = []
    held = ItemIndex.search

    def counted(self: ItemIndex, searches: Searches) -> Found:
        searched.extend(searches.ks)
        return held(self, searches)

    monkeypatch.setattr(ItemIndex, "search", counted)
    with serving(small_models, lane, working=1, waiting=4) as app, Client(app.address, timeout_seconds=20) as client:
        searched.clear()  # of warming up
        working = threading.Thread(target=client.recommend, args=("u0",))
        working.start()
        time.sleep(0.3)
        with pytest.raises(DeadlineExceeded):
            client.with_timeout(0.2).recommend("u1")
        time.sleep(0.2)
        slow_search.let_go()
        working.join()
    assert len(searched) == 1


def test_the_client_asks_a_full_server_again(small_models: Path, lane: str, slow_search: HeldSearch) -> None:
    attempts: list[int] = []
    with serving(small_models, lane, working=1, waiting=0) as app, Client(app.address, timeout_seconds=20) as client:
        working = threading.Thread(target=client.recommend, args=("u0",))
        working.start()
        time.sleep(0.3)
        with pytest.MonkeyPatch.context() as patch:
            refusal = Guard.refusal

            def counted(self: Guard, error: Exception, method: str, call: Call) -> grpc.Status:
                attempts.append(1)
                return refusal(self, error, method, call)

            patch.setattr(Guard, "refusal", counted)
            with pytest.raises(ResourceExhausted):
                client.recommend("u1")
        slow_search.let_go()
        working.join()
    assert len(attempts) == 4


@pytest.mark.parametrize("method", ["Recommend", "SimilarItems", "Score", "GetCluster", "ListClusters"])
def test_every_search_waits_for_its_turn_and_says_how_long(
    small_models: Path, lane: str, slow_search: HeldSearch, method: str
) -> None:
    messages = {
        "Recommend": recommender_pb2.RecommendRequest(user_id="u1"),
        "SimilarItems": recommender_pb2.SimilarItemsRequest(item_ids=["i1"]),
        "Score": recommender_pb2.ScoreRequest(user_id="u1", item_ids=["i1"]),
        "GetCluster": recommender_pb2.GetClusterRequest(kind=recommender_pb2.CLUSTER_KIND_ITEM, label=0),
        "ListClusters": recommender_pb2.ListClustersRequest(kind=recommender_pb2.CLUSTER_KIND_USER),
    }
    with serving(small_models, lane, working=1, waiting=1) as app, grpc.insecure_channel(app.address) as channel:
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        working = stub.Recommend.future(recommender_pb2.RecommendRequest(user_id="u0"), timeout=20)
        time.sleep(0.3)
        waiting = getattr(stub, method).future(messages[method], timeout=20)
        time.sleep(0.3)
        assert not waiting.done()
        slow_search.let_go()
        assert working.result().items
        answer = waiting.result()
        assert "timing" not in answer.DESCRIPTOR.fields_by_name or answer.timing.queued_micros > 200_000


def test_a_call_without_a_deadline_waits_for_its_turn(small_models: Path, lane: str, slow_search: HeldSearch) -> None:
    with serving(small_models, lane, working=1) as app, grpc.insecure_channel(app.address) as channel:
        recommend = recommender_pb2_grpc.RecommenderServiceStub(channel).Recommend
        calls = [recommend.future(recommender_pb2.RecommendRequest(user_id="u0")) for _ in range(3)]
        time.sleep(0.3)
        slow_search.let_go()
        assert [len(call.result().items) for call in calls] == [10, 10, 10]


def test_calls_that_are_cancelled_while_they_wait_leave_their_places(
    small_models: Path, lane: str, slow_search: HeldSearch
) -> None:
    with serving(small_models, lane, working=1, waiting=2) as app, grpc.insecure_channel(app.address) as channel:
        recommend = recommender_pb2_grpc.RecommenderServiceStub(channel).Recommend
        for _ in range(2):
            calls = [recommend.future(recommender_pb2.RecommendRequest(user_id="u0")) for _ in range(3)]
            time.sleep(0.3)
            for call in calls:
                call.cancel()
            slow_search.let_go()
            time.sleep(0.3)
        calls = [recommend.future(recommender_pb2.RecommendRequest(user_id="u0")) for _ in range(3)]
        assert [len(call.result(timeout=10).items) for call in calls] == [10, 10, 10]


def test_both_clients_stop_waiting_at_their_timeout(small_models: Path, lane: str, slow_search: HeldSearch) -> None:
    async def ask(address: str) -> None:
        async with AsyncClient(address) as asynchronous:
            with pytest.raises(DeadlineExceeded):
                await asynchronous.with_timeout(0.2).recommend("u0")

    with serving(small_models, lane) as app, Client(app.address, timeout_seconds=0.2) as client:
        with pytest.raises(DeadlineExceeded):
            client.recommend("u0")
        asyncio.run(ask(app.address))
        slow_search.let_go()
