"""Fixtures of the tests of the trainer."""

import numpy as np
import pytest

import shortlist_trainer.export.index as index_module
from shortlist_trainer.export.report import ReportContent, embedding_map
from tests.small_world import random_dataset, random_embeddings
from tests.unit.trainer.pages import content_of


@pytest.fixture
def content(rng: np.random.Generator) -> ReportContent:
    """Thirty users and sixty items with titles, genres and ratings."""
    return content_of(random_dataset(30, 60, 8, rng), random_embeddings(30, 60, 5, rng, biased=True))


@pytest.fixture
def free_approximation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets any approximate index be cheaper than exact search, which on small catalogues none would be for certain."""
    monkeypatch.setattr(index_module, "WORTH", 1e9)


@pytest.fixture
def quick_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps items by their principal components instead of t-SNE, which takes ten seconds."""
    monkeypatch.setattr(embedding_map, "TSNE_FROM_ITEMS", 1_000_000)
