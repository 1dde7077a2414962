"""Every option of the Python client against the message that says the same, asked of a real server."""

import asyncio
import contextlib
import math
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from shortlist.v1 import recommender_pb2, recommender_pb2_grpc
from shortlist_client import (
    AsyncClient,
    Client,
    InvalidArgument,
    ItemNotFound,
    Recommendations,
    Shortfall,
    ShortlistError,
    Source,
    Unavailable,
    Unimplemented,
    UserNotFound,
    recommend_request,
)
from shortlist_client.errors import error_of
from shortlist_client.streams import Asked
from tests.running import serving
from tests.small_world import dataset_of, publish_embeddings, random_embeddings

HistoryItem = recommender_pb2.HistoryItem
RecommendRequest = recommender_pb2.RecommendRequest


def ids(answer: Recommendations | ShortlistError) -> list[str]:
    assert isinstance(answer, Recommendations), answer
    return [item.id for item in answer.items]


# What tests/small_world.py gives item number n: genres by n % 2, classic where n % 3 == 0, year 1990 + n, price n / 2.
@pytest.mark.parametrize(
    ("must", "must_not", "allowed"),
    [
        ({"genres": "Crime"}, None, range(0, 200, 2)),
        ({"genres": ["Crime", "Drama"], "classic": True}, None, range(0, 200, 3)),
        (None, {"genres": ["Drama"], "classic": False}, range(0, 200, 6)),
        ({"year": [1995, 2017]}, {}, [5, 27]),
        ({"price": (4, 9.5)}, {"title": "Title of i8"}, [19]),
    ],
)
def test_conditions_say_what_may_come_back(client: Client, must: Any, must_not: Any, allowed: Any) -> None:
    expected = {f"i{number}" for number in allowed}
    answer = client.recommend("u3", k=200, exclude_seen=False, must=must, must_not=must_not)
    assert {item.id for item in answer.items} == expected
    assert answer.shortfall == Shortfall.FILTER
    similar = client.similar_items("i4", k=200, must=must, must_not=must_not, search_effort=2)
    assert {item.id for item in similar.items} == expected - {"i4"}


def test_a_history_is_a_list_or_has_weights(client: Client, stub: recommender_pb2_grpc.RecommenderServiceStub) -> None:
    plain = client.recommend(history=["i9", "x", "i40"], k=20)
    asked = [HistoryItem(item_id="i9"), HistoryItem(item_id="x"), HistoryItem(item_id="i40")]
    told = stub.Recommend(RecommendRequest(history=recommender_pb2.History(items=asked), k=20))
    assert ids(plain) == [item.item_id for item in told.items]
    assert (plain.source, plain.unknown_history_items) == (Source.FOLDED_IN, 1)
    weighted = client.recommend(history={"i9": 1.0, "i40": 5.0}, k=20)
    asked = [HistoryItem(item_id="i9", weight=1.0), HistoryItem(item_id="i40", weight=5.0)]
    told = stub.Recommend(RecommendRequest(history=recommender_pb2.History(items=asked), k=20))
    assert [item.score for item in weighted.items] == pytest.approx([item.score for item in told.items])
    assert weighted.unknown_history_items == 0
    assert {"i9", "i40"} <= set(ids(client.recommend(history=["i9", "i40"], k=200, exclude_seen=False)))


def test_pages_scores_and_limits_are_passed_on(client: Client) -> None:
    everything = client.recommend("u3", k=50)
    assert ids(client.recommend("u3", k=20, offset=10)) == ids(everything)[10:30]
    low = client.recommend("u3", k=50, min_score=everything.items[4].score - 1e-4)
    assert (ids(low), low.shortfall) == (ids(everything)[:5], Shortfall.MIN_SCORE)
    spread = client.recommend("u3", k=50, diversity=("genres", 2))
    assert (len(spread.items), spread.shortfall) == (4, Shortfall.DIVERSITY)
    assert ids(client.recommend("u3", k=50, search_effort=16)) == ids(everything)


