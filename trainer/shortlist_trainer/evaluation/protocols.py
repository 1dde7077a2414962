"""Evaluation protocols: what a model is asked, and what its answers are held against."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from shortlist_trainer.data.dataset import Float32Array, Interactions
from shortlist_trainer.data.split import Split
from shortlist_trainer.errors import DataError
from shortlist_trainer.evaluation.ranking import hit_rate_at, ndcg_at, recall_at
from shortlist_trainer.models.base import Model

RANKING_CUTOFFS = (10, 20)
_USERS_AT_ONCE = 512

ScoreUsers = Callable[[npt.NDArray[np.int64]], Float32Array]
"""User rows (b,) to the scores (b, items) of every item."""


@dataclass(frozen=True)
class EvaluationResult:
    """Figures of one model and its baselines on one split.

    Attributes:
        protocol: how they were taken.
        split: how the interactions were divided.
        training_interactions: how many the model saw.
        test_interactions: how many it was judged by, cold ones included.
        cold_interactions: test interactions whose user or item training does not know.
        metrics: name ("recall@10") to value.
        baselines: name of the baseline to its metrics.
    """

    protocol: str
    split: str
    training_interactions: int
    test_interactions: int
    cold_interactions: int
    metrics: dict[str, float]
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)


def evaluate(model: Model, split: Split) -> EvaluationResult:
    """Judges a model trained on ``split.train`` by ``split.test``, by the protocol that suits it."""
    metrics, baselines = rating(model, split) if model.protocol == "rating" else full_rank(model, split)
    return EvaluationResult(
        protocol=model.protocol,
        split=split.description,
        training_interactions=len(split.train),
        test_interactions=len(split.test),
        cold_interactions=int(split.cold().sum()),
        metrics=metrics,
        baselines=baselines,
    )


def rating(model: Model, split: Split) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """RMSE and MAE of predicted ratings, cold users and items included, beside those of mean ratings."""
    train, test = split.train, split.test
    if train.ratings is None or test.ratings is None:
        raise DataError("the rating protocol needs ratings and the data has none")
    truth = test.ratings
    mean = train.ratings.mean()
    counts = train.item_popularity()
    sums = np.bincount(train.items, weights=train.ratings, minlength=train.item_count)
    item_means = np.where(counts > 0, sums / np.maximum(counts, 1), mean)
    return _errors(model.predict(test.users, test.items), truth), {
        "global mean": _errors(np.full_like(truth, mean), truth),
        "item mean": _errors(item_means[test.items].astype(np.float32), truth),
    }


def _errors(predicted: Float32Array, truth: Float32Array) -> dict[str, float]:
    difference = predicted.astype(np.float64) - truth
    return {"rmse": float(np.sqrt(np.mean(difference**2))), "mae": float(np.abs(difference).mean())}


def full_rank(model: Model, split: Split) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Recall, NDCG and hit rate with every item ranked, training items left out, beside recommending the popular.

    Each user with at least one test item that training knows counts once. Cold users and items are left out.
    """
    vectors = model.embeddings()
    popularity = split.train.item_popularity().astype(np.float32)

    def by_model(users: npt.NDArray[np.int64]) -> Float32Array:
        return vectors.users[users] @ vectors.items.T  # what is constant for a user does not change an order

    def by_popularity(users: npt.NDArray[np.int64]) -> Float32Array:
        return np.tile(popularity, (len(users), 1))

    return rank_all_items(by_model, split), {"popular": rank_all_items(by_popularity, split)}


def rank_all_items(score_users: ScoreUsers, split: Split) -> dict[str, float]:
    """The full-ranking metrics of anything that scores every item for a user.

    Raises:
        DataError: no test user is known from training.
    """
    test = split.test.select(~split.cold())
    relevant = np.bincount(test.users, minlength=test.user_count)
    users = np.flatnonzero(relevant)
    if len(users) == 0:
        raise DataError("no test interaction has a user and an item that training knows")
    deepest = min(max(RANKING_CUTOFFS), test.item_count)
    hits = np.concatenate(
        [_hits(score_users, block, split.train, test, deepest) for block in _blocks(users)]
    )  # (users, deepest)
    hits = np.pad(hits, ((0, 0), (0, max(RANKING_CUTOFFS) - deepest)))
    metrics = {}
    for k in RANKING_CUTOFFS:
        metrics[f"recall@{k}"] = recall_at(hits, relevant[users], k)
        metrics[f"ndcg@{k}"] = ndcg_at(hits, relevant[users], k)
        metrics[f"hr@{k}"] = hit_rate_at(hits, k)
    return metrics


def _blocks(users: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    return np.array_split(users, -(-len(users) // _USERS_AT_ONCE))


def _hits(
    score_users: ScoreUsers, users: npt.NDArray[np.int64], train: Interactions, test: Interactions, deepest: int
) -> npt.NDArray[np.bool_]:
    """(users, deepest) whether the item at each place is one of the user's test items."""
    scores = score_users(users)  # (b, items)
    scores[_pairs(users, train)] = -np.inf
    best = np.argpartition(-scores, deepest - 1, axis=1)[:, :deepest]
    in_order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
    places = np.take_along_axis(best, in_order, axis=1)  # (b, deepest) item rows, best first
    relevant = np.zeros(scores.shape, dtype=np.bool_)
    relevant[_pairs(users, test)] = True
    return np.take_along_axis(relevant, places, axis=1)


def _pairs(
    users: npt.NDArray[np.int64], interactions: Interactions
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Positions within ``users`` and item rows of all interactions of ``users``."""
    offsets = interactions.user_offsets()
    lengths = offsets[users + 1] - offsets[users]
    positions = np.repeat(np.arange(len(users)), lengths)
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return positions, interactions.items[np.repeat(offsets[users], lengths) + within]
