"""The report draws any data and any model."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from shortlist_trainer.data.dataset import Dataset
from shortlist_trainer.export.report import (
    ClustersShown,
    ClusterView,
    ReportContent,
)
from shortlist_trainer.models.base import Embeddings
from shortlist_trainer.models.history import EpochRecord, TrainingHistory
from tests.small_world import NO_EVALUATION, dataset_of, random_embeddings
from tests.unit.trainer.pages import EVALUATION, HISTORY, content_of, page_of


def tiny() -> Dataset:
    return dataset_of([("u", "a", 5.0), ("v", "b", 5.0)])


def with_interactions(dataset: Dataset, **changes: Any) -> Dataset:
    return dataclasses.replace(dataset, interactions=dataclasses.replace(dataset.interactions, **changes))


def timed(dataset: Dataset, first: int, last: int) -> Dataset:
    return with_interactions(dataset, timestamps=np.linspace(first, last, len(dataset.interactions)).astype(np.int64))


def titled(titles: list[object]) -> Dataset:
    return dataset_of(
        [("u", f"i{row}", 1.0 + row % 5) for row in range(len(titles))] + [("v", "i0", 2.0)],
        pd.DataFrame(
            {"title": pd.Series(titles, dtype=object).to_numpy()},
            index=pd.Index([f"i{row}" for row in range(len(titles))], dtype=object),
        ),
    )


ODD_DATA = {
    "two users and two items": tiny(),
    "no ratings": with_interactions(tiny(), ratings=None),
    "nearly as many ratings as interactions": dataset_of([(f"u{n % 7}", f"i{n}", n / 3) for n in range(70)]),
    "negative and fractional ratings": dataset_of([("u", "a", -1.5), ("v", "b", 0.25), ("v", "a", 7.0)]),
    "everybody touched everything": dataset_of([(f"u{u}", f"i{i}", 3.0) for u in range(9) for i in range(9)]),
    "one user touched a thousand": dataset_of([("u", f"i{n}", 3.0) for n in range(1_000)] + [("v", "i0", 1.0)]),
    "one moment": timed(tiny(), 5, 5),
    "two seconds": timed(tiny(), 5, 6),
    "before 1970 and after 9999": timed(tiny(), -(10**10), 10**14),
    "titles that are not there": titled([None, float("nan"), pd.NA, "", "  ", 12]),
    "titles that no font has": titled(["日本の映画", "شب", "$x^2_$ \\frac", "a\x1fb", "🎬" * 50]),
    "users and items without interactions": with_interactions(
        dataset_of([("u", "a", 1.0), ("u", "b", 1.0), ("v", "c", 1.0), ("v", "d", 1.0)]),
        users=np.array([1], np.int32),
        items=np.array([2], np.int32),
        ratings=np.array([4], np.float32),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD_DATA)
def test_odd_data_is_drawn(rng: np.random.Generator, tmp_path: Path, name: str) -> None:
    dataset = ODD_DATA[name]
    embeddings = random_embeddings(len(dataset.user_ids), len(dataset.item_ids), 4, rng)
    page = page_of(content_of(dataset, embeddings), tmp_path)
    times = dataset.interactions.timestamps
    assert ("Along time" in page.text) == (times is not None and len(set(times.tolist())) > 1)


def test_a_title_that_is_not_there_is_the_items_id(rng: np.random.Generator) -> None:
    dataset = ODD_DATA["titles that are not there"]
    content = content_of(dataset, random_embeddings(2, 6, 4, rng))
    assert content.titles == ["i0", "i1", "i2", "i3", "i4", "12"]


def test_genres_may_be_lists_or_text_with_bars(rng: np.random.Generator) -> None:
    genres = [["Drama", "War"], "Crime|Drama", None, float("nan"), "", []]
    dataset = titled(["title"] * 6)
    dataset.item_attributes["genres"] = pd.Series(genres, dtype=object)
    content = content_of(dataset, random_embeddings(2, 6, 4, rng))
    assert content.genres == [["Drama", "War"], ["Crime", "Drama"], [], [], [], []]


ODD_MODELS: dict[str, dict[str, Any]] = {
    "no history": {"history": None},
    "no epoch": {"history": TrainingHistory(())},
    "one epoch": {"history": TrainingHistory((EpochRecord(1, 0.5, 0.0, 0.25),), "rmse", 1)},
    "no validation": {"history": TrainingHistory(tuple(EpochRecord(n, 1 / n, 90.0) for n in range(1, 80)))},
    "figures that are no numbers": {
        "history": TrainingHistory(
            (EpochRecord(1, float("nan"), 1.0, float("nan")), EpochRecord(2, float("inf"), 4_000.0, None))
        )
    },
    "no evaluation": {"evaluation": NO_EVALUATION},
    "no baselines": {"evaluation": dataclasses.replace(EVALUATION, baselines={})},
    "zeros": {"embeddings": Embeddings(np.zeros((30, 5), np.float32), np.zeros((60, 5), np.float32), "preference")},
    "one column": {"embeddings": Embeddings(np.ones((30, 1), np.float32), np.ones((60, 1), np.float32), "rating")},
    "biases alone": {
        "embeddings": Embeddings(
            np.ones((30, 1), np.float32), np.arange(60, dtype=np.float32)[:, None], "rating", bias_columns=1
        )
    },
    "nothing to set": {"hyperparameters": {}, "libraries": {}},
    "clusters without items": {"clusters": ClustersShown([ClusterView("users", 0, 0, [])], np.full(60, -1))},
    "no clusters": {"clusters": ClustersShown([], np.full(60, -1))},
    "many clusters": {"clusters": ClustersShown([ClusterView("items", n, 1, []) for n in range(60)], np.arange(60))},
}


@pytest.mark.parametrize("name", ODD_MODELS)
def test_odd_models_are_drawn(content: ReportContent, tmp_path: Path, name: str) -> None:
    page = page_of(dataclasses.replace(content, **ODD_MODELS[name]), tmp_path)
    history = ODD_MODELS[name].get("history", HISTORY)
    measured = history is not None and any(np.isfinite(record.metric or np.nan) for record in history.epochs)
    assert ("Validation" in page.text) == measured
