"""Neural collaborative filtering: negatives, the published network, and vectors that follow it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from shortlist_trainer.data.dataset import Interactions
from shortlist_trainer.errors import ConfigError, DataError
from shortlist_trainer.models import Ranker, fit, parse_settings
from shortlist_trainer.models.base import Model
from shortlist_trainer.models.config import ModelConfig
from shortlist_trainer.models.low_rank import fit_vectors
from shortlist_trainer.models.ncf import NeuralCF, NeuralCFConfig
from shortlist_trainer.models.ncf_rating import RatingNetwork, RatingNetworkConfig
from shortlist_trainer.models.negatives import NegativeSampler
from shortlist_trainer.pipeline import TrainingJob, run
from tests.small_world import checkerboard, random_dataset, training_run

CPU = torch.device("cpu")
SMALL = NeuralCFConfig(
    embedding_size=4, mlp_embedding_size=3, hidden_layers=(8, 5), epochs=4, pretraining_epochs=2, batch_size=100
)
SMALL_RATING = RatingNetworkConfig(embedding_size=3, item_embedding_size=5, hidden_layers=(8, 5), epochs=3)


def interactions_of(touched: npt.NDArray[np.bool_]) -> Interactions:
    """The true cells of (users, items)."""
    users, items = (rows.astype(np.int32) for rows in np.nonzero(touched))
    return Interactions(users, items, None, None, *touched.shape)


@given(st.integers(1, 12), st.integers(2, 12), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_a_negative_is_never_an_item_that_the_user_touched(users: int, items: int, density: float, seed: int) -> None:
    touched = np.random.default_rng(seed).random((users, items)) < density
    sampler = NegativeSampler(interactions_of(touched), CPU)
    of_whom = np.repeat(np.flatnonzero(~touched.all(axis=1)), 50)
    drawn = sampler.draw(torch.from_numpy(of_whom), torch.Generator().manual_seed(seed)).numpy()
    assert ((drawn >= 0) & (drawn < items)).all()
    assert not touched[of_whom, drawn].any()


def test_every_untouched_item_is_equally_likely() -> None:
    touched = np.random.default_rng(3).random((5, 30)) < np.array([[0.0], [0.1], [0.5], [0.9], [0.5]])
    sampler = NegativeSampler(interactions_of(touched), CPU)
    draws = 40_000
    users = torch.arange(5).repeat_interleave(draws)
    drawn = sampler.draw(users, torch.Generator().manual_seed(0)).numpy()
    counts = np.bincount(users.numpy() * 30 + drawn, minlength=150).reshape(5, 30)
    expected = np.where(touched, 0, draws / (~touched).sum(axis=1, keepdims=True))
    # Six standard deviations of a Poisson count.
    assert (np.abs(counts - expected) <= 6 * np.sqrt(expected)).all()


def test_negatives_are_drawn_anew_every_epoch_and_follow_from_seed_and_epoch() -> None:
    interactions = checkerboard().interactions
    users = torch.from_numpy(interactions.users).long()
    sampler = NegativeSampler(interactions, CPU)
    first, second, again = (sampler.draw(users, training_run(5).generator(epoch)) for epoch in (1, 2, 1))
    assert not torch.equal(first, second)
    assert torch.equal(first, again)


def test_a_user_who_touched_everything_is_left_out_and_alone_refused() -> None:
    touched = np.zeros((3, 6), dtype=bool)
    touched[0], touched[1, :2], touched[2, 3] = True, True, True
    trained = fit(NeuralCF, SMALL, interactions_of(touched), training_run()).model
    untrained = NeuralCF(SMALL, interactions_of(touched), training_run())
    moved = (trained.state()["network.gmf.users"] != untrained.state()["network.gmf.users"]).any(1)
    assert moved.tolist() == [False, True, True]
    with pytest.raises(DataError, match="touched every item"):
        NeuralCF(SMALL, interactions_of(np.ones((2, 3), dtype=bool)), training_run())


def rebuilt(ranker: Ranker, users: npt.NDArray[np.int64], items: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """The scores of pairs as docs/model-format.md has them computed."""
    tensors = ranker.tensors
    scores = np.full(len(users), tensors["bias"][0])
    if "user_bias" in tensors:
        scores = scores + tensors["user_bias"][users]
    if "item_bias" in tensors:
        scores = scores + tensors["item_bias"][items]
    if "gmf.user_embeddings" in tensors:
        scores = scores + (tensors["gmf.user_embeddings"][users] * tensors["gmf.item_embeddings"][items]).sum(axis=1)
    hidden = np.hstack([tensors["mlp.user_embeddings"][users], tensors["mlp.item_embeddings"][items]])
    layers = sum(name.startswith("mlp.layers.") for name in tensors) // 2
    for layer in range(layers):
        hidden = hidden @ tensors[f"mlp.layers.{layer}.weight"].T + tensors[f"mlp.layers.{layer}.bias"]
        if layer < layers - 1:
            hidden = np.where(hidden > 0, hidden, tensors["mlp.slope"][0] * hidden)
    return scores + hidden[:, 0]


NETWORKS: dict[str, tuple[type[Model[ModelConfig]], ModelConfig]] = {
    "neumf": (NeuralCF, SMALL),
    "mlp": (NeuralCF, replace(SMALL, architecture="mlp")),
    "ncf-rating": (RatingNetwork, SMALL_RATING),
    "linear": (RatingNetwork, replace(SMALL_RATING, hidden_layers=())),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_can_be_rebuilt_from_its_tensors_alone(name: str, rng: np.random.Generator) -> None:
    model_type, config = NETWORKS[name]
    model = fit(model_type, config, checkerboard().interactions, training_run()).model
    users, items = rng.integers(0, 40, 500), rng.integers(0, 30, 500)
    ranker = model.ranker()
    assert ranker is not None
    assert ranker.architecture == ("neumf" if name == "neumf" else "mlp")
    assert all(tensor.dtype == np.float32 for tensor in ranker.tensors.values())
    scores = model.predict(users, items)
    assert scores.std() > 0.01
    np.testing.assert_allclose(rebuilt(ranker, users, items), scores, atol=1e-5)


def test_a_training_job_publishes_the_network_beside_vectors_of_the_same_scores(tmp_path: Path) -> None:
    settings = ["embedding_size=4", "mlp_embedding_size=3", "hidden_layers=8,5", "epochs=2", "pretraining_epochs=1"]
    folder = run(TrainingJob("ncf", tmp_path, settings, device="cpu"), checkerboard()).folder
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["ranker"] == {"architecture": "neumf"}
    assert manifest["hyperparameters"]["hidden_layers"] == "8,5"
    assert "vectors alone" in manifest["evaluation"]["baselines"]
    users, items = np.divmod(np.arange(40 * 30), 30)
    network = rebuilt(Ranker("neumf", load_file(folder / "ranker.safetensors")), users, items)
    vectors = [load_file(folder / f"{side}_embeddings.safetensors")["embeddings"] for side in ("user", "item")]
    scores = (vectors[0][users] * vectors[1][items]).sum(axis=1) + manifest["score_constant"]
    np.testing.assert_allclose(scores, network, atol=1e-4)


def test_batches_are_smaller_where_an_epoch_would_have_few_steps(rng: np.random.Generator) -> None:
    many = random_dataset(400, 300, 50, rng).interactions
    assert NeuralCFConfig().for_data(many).batch_size == len(many) // 200 < 4096
    assert NeuralCFConfig(batch_size=70).for_data(many).batch_size == 70
    assert NeuralCFConfig().for_data(checkerboard().interactions).batch_size == 64


def test_gmf_is_an_inner_product_and_has_no_ranker() -> None:
    model = fit(NeuralCF, replace(SMALL, architecture="gmf"), checkerboard().interactions, training_run()).model
    assert model.ranker() is None
    assert model.embeddings().items.shape[1] == 4 + 1


def test_scores_do_not_depend_on_how_many_are_asked_for_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fit(NeuralCF, SMALL, checkerboard().interactions, training_run()).model
    users, items = np.divmod(np.arange(40 * 30), 30)
    at_once = model.predict(users, items)
    monkeypatch.setattr("shortlist_trainer.models.ncf._PAIRS_AT_ONCE", 7)
    np.testing.assert_allclose(model.predict(users, items), at_once, atol=1e-6)


def test_in_pretraining_each_part_learns_as_if_it_were_alone() -> None:
    interactions = checkerboard().interactions
    config = replace(SMALL, epochs=2, pretraining_epochs=2)
    both, gmf = (
        fit(NeuralCF, replace(config, architecture=architecture), interactions, training_run()).model.state()
        for architecture in ("neumf", "gmf")
    )
    # All but the bias that the parts share, whose small step in the loss of both is another one.
    np.testing.assert_allclose(both["network.gmf.users"].detach(), gmf["network.gmf.users"].detach(), atol=2e-3)
    together = fit(NeuralCF, replace(config, pretraining_epochs=0), interactions, training_run()).model.state()
    assert np.abs((together["network.gmf.users"] - gmf["network.gmf.users"]).detach().numpy()).max() > 5e-3


def test_vectors_of_low_rank_scores_are_exact_from_a_sample(rng: np.random.Generator) -> None:
    left, right = rng.standard_normal((300, 4)).astype(np.float32), rng.standard_normal((200, 4)).astype(np.float32)
    left[7] = 0
    asked: list[int] = []

    def score(users: npt.NDArray[np.int64], items: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        asked.append(len(users) * len(items))
        return left[users] @ right[items].T

    users, items = fit_vectors(score, 300, 200, 5, torch.Generator().manual_seed(0))
    assert sum(asked) < 300 * 200
    np.testing.assert_allclose(users @ items.T, left @ right.T, atol=1e-3)
    assert np.abs(users[7]).max() == 0


def test_vectors_of_scores_of_full_rank_are_near_the_best_of_their_rank(rng: np.random.Generator) -> None:
    falling = 0.8 ** np.arange(100)
    scores = (rng.standard_normal((300, 100)) * falling @ rng.standard_normal((100, 200))).astype(np.float32)
    users, items = fit_vectors(lambda u, i: scores[np.ix_(u, i)], 300, 200, 8, torch.Generator().manual_seed(0))
    best = np.sqrt((np.linalg.svd(scores, compute_uv=False)[8:] ** 2).sum())
    assert np.linalg.norm(users @ items.T - scores) < 1.3 * best


def test_the_vectors_of_a_network_find_what_it_ranks_first(rng: np.random.Generator) -> None:
    interactions = random_dataset(200, 300, 30, rng).interactions
    config = replace(SMALL, hidden_layers=(16, 8), epochs=6, regularization=0.0, learning_rate=0.02, retrieval_size=8)
    architectures: tuple[Literal["neumf", "mlp"], ...] = ("neumf", "mlp")
    for architecture in architectures:
        model = fit(NeuralCF, replace(config, architecture=architecture), interactions, training_run()).model
        users, items = np.divmod(np.arange(200 * 300), 300)
        scores = model.predict(users, items).reshape(200, 300)
        vectors = model.embeddings()
        found = np.argsort(-vectors.users @ vectors.items.T, axis=1)[:, :50]
        best = np.argsort(-scores, axis=1)[:, :10]
        recall = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(found, best, strict=True)])
        assert recall > 0.95, architecture


def test_mixed_precision_trains_near_what_full_precision_does() -> None:
    interactions = checkerboard().interactions
    full, mixed = (
        fit(NeuralCF, SMALL, interactions, replace(training_run(), mixed_precision=on)).model.embeddings().users
        for on in (False, True)
    )
    assert not np.array_equal(full, mixed)
    np.testing.assert_allclose(mixed[:, :4], full[:, :4], atol=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["hidden_layers=8,x"], "hidden_layers must be of type int, not 'x'"),
        (["hidden_layers=8,0"], "hidden_layers must be at least 1"),
        (["architecture=mf"], "architecture must be one of gmf, mlp, neumf"),
        (["negatives=0"], "negatives must be at least 1"),
    ],
)
def test_a_wrong_setting_is_named(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_settings(NeuralCFConfig, settings)


def test_hidden_layers_are_given_with_commas_and_may_be_none() -> None:
    assert parse_settings(NeuralCFConfig, ["hidden_layers=64,16"]).hidden_layers == (64, 16)
    assert parse_settings(RatingNetworkConfig, ["hidden_layers="]).hidden_layers == ()
