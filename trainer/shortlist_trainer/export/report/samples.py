"""A few users and items with what the model would answer for them, by exact scores."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shortlist_trainer.export.report.content import ReportContent

SAMPLE_USERS = 5
SAMPLE_ITEMS = 6
TOUCHED = 10
RECOMMENDED = 10
NEIGHBOURS = 6

Scored = list[tuple[int, float | None]]
"""Item rows with a figure each, None where there is none."""


@dataclass(frozen=True)
class SampleUser:
    """A user beside what is recommended.

    Attributes:
        user: user row.
        interactions: how many the user has.
        order: what ``touched`` is in the order of: "rating", "time", or "popularity" where the data has neither.
        touched: the first few items of the user in that order, with their ratings.
        recommended: the best items that the user has not touched, with their scores.
    """

    user: int
    interactions: int
    order: str
    touched: Scored
    recommended: Scored


def sample_users(content: ReportContent, seed: int = 0) -> list[SampleUser]:
    """One user drawn from each fifth of the users who have interactions, from the lightest to the heaviest."""
    activity = np.diff(content.dataset.interactions.user_offsets())
    by_activity = np.argsort(activity, kind="stable")[np.count_nonzero(activity == 0) :]
    parts = np.array_split(by_activity, min(SAMPLE_USERS, len(by_activity)))
    rng = np.random.default_rng(seed)
    return [_sample_user(content, int(rng.choice(part))) for part in parts]


def _sample_user(content: ReportContent, user: int) -> SampleUser:
    interactions = content.dataset.interactions
    start, stop = interactions.user_offsets()[user : user + 2]
    items = interactions.items[start:stop]
    ratings = None if interactions.ratings is None else interactions.ratings[start:stop]
    times = None if interactions.timestamps is None else interactions.timestamps[start:stop]
    keys: list[npt.NDArray[np.generic]] = [content.popularity[items]]
    keys += [key for key in (times, ratings) if key is not None]  # the last key weighs most
    order = np.lexsort(keys)[::-1][:TOUCHED]
    name = "rating" if ratings is not None else "time" if times is not None else "popularity"

    vectors = content.embeddings
    scores = vectors.items @ vectors.users[user] + vectors.score_constant  # (items,)
    if vectors.user_bias is not None:
        scores = scores + vectors.user_bias[user]
    best = _best(scores, RECOMMENDED, leave_out=items)
    return SampleUser(
        user=user,
        interactions=len(items),
        order=name,
        touched=[(int(items[place]), None if ratings is None else float(ratings[place])) for place in order],
        recommended=[(int(item), float(scores[item])) for item in best],
    )


def sample_neighbours(content: ReportContent) -> list[tuple[int, Scored]]:
    """A few items from the most popular down to the middle, each with its nearest by cosine, best first."""
    by_popularity = np.argsort(-content.popularity, kind="stable")
    ranks = np.unique(np.geomspace(1, max(len(by_popularity) // 2, 1), SAMPLE_ITEMS).astype(np.int64) - 1)
    found: list[tuple[int, Scored]] = []
    for item in by_popularity[ranks].tolist():
        cosines = content.unit_items @ content.unit_items[item]  # (items,)
        best = _best(cosines, NEIGHBOURS, leave_out=np.array([item]))
        found.append((item, [(int(row), float(cosines[row])) for row in best]))
    return found


def _best(scores: npt.NDArray[np.floating], count: int, leave_out: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Item rows of the highest scores, best first, lower rows first among equals."""
    order = np.argsort(-scores, kind="stable")
    return order[~np.isin(order, leave_out)][:count]
