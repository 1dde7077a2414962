"""Real MovieLens-100K, from the archive to a client: train -> publish -> serve -> ask."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shortlist_client import Client
from shortlist_trainer.data.dataset import Dataset
from shortlist_trainer.data.source import load_dataset
from shortlist_trainer.models import MODELS
from shortlist_trainer.models.base import Float32Array, RowArray
from shortlist_trainer.pipeline import Published, TrainingJob, run
from tests.running import server_process, shortlist

pytestmark = pytest.mark.timeout(600)  # models are trained first, on a machine that may have other work

SEED = 42

# Times the most popular items' NDCG@10.
NDCG_OVER_POPULAR = {"ials": 1.8, "softmax-mf": 1.8, "ncf": 1.7}

TRAINED_AGAIN = ("ials", "mf")
"""Models published after a second training, on everything. One of each kind is enough: it takes twice as long."""


@pytest.fixture(scope="module")
def dataset(movielens_100k: Path) -> Dataset:
    return load_dataset(str(movielens_100k))


@pytest.fixture(scope="module", params=sorted(MODELS))
def published(
    request: pytest.FixtureRequest, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Published]:
    """Each model with its defaults, trained, judged and published once."""
    name: str = request.param
    models_dir = tmp_path_factory.mktemp(name) / "models"
    job = TrainingJob(name, models_dir, device="cpu", seed=SEED, refit=name in TRAINED_AGAIN)
    return name, run(job, dataset)


@pytest.fixture(scope="module")
def address(published: tuple[str, Published]) -> Iterator[str]:
    with server_process(published[1].folder.parent) as (_, address):
        yield address


def test_a_model_reaches_the_figures_it_is_held_to(published: tuple[str, Published]) -> None:
    name, result = published
    metrics, baselines = result.evaluation.metrics, result.evaluation.baselines
    assert result.evaluation.cold_interactions < 100
    if MODELS[name].protocol == "rating":
        # Surprise's SVD reaches .934 on five folds of the same size, its SVD++ .919; the aim for ours is .905.
        assert metrics["rmse"] <= (0.905 if name == "svdpp" else 0.94)
        assert metrics["rmse"] < min(baseline["rmse"] for baseline in baselines.values()) - 0.05
    else:
        for metric in ("recall@10", "ndcg@10", "hr@10", "recall@20", "ndcg@20", "hr@20", "mrr@10", "map@10"):
            assert metrics[metric] > 1.15 * baselines["popular"][metric], metric
        assert metrics["coverage@10"] > 5 * baselines["popular"]["coverage@10"]
        assert metrics["ndcg@10"] > NDCG_OVER_POPULAR[name] * baselines["popular"]["ndcg@10"]


def test_served_scores_are_the_models_own_predictions(
    published: tuple[str, Published], address: str, dataset: Dataset
) -> None:
    """The trained model's forward pass against Score and Recommend."""
    _, result = published
    model, vectors = result.model, result.model.embeddings()
    touched = model.interactions

    def predict(user: int, items: RowArray) -> Float32Array:
        if model.ranker() is None:
            return model.predict(np.full(len(items), user), items)
        # A network is served by the vectors that stand for it.
        bias = 0 if vectors.user_bias is None else vectors.user_bias[user]
        scores = vectors.items[items] @ vectors.users[user] + bias + vectors.score_constant
        return np.asarray(scores, dtype=np.float32)

    rng = np.random.default_rng(0)
    with Client(address, timeout_seconds=20) as client:
        for user in rng.choice(len(dataset.user_ids), 20, replace=False):
            user_id = dataset.user_ids[user]
            items = rng.choice(len(dataset.item_ids), 200, replace=False)
            served = client.score(user_id, [dataset.item_ids[item] for item in items]).scores
            np.testing.assert_allclose(served, predict(user, items), atol=1e-4)

            # The whole ranking, by the model's own scores of every item.
            everything = predict(user, np.arange(1682))
            everything[touched.items[touched.users == user]] = -np.inf
            answer = client.recommend(user_id, k=50)
            rows = [dataset.item_ids.index(item.id) for item in answer.items]
            np.testing.assert_allclose([item.score for item in answer.items], everything[rows], atol=1e-4)
            np.testing.assert_allclose(everything[rows], np.sort(everything)[::-1][:50], atol=1e-4)


# Ratings, as mf has them, tell how good a film is; who watches what, as ials has it, tells which are alike.
@pytest.mark.parametrize("published", ["ials"], indirect=True)
def test_films_have_sensible_neighbours(published: tuple[str, Published], address: str) -> None:
    with Client(address, timeout_seconds=20) as client:
        for film, relatives in (
            ("172", {"Raiders of the Lost Ark (1981)", "Indiana Jones and the Last Crusade (1989)"}),
            ("228", {"Star Trek IV: The Voyage Home (1986)", "Star Trek III: The Search for Spock (1984)"}),
            ("95", {"Beauty and the Beast (1991)", "Lion King, The (1994)"}),
        ):
            found = {item.attributes["title"] for item in client.similar_items(film, attributes=["title"]).items}
            assert relatives <= found


def test_the_manifest_says_how_the_model_was_made(published: tuple[str, Published], dataset: Dataset) -> None:
    name, result = published
    manifest = json.loads((result.folder / "manifest.json").read_text())
    assert manifest["model_name"] == name
    assert manifest["training_data"]["interaction_count"] == ("100000" if name in TRAINED_AGAIN else "80000")
    assert (manifest["training_data"]["fingerprint"] == dataset.fingerprint()) is (name in TRAINED_AGAIN)
    assert manifest["hyperparameters"]["seed"] == str(SEED)
    assert manifest["evaluation"]["metrics"] == result.evaluation.metrics
    assert manifest["evaluation"].get("refit_on_all", False) is (name in TRAINED_AGAIN)
    assert [recall["k"] for recall in manifest["item_index"]["recalls"]] == [10, 100]
    assert {"torch", "faiss-cpu", "shortlist"} <= manifest["libraries"].keys()


def test_the_commands_answer_with_titles_and_as_json(published: tuple[str, Published], address: str) -> None:
    recommend = shortlist("recommend", "196", "--server", address)
    assert recommend.returncode == 0
    assert len(recommend.stdout.splitlines()) == 11
    as_json = json.loads(shortlist("recommend", "196", "--server", address, "--json").stdout)
    for line, item in zip(recommend.stdout.splitlines()[1:], as_json["items"], strict=True):
        assert item["attributes"]["title"][:40] in line
    similar = shortlist("similar", "50", "172", "-k", "3", "--server", address)
    assert len(similar.stdout.splitlines()) == 4
    assert json.loads(shortlist("similar", "50", "--server", address, "--json").stdout)["model_version"] == 1
    models = shortlist("models", "list", "--server", address)
    assert published[0] in models.stdout
    listed = json.loads(shortlist("models", "list", "--server", address, "--json").stdout)
    assert listed["models"][0]["state"] == "ready"
    health = shortlist("health", "--server", address)
    assert (health.returncode, health.stdout) == (0, "SERVING\n")
