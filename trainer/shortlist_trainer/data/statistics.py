"""What a data set looks like: sizes, density, ratings and how unevenly the items are touched."""

from dataclasses import dataclass

import numpy as np

from shortlist_trainer.data.dataset import Dataset

HEAD_SHARE = 0.2
"""The most popular fifth of the items is the head, the rest the long tail."""


@dataclass(frozen=True)
class Statistics:
    """Figures of a data set.

    Attributes:
        users: how many users there are.
        items: how many items there are.
        interactions: distinct (user, item) pairs.
        density: interactions / (users * items).
        interactions_per_user: least, median and most of any user.
        interactions_per_item: likewise of any item.
        rating_counts: rating to how often it was given, ascending; empty where the data has no ratings.
        long_tail_share: share of the interactions with the items outside of the head.
        first_and_last: the earliest and the latest timestamp in seconds since 1970; None where the data has none.
    """

    users: int
    items: int
    interactions: int
    density: float
    interactions_per_user: tuple[int, float, int]
    interactions_per_item: tuple[int, float, int]
    rating_counts: dict[float, int]
    long_tail_share: float
    first_and_last: tuple[int, int] | None


def statistics_of(dataset: Dataset) -> Statistics:
    """Computes the figures of a data set, its test part included."""
    interactions = dataset.interactions
    per_user = np.diff(interactions.user_offsets())
    per_item = np.sort(interactions.item_popularity())[::-1]
    head = round(len(per_item) * HEAD_SHARE)
    rating_counts: dict[float, int] = {}
    if interactions.ratings is not None:
        ratings, counts = np.unique(interactions.ratings, return_counts=True)
        rating_counts = dict(zip(ratings.tolist(), counts.tolist(), strict=True))
    times = interactions.timestamps
    return Statistics(
        users=len(per_user),
        items=len(per_item),
        interactions=len(interactions),
        density=len(interactions) / (len(per_user) * len(per_item)),
        interactions_per_user=(int(per_user.min()), float(np.median(per_user)), int(per_user.max())),
        interactions_per_item=(int(per_item.min()), float(np.median(per_item)), int(per_item.max())),
        rating_counts=rating_counts,
        long_tail_share=float(per_item[head:].sum() / len(interactions)),
        first_and_last=None if times is None else (int(times.min()), int(times.max())),
    )
