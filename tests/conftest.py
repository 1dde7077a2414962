"""Fixtures that several tests share."""

import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from shortlist.v1 import recommender_pb2_grpc
from shortlist_client import Client
from shortlist_server.retrieval.item_index import ItemIndex
from shortlist_trainer.data.fetch import fetch
from tests.running import HeldSearch, serving
from tests.small_world import publish_embeddings, random_dataset, random_embeddings


def pytest_addoption(parser: pytest.Parser) -> None:
    """What the reliability suite is run with."""
    group = parser.getgroup("reliability")
    seed = secrets.randbelow(1 << 32)
    group.addoption("--reliability-seed", type=int, default=seed, help="of faults and noise; a new one at every run")
    group.addoption("--reliability-scale", type=float, default=1.0, help="of the long form; 0.1 for a tenth of it")


def pytest_report_header(config: pytest.Config) -> str:
    """Says how a run that failed is run again."""
    return f"reliability: --reliability-seed {config.getoption('--reliability-seed')}"


@pytest.fixture
def rng() -> np.random.Generator:
    """The same random numbers at every run."""
    return np.random.default_rng(20_260_101)


@pytest.fixture(scope="session")
def movielens_100k() -> Path:
    """The folder of MovieLens-100K, fetched if need be."""
    return fetch("ml-100k")


@pytest.fixture(scope="session")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with one version: 30 users, 200 items, biased embeddings."""
    rng = np.random.default_rng(1)
    models_dir = tmp_path_factory.mktemp("small") / "models"
    dataset = random_dataset(users=30, items=200, per_user=20, rng=rng)
    publish_embeddings(models_dir, dataset, random_embeddings(30, 200, 8, rng, biased=True))
    return models_dir


@pytest.fixture(scope="session", params=["fast", "plain"])
def lane(request: pytest.FixtureRequest) -> str:
    """How a server answers unary queries: what is asked of one lane holds for the other."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def small_server(small_models: Path, lane: str) -> Iterator[str]:
    """The address of a server of ``small_models``."""
    with serving(small_models, lane) as app:
        yield app.address


@pytest.fixture
def client(small_server: str) -> Iterator[Client]:
    """A client of ``small_server``."""
    with Client(small_server) as client:
        yield client


@pytest.fixture
def stub(small_server: str) -> Iterator[recommender_pb2_grpc.RecommenderServiceStub]:
    with grpc.insecure_channel(small_server) as channel:
        yield recommender_pb2_grpc.RecommenderServiceStub(channel)


@pytest.fixture
def slow_search(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldSearch]:
    """Holds every search until it is let go."""
    held = HeldSearch()
    monkeypatch.setattr(ItemIndex, "search", held.around(ItemIndex.search))
    yield held
    held.let_go()


@pytest.fixture
def folder(tmp_path: Path, small_models: Path) -> Path:
    """A copy of a good folder, to be damaged."""
    return Path(shutil.copytree(small_models / "1", tmp_path / "models" / "1"))
