"""Dividing interactions into a training and a test part that share one numbering of users and items."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from shortlist_trainer.data.dataset import Dataset, Int32Array, Interactions
from shortlist_trainer.errors import ConfigError

VALIDATION_USERS = 5_000
"""A ranking metric's standard error over so many users is below .007."""


@dataclass(frozen=True)
class Split:
    """Training and test interactions.

    Attributes:
        train: what a model may see.
        test: what it is judged by.
        description: how they were divided, for the manifest.
        negatives: user row to (n,) int32 item rows to rank the user's test item among, where the data gives them.
    """

    train: Interactions
    test: Interactions
    description: str
    negatives: Mapping[int, Int32Array] | None = None

    def cold(self) -> npt.NDArray[np.bool_]:
        """(len(test),) whether the test interaction's user or item has no training interaction."""
        known_users = np.bincount(self.train.users, minlength=self.train.user_count) > 0
        known_items = np.bincount(self.train.items, minlength=self.train.item_count) > 0
        return ~(known_users[self.test.users] & known_items[self.test.items])


def random_holdout(interactions: Interactions, test_share: float, seed: int) -> Split:
    """Sets a random share of all interactions aside.

    Args:
        interactions: all interactions.
        test_share: between 0 and 1, both excluded.
        seed: equal seeds divide equal interactions equally.

    Raises:
        ConfigError: ``test_share`` is out of its range, or leaves a part empty.
    """
    _check_share(test_share)
    in_test = np.zeros(len(interactions), dtype=np.bool_)
    chosen = np.random.default_rng(seed).permutation(len(interactions))[: round(len(interactions) * test_share)]
    in_test[chosen] = True
    return _divided(interactions, in_test, f"random {1 - test_share:.0%}/{test_share:.0%}, seed {seed}")


def given_split(dataset: Dataset) -> Split:
    """The split that comes with the data.

    Raises:
        ConfigError: the data leaves it open.
    """
    given = dataset.given_split
    if given is None:
        raise ConfigError(f"{dataset.name} comes without test files; choose another split")
    interactions = dataset.interactions
    return Split(
        interactions.select(~given.in_test),
        interactions.select(given.in_test),
        "as given with the data",
        given.negatives,
    )


def stratified_holdout(interactions: Interactions, test_share: float, seed: int) -> Split:
    """Sets the same random share of the interactions of each rating aside.

    Raises:
        ConfigError: there are no ratings, or ``test_share`` is out of its range or leaves a part empty.
    """
    if interactions.ratings is None:
        raise ConfigError("a stratified split goes by ratings and the data has none")
    _check_share(test_share)
    rng = np.random.default_rng(seed)
    in_test = np.zeros(len(interactions), dtype=np.bool_)
    for rating in np.unique(interactions.ratings):
        rows = rng.permutation(np.flatnonzero(interactions.ratings == rating))
        in_test[rows[: round(len(rows) * test_share)]] = True
    return _divided(interactions, in_test, f"stratified {1 - test_share:.0%}/{test_share:.0%}, seed {seed}")


def k_fold(interactions: Interactions, folds: int, seed: int) -> list[Split]:
    """Each interaction is in the test part of exactly one of the splits, at random.

    Raises:
        ConfigError: there are fewer than two folds or fewer interactions than folds.
    """
    if not 2 <= folds <= len(interactions):
        raise ConfigError(
            f"the number of folds must lie between 2 and the {len(interactions)} interactions, not {folds}"
        )
    fold_of = np.random.default_rng(seed).permutation(len(interactions)) % folds
    return [
        _divided(interactions, fold_of == fold, f"fold {fold + 1} of {folds}, seed {seed}") for fold in range(folds)
    ]


