"""Small data sets whose right answers are known, and models published from them."""

import io
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from shortlist_trainer.data.dataset import Dataset, build_dataset
from shortlist_trainer.data.rows import Rows
from shortlist_trainer.evaluation.protocols import EvaluationResult
from shortlist_trainer.export.clusters import build_clusters
from shortlist_trainer.export.folder import Export, build_indexes, seen_items, write_folder
from shortlist_trainer.export.publish import publish
from shortlist_trainer.models import TrainingRun
from shortlist_trainer.models.base import Embeddings, FoldIn, Ranker
from shortlist_trainer.progress import Progress

CPU = torch.device("cpu")
NO_EVALUATION = EvaluationResult("full-rank", "none", 0, 0, 0, {})


class SilentProgress(Progress):
    """Draws its bars where nobody looks."""

    def __init__(self) -> None:
        super().__init__("test", file=io.StringIO())


def training_run(seed: int = 0) -> TrainingRun:
    """A run on the CPU that shows nothing."""
    return TrainingRun(CPU, seed, SilentProgress())


def dataset_of(
    pairs: Iterable[tuple[str, str, float]], attributes: pd.DataFrame | None = None, name: str = "small"
) -> Dataset:
    """A data set of (user id, item id, rating)."""
    frame = pd.DataFrame(list(pairs), columns=["user", "item", "rating"])
    users, user_ids = pd.factorize(frame["user"])
    items, item_ids = pd.factorize(frame["item"])
    rows = Rows(
        user_codes=users.astype(np.int32),
        item_codes=items.astype(np.int32),
        ratings=frame["rating"].to_numpy(np.float32),
        timestamps=None,
        user_ids=list(user_ids),
        item_ids=list(item_ids),
        bad_row_count=0,
    )
    return build_dataset(name, "csv", rows, attributes)


def checkerboard(users: int = 40, items: int = 30) -> Dataset:
    """Users and items of two colours: users touch 85% of their own colour, with rating 5, and 5% of the other, with 1.

    What is right to recommend is the rest of a user's own colour.
    """
    rng = np.random.default_rng(7)
    pairs = []
    for user in range(users):
        for item in range(items):
            same = user % 2 == item % 2
            if rng.random() < (0.85 if same else 0.05):
                pairs.append((f"u{user}", f"i{item}", 5.0 if same else 1.0))
    return dataset_of(pairs, titles([f"i{item}" for item in range(items)]))


def colours(ids: list[str]) -> npt.NDArray[np.int64]:
    """(n,) 0 or 1 for the ids of ``checkerboard``."""
    return np.array([int(external_id[1:]) % 2 for external_id in ids])


def titles(item_ids: list[str]) -> pd.DataFrame:
    """Attributes of every type for each item id."""
    count = len(item_ids)
    return pd.DataFrame(
        {
            "title": [f"Title of {item_id}" for item_id in item_ids],
            "year": pd.array([None if row == 0 else 1990 + row for row in range(count)], dtype="Int64"),
            "genres": pd.Series([["Drama"] if row % 2 else ["Comedy", "Crime"] for row in range(count)]).to_numpy(),
            "price": [row / 2 for row in range(count)],
            "classic": [row % 3 == 0 for row in range(count)],
        },
        index=pd.Index(item_ids, dtype=object),
    )


def random_embeddings(
    users: int, items: int, size: int, rng: np.random.Generator, *, biased: bool = False
) -> Embeddings:
    """Embeddings with a spread of lengths, as real ones have."""

    def vectors(count: int) -> npt.NDArray[np.float32]:
        lengths = rng.lognormal(0, 0.5, (count, 1))
        return (rng.standard_normal((count, size)) * lengths).astype(np.float32)

    user_vectors, item_vectors = vectors(users), vectors(items)
    if not biased:
        return Embeddings(user_vectors, item_vectors, "preference")
    return Embeddings(
        users=np.hstack([user_vectors, np.ones((users, 1), np.float32)]),
        items=np.hstack([item_vectors, rng.standard_normal((items, 1)).astype(np.float32)]),
        score_kind="rating",
        user_bias=rng.standard_normal(users).astype(np.float32),
        score_constant=3.5,
        bias_columns=1,
    )


