"""Clusters: their number, who is in them, and what a cluster of users likes best."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from shortlist_trainer.data.dataset import Interactions
from shortlist_trainer.errors import ConfigError
from shortlist_trainer.export import clusters as clusters_module
from shortlist_trainer.export.clusters import (
    RankedItems,
    build_clusters,
    check_cluster_counts,
    cluster,
    minimum_support,
    rank_items,
)
from shortlist_trainer.export.format import NO_CLUSTER
from tests.small_world import random_dataset, random_embeddings, two_tastes

Float32Array = npt.NDArray[np.float32]


def planted(rng: np.random.Generator, sizes: list[int]) -> tuple[Float32Array, npt.NDArray[np.int64]]:
    """Vectors near one direction each, of very different lengths, and which direction that is."""
    directions = np.eye(len(sizes) + 2)[: len(sizes)]
    groups = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    vectors = directions[groups] + 0.05 * rng.standard_normal((len(groups), len(sizes) + 2))
    return (vectors * rng.lognormal(0, 1, (len(groups), 1))).astype(np.float32), groups


def all_touched(vectors: Float32Array) -> npt.NDArray[np.bool_]:
    return np.ones(len(vectors), dtype=np.bool_)


def listed(ranked: RankedItems, label: int) -> list[tuple[int, float, int]]:
    """Item row, score and support of each item of a cluster."""
    part = slice(*ranked.offsets[label : label + 2])
    columns = (ranked.items[part].tolist(), ranked.scores[part].tolist(), ranked.support[part].tolist())
    return list(zip(*columns, strict=True))


def test_the_number_of_planted_clusters_is_found_and_so_are_their_members(rng: np.random.Generator) -> None:
    vectors, groups = planted(rng, [30, 70, 50, 20, 60, 40])
    found = cluster(vectors, all_touched(vectors), None, seed=1)
    assert found.chosen_by == "silhouette"
    assert found.silhouette > 0.7
    assert found.sizes.tolist() == [70, 60, 50, 40, 30, 20]
    assert [set(groups[found.labels == label].tolist()) for label in range(6)] == [{1}, {4}, {2}, {5}, {0}, {3}]
    for label, group in enumerate([1, 4, 2, 5, 0, 3]):
        unit = vectors[groups == group] / np.linalg.norm(vectors[groups == group], axis=1, keepdims=True)
        np.testing.assert_allclose(found.centroids[label], unit.mean(axis=0), atol=1e-5)


def test_without_clear_clusters_there_are_as_many_as_one_can_read_or_fewer_where_rows_are_few(
    rng: np.random.Generator,
) -> None:
    for rows, expected in ((600, 10), (59, 5), (19, 1), (3, 1)):
        vectors = rng.standard_normal((rows, 16)).astype(np.float32)
        found = cluster(vectors, all_touched(vectors), None, seed=1)
        assert (len(found.sizes), found.chosen_by) == (expected, "default")
        assert sorted(set(found.labels.tolist())) == list(range(expected))
        assert found.sizes.tolist() == sorted(np.bincount(found.labels).tolist(), reverse=True)


def test_direction_counts_and_length_and_biases_do_not(rng: np.random.Generator) -> None:
    dataset = random_dataset(40, 60, 10, rng)
    biased = random_embeddings(40, 60, 6, rng, biased=True)
    stretched = replace(
        biased,
        users=np.hstack([biased.users[:, :6] * rng.lognormal(0, 1, (40, 1)), biased.users[:, 6:]]).astype(np.float32),
        items=np.hstack([biased.items[:, :6] * rng.lognormal(0, 1, (60, 1)), 9 * biased.items[:, 6:]]).astype(
            np.float32
        ),
    )
    before = build_clusters(biased, dataset.interactions, 4, 5, seed=3)
    after = build_clusters(stretched, dataset.interactions, 4, 5, seed=3)
    assert before.users.labels.tolist() == after.users.labels.tolist()
    assert before.items.labels.tolist() == after.items.labels.tolist()
    assert (before.users.centroids.shape, before.items.centroids.shape) == ((4, 6), (5, 6))
    assert (before.users.chosen_by, before.items.chosen_by) == ("given", "given")


def test_rows_without_an_interaction_or_a_direction_are_in_no_cluster(rng: np.random.Generator) -> None:
    vectors, _ = planted(rng, [30, 40])
    vectors[5] = 0
    touched = all_touched(vectors)
    touched[[7, 9]] = False
    found = cluster(vectors, touched, None, seed=0)
    assert np.flatnonzero(found.labels == NO_CLUSTER).tolist() == [5, 7, 9]
    assert found.sizes.sum() == 67
    nothing = cluster(np.zeros((4, 3), np.float32), all_touched(vectors[:4]), None, seed=0)
    assert (nothing.labels.tolist(), nothing.sizes.tolist(), nothing.centroids.shape) == ([NO_CLUSTER] * 4, [], (0, 3))


@pytest.mark.parametrize("mini_batch_above", [50_000, 100])
def test_equal_seeds_give_equal_clusters(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, mini_batch_above: int
) -> None:
    monkeypatch.setattr(clusters_module, "MINI_BATCH_ABOVE", mini_batch_above)
    dataset, embeddings = random_dataset(200, 300, 10, rng), random_embeddings(200, 300, 8, rng)
    first, second = (build_clusters(embeddings, dataset.interactions, None, 7, seed=11) for _ in range(2))
    other = build_clusters(embeddings, dataset.interactions, None, 7, seed=12)
    for side in ("users", "items"):
        one, two = getattr(first, side), getattr(second, side)
        assert one.labels.tolist() == two.labels.tolist()
        assert one.centroids.tobytes() == two.centroids.tobytes()
        assert one.labels.tolist() != getattr(other, side).labels.tolist()


def test_large_tables_are_clustered_by_mini_batches(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, _ = planted(rng, [300, 200])
    monkeypatch.setattr(clusters_module, "MINI_BATCH_ABOVE", 499)
    monkeypatch.setattr(clusters_module, "KMeans", None)  # whoever makes one fails
    assert cluster(vectors, all_touched(vectors), 2, seed=0).sizes.tolist() == [300, 200]
    monkeypatch.setattr(clusters_module, "MINI_BATCH_ABOVE", 500)
    with pytest.raises(TypeError):
        cluster(vectors, all_touched(vectors), 2, seed=0)


def test_there_are_no_more_clusters_than_rows_that_differ() -> None:
    dataset, embeddings = two_tastes()
    same = replace(embeddings, users=np.ones_like(embeddings.users))
    found = build_clusters(same, dataset.interactions, 3, 2)
    assert (found.users.sizes.tolist(), len(found.users.centroids)) == ([13], 1)
    assert found.items.sizes.tolist() == [4, 3]


def test_a_number_of_clusters_that_cannot_be_is_refused() -> None:
    dataset, _ = two_tastes()
    check_cluster_counts(14, 8, dataset)
    check_cluster_counts(None, None, dataset)
    for users, items, message in ((15, None, "user clusters must number 1 to 14, not 15"), (None, 0, "item clusters")):
        with pytest.raises(ConfigError, match=message):
            check_cluster_counts(users, items, dataset)


def test_an_items_minimum_support_grows_as_the_square_root_of_the_cluster() -> None:
    sizes = np.array([1, 2, 3, 9, 10, 100, 101, 10_000])
    assert minimum_support(sizes).tolist() == [1, 2, 2, 3, 4, 10, 11, 100]


def test_a_clusters_items_are_ranked_by_mean_rating_of_those_with_enough_support() -> None:
    dataset, embeddings = two_tastes()
    found = build_clusters(embeddings, dataset.interactions, 2, 2)
    assert found.users.sizes.tolist() == [9, 4]
    assert found.ranked.minimum_support.tolist() == [3, 2]
    alien, contact, daisy, blade, emma = range(5)
    assert listed(found.ranked, 0) == [(blade, 4.0, 4), (alien, 4.0, 3), (contact, 1.5, 3)]
    assert listed(found.ranked, 1) == [(emma, pytest.approx(14 / 3), 3), (daisy, 2.5, 2)]
    assert found.users.labels[dataset.user_ids.index("lurker")] == NO_CLUSTER
    assert found.items.labels[dataset.item_ids.index("lost")] == NO_CLUSTER


def test_without_ratings_items_are_ranked_by_the_share_of_the_cluster_that_touched_them() -> None:
    dataset, embeddings = two_tastes()
    found = build_clusters(embeddings, replace(dataset.interactions, ratings=None), 2, 2)
    alien, contact, daisy, blade, emma = range(5)
    assert [(item, users) for item, _, users in listed(found.ranked, 0)] == [(blade, 4), (alien, 3), (contact, 3)]
    np.testing.assert_allclose(found.ranked.scores[:3], [4 / 9, 3 / 9, 3 / 9], rtol=1e-6)
    assert listed(found.ranked, 1) == [(emma, 0.75, 3), (daisy, 0.5, 2)]


def test_what_users_without_a_cluster_rated_counts_nowhere() -> None:
    users, items = np.array([0, 1, 2, 3], np.int32), np.array([0, 0, 0, 0], np.int32)
    interactions = Interactions(users, items, np.array([1, 5, 5, 2], np.float32), None, 4, 2)
    ranked = rank_items(interactions, np.array([0, NO_CLUSTER, NO_CLUSTER, 0], np.int32), np.array([2]))
    assert listed(ranked, 0) == [(0, 1.5, 2)]
