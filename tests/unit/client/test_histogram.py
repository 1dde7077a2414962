"""Histograms of latencies: as exact as they say."""

import math
import random
from collections.abc import Sequence

import pytest

from shortlist_client.loadtest.histogram import PRECISION, Histogram


def exact_percentile(values: Sequence[float], percent: float) -> float:
    """By nearest rank."""
    return sorted(values)[max(1, math.ceil(percent / 100 * len(values))) - 1]


def test_percentiles_are_within_the_stated_precision_of_the_exact_ones() -> None:
    draw = random.Random(1)
    values = [draw.lognormvariate(-6, 2) for _ in range(20_000)]
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    for percent in (0.1, 10, 50, 90, 99, 99.9, 99.99):
        assert histogram.percentile(percent) == pytest.approx(exact_percentile(values, percent), rel=PRECISION)
    assert histogram.percentile(100) == max(values)
    assert histogram.mean() == pytest.approx(sum(values) / len(values))
    assert sum(count for _, _, count in histogram.buckets()) == len(values)


def test_a_bucket_holds_what_was_put_into_it() -> None:
    for nanoseconds in [*range(1_000), 10**6 + 1, 123_456_789, 10**11 + 3]:
        histogram = Histogram()
        histogram.record((nanoseconds + 0.5) / 1e9)
        ((low, high, count),) = histogram.buckets()
        assert low * 1e9 - 0.01 <= nanoseconds < high * 1e9 + 0.01
        assert count == 1
        assert (high - low) * 1e9 <= max(1.01, nanoseconds * 2 * PRECISION)


def test_merged_histograms_count_what_both_did() -> None:
    first, second, both = Histogram(), Histogram(), Histogram()
    for place in range(1, 1_001):
        (first if place % 3 else second).record(place / 1e4)
        both.record(place / 1e4)
    first.merge(second)
    assert list(first.buckets()) == list(both.buckets())
    assert (first.count, first.maximum) == (both.count, both.maximum)


def test_nothing_measured_has_no_percentile() -> None:
    assert math.isnan(Histogram().percentile(50))
