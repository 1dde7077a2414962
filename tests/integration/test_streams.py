"""Streams that go wrong, wait, or are left alone; and long batches, which share the lane with everybody else."""

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from shortlist.v1 import recommender_pb2, recommender_pb2_grpc
from shortlist_server.retrieval.exact import Found
from shortlist_server.retrieval.item_index import ItemIndex, Searches
from tests.running import HeldSearch, serving

REQUEST = recommender_pb2.RecommendRequest(user_id="u0", k=5)
MESSAGE = recommender_pb2.StreamRecommendRequest(request_id="a", request=REQUEST)
STREAM = "/shortlist.v1.RecommenderService/StreamRecommend"


def then_silent(over: threading.Event) -> Iterator[recommender_pb2.StreamRecommendRequest]:
    """One message, and no more until it is over."""
    yield MESSAGE
    over.wait(20)


def opens_within(stub: recommender_pb2_grpc.RecommenderServiceStub, seconds: float) -> bool:
    """Whether a stream is answered after some attempts."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            return len(list(stub.StreamRecommend(iter([MESSAGE]), timeout=5))) == 1
        except grpc.RpcError:  # no room yet
            time.sleep(0.05)
    return False


def test_a_stream_without_messages_ends(stub: recommender_pb2_grpc.RecommenderServiceStub) -> None:
    assert list(stub.StreamRecommend(iter([]), timeout=10)) == []


@pytest.mark.parametrize("how", ["cancelled", "deadline"])
def test_a_stream_that_is_given_up_makes_room_for_the_next(small_models: Path, lane: str, how: str) -> None:
    over = threading.Event()
    with serving(small_models, lane, streams=1) as app, grpc.insecure_channel(app.address) as channel:
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        stream = stub.StreamRecommend(then_silent(over), timeout=1 if how == "deadline" else 20)
        assert next(stream).outcome.response.items
        if how == "cancelled":
            stream.cancel()
        with pytest.raises(grpc.RpcError):
            next(stream)
        code = grpc.StatusCode.CANCELLED if how == "cancelled" else grpc.StatusCode.DEADLINE_EXCEEDED
        assert stream.code() is code
        assert opens_within(stub, 10)
        over.set()


def test_a_malformed_message_ends_its_stream_and_makes_room_for_the_next(small_models: Path) -> None:
    with serving(small_models, "fast", streams=1) as app, grpc.insecure_channel(app.address) as channel:
        malformed: list[bytes] = [MESSAGE.SerializeToString(), b"\xff\xff"]
        send: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(STREAM, bytes, bytes)
        stream = send(iter(malformed), timeout=20)
        with pytest.raises(grpc.RpcError):
            list(stream)
        assert stream.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "the request is malformed" in (stream.details() or "")
        assert opens_within(recommender_pb2_grpc.RecommenderServiceStub(channel), 10)


def test_callers_who_take_no_answers_are_held_back(
    small_models: Path, lane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = [0]
    search = ItemIndex.search

    def counted(self: ItemIndex, searches: Searches) -> Found:
        searched[0] += len(searches)
        return search(self, searches)

    monkeypatch.setattr(ItemIndex, "search", counted)
    long = recommender_pb2.StreamRecommendRequest(request=recommender_pb2.RecommendRequest(user_id="u0", k=150))
    with serving(small_models, lane) as app, grpc.insecure_channel(app.address) as channel:
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        stream = stub.StreamRecommend((long for _ in range(20_000)), timeout=60)
        next(stream)
        before = -1
        deadline = time.monotonic() + 20
        while searched[0] != before:
            assert time.monotonic() < deadline
            before = searched[0]
            time.sleep(0.5)
        assert 0 < before < 10_000
        assert len(stub.Recommend(REQUEST, timeout=5).items) == 5
        stream.cancel()


def test_callers_who_send_large_messages_and_take_no_answers_are_held_back(small_models: Path, lane: str) -> None:
    """What a stream sends is echoed, and would be kept twice."""
    large = "x" * (4 << 20)
    sent = itertools.count()

    def messages() -> Iterator[recommender_pb2.StreamRecommendRequest]:
        for _ in range(200):
            next(sent)
            yield recommender_pb2.StreamRecommendRequest(request_id=large, request=REQUEST)

    options = [("grpc.max_receive_message_length", -1)]
    with serving(small_models, lane) as app, grpc.insecure_channel(app.address, options) as channel:
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        stream = stub.StreamRecommend(messages(), timeout=60)
        assert next(stream).request_id == large
        time.sleep(3)
        assert next(sent) < 20
        assert len(stub.Recommend(REQUEST, timeout=5).items) == 5
        assert sum(1 for _ in itertools.islice(stream, 20)) == 20  # whoever takes them gets all
        stream.cancel()


def test_a_message_is_refused_by_itself_while_too_much_waits(
    small_models: Path, lane: str, slow_search: HeldSearch
) -> None:
    turn = threading.Semaphore(1)

    def one_by_one() -> Iterator[recommender_pb2.StreamRecommendRequest]:
        for _ in range(2):
            turn.acquire(timeout=20)
            yield MESSAGE

    with serving(small_models, lane, working=1, waiting=0) as app, grpc.insecure_channel(app.address) as channel:
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        working = stub.Recommend.future(REQUEST, timeout=20)
        assert slow_search.begun.wait(20)
        stream = stub.StreamRecommend(one_by_one(), timeout=20)
        refused = next(stream)
        assert (refused.request_id, refused.outcome.error.code) == ("a", grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])
        slow_search.let_go()
        assert working.result().items
        time.sleep(0.3)  # the place is given back a moment after the answer
        turn.release()
        assert [len(answer.outcome.response.items) for answer in stream] == [5]


def test_a_stopping_server_answers_what_it_has_and_then_cuts_idle_streams_off(
    small_models: Path, lane: str, slow_search: HeldSearch
) -> None:
    over = threading.Event()
    with serving(small_models, lane, grace_seconds=1) as app, grpc.insecure_channel(app.address) as channel:
        stream = recommender_pb2_grpc.RecommenderServiceStub(channel).StreamRecommend(then_silent(over), timeout=20)
        assert slow_search.begun.wait(20)
        stop = threading.Thread(target=app.stop)
        stop.start()
        time.sleep(0.3)
        slow_search.let_go()
        assert next(stream).outcome.response.items
        with pytest.raises(grpc.RpcError):
            next(stream)
        stop.join(10)
        assert not stop.is_alive()
        over.set()


def test_a_long_batch_keeps_single_requests_waiting_for_a_part_of_it_only(
    small_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()
    search = ItemIndex.search

    def slow(self: ItemIndex, searches: Searches) -> Found:
        begun.set()
        time.sleep(0.1)
        return search(self, searches)

    monkeypatch.setattr(ItemIndex, "search", slow)
    many = recommender_pb2.BatchRecommendRequest(requests=[REQUEST] * 1_000)
    with serving(small_models, "fast") as app, grpc.insecure_channel(app.address) as channel:
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        batch = stub.BatchRecommend.future(many, timeout=60)
        assert begun.wait(20)
        assert len(stub.Recommend(REQUEST, timeout=20).items) == 5
        assert not batch.done()
        outcomes = batch.result().outcomes
        assert [len(outcome.response.items) for outcome in outcomes] == [5] * 1_000


def test_streams_and_single_requests_share_the_lane(small_models: Path, lane: str) -> None:
    with serving(small_models, lane) as app, grpc.insecure_channel(app.address) as channel:
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        expected = list(stub.Recommend(REQUEST).items)
        streams = [stub.StreamRecommend(iter([MESSAGE] * 200), timeout=30) for _ in range(5)]
        calls = [stub.Recommend.future(REQUEST, timeout=30) for _ in range(100)]
        for stream in streams:
            answers = list(stream)
            assert len(answers) == 200
            assert all(
                [item.item_id for item in answer.outcome.response.items] == [i.item_id for i in expected]
                for answer in answers
            )
        assert all(len(call.result().items) == 5 for call in calls)