def random_dataset(users: int, items: int, per_user: int, rng: np.random.Generator) -> Dataset:
    """Each user touches ``per_user`` random items; every item appears."""
    pairs = [(f"u{item % users}", f"i{item}", 3.0) for item in range(items)]
    for user in range(users):
        pairs += [(f"u{user}", f"i{item}", 3.0) for item in rng.permutation(items)[:per_user]]
    return dataset_of(pairs, titles([f"i{item}" for item in range(items)]))


def two_tastes() -> tuple[Dataset, Embeddings]:
    """Nine users who like science fiction, four who like romance, and their clusters, to be computed by hand.

    Science fiction fans (each item needs 3 of them): blade 4.0 by 4, alien 4.0 by 3, contact 1.5 by 3; daisy, which two
    of them gave a 5, and dune have too few. Romantics (2 of them): emma 14/3 by 3, daisy 2.5 by 2; obscure has one.
    The lurker and the item lost have no interaction left.
    """
    ratings: dict[str, dict[str, float]] = {
        "alien": {"a0": 5, "a1": 4, "a2": 3},
        "contact": {"a0": 1, "a1": 2, "a7": 1.5},
        "daisy": {"a0": 5, "a8": 5, "b0": 2, "b1": 3},
        "blade": {"a3": 4, "a4": 4, "a5": 4, "a6": 4},
        "emma": {"b0": 4, "b2": 5, "b3": 5},
        "obscure": {"b1": 5},
        "dune": {"a1": 2},
        "lost": {"lurker": 5},
    }
    pairs = [(user, item, rating) for item, by_user in ratings.items() for user, rating in by_user.items()]
    dataset = dataset_of(pairs, titles(list(ratings)))
    lurker = dataset.interactions.users == dataset.user_ids.index("lurker")
    romance = {"daisy", "emma", "obscure"}

    def vectors(ids: list[str], second: list[bool]) -> npt.NDArray[np.float32]:
        # Of many lengths, and each a little off the direction of its taste.
        return (
            np.array([[0.1, 1] if taste else [1, 0.01 * place] for place, taste in enumerate(second)], np.float32)
            * np.geomspace(0.2, 3, len(ids), dtype=np.float32)[:, None]
        )

    embeddings = Embeddings(
        vectors(dataset.user_ids, [user.startswith("b") for user in dataset.user_ids]),
        vectors(dataset.item_ids, [item in romance for item in dataset.item_ids]),
        score_kind="preference",
    )
    return replace(dataset, interactions=dataset.interactions.select(~lurker)), embeddings


def publish_embeddings(
    models_dir: Path,
    dataset: Dataset,
    embeddings: Embeddings,
    name: str = "made",
    *,
    user_clusters: int | None = None,
    item_clusters: int | None = None,
    with_report: bool = False,
    ranker: Ranker | None = None,
    fold_in: FoldIn | None = None,
) -> Path:
    """Publishes embeddings as they are; returns the version's folder. A report takes longer than all the rest."""
    seen = seen_items(dataset.interactions.user_offsets(), dataset.interactions.items)
    items, neighbours = build_indexes(embeddings, seen, seed=0)
    export = Export(
        model_name=name,
        hyperparameters={},
        embeddings=embeddings,
        dataset=dataset,
        evaluation=NO_EVALUATION,
        refit_on_all=False,
        items=items,
        neighbours=neighbours,
        clusters=build_clusters(embeddings, dataset.interactions, user_clusters, item_clusters),
        with_report=with_report,
        ranker=ranker,
        fold_in=fold_in,
    )
    version = publish(models_dir, lambda folder, version: write_folder(folder, version, export))
    return models_dir / str(version)


def low_rank(rng: np.random.Generator, items: int = 3_000, users: int = 400, size: int = 16) -> Embeddings:
    """Items and users in a few directions, with lengths as uneven as real ones."""
    basis = rng.standard_normal((6, size))
    lengths = rng.lognormal(0, 0.5, (items, 1))
    item_vectors = (rng.standard_normal((items, 6)) @ basis) * lengths
    user_vectors = rng.standard_normal((users, 6)) @ basis
    return Embeddings(user_vectors.astype(np.float32), item_vectors.astype(np.float32), "preference")
