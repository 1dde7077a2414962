"""One suite for every model, and each model's own closed forms."""

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch

from shortlist_trainer.data.dataset import Interactions
from shortlist_trainer.data.split import random_holdout
from shortlist_trainer.errors import ConfigError, DataError, TrainerError
from shortlist_trainer.evaluation.protocols import evaluate
from shortlist_trainer.models import MODELS, Model, ModelConfig, configure, fit, parse_settings
from shortlist_trainer.models.gradient import GradientModel
from shortlist_trainer.models.ials import ImplicitALS, ImplicitALSConfig
from shortlist_trainer.models.mf import MatrixFactorization, MatrixFactorizationConfig
from shortlist_trainer.models.mf_fullbatch import FullBatchConfig, FullBatchMF
from shortlist_trainer.models.softmax_mf import SoftmaxMF, SoftmaxMFConfig
from tests.small_world import SilentProgress, checkerboard, colours, dataset_of, random_dataset, training_run

SMALL = {
    "ials": ["embedding_size=2", "epochs=8"],
    "mf": ["embedding_size=2", "epochs=60", "batch_size=64", "regularization=0.01", "learning_rate=0.02"],
    "mf-fullbatch": ["embedding_size=4", "epochs=200", "regularization=0.1", "learning_rate=0.05"],
    "softmax-mf": ["embedding_size=3", "epochs=30", "batch_size=128", "temperature=1", "learning_rate=0.02"],
    "svdpp": ["embedding_size=4", "factors=2", "epochs=30", "burn_in=10"],
    "ncf": [
        *("embedding_size=4", "mlp_embedding_size=4", "hidden_layers=8", "epochs=6", "pretraining_epochs=2"),
        *("batch_size=64", "learning_rate=0.05"),
    ],
    "ncf-rating": [
        *("embedding_size=4", "item_embedding_size=4", "hidden_layers=16", "initial_scale=0.5", "epochs=30"),
        *(
            "batch_size=64",
            "learning_rate=0.02",
            "schedule=cosine",
            "regularization=0.1",
            "weight_decay=0",
            "dropout=0",
        ),
    ],
}


def trained(name: str, interactions: Interactions, seed: int = 0) -> Model[ModelConfig]:
    model_type = MODELS[name]
    return fit(model_type, parse_settings(model_type.config_type, SMALL[name]), interactions, training_run(seed)).model


def test_every_model_is_in_this_suite() -> None:
    assert set(SMALL) == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_finds_the_colours_of_a_checkerboard(name: str) -> None:
    dataset = checkerboard()
    interactions = dataset.interactions
    model = trained(name, interactions)
    users, items = np.divmod(np.arange(40 * 30), 30)
    scores = model.predict(users, items).reshape(40, 30)
    same_colour = colours(dataset.user_ids)[:, None] == colours(dataset.item_ids)
    seen = np.zeros((40, 30), dtype=bool)
    seen[interactions.users, interactions.items] = True
    # Of what a user has not touched, everything of its own colour comes before everything of the other.
    own = np.where(same_colour & ~seen, scores, np.inf).min(axis=1)
    other = np.where(~same_colour & ~seen, scores, -np.inf).max(axis=1)
    assert (own > other).all()


