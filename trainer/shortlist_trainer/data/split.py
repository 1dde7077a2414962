"""Dividing interactions into a training and a test part that share one numbering of users and items."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shortlist_trainer.data.dataset import Interactions
from shortlist_trainer.errors import ConfigError


@dataclass(frozen=True)
class Split:
    """Training and test interactions.

    Attributes:
        train: what a model may see.
        test: what it is judged by.
        description: how they were divided, for the manifest.
    """

    train: Interactions
    test: Interactions
    description: str

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
    if not 0 < test_share < 1:
        raise ConfigError(f"the test share must lie between 0 and 1, not be {test_share}")
    test_count = round(len(interactions) * test_share)
    if test_count in (0, len(interactions)):
        raise ConfigError(f"{len(interactions)} interactions are too few to set {test_share:.0%} of them aside")
    in_test = np.zeros(len(interactions), dtype=np.bool_)
    in_test[np.random.default_rng(seed).permutation(len(interactions))[:test_count]] = True
    description = f"random {1 - test_share:.0%}/{test_share:.0%}, seed {seed}"
    return Split(interactions.select(~in_test), interactions.select(in_test), description)
