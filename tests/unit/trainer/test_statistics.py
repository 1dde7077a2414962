"""Figures of a data set, by hand."""

from shortlist_trainer.data.statistics import statistics_of
from tests.small_world import dataset_of


def test_the_figures_of_a_small_data_set() -> None:
    pairs = [(user, "hit", 5.0) for user in "abcdef"] + [
        ("a", "w", 1.0),
        ("a", "x", 1.0),
        ("b", "y", 3.0),
        ("c", "z", 1.0),
    ]
    figures = statistics_of(dataset_of(pairs))
    assert (figures.users, figures.items, figures.interactions) == (6, 5, 10)
    assert figures.density == 10 / 30
    assert figures.interactions_per_user == (1, 1.5, 3)
    assert figures.interactions_per_item == (1, 1.0, 6)
    assert figures.rating_counts == {1.0: 3, 3.0: 1, 5.0: 6}
    assert figures.long_tail_share == 4 / 10  # the head is one item of five
    assert figures.first_and_last is None
