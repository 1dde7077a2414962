"""Axes and marks of the report."""

import math
import re

import pytest

from shortlist_client.loadtest.drawing import histogram, linear_axis, log_axis


def test_axes_end_at_round_numbers_around_the_values() -> None:
    assert linear_axis(870, "").ticks == (0, 200, 400, 600, 800, 1000)
    axis = log_axis(0.7, 30, "")
    assert (axis.low, axis.high) == pytest.approx((0.5, 50))
    assert axis.share(math.sqrt(0.5 * 50)) == pytest.approx(0.5)


@pytest.mark.parametrize("most", [1, 2, 3, 4, 7, 11, 12, 24, 60, 230])
def test_an_axis_of_counts_has_whole_numbers_alone(most: int) -> None:
    ticks = linear_axis(most, "calls", whole=True).ticks
    assert all(tick == round(tick) for tick in ticks)
    assert ticks[-1] >= most
    assert 2 <= len(ticks) <= 6


@pytest.mark.parametrize("values", [(1.0, 1.01, 1.02, 1.03), (1, 1.2, 1.25, 9.9), (1, 1.05, 1.26, 1.3), (1, 3, 6, 10)])
def test_no_mark_runs_through_the_name_of_another(values: tuple[float, ...]) -> None:
    names = ("p50", "p90", "p99", "p99.9")
    drawn = histogram(log_axis(1, 10, "ms"), linear_axis(5, "calls"), [], list(zip(names, values, strict=True)))
    lines = re.findall(r'<line class="mark" x1="([\d.]+)" x2="[\d.]+" y1="([\d.]+)"', drawn)
    texts = re.findall(r'<text class="mark" x="([\d.]+)" y="([\d.]+)">([^<]+)<', drawn)
    assert [name for *_, name in texts] == list(names)
    for place, (left, baseline, name) in enumerate(texts):
        right = float(left) + 7 * len(name)
        assert right < 640  # the width of the drawing
        for other, (at, top) in enumerate(lines):
            if other != place:
                assert not (float(left) - 1 < float(at) < right and float(top) < float(baseline))
