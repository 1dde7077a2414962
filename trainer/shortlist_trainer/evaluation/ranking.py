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
