"""Splits, metrics by hand, and protocols."""

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from shortlist_trainer.data.dataset import Interactions
from shortlist_trainer.data.split import (
    Split,
    k_fold,
    leave_one_out,
    random_holdout,
    stratified_holdout,
    time_cut,
)
from shortlist_trainer.errors import ConfigError, DataError
from shortlist_trainer.evaluation.protocols import evaluate, rank_all_items
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
from shortlist_trainer.models import MODELS, Embeddings, fit
from shortlist_trainer.models.base import Recommender, RowArray
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
    model = fit(
        MODELS["mf"], MatrixFactorizationConfig(epochs=1, learning_rate=1e-9), split.train, training_run()
    ).model
    result = evaluate(model, split)
    # The model predicts hardly more than the mean, 2.5, of the ratings 1 and 4.
    assert result.metrics["rmse"] == pytest.approx(math.sqrt((0.5**2 + 2.5**2) / 2), abs=0.01)
    assert result.metrics["mae"] == pytest.approx(1.5, abs=0.01)
    assert result.baselines["global mean"]["mae"] == pytest.approx(1.5)
    assert result.cold_interactions == 2


def test_reciprocal_rank_by_hand() -> None:
    assert reciprocal_rank_at(HITS, 5) == pytest.approx((1 + 1 / 3) / 2)
    assert reciprocal_rank_at(HITS, 2) == pytest.approx((1 + 0) / 2)


def test_average_precision_by_hand() -> None:
    # Hits at places 1 and 4 of three relevant: (1 + 2/4) / 3; a hit at place 3 of one: 1/3.
    assert average_precision_at(HITS, RELEVANT, 5) == pytest.approx(((1 + 2 / 4) / 3 + 1 / 3) / 2)
    assert average_precision_at(HITS, RELEVANT, 2) == pytest.approx((1 / 2 + 0) / 2)


PLACES = np.array([[0, 1, 2], [0, 3, 1]])
POPULARITY = np.array([8, 4, 1, 0, 2])


def test_coverage_by_hand() -> None:
    # Items 0 and 1 of the four that anybody touched; item 3, which nobody did, does not count.
    assert coverage_at(PLACES, POPULARITY, 1) == pytest.approx(1 / 4)
    assert coverage_at(PLACES, POPULARITY, 2) == pytest.approx(2 / 4)
    assert coverage_at(PLACES, POPULARITY, 3) == pytest.approx(3 / 4)


def test_novelty_by_hand() -> None:
    # Of 8 users all know item 0 and half know item 1: 0 and 1 bits; item 3 counts as known to one: 3 bits.
    assert novelty_at(PLACES, POPULARITY, 8, 2) == pytest.approx((0 + 1 + 0 + 3) / 4)


def test_popularity_by_hand() -> None:
    assert popularity_at(PLACES, POPULARITY, 2) == pytest.approx((8 + 4 + 8 + 0) / 4)


def timed(rows: list[tuple[int, int, int, float]], users: int, items: int) -> Interactions:
    """Interactions of (user row, item row, seconds, rating)."""
    columns = np.array(sorted(rows), dtype=np.float64).T
    return Interactions(
        users=columns[0].astype(np.int32),
        items=columns[1].astype(np.int32),
        ratings=columns[3].astype(np.float32),
        timestamps=columns[2].astype(np.int64),
        user_count=users,
        item_count=items,
    )


def in_test(split: Split) -> set[tuple[int, int]]:
    assert len(split.train) + len(split.test) > len(split.test)
    return set(zip(split.test.users.tolist(), split.test.items.tolist(), strict=True))


def test_leave_one_out_takes_the_latest_and_of_equals_the_highest_row() -> None:
    interactions = timed([(0, 0, 5, 1), (0, 1, 9, 1), (0, 2, 7, 1), (1, 3, 4, 1), (1, 1, 4, 1), (2, 0, 1, 1)], 3, 4)
    split = leave_one_out(interactions)
    assert in_test(split) == {(0, 1), (1, 3)}  # user 2 has one interaction and keeps it
    assert len(split.train) == 4


def test_a_time_cut_takes_the_latest() -> None:
    interactions = timed([(0, item, 10 + item, 1) for item in range(10)], 1, 10)
    assert in_test(time_cut(interactions, 0.3)) == {(0, 7), (0, 8), (0, 9)}


