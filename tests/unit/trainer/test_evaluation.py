"""Splits, metrics by hand, and protocols."""

import math

import numpy as np
import pytest

from shortlist_trainer.data.split import Split, random_holdout
from shortlist_trainer.errors import ConfigError
from shortlist_trainer.evaluation.protocols import evaluate, rank_all_items
from shortlist_trainer.evaluation.ranking import hit_rate_at, ndcg_at, recall_at
from shortlist_trainer.models import MODELS
from shortlist_trainer.models.mf import MatrixFactorizationConfig
from tests.small_world import checkerboard, dataset_of, random_dataset, training_run

# Two users with 3 and 1 relevant items; hits at places 1 and 4, and at place 3.
HITS = np.array([[True, False, False, True, False], [False, False, True, False, False]])
RELEVANT = np.array([3, 1])


def test_recall_by_hand() -> None:
    assert recall_at(HITS, RELEVANT, 5) == pytest.approx((2 / 3 + 1) / 2)
    assert recall_at(HITS, RELEVANT, 3) == pytest.approx((1 / 3 + 1) / 2)
    assert recall_at(HITS, RELEVANT, 2) == pytest.approx((1 / 3 + 0) / 2)


def test_ndcg_by_hand() -> None:
    first = (1 + 1 / math.log2(5)) / (1 + 1 / math.log2(3) + 1 / 2)
    second = 1 / math.log2(4)
    assert ndcg_at(HITS, RELEVANT, 5) == pytest.approx((first + second) / 2)


def test_ndcg_of_a_perfect_list_is_one_even_when_k_is_short() -> None:
    assert ndcg_at(np.array([[True, True]]), np.array([10]), 2) == pytest.approx(1)


def test_hit_rate_by_hand() -> None:
    assert hit_rate_at(HITS, 2) == 0.5
    assert hit_rate_at(HITS, 3) == 1.0


def test_a_holdout_divides_everything_once_and_repeats_with_its_seed(rng: np.random.Generator) -> None:
    interactions = random_dataset(20, 50, 10, rng).interactions
    split = random_holdout(interactions, 0.25, seed=3)
    again = random_holdout(interactions, 0.25, seed=3)
    other = random_holdout(interactions, 0.25, seed=4)

    def pairs(part: Split, which: str) -> set[tuple[int, int]]:
        chosen = getattr(part, which)
        return set(zip(chosen.users.tolist(), chosen.items.tolist(), strict=True))

    assert len(split.test) == round(len(interactions) * 0.25)
    assert pairs(split, "train").isdisjoint(pairs(split, "test"))
    assert len(pairs(split, "train") | pairs(split, "test")) == len(interactions)
    assert pairs(again, "test") == pairs(split, "test") != pairs(other, "test")


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, 0.0001])
def test_a_holdout_that_leaves_a_part_empty_is_refused(share: float) -> None:
    with pytest.raises(ConfigError):
        random_holdout(checkerboard(6, 6).interactions, share, 0)


def test_cold_interactions_are_counted_and_left_out_of_rankings() -> None:
    interactions = dataset_of([("a", "x", 1), ("b", "x", 1), ("a", "y", 1), ("b", "z", 1)]).interactions
    # z appears in the test part alone.
    in_test = np.array([interactions.items[row] == 2 or row == 1 for row in range(4)])
    split = Split(interactions.select(~in_test), interactions.select(in_test), "by hand")
    assert split.cold().sum() == 2  # (a, y): y is in training no more; (b, z)
    with pytest.raises(Exception, match="no test interaction has a user and an item that training knows"):
        rank_all_items(lambda users: np.zeros((len(users), 3), np.float32), split)


def test_the_right_order_scores_one_and_training_items_do_not_take_places() -> None:
    interactions = checkerboard(20, 40).interactions
    split = random_holdout(interactions, 0.2, 0)
    wanted = np.zeros((20, 40), np.float32)
    wanted[split.test.users, split.test.items] = 1
    wanted[split.train.users, split.train.items] = 2  # would come first if they were not left out
    metrics = rank_all_items(lambda users: wanted[users], split)
    assert metrics["ndcg@20"] == pytest.approx(1)
    assert metrics["recall@20"] == pytest.approx(1)


def test_random_scores_find_the_share_that_chance_gives(rng: np.random.Generator) -> None:
    interactions = random_dataset(400, 200, 20, rng).interactions
    split = random_holdout(interactions, 0.2, 0)
    metrics = rank_all_items(lambda users: rng.random((len(users), 200)).astype(np.float32), split)
    # 10 of about 184 items that are not training items.
    assert metrics["recall@10"] == pytest.approx(10 / 184, abs=0.015)


def test_rmse_and_mae_by_hand() -> None:
    interactions = dataset_of([("a", "x", 1), ("a", "y", 2), ("b", "x", 4), ("b", "y", 5)]).interactions
    in_test = np.array([False, True, False, True])
    split = Split(interactions.select(~in_test), interactions.select(in_test), "by hand")
    model = MODELS["mf"].fit(MatrixFactorizationConfig(epochs=1, learning_rate=1e-9), split.train, training_run())
    result = evaluate(model, split)
    # The model predicts hardly more than the mean, 2.5, of the ratings 1 and 4.
    assert result.metrics["rmse"] == pytest.approx(math.sqrt((0.5**2 + 2.5**2) / 2), abs=0.01)
    assert result.metrics["mae"] == pytest.approx(1.5, abs=0.01)
    assert result.baselines["global mean"]["mae"] == pytest.approx(1.5)
    assert result.cold_interactions == 2
