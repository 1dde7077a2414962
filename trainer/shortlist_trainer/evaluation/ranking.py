"""Ranking metrics over lists of recommended items."""

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
Int64Array = npt.NDArray[np.int64]


def recall_at(hits: BoolArray, relevant: Int64Array, k: int) -> float:
    """The mean over users of the share of their relevant items among the first k.

    Args:
        hits: (users, n) whether the item at each place is relevant, best place first, n >= k.
        relevant: (users,) how many relevant items each user has, at least 1.
        k: places that count.
    """
    return float((hits[:, :k].sum(1) / relevant).mean())


def ndcg_at(hits: BoolArray, relevant: Int64Array, k: int) -> float:
    """The mean over users of DCG over the best DCG possible, gain 1 and discount log2(place + 1), places from 1.

    Järvelin & Kekäläinen 2002, "Cumulated gain-based evaluation of IR techniques". Arguments as for ``recall_at``.
    """
    discounts = 1 / np.log2(np.arange(2, k + 2))
    best = np.concatenate([[0.0], np.cumsum(discounts)])[np.minimum(relevant, k)]
    return float(((hits[:, :k] @ discounts) / best).mean())


def hit_rate_at(hits: BoolArray, k: int) -> float:
    """The share of users with a relevant item among the first k. Arguments as for ``recall_at``."""
    return float(hits[:, :k].any(1).mean())


def reciprocal_rank_at(hits: BoolArray, k: int) -> float:
    """The mean over users of 1 / the place of the first relevant item, 0 where none is among the first k."""
    first = hits[:, :k].argmax(1)
    return float(np.where(hits[:, :k].any(1), 1 / (first + 1), 0).mean())


def average_precision_at(hits: BoolArray, relevant: Int64Array, k: int) -> float:
    """The mean over users of the mean precision at each relevant item's place, over min(relevant, k) items (MAP)."""
    among = hits[:, :k]
    precision = np.cumsum(among, axis=1) / np.arange(1, among.shape[1] + 1)
    return float(((precision * among).sum(1) / np.minimum(relevant, k)).mean())


def coverage_at(places: Int64Array, catalogue: Int64Array, k: int) -> float:
    """The share of the catalogue that is among some user's first k.

    Args:
        places: (users, n) item rows, best first.
        catalogue: (items,) interactions of each item in training; items without any do not count.
        k: places that count.
    """
    recommended = np.unique(places[:, :k])
    return float((catalogue[recommended] > 0).sum() / (catalogue > 0).sum())


def novelty_at(places: Int64Array, popularity: Int64Array, users: int, k: int) -> float:
    """The mean surprise, -log2 of the share of users who know the item, of the items recommended, in bits.

    Zhou et al. 2010, "Solving the apparent diversity-accuracy dilemma of recommender systems". Arguments as for
    ``coverage_at``; an item without interactions counts as known to one user.
    """
    known_to = np.maximum(popularity[places[:, :k]], 1) / users
    return float(-np.log2(known_to).mean())


def popularity_at(places: Int64Array, popularity: Int64Array, k: int) -> float:
    """The mean number of training interactions of the items recommended: how far an order leans to the popular.

    Yin et al. 2012, "Challenging the long tail recommendation". Arguments as for ``coverage_at``.
    """
    return float(popularity[places[:, :k]].mean())
