"""The search for the highest rate that is sustained."""

import math
from dataclasses import replace

import pytest

from shortlist_client.loadtest.saturation import Trial, find_saturation


def trial_of(rate: float, capacity: float, p99: float = 0.002) -> Trial:
    """A server that answers so many calls/s at most."""
    return Trial(rate, rate, min(rate, capacity), 0.001, p99 if rate <= capacity else 1.0, 0.0, calls=1_000)


@pytest.mark.parametrize("capacity", [90.0, 1_000.0, 12_345.0])
def test_saturation_is_found_within_the_stated_gap(capacity: float) -> None:
    found = find_saturation(lambda rate: trial_of(rate, capacity), 200.0)
    assert capacity / 1.1 < found.rate < capacity * 1.06  # 95% of a rate may be missing
    assert found.complete


def test_a_rate_that_failed_once_by_chance_is_tried_again() -> None:
    tried: list[float] = []

    def measure(rate: float) -> Trial:
        tried.append(rate)
        return trial_of(rate, 0.0 if len(tried) == 2 else 1_000.0)

    assert find_saturation(measure, 200.0).rate > 900


def test_a_p99_that_explodes_is_no_sustained_rate() -> None:
    found = find_saturation(lambda rate: trial_of(rate, 1e9, p99=0.002 if rate < 1_000 else 0.5), 200.0)
    assert 900 < found.rate < 1_000
    assert "p99 rose to 500 ms" in {trial.why for trial in found.trials}
    generous = find_saturation(lambda rate: trial_of(rate, 5_000, p99=0.4), 200.0, most_p99=0.6)
    assert generous.rate > 4_500


def test_a_search_that_is_stopped_keeps_what_it_found() -> None:
    found = find_saturation(lambda rate: trial_of(rate, 1e9) if rate < 1_000 else None, 200.0)
    assert (found.rate, found.complete) == (800.0, False)


def test_a_server_that_answers_nothing_sustains_nothing() -> None:
    found = find_saturation(lambda rate: Trial(rate, rate, 0.0, math.nan, math.nan, 1.0, 1_000), 200.0)
    assert found.rate == 0


def nothing(rate: float) -> Trial:
    """At which no right answer came."""
    return Trial(rate, rate, 0.0, math.nan, math.nan, 1.0, 1_000)


def test_a_server_that_goes_away_ends_the_search() -> None:
    tried: list[float] = []

    def measure(rate: float) -> Trial:
        tried.append(rate)
        return trial_of(rate, 1e9) if len(tried) < 3 else nothing(rate)

    found = find_saturation(measure, 200.0)
    assert tried == [200, 400, 800, 800, 400]
    assert found.server_went_away
    assert (found.rate, found.complete) == (400, True)


def test_a_server_that_answers_nothing_above_what_it_sustains_has_not_gone_away() -> None:
    found = find_saturation(lambda rate: trial_of(rate, 1e9) if rate < 1_000 else nothing(rate), 200.0)
    assert not found.server_went_away
    assert 900 < found.rate < 1_000


@pytest.mark.parametrize("calls", [0, 1, 9])
def test_a_rate_at_which_next_to_nothing_was_asked_is_not_sustained(calls: int) -> None:
    found = find_saturation(lambda rate: replace(trial_of(rate, 1e9), calls=calls), 200.0)
    assert found.rate == 0
    assert {trial.why for trial in found.trials} == {f"only {calls} calls were due, too few to tell"}


def test_the_rate_that_is_found_was_due() -> None:
    found = find_saturation(lambda rate: replace(trial_of(rate, 1_000), offered=rate * 0.97), 200.0)
    assert found.rate == max(trial.offered for trial in found.trials if trial.sustained)


@pytest.mark.parametrize("capacity", [177.0, 1_000.0, 12_345.0])
def test_the_rate_that_is_found_was_answered(capacity: float) -> None:
    def measure(rate: float) -> Trial:
        return replace(trial_of(rate, capacity), p99=0.002)  # of a run that is too short for a queue to grow long

    assert find_saturation(measure, 200.0).rate <= capacity


def test_a_rate_of_which_too_little_was_due_is_not_sustained() -> None:
    def measure(rate: float) -> Trial:
        due = rate if rate <= 400 else 0.84 * rate
        return replace(trial_of(due, 1e9), asked=rate)

    found = find_saturation(measure, 200.0)
    assert 350 < found.rate <= 400
    assert "only 84% of the calls asked for were due" in {trial.why for trial in found.trials}
