"""Re-ranking: the server computes what the trained network scores, and refuses networks that do not fit the model."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from shortlist_server.errors import BadModel
from shortlist_server.model.folder import load_model
from shortlist_server.retrieval.ranker import PADDING, Ranker
from shortlist_trainer.models import Ranker as TrainedRanker
from shortlist_trainer.models import fit
from shortlist_trainer.models.base import Model
from shortlist_trainer.models.config import ModelConfig
from shortlist_trainer.models.ncf import NeuralCF, NeuralCFConfig
from shortlist_trainer.models.ncf_rating import RatingNetwork, RatingNetworkConfig
from tests.small_world import checkerboard, publish_embeddings, training_run

Tensors = dict[str, npt.NDArray[np.float32]]

USERS, ITEMS = 40, 30  # of the checkerboard
SMALL = NeuralCFConfig(
    embedding_size=4, mlp_embedding_size=3, hidden_layers=(8, 5), epochs=2, pretraining_epochs=1, batch_size=100
)
NETWORKS: dict[str, tuple[type[Model[ModelConfig]], ModelConfig]] = {
    "neumf": (NeuralCF, SMALL),
    "mlp": (NeuralCF, replace(SMALL, architecture="mlp")),
    "ncf-rating": (RatingNetwork, RatingNetworkConfig(embedding_size=3, item_embedding_size=5, epochs=2)),
    "linear": (RatingNetwork, RatingNetworkConfig(embedding_size=3, hidden_layers=(), epochs=2)),
}


def trained(name: str) -> Model[ModelConfig]:
    model_type, config = NETWORKS[name]
    return fit(model_type, config, checkerboard().interactions, training_run()).model


def published(models_dir: Path, model: Model[ModelConfig], ranker: TrainedRanker | None) -> Path:
    vectors = model.embeddings()
    return publish_embeddings(models_dir, checkerboard(), vectors, user_clusters=2, item_clusters=2, ranker=ranker)


@pytest.mark.parametrize("pairs_at_once", [1 << 13, 7])
@pytest.mark.parametrize("name", NETWORKS)
def test_scores_are_those_of_the_trained_network(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, name: str, pairs_at_once: int
) -> None:
    monkeypatch.setattr("shortlist_server.retrieval.ranker._PAIRS_AT_ONCE_CPU", pairs_at_once)
    model = trained(name)
    ranker = load_model(published(tmp_path, model, model.ranker()), "cpu").recommender.ranker
    assert ranker is not None
    users, items = rng.integers(0, USERS, 6), rng.integers(0, ITEMS, (6, 12))
    scores = ranker.score(users, items)
    assert scores.dtype == np.float32
    assert scores.shape == (6, 12)
    expected = model.predict(np.repeat(users, 12), items.ravel()).reshape(6, 12)
    assert expected.std() > 0.01
    np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_padding_scores_minus_infinity_and_changes_nothing_else(rng: np.random.Generator) -> None:
    network = trained("neumf").ranker()
    assert network is not None
    ranker = Ranker(network.tensors)
    items = rng.integers(0, ITEMS, (2, 5))
    padded = items.copy()
    padded[0, 3:] = PADDING
    scores, of_padded = ranker.score(np.array([1, 2]), items), ranker.score(np.array([1, 2]), padded)
    assert np.isneginf(of_padded[0, 3:]).all()
    np.testing.assert_allclose(of_padded[0, :3], scores[0, :3], rtol=1e-5)
    np.testing.assert_allclose(of_padded[1], scores[1], rtol=1e-5)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_no_candidates_have_no_scores(shape: tuple[int, int]) -> None:
    network = trained("mlp").ranker()
    assert network is not None
    users, items = np.zeros(shape[0], dtype=np.int64), np.zeros(shape, dtype=np.int64)
    assert Ranker(network.tensors).score(users, items).shape == shape


def test_a_model_without_a_network_has_no_ranker(tmp_path: Path) -> None:
    assert load_model(published(tmp_path, trained("mlp"), None), "cpu").recommender.ranker is None


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def cut(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: tensors[name][:-1]}


def flat(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: tensors[name][:, 0]}


def of_type(name: str, dtype: type[np.generic]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: tensors[name].astype(dtype)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("mlp.slope"), "lacks a tensor"),
        (without("gmf.item_embeddings"), "lacks a tensor"),
        (without("mlp.layers.1.bias"), "lacks a tensor"),
        (without("mlp.layers.0.weight"), "lacks a tensor"),
        (lambda tensors: {"bias": tensors["bias"]}, "lacks a tensor"),
        (cut("mlp.user_embeddings"), r"has mlp.user_embeddings of shape \(39, 3\), not \(40, 3\)"),
        (cut("mlp.item_embeddings"), "has mlp.item_embeddings of shape"),
        (flat("mlp.item_embeddings"), "has mlp.item_embeddings of shape"),
        (cut("gmf.item_embeddings"), "has gmf.item_embeddings of shape"),
        (cut("item_bias"), r"has item_bias of shape \(29,\), not \(30,\)"),
        (cut("mlp.layers.1.weight"), "has mlp.layers.1.weight of shape"),
        (cut("mlp.layers.1.bias"), "has mlp.layers.1.weight of shape"),
        (of_type("item_bias", np.float16), "has item_bias of another type"),
    ],
)
def test_a_network_that_does_not_fit_the_model_is_refused_by_file(
    tmp_path: Path, change: Callable[[Mapping[str, npt.NDArray[np.float32]]], Tensors], message: str
) -> None:
    model = trained("neumf")
    network = model.ranker()
    assert network is not None
    folder = published(tmp_path, model, TrainedRanker("neumf", change(dict(network.tensors))))
    with pytest.raises(BadModel, match=rf"ranker\.safetensors {message}"):
        load_model(folder, "cpu")


def test_a_network_of_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    model = trained("mlp")
    network = model.ranker()
    assert network is not None
    folder = published(tmp_path, model, TrainedRanker("transformer", network.tensors))
    with pytest.raises(BadModel, match=r"ranker\.safetensors is a network 'transformer', which this server does not"):
        load_model(folder, "cpu")
