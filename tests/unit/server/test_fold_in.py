"""Fold-in: the solve of training for iALS, the normal prior for ratings, the mean direction for the rest."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from shortlist_server.errors import BadModel
from shortlist_server.model.folder import load_model
from shortlist_server.retrieval.fold_in import CosineMean, FoldIn, ImplicitLeastSquares, NormalPrior, UserLength
from shortlist_server.retrieval.recommend import Recommender
from shortlist_server.service.requests import MAX_HISTORY, MAX_WEIGHT
from shortlist_trainer.models import FoldIn as PublishedFoldIn
from shortlist_trainer.models import fit
from shortlist_trainer.models.ials import ImplicitALS, ImplicitALSConfig
from shortlist_trainer.models.ncf import NeuralCF, NeuralCFConfig
from shortlist_trainer.pipeline import TrainingJob, run
from tests.small_world import checkerboard, publish_embeddings, random_dataset, random_embeddings, training_run

NONE = np.empty(0, dtype=np.int64)
SIZE = 5


def vectors(rng: np.random.Generator, rows: int, size: int = SIZE) -> npt.NDArray[np.float32]:
    return rng.standard_normal((rows, size)).astype(np.float32)


@pytest.mark.parametrize("settings", [{}, {"solver": "cholesky"}, {"regularization_exponent": 0.5}])
def test_the_own_history_of_a_trained_user_gives_the_trained_vector(
    tmp_path: Path, rng: np.random.Generator, settings: dict[str, Any]
) -> None:
    dataset = random_dataset(60, 80, 12, rng)
    config = ImplicitALSConfig(embedding_size=16, **settings).for_data(dataset.interactions)
    model = fit(ImplicitALS, config, dataset.interactions, training_run()).model
    folder = publish_embeddings(
        tmp_path, dataset, model.embeddings(), user_clusters=2, item_clusters=2, fold_in=model.fold_in()
    )
    recommender = load_model(folder, "cpu").recommender
    assert isinstance(recommender.fold_in, ImplicitLeastSquares)
    published = recommender.users.gather(np.arange(60))
    for user in range(60):
        vector, bias = recommender.fold_in.vector(recommender.seen.of(user).astype(np.int64), None)
        np.testing.assert_allclose(vector, published[user], atol=1e-4)
        assert vector.dtype == np.float32
        assert bias == 0
    assert np.abs(published).max() > 0.1


def test_a_weight_counts_as_that_many_interactions_and_none_below_0(rng: np.random.Generator) -> None:
    items = vectors(rng, 20)
    fold_in = ImplicitLeastSquares(items, 0.25, 0.125, 1.5)
    rows, weights = np.array([3, 11, 4]), np.array([2, 0.5, -7], np.float32)
    h, c = items[rows].astype(np.float64), np.array([2, 0.5, 0])
    left = h.T @ (c[:, None] * h) + 0.25 * items.T.astype(np.float64) @ items + 0.125 * (2.5 + 5) ** 1.5 * np.eye(SIZE)
    vector, bias = fold_in.vector(rows, weights)
    np.testing.assert_allclose(vector, np.linalg.solve(left, c @ h), rtol=1e-4)
    assert bias == 0
    ones, _ = fold_in.vector(rows, np.array([1, np.nan, 1], np.float32))
    np.testing.assert_allclose(ones, fold_in.vector(rows, None)[0])


class Ratings:
    """A rating model's tables, and the posterior mean of a user by the textbook's formula."""

    noise_variance = 0.5
    constant = 3.5

    def __init__(self, rng: np.random.Generator) -> None:
        self.items = vectors(rng, 30, SIZE + 1)
        self.users = np.hstack([vectors(rng, 200) @ vectors(rng, SIZE) + 1, np.ones((200, 1), np.float32)])
        self.user_bias = vectors(rng, 200, 1)[:, 0]
        self.users[7], self.user_bias[7] = [0] * SIZE + [1], 0  # who rated nothing
        self.fold_in = NormalPrior(self.items, 1, self.users, self.user_bias, self.constant, self.noise_variance)

    def by_textbook(self, rows: npt.NDArray[np.int64], above: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(SIZE + 1,) from how far the ratings (n,) are above what is expected of everybody."""
        rated = np.arange(200) != 7
        users = np.column_stack([self.users[rated, :SIZE], self.user_bias[rated]]).astype(np.float64)
        precision = np.linalg.inv(np.cov(users.T))
        x = np.column_stack([self.items[rows, :SIZE], np.ones(len(rows))]).astype(np.float64)
        right = x.T @ above / self.noise_variance + precision @ users.mean(axis=0)
        return np.asarray(np.linalg.solve(x.T @ x / self.noise_variance + precision, right))


