"""A real server and a real client: what is asked and what comes back."""

import asyncio
import itertools
import threading
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from shortlist.v1 import recommender_pb2, recommender_pb2_grpc
from shortlist_client import (
    AsyncClient,
    Client,
    Fallback,
    ModelState,
    Recommendations,
    Shortfall,
    Source,
    UserNotFound,
)
from shortlist_server.model.folder import load_model
from tests.running import serving
from tests.small_world import dataset_of, publish_embeddings, random_embeddings

RecommendRequest = recommender_pb2.RecommendRequest
SimilarItemsRequest = recommender_pb2.SimilarItemsRequest
ScoreRequest = recommender_pb2.ScoreRequest


@pytest.fixture(scope="module")
def truth(small_models: Path) -> tuple[dict[str, dict[str, float]], dict[str, set[str]]]:
    """Every user's score of every item by plain arithmetic, and what each has seen."""
    recommender = load_model(small_models / "1", "cpu").recommender
    items = recommender.item_ids.ids(range(200))
    users = recommender.user_ids.ids(range(30))
    scores = {user: dict(zip(items, recommender.score(user, items).tolist(), strict=True)) for user in users}
    seen = {user: {items[row] for row in recommender.seen.of(place)} for place, user in enumerate(users)}
    return scores, seen


def assert_same_answer(one: Recommendations, other: Recommendations) -> None:
    """Equal but for the last digits of scores, which depend on how many were computed at once."""
    np.testing.assert_allclose([item.score for item in one.items], [item.score for item in other.items], rtol=1e-5)
    assert [(item.id, item.attributes) for item in one.items] == [(item.id, item.attributes) for item in other.items]
    assert replace(one, items=[]) == replace(other, items=[])


def best(scores: dict[str, float], without: set[str], k: int) -> list[str]:
    return sorted((item for item in scores if item not in without), key=lambda item: -scores[item])[:k]


def test_a_user_gets_the_best_unseen_items_with_the_models_scores(
    client: Client, truth: tuple[dict[str, dict[str, float]], dict[str, set[str]]]
) -> None:
    scores, seen = truth
    for user in scores:
        answer = client.recommend(user, k=7)
        assert [item.id for item in answer.items] == best(scores[user], seen[user], 7)
        np.testing.assert_allclose(
            [item.score for item in answer.items], [scores[user][item.id] for item in answer.items], atol=1e-4
        )
        assert (answer.source, answer.model_version, answer.shortfall) == (Source.PERSONALIZED, 1, None)


def test_the_default_is_ten_items_and_none_that_was_seen(
    stub: recommender_pb2_grpc.RecommenderServiceStub,
    truth: tuple[dict[str, dict[str, float]], dict[str, set[str]]],
) -> None:
    answer = stub.Recommend(RecommendRequest(user_id="u0"))
    assert [item.item_id for item in answer.items] == best(truth[0]["u0"], truth[1]["u0"], 10)
    assert answer.timing.computed_micros > 0


def test_seen_items_come_back_when_they_are_asked_for(
    client: Client, truth: tuple[dict[str, dict[str, float]], dict[str, set[str]]]
) -> None:
    answer = client.recommend("u1", k=50, exclude_seen=False)
    assert [item.id for item in answer.items] == best(truth[0]["u1"], set(), 50)


def test_excluded_items_never_come_back_and_never_cost_a_place(
    client: Client, truth: tuple[dict[str, dict[str, float]], dict[str, set[str]]]
) -> None:
    scores, seen = truth
    for k, exclude_seen in itertools.product((1, 5, 100, 1000), (True, False)):
        excluded = best(scores["u2"], set(), 150)
        answer = client.recommend(
            "u2", k=k, exclude_seen=exclude_seen, exclude_item_ids=[*excluded, "unknown", "i0", "i0"]
        )
        without = set(excluded) | {"i0"} | (seen["u2"] if exclude_seen else set())
        assert [item.id for item in answer.items] == best(scores["u2"], without, k)
        assert answer.shortfall == (Shortfall.CATALOGUE_EXHAUSTED if 200 - len(without) < k else None)


def test_a_user_who_has_seen_nearly_everything_gets_what_is_left(tmp_path: Path, rng: np.random.Generator) -> None:
    items = [f"i{row}" for row in range(2_500)]
    pairs = [("fan", item, 5.0) for item in items[3:]] + [("new", item, 5.0) for item in items[:3]]
    publish_embeddings(tmp_path, dataset_of(pairs), random_embeddings(2, 2_500, 16, rng))
    with serving(tmp_path) as app, Client(app.address) as client:
        answer = client.recommend("fan", k=1000)
        assert {item.id for item in answer.items} == {"i0", "i1", "i2"}
        assert answer.shortfall == Shortfall.CATALOGUE_EXHAUSTED
        assert len(client.recommend("new", k=1000).items) == 1000
        nothing = client.recommend("fan", exclude_item_ids=["i0", "i1", "i2"])
        assert (nothing.items, nothing.shortfall) == ([], Shortfall.CATALOGUE_EXHAUSTED)


def test_the_largest_request_that_the_contract_allows_is_answered(client: Client) -> None:
    longest = [f"{number:0>512}" for number in range(9_999)]
    answer = client.with_timeout(20).recommend("u0", exclude_item_ids=[*longest, "i1"])
    assert len(answer.items) == 10