def test_a_stratified_split_takes_the_same_share_of_each_rating() -> None:
    rows = [(user, item, 0, 5.0 if item < 5 else 1.0) for user in range(20) for item in range(10)]
    split = stratified_holdout(timed(rows, 20, 10), 0.2, seed=1)
    assert split.test.ratings is not None
    assert np.unique(split.test.ratings, return_counts=True)[1].tolist() == [20, 20]


def test_each_interaction_is_tested_in_one_fold() -> None:
    interactions = checkerboard(10, 10).interactions
    splits = k_fold(interactions, 5, seed=0)
    tested = [pair for split in splits for pair in in_test(split)]
    assert len(tested) == len(set(tested)) == len(interactions)
    assert max(len(split.test) for split in splits) - min(len(split.test) for split in splits) <= 1


def test_splits_by_time_need_times() -> None:
    interactions = checkerboard(6, 6).interactions
    for divide_it in (leave_one_out, lambda given: time_cut(given, 0.2)):
        with pytest.raises(ConfigError, match="no timestamps"):
            divide_it(interactions)


class Fixed(Recommender):
    """Predicts what a matrix says."""

    protocol = "full-rank"

    def __init__(self, scores: npt.NDArray[np.float32]) -> None:
        self.scores = scores

    def predict(self, users: RowArray, items: RowArray) -> npt.NDArray[np.float32]:
        return np.asarray(self.scores[users, items])

    def embeddings(self) -> Embeddings:
        return Embeddings(self.scores, np.eye(self.scores.shape[1], dtype=np.float32), "preference")


def one_out(users: int = 300, items: int = 150) -> Split:
    rng = np.random.default_rng(2)
    rows = [(user, item, time, 1.0) for user in range(users) for time, item in enumerate(rng.permutation(items)[:6])]
    return leave_one_out(timed(rows, users, items))


def test_constant_scores_hit_one_time_in_ten() -> None:
    split = one_out(3_000)
    result = evaluate(Fixed(np.zeros((3_000, 150), np.float32)), split, "leave-one-out", seed=1)
    assert result.metrics["hr@10"] == pytest.approx(0.10, abs=0.02)
    assert result.baselines["random"]["hr@10"] == pytest.approx(0.10, abs=0.02)


def test_the_right_item_first_scores_one_and_last_scores_nothing() -> None:
    split = one_out()
    scores = np.zeros((300, 150), np.float32)
    scores[split.test.users, split.test.items] = 1
    metrics = evaluate(Fixed(scores), split, "leave-one-out").metrics
    assert metrics["hr@10"] == metrics["ndcg@10"] == 1.0
    assert metrics["full_hr@10"] == metrics["full_ndcg@10"] == 1.0
    assert evaluate(Fixed(-scores), split, "leave-one-out").metrics["hr@10"] == 0


def test_given_negatives_are_the_ones_ranked_among() -> None:
    split = one_out()
    # Two negatives: one before the test item, one behind it.
    scores = np.zeros((300, 150), np.float32)
    scores[:, 0] = 2
    scores[split.test.users, split.test.items] = 1
    given = Split(split.train, split.test, "by hand", {user: np.array([0, 1], np.int32) for user in range(300)})
    elsewhere = given.test.items > 1  # where the test item is neither of the two
    given = replace(given, test=given.test.select(elsewhere))
    metrics = evaluate(Fixed(scores), given, "leave-one-out").metrics
    assert metrics["hr@10"] == 1
    assert metrics["ndcg@10"] == pytest.approx(1 / math.log2(3))  # always second


def test_sampled_negatives_are_never_items_of_the_user() -> None:
    split = one_out(items=106)  # 6 of 106 are the user's: a draw of 99 leaves one out
    touched = np.zeros((300, 106), np.float32)
    for part in (split.train, split.test):
        touched[part.users, part.items] = 1
    touched[split.test.users, split.test.items] = 0.5  # beaten only by the user's own items
    assert evaluate(Fixed(touched), split, "leave-one-out").metrics["ndcg@10"] == 1.0


def test_leave_one_out_refuses_what_it_cannot_judge() -> None:
    split = random_holdout(checkerboard().interactions, 0.3, 0)
    model = Fixed(np.zeros((40, 30), np.float32))
    with pytest.raises(DataError, match="one test item a user"):
        evaluate(model, split, "leave-one-out")
    with pytest.raises(ConfigError, match="no protocol 'guess'"):
        evaluate(model, split, "guess")
    with pytest.raises(DataError, match="fewer than 99 items"):
        evaluate(Fixed(np.zeros((300, 50), np.float32)), one_out(items=50), "leave-one-out")