@pytest.mark.parametrize("count", [0, 1, 4, 30])
def test_ratings_and_the_spread_of_the_users_give_the_posterior_mean(rng: np.random.Generator, count: int) -> None:
    model = Ratings(rng)
    rows, ratings = rng.permutation(30)[:count], rng.uniform(1, 5, count).astype(np.float32)
    vector, bias = model.fold_in.vector(rows, ratings)
    expected = model.by_textbook(rows, ratings - model.constant - model.items[rows, SIZE].astype(np.float64))
    np.testing.assert_allclose([*vector, bias], [*expected[:-1], 1, expected[-1]], atol=1e-3)
    assert vector.dtype == np.float32


def test_without_ratings_a_history_counts_as_liked(rng: np.random.Generator) -> None:
    model = Ratings(rng)
    rows = np.array([1, 5])
    vector, bias = model.fold_in.vector(rows, None)
    expected = model.by_textbook(rows, np.full(2, 0.5**0.5))
    np.testing.assert_allclose([*vector, bias], [*expected[:-1], 1, expected[-1]], atol=1e-3)
    vector, bias = model.fold_in.vector(rows, np.array([np.nan, 2], np.float32))
    expected = model.by_textbook(rows, np.array([0.5**0.5, 2 - model.constant - model.items[5, SIZE]]))
    np.testing.assert_allclose([*vector, bias], [*expected[:-1], 1, expected[-1]], atol=1e-3)


def test_users_who_do_not_spread_in_every_direction_can_be_folded_in(rng: np.random.Generator) -> None:
    users = np.tile(np.array([1, 2, 0, 0, 0, 1], np.float32), (9, 1))
    vector, bias = NormalPrior(vectors(rng, 30, SIZE + 1), 1, users, None, 3.0, 0.5).vector(NONE + 3, None)
    np.testing.assert_allclose([*vector, bias], [1, 2, 0, 0, 0, 1, 0], atol=1e-6)


MEAN_ITEMS = np.array([[2, 0, 9], [0, 3, 9], [-1, 0, 9], [0, 0, 9]], np.float32)  # the last column is a bias
MEAN_USERS = np.array([[3, 4, 1], [0, 15, 1], [0, 0, 1]], np.float32)  # 5 and 15 long, the last untrained


@pytest.mark.parametrize(
    ("rows", "weights", "taste"),
    [
        ([0, 1], None, [50**0.5, 50**0.5]),
        ([0, 1], [3, 4], [6, 8]),
        ([0, 1], [3, -4], [10, 0]),
        ([0, 1], [0.75, np.nan], [6, 8]),
        ([2], None, [-10, 0]),
        ([2, 3], None, [-10, 0]),
        ([3], None, [0, 0]),
        ([0, 2], None, [0, 0]),
        ([], None, [0, 0]),
    ],
)
def test_the_mean_of_directions_is_as_long_as_the_mean_user(
    rows: list[int], weights: list[float] | None, taste: list[float]
) -> None:
    fold_in = UserLength(CosineMean(MEAN_ITEMS[:, :2]), 1, MEAN_USERS)
    of_items = None if weights is None else np.array(weights, np.float32)
    vector, bias = fold_in.vector(np.array(rows, dtype=np.int64), of_items)
    np.testing.assert_allclose([*vector, bias], [*taste, 1, 0], rtol=1e-6)
    assert vector.dtype == np.float32


def test_a_model_without_users_has_a_zero_mean() -> None:
    vector, _ = UserLength(CosineMean(MEAN_ITEMS[:, :2]), 1, MEAN_USERS[2:]).vector(np.array([0]), None)
    assert vector.tolist() == [0, 0, 1]


@pytest.mark.parametrize("weight", [-MAX_WEIGHT, MAX_WEIGHT])
def test_the_largest_weights_overflow_nothing(rng: np.random.Generator, weight: int) -> None:
    items, users = vectors(rng, MAX_HISTORY), vectors(rng, 30)
    rows, weights = np.arange(MAX_HISTORY), np.full(MAX_HISTORY, weight, np.float32)
    solvers: list[FoldIn] = [
        ImplicitLeastSquares(items, 0.25, 0.125, 1.5),
        NormalPrior(items, 1, users, None, 3.5, 0.5),
        CosineMean(items),
        UserLength(CosineMean(items[:, :-1]), 1, users),
    ]
    for solver in solvers:
        vector, bias = solver.vector(rows, weights)
        assert np.isfinite([*vector, bias, *(items @ vector)]).all()


def test_an_empty_history_of_ials_is_a_zero_vector(rng: np.random.Generator) -> None:
    vector, bias = ImplicitLeastSquares(vectors(rng, 20), 0.25, 0.125, 1.0).vector(NONE, None)
    assert (vector.tolist(), bias) == ([0] * SIZE, 0)


