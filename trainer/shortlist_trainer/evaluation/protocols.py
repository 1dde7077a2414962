"""Evaluation protocols: what a model is asked, and what its answers are held against."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from shortlist_trainer.data.dataset import Float32Array, Int32Array, Interactions
from shortlist_trainer.data.split import Split
from shortlist_trainer.errors import ConfigError, DataError
from shortlist_trainer.evaluation.ranking import (
    average_precision_at,
    coverage_at,
    hit_rate_at,
    ndcg_at,
    novelty_at,
    popularity_at,
    recall_at,
    reciprocal_rank_at,
)
from shortlist_trainer.models.base import Recommender

RANKING_CUTOFFS = (10, 20)
SAMPLED_NEGATIVES = 99
_USERS_AT_ONCE = 512

Metrics = dict[str, float]
Figures = tuple[Metrics, dict[str, Metrics]]
"""A model's metrics, and those of each baseline by its name."""

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


def evaluate(model: Recommender, split: Split, protocol: str | None = None, seed: int = 0) -> EvaluationResult:
    """Judges a model trained on ``split.train`` by ``split.test``.

    Args:
        model: a trained model.
        split: what it was trained on and what it is judged by.
        protocol: one of ``PROTOCOLS``; None for the one that suits the model.
        seed: draws negatives and breaks ties.

    Raises:
        DataError: the split lacks what the protocol needs.
        ConfigError: there is no such protocol.
    """
    protocol = protocol or model.protocol
    if protocol not in PROTOCOLS:
        raise ConfigError(f"there is no protocol {protocol!r}; there are {', '.join(PROTOCOLS)}")
    metrics, baselines = PROTOCOLS[protocol](model, split, seed)
    return EvaluationResult(
        protocol=protocol,
        split=split.description,
        training_interactions=len(split.train),
        test_interactions=len(split.test),
        cold_interactions=int(split.cold().sum()),
        metrics=metrics,
        baselines=baselines,
    )


def rating(model: Recommender, split: Split, _seed: int) -> Figures:
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


def full_rank(model: Recommender, split: Split, seed: int) -> Figures:
    """Recall, NDCG and hit rate with every item ranked, training items left out, beside recommending the popular.

    Each user with at least one test item that training knows counts once. Cold users and items are left out. A model
    with a ranker is judged by its ranker; what its published vectors alone would rank stands beside it.
    """
    rng = np.random.default_rng(seed)
    popularity = split.train.item_popularity().astype(np.float32)

    def by_popularity(users: npt.NDArray[np.int64]) -> Float32Array:
        return np.tile(popularity, (len(users), 1))

    def at_random(users: npt.NDArray[np.int64]) -> Float32Array:
        return rng.random((len(users), split.train.item_count), dtype=np.float32)

    baselines = {
        "popular": rank_all_items(by_popularity, split),
        "random": rank_all_items(at_random, split),
    }
    if model.ranker() is not None:
        baselines["vectors alone"] = rank_all_items(_by_vectors(model), split)
    return rank_all_items(_by_model(model, split.train.item_count), split), baselines


def _by_model(model: Recommender, item_count: int) -> ScoreUsers:
    if model.ranker() is None:
        return _by_vectors(model)
    items = np.arange(item_count)

    def score_users(users: npt.NDArray[np.int64]) -> Float32Array:
        pairs = model.predict(np.repeat(users, len(items)), np.tile(items, len(users)))
        return pairs.reshape(len(users), len(items))

    return score_users


def _by_vectors(model: Recommender) -> ScoreUsers:
    vectors = model.embeddings()

    def score_users(users: npt.NDArray[np.int64]) -> Float32Array:
        return vectors.users[users] @ vectors.items.T  # what is constant for a user does not change an order

    return score_users


def leave_one_out(model: Recommender, split: Split, seed: int) -> Figures:
    """HR@10 and NDCG@10 of each user's test item among negatives (He et al. 2017), the full ranking's beside them.

    Negatives are those of the split, or 99 drawn uniformly from the items the user never touched. Items of equal score
    are in random order, so that constant scores give HR@10 = .10 among 99. Sampled metrics can put models in another
    order than full ones (Krichene & Rendle 2020), hence ``full_hr@10`` and ``full_ndcg@10``.

    Raises:
        DataError: a user has several test items, or none is known from training.
    """
    popularity = split.train.item_popularity().astype(np.float32)
    rng = np.random.default_rng(seed)
    among = _SampledRanking(split, rng)
    full = rank_all_items(_by_model(model, split.train.item_count), split)
    baselines = {
        "popular": among.metrics_of(lambda _, items: popularity[items]),
        "random": among.metrics_of(lambda _, items: rng.random(len(items), dtype=np.float32)),
    }
    if model.ranker() is not None:
        vectors = model.embeddings()
        baselines["vectors alone"] = among.metrics_of(
            lambda users, items: (vectors.users[users] * vectors.items[items]).sum(axis=1)
        )
    metrics = among.metrics_of(model.predict)
    return metrics | {"full_hr@10": full["hr@10"], "full_ndcg@10": full["ndcg@10"]}, baselines