def test_an_unknown_user_gets_popular_items_only_when_that_is_asked_for(client: Client, small_models: Path) -> None:
    with pytest.raises(UserNotFound) as caught:
        client.recommend("nobody")
    assert (caught.value.resource_type, caught.value.resource_name) == ("user", "nobody")
    recommender = load_model(small_models / "1", "cpu").recommender
    counts = dict(zip(recommender.item_ids.ids(range(200)), recommender.popularity.tolist(), strict=True))
    favourite = max(counts, key=lambda item: counts[item])
    answer = client.recommend("nobody", k=20, fallback=Fallback.POPULAR, exclude_item_ids=[favourite])
    assert answer.source == Source.POPULAR
    assert [item.score for item in answer.items] == sorted(
        (counts[item] for item in counts if item != favourite), reverse=True
    )[:20]
    assert all(item.score == counts[item.id] for item in answer.items)


def test_a_known_user_is_answered_personally_whatever_the_fallback(client: Client) -> None:
    assert client.recommend("u0", fallback="popular").source == Source.PERSONALIZED


def test_similar_items_are_the_nearest_by_cosine_without_the_query(client: Client, small_models: Path) -> None:
    recommender = load_model(small_models / "1", "cpu").recommender
    unit = recommender.neighbours.vectors(np.arange(200))
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-5)
    ids = recommender.item_ids.ids(range(200))
    for query, negative in ((["i5"], []), (["i5", "i9", "i20"], []), (["i5", "i9"], ["i7"])):
        direction = unit[[ids.index(item) for item in query]].mean(0)
        if negative:
            direction = direction - unit[[ids.index(item) for item in negative]].mean(0)
        cosines = dict(zip(ids, (unit @ direction / np.linalg.norm(direction)).tolist(), strict=True))
        answer = client.similar_items(query, negative_item_ids=negative, k=12)
        assert [item.id for item in answer.items] == best(cosines, {*query, *negative}, 12)
        np.testing.assert_allclose(
            [item.score for item in answer.items], [cosines[item.id] for item in answer.items], atol=1e-5
        )
    assert len(client.similar_items("i5", k=1000).items) == 199
    everything = {item.id for item in client.similar_items(["i5"], negative_item_ids=["i7"], k=1000).items}
    assert everything == set(ids) - {"i5", "i7"}


def test_scores_come_in_the_order_of_the_items(
    client: Client, truth: tuple[dict[str, dict[str, float]], dict[str, set[str]]]
) -> None:
    asked = ["i7", "i3", "i7", "i199"]
    np.testing.assert_allclose(client.score("u4", asked).scores, [truth[0]["u4"][item] for item in asked], atol=1e-5)


def test_attributes_of_every_type_come_with_the_items_that_have_them(client: Client, small_models: Path) -> None:
    names = ["title", "year", "genres", "price", "classic", "interaction_count"]
    assert sorted(client.get_model().attribute_names) == sorted(names)
    items = {
        item.id: item.attributes for item in client.recommend("u0", k=200, exclude_seen=False, attributes=names).items
    }
    assert items["i1"] == {
        "title": "Title of i1",
        "year": 1991,
        "genres": ["Drama"],
        "price": 0.5,
        "classic": False,
        "interaction_count": items["i1"]["interaction_count"],
    }
    assert "year" not in items["i0"]
    assert items["i0"]["classic"] is True
    assert client.recommend("u0").items[0].attributes == {}


def test_models_are_listed_and_described(client: Client) -> None:
    (model,) = client.list_models()
    assert (model.version, model.state, model.default, model.model_name) == (1, ModelState.READY, True, "made")
    details = client.get_model(model_version=1)
    assert details.model == model
    assert details.manifest["item_count"] == "200"
    assert client.recommend("u0", model_version=1).model_version == 1


def test_the_asyncio_client_gives_the_same_answers_and_errors(client: Client, small_server: str) -> None:
    async def ask() -> None:
        async with AsyncClient(small_server) as asynchronous:
            users = [f"u{number}" for number in range(30)]
            answers = await asyncio.gather(*(asynchronous.recommend(user, attributes=["title"]) for user in users))
            for answer, user in zip(answers, users, strict=True):
                assert_same_answer(answer, client.recommend(user, attributes=["title"]))
            assert await asynchronous.similar_items("i1") == client.similar_items("i1")
            assert await asynchronous.score("u0", ["i1"]) == client.score("u0", ["i1"])
            assert await asynchronous.list_models() == client.list_models()
            assert await asynchronous.get_model() == client.get_model()
            with pytest.raises(UserNotFound) as caught:
                await asynchronous.recommend("nobody")
            assert caught.value.resource_name == "nobody"

    asyncio.run(ask())


def test_answers_are_right_when_many_ask_at_once(small_server: str, client: Client) -> None:
    expected = {f"u{number}": client.recommend(f"u{number}", k=20) for number in range(30)}
    wrong: list[str] = []

    def ask(first: int) -> None:
        for number in range(first, first + 60):
            user = f"u{number % 30}"
            try:
                assert_same_answer(client.with_timeout(30).recommend(user, k=20), expected[user])
            except AssertionError as error:
                wrong.append(f"{user}: {error}")

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_health_is_told_for_the_server_and_each_service(small_server: str) -> None:
    with grpc.insecure_channel(small_server) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "shortlist.v1.RecommenderService", "shortlist.v1.ModelService"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            health.Check(health_pb2.HealthCheckRequest(service="other"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_lists_the_services_and_their_messages(small_server: str) -> None:
    with grpc.insecure_channel(small_server) as channel:
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="shortlist.v1.RecommendRequest"),
        ]
        listed, found = reflection.ServerReflectionInfo(iter(asked))
    names = {service.name for service in listed.list_services_response.service}
    assert names >= {"shortlist.v1.RecommenderService", "shortlist.v1.ModelService", "grpc.health.v1.Health"}
    assert found.file_descriptor_response.file_descriptor_proto