def leave_one_out(interactions: Interactions) -> Split:
    """Sets each user's latest interaction aside; of several at that time the one with the highest item row.

    Users with one interaction keep it for training.

    Raises:
        ConfigError: there are no timestamps, or no user has two interactions.
    """
    if interactions.timestamps is None:
        raise ConfigError("leave-one-out goes by time and the data has no timestamps")
    order = np.lexsort((interactions.items, interactions.timestamps, interactions.users))
    users = interactions.users[order]
    is_last = np.append(users[1:] != users[:-1], True)
    several = np.bincount(users, minlength=interactions.user_count)[users] > 1
    in_test = np.zeros(len(interactions), dtype=np.bool_)
    in_test[order[is_last & several]] = True
    return _divided(interactions, in_test, "the latest interaction of each user")


def time_cut(interactions: Interactions, test_share: float) -> Split:
    """Sets the latest share of all interactions aside; those at the time of the cut are for training.

    Raises:
        ConfigError: there are no timestamps, or ``test_share`` is out of its range or leaves a part empty.
    """
    if interactions.timestamps is None:
        raise ConfigError("a cut goes by time and the data has no timestamps")
    _check_share(test_share)
    cut = np.quantile(interactions.timestamps, 1 - test_share, method="lower")
    return _divided(interactions, interactions.timestamps > cut, f"after {int(cut)} s since 1970, {test_share:.0%}")


def validation_holdout(interactions: Interactions, protocol: str, share: float, seed: int) -> Split:
    """Sets a part of training interactions aside to choose by, in the way of the protocol that will judge in the end.

    The leave-one-out protocol's part is each user's latest interaction where there are timestamps; every other one's
    is drawn at random. Rankings are validated on ``VALIDATION_USERS`` users at most, and the others keep everything.

    Args:
        interactions: what may be trained on.
        protocol: "rating", "full-rank" or "leave-one-out".
        share: of the interactions, between 0 and 1; leave-one-out does without.
        seed: draws users and interactions.

    Raises:
        ConfigError: ``share`` is out of its range, or the interactions are too few.
    """
    if protocol == "leave-one-out" and interactions.timestamps is not None:
        split = leave_one_out(interactions)
    elif protocol == "leave-one-out":
        shuffled = np.random.default_rng(seed).permutation(len(interactions))
        split = leave_one_out(replace(interactions, timestamps=shuffled))
        train, test = (replace(part, timestamps=None) for part in (split.train, split.test))
        split = Split(train, test, "a random interaction of each user")
    else:
        split = random_holdout(interactions, share, seed)
    if protocol == "rating":
        return split
    users = np.unique(split.test.users)
    if len(users) <= VALIDATION_USERS:
        return split
    chosen = np.random.default_rng(seed).permutation(users)[:VALIDATION_USERS]
    held_out = interactions.pair_codes()
    in_test = np.isin(held_out, split.test.pair_codes()) & np.isin(interactions.users, chosen)
    return _divided(interactions, in_test, f"{split.description}, {VALIDATION_USERS} users")


def _check_share(test_share: float) -> None:
    if not 0 < test_share < 1:
        raise ConfigError(f"the test share must lie between 0 and 1, not be {test_share}")


def _divided(interactions: Interactions, in_test: npt.NDArray[np.bool_], description: str) -> Split:
    if not 0 < np.count_nonzero(in_test) < len(interactions):
        raise ConfigError(f"{len(interactions)} interactions are too few to be divided: {description}")
    return Split(interactions.select(~in_test), interactions.select(in_test), description)


SPLITS = ("given", "random", "stratified", "leave-one-out", "time")
"""The names of the ways to divide a data set once."""


def divide(dataset: Dataset, how: str, test_share: float, seed: int) -> Split:
    """Divides a data set by one of ``SPLITS``; raises ConfigError as that way does, or for an unknown name."""
    interactions = dataset.interactions
    match how:
        case "given":
            return given_split(dataset)
        case "random":
            return random_holdout(interactions, test_share, seed)
        case "stratified":
            return stratified_holdout(interactions, test_share, seed)
        case "leave-one-out":
            return leave_one_out(interactions)
        case "time":
            return time_cut(interactions, test_share)
    raise ConfigError(f"there is no split {how!r}; there are {', '.join(SPLITS)}")