@pytest.mark.parametrize("name", MODELS)
def test_published_vectors_give_the_models_own_predictions(name: str, rng: np.random.Generator) -> None:
    model = trained(name, checkerboard().interactions)
    users, items = rng.integers(0, 40, 500), rng.integers(0, 30, 500)
    vectors = model.embeddings()
    bias = 0 if vectors.user_bias is None else vectors.user_bias[users]
    folded = (vectors.users[users] * vectors.items[items]).sum(axis=1) + bias + vectors.score_constant
    # Those that stand for a network are exact where its scores have no more columns than they.
    np.testing.assert_allclose(folded, model.predict(users, items), atol=1e-5 if model.ranker() is None else 1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_equal_seeds_give_equal_models_and_other_seeds_others(name: str) -> None:
    interactions = checkerboard().interactions
    one, same, other = (trained(name, interactions, seed).embeddings().users for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)


@pytest.mark.parametrize("name", [name for name in MODELS if issubclass(MODELS[name], GradientModel)])
def test_equal_seeds_give_equal_models_where_several_threads_share_a_batch(name: str, rng: np.random.Generator) -> None:
    """Batches large enough that torch spreads them, over so few rows that threads meet at every one of them."""
    interactions = random_dataset(40, 2000, 1000, rng).interactions
    settings = ["embedding_size=32", "epochs=2", "batch_size=20000"]
    config = parse_settings(MODELS[name].config_type, settings)
    one, same = (fit(MODELS[name], config, interactions, training_run()).model for _ in range(2))
    for parameter, tensor in one.state().items():
        np.testing.assert_array_equal(
            tensor.detach().numpy(), same.state()[parameter].detach().numpy(), err_msg=parameter
        )


@pytest.mark.parametrize("name", MODELS)
def test_users_and_items_without_interactions_get_finite_vectors(name: str) -> None:
    interactions = checkerboard().interactions
    kept = (interactions.users != 3) & (interactions.items != 4)
    vectors = trained(name, interactions.select(kept)).embeddings()
    assert np.isfinite(vectors.users).all()
    assert np.isfinite(vectors.items).all()
    assert np.abs(vectors.users[3, : vectors.users.shape[1] - vectors.bias_columns]).max() == 0


@pytest.mark.parametrize("name", MODELS)
def test_a_model_beats_its_baselines(name: str) -> None:
    dataset = checkerboard(80, 60)
    split = random_holdout(dataset.interactions, 0.2, 0)
    result = evaluate(trained(name, split.train), split)
    if MODELS[name].protocol == "rating":
        assert result.metrics["rmse"] < min(baseline["rmse"] for baseline in result.baselines.values())
    else:
        assert result.metrics["ndcg@10"] > result.baselines["popular"]["ndcg@10"]


@pytest.mark.parametrize("solver", ["cholesky", "conjugate-gradient"])
def test_ials_solves_its_normal_equations(
    solver: Literal["cholesky", "conjugate-gradient"], rng: np.random.Generator
) -> None:
    interactions = random_dataset(30, 40, 8, rng).interactions
    config = ImplicitALSConfig(
        embedding_size=6, epochs=3, regularization=0.05, unobserved_weight=0.2, solver=solver, solver_steps=20
    )
    vectors = fit(ImplicitALS, config, interactions, training_run()).model.embeddings()
    items = vectors.items.astype(np.float64)
    for user in range(30):
        touched = items[interactions.items[interactions.users == user]]
        weight = 0.05 * (len(touched) + 0.2 * 40)
        left = touched.T @ touched + 0.2 * items.T @ items + weight * np.eye(6)
        np.testing.assert_allclose(vectors.users[user], np.linalg.solve(left, touched.sum(axis=0)), atol=1e-4)


@pytest.mark.parametrize("solver", ["cholesky", "conjugate-gradient"])
def test_ials_minimises_the_loss_it_states(
    solver: Literal["cholesky", "conjugate-gradient"], rng: np.random.Generator
) -> None:
    interactions = random_dataset(12, 15, 5, rng).interactions
    config = ImplicitALSConfig(embedding_size=3, epochs=200, regularization=0.05, unobserved_weight=0.2, solver=solver)
    fitted = fit(ImplicitALS, config, interactions, training_run())
    vectors = fitted.model.embeddings()
    users = torch.tensor(vectors.users, dtype=torch.float64, requires_grad=True)
    items = torch.tensor(vectors.items, dtype=torch.float64, requires_grad=True)
    touched = torch.zeros(12, 15, dtype=torch.float64)
    touched[interactions.users, interactions.items] = 1
    scores = users @ items.T
    user_weight = 0.05 * (touched.sum(1) + 0.2 * 15)
    item_weight = 0.05 * (touched.sum(0) + 0.2 * 12)
    loss = (touched * (1 - scores) ** 2).sum() + 0.2 * (scores**2).sum()
    loss = loss + (user_weight * (users**2).sum(1)).sum() + (item_weight * (items**2).sum(1)).sum()
    assert fitted.history.epochs[-1].loss == pytest.approx(float(loss.detach()) / len(interactions), rel=1e-4)
    loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
    assert users.grad is not None
    assert items.grad is not None
    assert users.grad.abs().max() < 1e-3
    assert items.grad.abs().max() < 1e-2


def test_ials_does_not_depend_on_how_its_rows_are_grouped(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    interactions = random_dataset(50, 60, 12, rng).interactions
    config = ImplicitALSConfig(embedding_size=5, epochs=2, solver="cholesky")
    in_one = fit(ImplicitALS, config, interactions, training_run()).model.embeddings()
    monkeypatch.setattr("shortlist_trainer.models.rows._GATHERED_VECTORS", 40)
    in_many = fit(ImplicitALS, config, interactions, training_run()).model.embeddings()
    np.testing.assert_allclose(in_many.users, in_one.users, atol=1e-5)


def test_mf_without_ratings_says_what_to_do() -> None:
    interactions = checkerboard().interactions
    without = Interactions(interactions.users, interactions.items, None, None, 40, 30)
    with pytest.raises(DataError, match="--model ials"):
        fit(MatrixFactorization, MatrixFactorizationConfig(), without, training_run())


def test_mf_that_diverges_stops_with_advice() -> None:
    interactions = dataset_of([("a", "x", 1e30), ("b", "y", -1e30), ("a", "y", 1e30), ("b", "x", 3)]).interactions
    with pytest.raises(TrainerError, match="lower learning_rate"):
        fit(MatrixFactorization, MatrixFactorizationConfig(learning_rate=1e30), interactions, training_run())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["epoch=3"], "no hyper-parameter 'epoch'; there are embedding_size=32"),
        (["epochs=many"], "epochs must be of type int, not 'many'"),
        (["epochs"], "takes NAME=VALUE"),
        (["epochs=0"], "epochs must be at least 1, not 0"),
        (["learning_rate=-1"], "learning_rate must be above 0"),
        (["regularization=-1"], "regularization must be at least 0"),
    ],
)
def test_a_wrong_setting_is_named(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_settings(MatrixFactorizationConfig, settings)


def test_full_batch_steps_follow_the_gradient_of_the_loss_it_states(rng: np.random.Generator) -> None:
    interactions = random_dataset(20, 25, 6, rng).interactions
    ratings = rng.normal(3, 1, len(interactions)).astype(np.float32)
    config = FullBatchConfig(embedding_size=3, epochs=1, regularization=0.3, initial_scale=0.5)
    model = FullBatchMF(config, replace(interactions, ratings=ratings), training_run())
    before = {name.removeprefix("network."): tensor.clone() for name, tensor in model.state().items()}
    leaves = {name: tensor.double().requires_grad_() for name, tensor in before.items()}
    p, q = leaves["user_factors"][interactions.users], leaves["item_factors"][interactions.items]
    b_u, b_i = leaves["user_bias"][interactions.users], leaves["item_bias"][interactions.items]
    errors = float(ratings.mean()) + b_u + b_i + (p * q).sum(1) - torch.from_numpy(ratings)
    norms = p.square().sum(1) + q.square().sum(1) + b_u.square() + b_i.square()
    loss = (errors.square() + 0.3 * norms).mean()
    loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
    assert model.train_epoch(1, SilentProgress().bar(1, "")) == pytest.approx(float(loss.detach()), rel=1e-5)
    # Adam's first moment after one step is a tenth of the gradient.
    moments = [tensor for name, tensor in model.state().items() if name.endswith("exp_avg")]
    for moment, leaf in zip(moments, leaves.values(), strict=True):
        assert leaf.grad is not None
        np.testing.assert_allclose(moment.numpy(), 0.1 * leaf.grad.numpy(), atol=1e-6)


def test_drawn_negatives_estimate_the_softmax_over_all_items(rng: np.random.Generator) -> None:
    interactions = random_dataset(40, 30, 5, rng).interactions

    def losses(negatives: str, times: int) -> float:
        values = {"embedding_size": "4", "negatives": negatives, "negative_count": "3000", "initial_scale": "1"}
        model = SoftmaxMF(configure(SoftmaxMFConfig, values | {"temperature": "0.5"}), interactions, training_run())
        batch = torch.arange(len(interactions))
        torch.manual_seed(0)
        return float(np.mean([model.loss(batch).item() for _ in range(times)]))

    exact = losses("all", 1)
    assert losses("uniform", 20) == pytest.approx(exact, abs=0.01)
    assert losses("popularity", 20) == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("loss", ["softmax", "bilateral-softmax", "bpr", "cosine-contrastive"])
@pytest.mark.parametrize("negatives", ["uniform", "popularity", "in-batch", "all"])
def test_every_loss_and_sampler_of_softmax_mf_learns(loss: str, negatives: str) -> None:
    values = {"embedding_size": "3", "epochs": "15", "batch_size": "128", "temperature": "1", "learning_rate": "0.05"}
    values |= {"loss": loss, "negatives": negatives, "negative_count": "64", "margin": "0", "negative_weight": "4"}
    dataset = checkerboard(60, 40)
    split = random_holdout(dataset.interactions, 0.2, 0)
    result = evaluate(fit(SoftmaxMF, configure(SoftmaxMFConfig, values), split.train, training_run()).model, split)
    assert result.metrics["ndcg@10"] > 1.3 * result.baselines["popular"]["ndcg@10"]


def test_softmax_loss_by_hand() -> None:
    interactions = dataset_of([("a", "x", 1), ("b", "y", 1), ("b", "z", 1)]).interactions
    config = SoftmaxMFConfig(embedding_size=1, similarity="dot", temperature=2, negatives="all", initial_scale=1)
    model = SoftmaxMF(config, interactions, training_run())
    state = model.state()
    model.load_state(
        state | {"network.users": torch.tensor([[1.0], [2.0]]), "network.items": torch.tensor([[1.0], [0.5], [-1.0]])}
    )
    scores = np.array([[1, 0.5, -1], [2, 1, -2]]) / 2  # of a and b for x, y, z, over the temperature
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    by_hand = -np.log([shares[0, 0], shares[1, 1], shares[1, 2]]).mean()
    assert model.loss(torch.arange(3)).item() == pytest.approx(by_hand, rel=1e-6)