def test_what_cannot_be_is_a_typed_error(client: Client) -> None:
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("filter.must[0].attribute", {"must": {"taste": "sweet"}}),
        ("filter.must_not[1].any_of[0]", {"must_not": {"genres": "Crime", "year": "old"}}),
        ("filter.must[0].any_of", {"must": {"genres": []}}),
        ("min_score", {"min_score": math.nan}),
        ("offset", {"offset": 991}),
        ("diversity.max_per_value", {"diversity": ("genres", 0)}),
        ("search_effort", {"search_effort": 17}),
    ]
    for field, options in wrong:
        with pytest.raises(InvalidArgument) as caught:
            client.recommend("u3", **options)
        assert list(caught.value.violations) == [field]
    with pytest.raises(InvalidArgument) as caught:
        client.recommend(history=[])
    assert list(caught.value.violations) == ["history.items"]
    with pytest.raises(ItemNotFound):
        client.recommend(history=["x"])
    with pytest.raises(Unimplemented, match="no network to re-rank with"):
        client.recommend("u3", rerank=True)
    with pytest.raises(InvalidArgument) as caught:
        client.similar_items("i1", search_effort=17)
    assert list(caught.value.violations) == ["search_effort"]


def assert_in_order(outcomes: list[Recommendations | ShortlistError], client: Client) -> None:
    assert ids(outcomes[0]) == ids(client.recommend("u1", k=4, must={"classic": True}))
    unknown = outcomes[1]
    assert isinstance(unknown, UserNotFound)
    assert (unknown.resource_name, unknown.code) == ("nobody", grpc.StatusCode.NOT_FOUND)
    assert str(unknown) == "the model knows no user 'nobody'"
    assert ids(outcomes[2]) == ids(client.recommend("u2", k=4, must={"classic": True}))
    assert len(outcomes) == 3


def test_a_batch_answers_each_user_in_order_by_both_clients(client: Client, small_server: str) -> None:
    users = ["u1", "nobody", "u2"]
    assert_in_order(client.batch_recommend(users, k=4, must={"classic": True}), client)

    async def ask() -> list[Recommendations | ShortlistError]:
        async with AsyncClient(small_server) as asynchronous:
            return await asynchronous.batch_recommend(users, k=4, must={"classic": True})

    assert_in_order(asyncio.run(ask()), client)
    with pytest.raises(InvalidArgument, match="may ask for 100,000 items in all, not 101,000"):
        client.batch_recommend(["u1"] * 101, k=1_000)


def test_the_largest_answer_of_a_batch_is_read(tmp_path: Path, rng: np.random.Generator) -> None:
    """Every id as long as the contract allows."""
    pairs = [(f"u{item % 2}", f"{item:0>512}", 5.0) for item in range(1_000)]
    publish_embeddings(tmp_path, dataset_of(pairs), random_embeddings(2, 1_000, 8, rng))
    with serving(tmp_path) as app, Client(app.address, timeout_seconds=60) as client:
        outcomes = client.batch_recommend(["u0"] * 100, k=1_000, exclude_seen=False)
    assert [len(ids(outcome)) for outcome in outcomes] == [1_000] * 100


def test_a_stream_gives_each_answer_its_id_and_ends_with_its_requests(client: Client) -> None:
    users = [f"u{number % 31}" for number in range(300)]  # u30 is nobody
    requests = ((str(place), recommend_request(user, k=3)) for place, user in enumerate(users))
    answers = dict(client.stream_recommend(requests))
    assert len(answers) == 300
    expected = {f"u{number}": ids(client.recommend(f"u{number}", k=3)) for number in range(30)}
    for place, user in enumerate(users):
        answer = answers[str(place)]
        assert isinstance(answer, UserNotFound) if user == "u30" else ids(answer) == expected[user]