class _SampledRanking:
    """Each user's test item among negatives."""

    def __init__(self, split: Split, rng: np.random.Generator) -> None:
        test = split.test.select(~split.cold())
        if len(test) == 0 or len(np.unique(test.users)) < len(test):
            raise DataError("leave-one-out needs one test item a user, of users and items that training knows")
        self._rng = rng
        self._items = _candidates(test, split, rng)  # (users, 1 + negatives) item rows, the test item first
        self._users = np.repeat(test.users, self._items.shape[1])

    def metrics_of(self, score_pairs: Callable[[Int32Array, Int32Array], Float32Array]) -> Metrics:
        """HR@10 and NDCG@10 of anything that scores pairs of user and item rows (n,)."""
        scores = score_pairs(self._users, self._items.ravel()).reshape(self._items.shape)
        ties = (scores[:, 1:] == scores[:, :1]).sum(1)
        ahead = (scores[:, 1:] > scores[:, :1]).sum(1) + self._rng.integers(0, ties + 1)
        hits = np.arange(max(self._items.shape[1], 10)) == ahead[:, None]  # (users, places)
        return {"hr@10": hit_rate_at(hits, 10), "ndcg@10": ndcg_at(hits, np.ones(len(hits), dtype=np.int64), 10)}


def _candidates(test: Interactions, split: Split, rng: np.random.Generator) -> npt.NDArray[np.int32]:
    """(users, 1 + negatives) item rows for each test interaction, its own item first."""
    if split.negatives is not None:
        missing = next((user for user in test.users.tolist() if user not in split.negatives), None)
        if missing is not None or len({len(items) for items in split.negatives.values()}) != 1:
            raise DataError("the given negatives must be equally many for every test user")
        negatives = np.stack([split.negatives[user] for user in test.users.tolist()])
        return np.column_stack([test.items, negatives])
    blocks = np.array_split(test.users.astype(np.int64), -(-len(test) // _USERS_AT_ONCE))
    negatives = np.concatenate([_untouched(users, split, rng) for users in blocks])
    return np.column_stack([test.items, negatives])


def _untouched(users: npt.NDArray[np.int64], split: Split, rng: np.random.Generator) -> npt.NDArray[np.int32]:
    """(b, SAMPLED_NEGATIVES) item rows drawn uniformly, without repeats, from those the user never touched."""
    if split.train.item_count < SAMPLED_NEGATIVES:
        raise DataError(f"the catalogue has fewer than {SAMPLED_NEGATIVES} items; use full-rank")
    keys = rng.random((len(users), split.train.item_count), dtype=np.float32)
    for part in (split.train, split.test):
        keys[_pairs(users, part)] = 2  # after every untouched item
    drawn = np.argpartition(keys, SAMPLED_NEGATIVES - 1, axis=1)[:, :SAMPLED_NEGATIVES]
    if np.take_along_axis(keys, drawn, axis=1).max() == 2:
        raise DataError(f"a user has touched all but fewer than {SAMPLED_NEGATIVES} items; use full-rank")
    return drawn.astype(np.int32)


def rank_all_items(score_users: ScoreUsers, split: Split) -> Metrics:
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
    blocks = np.array_split(users, -(-len(users) // _USERS_AT_ONCE))
    in_blocks = [_best_places(score_users, block, split.train, deepest) for block in blocks]
    places = np.concatenate(in_blocks)  # (users, deepest)
    hits = np.concatenate([_are_relevant(part, block, test) for part, block in zip(in_blocks, blocks, strict=True)])
    hits = np.pad(hits, ((0, 0), (0, max(RANKING_CUTOFFS) - deepest)))
    popularity = split.train.item_popularity()
    metrics = {}
    for k in RANKING_CUTOFFS:
        metrics[f"recall@{k}"] = recall_at(hits, relevant[users], k)
        metrics[f"ndcg@{k}"] = ndcg_at(hits, relevant[users], k)
        metrics[f"hr@{k}"] = hit_rate_at(hits, k)
    k = RANKING_CUTOFFS[0]
    metrics[f"mrr@{k}"] = reciprocal_rank_at(hits, k)
    metrics[f"map@{k}"] = average_precision_at(hits, relevant[users], k)
    metrics[f"coverage@{k}"] = coverage_at(places, popularity, k)
    metrics[f"novelty@{k}"] = novelty_at(places, popularity, len(np.unique(split.train.users)), k)
    metrics[f"popularity@{k}"] = popularity_at(places, popularity, k)
    return metrics


def _best_places(
    score_users: ScoreUsers, users: npt.NDArray[np.int64], train: Interactions, deepest: int
) -> npt.NDArray[np.int64]:
    """(b, deepest) item rows in the order of their scores, best first, training items last."""
    scores = score_users(users)  # (b, items)
    scores[_pairs(users, train)] = -np.inf
    best = np.argpartition(-scores, deepest - 1, axis=1)[:, :deepest]
    in_order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
    return np.take_along_axis(best, in_order, axis=1)


def _are_relevant(
    places: npt.NDArray[np.int64], users: npt.NDArray[np.int64], test: Interactions
) -> npt.NDArray[np.bool_]:
    """(b, deepest) whether the item at each place is one of the user's test items."""
    relevant = np.zeros((len(users), test.item_count), dtype=np.bool_)
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


PROTOCOLS: dict[str, Callable[[Recommender, Split, int], Figures]] = {
    "rating": rating,
    "full-rank": full_rank,
    "leave-one-out": leave_one_out,
}


HEADLINES = {"rating": ("rmse", False), "full-rank": ("ndcg@20", True), "leave-one-out": ("ndcg@10", True)}
"""Protocol to the metric that models are chosen by, and whether more of it is better."""


def headline(model: Recommender, split: Split, protocol: str, seed: int) -> float:
    """The headline metric of a protocol alone, without baselines: quick enough for every epoch."""
    match protocol:
        case "rating":
            assert split.test.ratings is not None
            return _errors(model.predict(split.test.users, split.test.items), split.test.ratings)["rmse"]
        case "leave-one-out":
            return _SampledRanking(split, np.random.default_rng(seed)).metrics_of(model.predict)["ndcg@10"]
    return rank_all_items(_by_model(model, split.train.item_count), split)["ndcg@20"]
