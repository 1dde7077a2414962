"""Clusters asked of a real server by a real client, on two tastes whose answers are computed by hand."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shortlist_client import (
    AsyncClient,
    Client,
    Cluster,
    ClusterKind,
    ClusterNotFound,
    InvalidArgument,
    ItemNotFound,
    ModelNotFound,
    Shortfall,
    Source,
    Unimplemented,
    UserNotFound,
)
from shortlist_server.service import requests
from tests.contract.make_golden import GOLDEN
from tests.running import serving, shortlist
from tests.small_world import publish_embeddings, two_tastes


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    models_dir = tmp_path_factory.mktemp("tastes") / "models"
    publish_embeddings(models_dir, *two_tastes(), user_clusters=2, item_clusters=2)
    with serving(models_dir) as app:
        yield app.address


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address) as client:
        yield client


def told(cluster: Cluster) -> tuple[int, int, list[tuple[str, float]]]:
    return cluster.label, cluster.size, [(item.id, item.score) for item in cluster.top_items]


def test_every_user_cluster_is_listed_with_what_it_rates_best(client: Client) -> None:
    first, second = client.list_clusters("user", attributes=["title"])
    assert told(first) == (0, 9, [("blade", 4.0), ("alien", 4.0), ("contact", 1.5)])
    assert told(second) == (1, 4, [("emma", pytest.approx(14 / 3)), ("daisy", 2.5)])
    assert (first.kind, first.model_version) == (ClusterKind.USER, 1)
    assert first.top_items[0].attributes == {"title": "Title of blade"}


def test_every_item_cluster_is_listed_with_its_most_touched_members(client: Client) -> None:
    first, second = client.list_clusters(ClusterKind.ITEM)
    assert told(first) == (0, 4, [("blade", 4), ("alien", 3), ("contact", 3), ("dune", 1)])
    assert told(second) == (1, 3, [("daisy", 4), ("emma", 3), ("obscure", 1)])
    assert (first.kind, first.top_items[0].attributes) == (ClusterKind.ITEM, {})
    assert [len(cluster.top_items) for cluster in client.list_clusters("item", k=2)] == [2, 2]


def test_a_cluster_is_found_by_its_label_and_by_any_of_its_members(client: Client) -> None:
    for kind, label, members in (
        ("user", 0, ["a0", "a8"]),
        ("user", 1, ["b0", "b3"]),
        ("item", 0, ["dune", "blade"]),
        ("item", 1, ["obscure"]),
    ):
        cluster = client.get_cluster(kind, label=label, k=2)
        assert cluster == client.list_clusters(kind, k=2)[label]
        for member in members:
            assert client.get_cluster(kind, member_id=member, k=2, exclude_seen=False) == cluster


def test_a_user_gets_the_best_of_the_own_cluster_without_what_the_user_has_touched(client: Client) -> None:
    assert told(client.get_cluster("user", member_id="a0")) == (0, 9, [("blade", 4.0)])
    assert told(client.get_cluster("user", member_id="a2", k=1)) == (0, 9, [("blade", 4.0)])
    assert told(client.get_cluster("user", member_id="a3", k=1)) == (0, 9, [("alien", 4.0)])
    # An item has touched nothing: that alien is in row 0, as user a0 is, leaves nothing out.
    assert client.get_cluster("item", member_id="alien") == client.get_cluster("item", label=0)


@pytest.mark.parametrize("user", ["stranger", "lurker"])
def test_whom_the_model_has_no_vector_for_gets_the_best_of_the_largest_cluster_when_asked_for(
    client: Client, user: str
) -> None:
    answer = client.recommend(user, k=2, fallback="cluster", attributes=["title"])
    assert (answer.source, answer.shortfall, answer.model_version) == (Source.CLUSTER, None, 1)
    assert [(item.id, item.score) for item in answer.items] == [("blade", 4.0), ("alien", 4.0)]
    assert answer.items[0].attributes == {"title": "Title of blade"}
    fewer = client.recommend(user, fallback="cluster", exclude_item_ids=["blade", "emma", "unknown"])
    assert [item.id for item in fewer.items] == ["alien", "contact"]
    assert fewer.shortfall == Shortfall.SUPPORT
    assert len(client.recommend(user, k=1, fallback="cluster", exclude_item_ids=["emma"]).items) == 1
    assert client.recommend(user, fallback="popular").source == Source.POPULAR


def test_whom_the_model_has_a_vector_for_is_answered_personally_whatever_the_fallback(client: Client) -> None:
    for fallback in ("cluster", "popular", "none"):
        assert client.recommend("a0", fallback=fallback).source == Source.PERSONALIZED
    with pytest.raises(UserNotFound):
        client.recommend("stranger")


def test_what_is_in_no_cluster_or_not_there_is_not_found(client: Client) -> None:
    not_found: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: client.get_cluster("user", label=2), ClusterNotFound, "the model has no user cluster 2; it has 2"),
        (lambda: client.get_cluster("item", label=9), ClusterNotFound, "the model has no item cluster 9; it has 2"),
        (lambda: client.get_cluster("user", member_id="lurker"), ClusterNotFound, "'lurker' has no interactions"),
        (lambda: client.get_cluster("item", member_id="lost"), ClusterNotFound, "'lost' has no interactions"),
        (lambda: client.get_cluster("user", member_id="alien"), UserNotFound, "no user 'alien'"),
        (lambda: client.get_cluster("item", member_id="a0"), ItemNotFound, "no item 'a0'"),
        (lambda: client.list_clusters("item", model_version=7), ModelNotFound, "version 7 is not loaded"),
        (lambda: client.get_cluster("item", label=0, model_version=7), ModelNotFound, "version 7 is not loaded"),
    ]
    for call, error, message in not_found:
        with pytest.raises(error, match=message):
            call()
    with pytest.raises(ClusterNotFound) as caught:
        client.get_cluster("user", label=2)
    assert (caught.value.resource_type, caught.value.resource_name) == ("cluster", "2")
    for given in ({}, {"label": 0, "member_id": "a0"}):
        with pytest.raises(ValueError, match="give label or member_id, and not both"):
            client.get_cluster("user", **given)  # type: ignore[arg-type]  # of the right types by name
    with pytest.raises(ValueError, match="film"):
        client.list_clusters("film")


def test_a_list_of_clusters_has_a_limit_over_all_of_them(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "MAX_LISTED_ITEMS", 9)
    assert len(client.list_clusters("user", k=4)) == 2
    with pytest.raises(InvalidArgument) as caught:
        client.list_clusters("user", k=5)
    assert caught.value.violations == {"k": "must be at most 4: 2 clusters may have 9 items"}


def test_the_asyncio_client_gives_the_same_clusters(address: str, client: Client) -> None:
    async def ask() -> None:
        async with AsyncClient(address) as asynchronous:
            assert await asynchronous.list_clusters("item") == client.list_clusters("item")
            assert await asynchronous.get_cluster("user", label=1) == client.get_cluster("user", label=1)
            with pytest.raises(ClusterNotFound):
                await asynchronous.get_cluster("user", label=2)

    asyncio.run(ask())


def test_a_model_published_before_there_were_clusters_says_so_and_answers_the_rest() -> None:
    with serving(GOLDEN / "format_1") as app, Client(app.address) as client:
        for call in (
            lambda: client.list_clusters("user"),
            lambda: client.get_cluster("item", member_id="a"),
            lambda: client.recommend("stranger", fallback="cluster"),
        ):
            with pytest.raises(Unimplemented, match="the model has no clusters"):
                call()
        assert client.recommend("ann", fallback="cluster").source == Source.PERSONALIZED
        assert client.recommend("stranger", fallback="popular").source == Source.POPULAR


def test_the_command_recommends_from_the_largest_cluster(address: str) -> None:
    asked = shortlist("recommend", "stranger", "--fallback", "cluster", "--server", address)
    assert asked.returncode == 0, asked.stderr
    lines = asked.stdout.splitlines()
    assert lines[0] == "cluster items for user stranger, from model version 1"
    assert [line.split()[2] for line in lines[1:4]] == ["blade", "alien", "contact"]
    assert lines[4].strip() == "3 items only: support"


def test_clusters_without_ratings_are_scored_by_the_share_of_users(tmp_path: Path) -> None:
    dataset, embeddings = two_tastes()
    unrated = replace(dataset, interactions=replace(dataset.interactions, ratings=None))
    publish_embeddings(tmp_path, unrated, embeddings, user_clusters=2, item_clusters=2)
    with serving(tmp_path) as app, Client(app.address) as client:
        answer = client.recommend("stranger", k=3, fallback="cluster")
    assert [item.id for item in answer.items] == ["blade", "alien", "contact"]
    np.testing.assert_allclose([item.score for item in answer.items], [4 / 9, 3 / 9, 3 / 9], rtol=1e-6)