def test_a_stream_that_is_left_takes_no_more_requests(client: Client) -> None:
    over = threading.Event()

    def forever() -> Iterator[tuple[str, recommender_pb2.RecommendRequest]]:
        try:
            while True:
                yield "", recommend_request("u1", k=1)
        finally:
            over.set()

    stream = client.stream_recommend(forever())
    next(stream)
    stream.close()
    assert over.wait(10)


def test_a_stream_of_the_asyncio_client_gives_the_same_answers(client: Client, small_server: str) -> None:
    pairs = [(str(place), recommend_request(f"u{place % 31}", k=3)) for place in range(300)]  # u30 is nobody

    async def as_they_come() -> AsyncIterator[Asked]:
        for place, pair in enumerate(pairs):
            if place % 50 == 0:
                await asyncio.sleep(0.01)
            yield pair

    async def ask() -> list[dict[str, Recommendations | ShortlistError]]:
        async with AsyncClient(small_server) as asynchronous:
            return [
                {place: answer async for place, answer in asynchronous.stream_recommend(requests)}
                for requests in (pairs, as_they_come())
            ]

    expected = dict(client.stream_recommend(pairs))
    for answers in asyncio.run(ask()):
        assert answers.keys() == expected.keys()
        for place, answer in answers.items():
            right = expected[place]
            assert isinstance(answer, UserNotFound) if isinstance(right, UserNotFound) else ids(answer) == ids(right)


def test_a_stream_of_the_asyncio_client_that_is_left_takes_no_more_requests(small_server: str) -> None:
    async def ask() -> None:
        over = asyncio.Event()

        async def forever() -> AsyncIterator[Asked]:
            try:
                while True:
                    yield "", recommend_request("u1", k=1)
            finally:
                over.set()

        async with AsyncClient(small_server) as asynchronous:
            async with contextlib.aclosing(asynchronous.stream_recommend(forever())) as stream:
                await anext(stream)
            await asyncio.wait_for(over.wait(), 10)
            assert len((await asynchronous.recommend("u1")).items) == 10

    asyncio.run(ask())


def test_what_the_requests_of_a_stream_raise_is_raised_once_those_before_are_answered(
    client: Client, small_server: str
) -> None:
    def three() -> Iterator[Asked]:
        for place in range(3):
            yield str(place), recommend_request("u1", k=1)
        raise LookupError("of the caller's own")

    async def three_awaited() -> AsyncIterator[Asked]:
        for pair in three():
            yield pair

    came: list[str] = []

    def ask_blocking() -> None:
        for place, _ in client.stream_recommend(three()):
            came.append(place)

    async def ask(requests: Iterator[Asked] | AsyncIterator[Asked]) -> None:
        async with AsyncClient(small_server) as asynchronous:
            async for place, _ in asynchronous.stream_recommend(requests):
                came.append(place)

    with pytest.raises(LookupError, match="of the caller's own"):
        ask_blocking()
    for requests in (three(), three_awaited()):
        with pytest.raises(LookupError, match="of the caller's own"):
            asyncio.run(ask(requests))
    assert sorted(came) == [*"000111222"]


def test_a_stream_to_nobody_is_a_typed_error() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(Unavailable):
        next(client.stream_recommend([("a", recommend_request("u1"))]))

    async def ask() -> None:
        async with AsyncClient("127.0.0.1:1") as asynchronous:
            await anext(asynchronous.stream_recommend([("a", recommend_request("u1"))]))

    with pytest.raises(Unavailable):
        asyncio.run(ask())


def test_an_entrys_error_is_the_one_of_the_call_alone(
    client: Client, stub: recommender_pb2_grpc.RecommenderServiceStub
) -> None:
    for request in (RecommendRequest(user_id="nobody"), RecommendRequest(user_id="u1", k=0), RecommendRequest()):
        with pytest.raises(grpc.RpcError) as caught:
            stub.Recommend(request)
        alone = error_of(caught.value)
        ((_, entry),) = client.stream_recommend([("a", request)])
        assert isinstance(entry, ShortlistError)
        assert (type(entry), str(entry), entry.code) == (type(alone), str(alone), alone.code)