def test_one_item_is_the_item_that_scores_best(rng: np.random.Generator) -> None:
    items = vectors(rng, 20)
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    solvers: list[FoldIn] = [ImplicitLeastSquares(items, 0.25, 0.125, 1.0), CosineMean(items)]
    for fold_in in solvers:
        vector, _ = fold_in.vector(np.array([6]), None)
        assert np.argmax(items @ vector) == 6


def loaded(models_dir: Path, fold_in: PublishedFoldIn | None, *, biased: bool) -> Recommender:
    rng = np.random.default_rng(3)
    dataset, embeddings = random_dataset(15, 60, 6, rng), random_embeddings(15, 60, SIZE, rng, biased=biased)
    folder = publish_embeddings(models_dir, dataset, embeddings, user_clusters=2, item_clusters=2, fold_in=fold_in)
    return load_model(folder, "cpu").recommender


@pytest.mark.parametrize("biased", [False, True])
def test_a_folder_that_says_nothing_folds_in_by_the_mean(tmp_path: Path, *, biased: bool) -> None:
    recommender = loaded(tmp_path, None, biased=biased)
    assert recommender.fold_in is not None
    vector, _ = recommender.fold_in.vector(np.array([2, 7]), None)
    taste = recommender.items.vectors(np.array([2, 7]))[:, :SIZE]
    direction = (taste / np.linalg.norm(taste, axis=1, keepdims=True)).sum(axis=0)
    users = recommender.users.gather(np.arange(15))[:, :SIZE]
    expected = direction / np.linalg.norm(direction) * np.linalg.norm(users, axis=1).mean()
    np.testing.assert_allclose(vector, [*expected, *[1] * biased], rtol=1e-4)


def test_least_squares_beside_biases_are_as_long_as_the_mean_user(tmp_path: Path) -> None:
    said = PublishedFoldIn("implicit-least-squares", 0.25, 0.5)
    recommender = loaded(tmp_path, said, biased=True)
    assert recommender.fold_in is not None
    vector, bias = recommender.fold_in.vector(np.array([2, 7]), None)
    taste = recommender.items.vectors(np.arange(60))[:, :SIZE]
    direction, _ = ImplicitLeastSquares(taste, 0.25, 0.5, 0).vector(np.array([2, 7]), None)
    length = np.linalg.norm(recommender.users.gather(np.arange(15))[:, :SIZE], axis=1).mean()
    np.testing.assert_allclose(vector, [*direction / np.linalg.norm(direction) * length, 1], rtol=1e-4)
    assert bias == 0


@pytest.mark.parametrize(
    ("fold_in", "biased"),
    [
        (PublishedFoldIn("guess"), True),  # type: ignore[arg-type]  # a later trainer's
        (PublishedFoldIn("normal-prior"), True),
        (PublishedFoldIn("normal-prior", noise_variance=float("nan")), True),
        (PublishedFoldIn("implicit-least-squares", 0.1), False),
        (PublishedFoldIn("implicit-least-squares", 0.1, 0.1, float("inf")), False),
        (PublishedFoldIn("implicit-least-squares", -0.1, 0.1, 1.0), False),
    ],
)
def test_a_solver_that_cannot_be_used_is_refused(tmp_path: Path, fold_in: PublishedFoldIn, *, biased: bool) -> None:
    with pytest.raises(BadModel, match=rf"manifest\.json folds in by '{fold_in.solver}'"):
        loaded(tmp_path, fold_in, biased=biased)


def test_ncf_folds_in_by_least_squares_over_its_columns() -> None:
    interactions = checkerboard().interactions
    config = NeuralCFConfig(embedding_size=4, mlp_embedding_size=3, hidden_layers=(8,), epochs=2, retrieval_size=5)
    model = fit(NeuralCF, config, interactions, training_run()).model
    weight = 14 * len(interactions) / (40 * 30)
    ridge = 0.1 * weight * np.square(model.embeddings().items[:, :9]).sum() / 9
    said = model.fold_in()
    assert said is not None
    assert said == PublishedFoldIn("implicit-least-squares", weight, said.regularization)
    assert said.regularization == pytest.approx(float(ridge))


def test_a_training_job_says_how_to_fold_in(tmp_path: Path) -> None:
    settings = ["embedding_size=4", "epochs=3"]
    published = run(TrainingJob("mf", tmp_path, settings, device="cpu"), checkerboard())
    said = json.loads((published.folder / "manifest.json").read_text())["fold_in"]
    interactions = checkerboard().interactions
    assert interactions.ratings is not None
    errors = published.model.predict(interactions.users, interactions.items) - interactions.ratings
    assert said == {"solver": "normal-prior", "noise_variance": pytest.approx(float(np.mean(errors**2)))}
    assert isinstance(load_model(published.folder, "cpu").recommender.fold_in, NormalPrior)
