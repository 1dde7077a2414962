"""Axes and marks of the report."""

import math
import re

import pytest

from shortlist_client.loadtest.drawing import Axis, Line, histogram, line_chart, linear_axis, log_axis, time_axis

SIZE = 16  # of text on a narrow page, in units of the drawing
LETTER = 0.64 * SIZE  # the widest digit of the widest of common fonts


def width_of(drawn: str) -> float:
    """Of a drawing, in its units."""
    found = re.search(r'viewBox="0 0 (\d+) ', drawn)
    assert found is not None
    return float(found[1])


def span_of(text: str, at: str, anchor: str) -> tuple[float, float]:
    """From where to where a text goes."""
    width, share = LETTER * len(text), {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor]
    return float(at) - share * width, float(at) + (1 - share) * width


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
        right = float(left) + LETTER * len(name)
        assert right < width_of(drawn)
        for other, (at, top) in enumerate(lines):
            if other != place:
                assert not (float(left) - 1 < float(at) < right and float(top) < float(baseline))


@pytest.mark.parametrize(
    "x",
    [
        linear_axis(100_000, "calls/s offered"),
        linear_axis(1_000_000, "calls/s offered"),
        linear_axis(0.9, "x"),
        log_axis(100, 10_000, "latency, ms"),
        log_axis(0.001, 100_000, "latency, ms"),
        log_axis(2, 40, "latency, ms"),
        time_axis(36_000, "seconds"),
    ],
)
@pytest.mark.parametrize("y", [linear_axis(1_000_000, "answers/s"), log_axis(0.5, 3, "latency, ms")])
def test_names_of_ticks_have_room_on_a_narrow_page(x: Axis, y: Axis) -> None:
    middle = math.sqrt(x.low * x.high) if x.log else (x.low + x.high) / 2
    drawn = line_chart(x, y, [Line("a", [(middle, y.high)], "series")])
    texts = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">([^<]+)<', drawn)
    assert {x.label, y.label} <= {text for *_, text in texts}  # none of them upright
    boxes = [(*span_of(text, at, anchor), float(base), text) for at, base, anchor, text in texts]
    assert len(boxes) >= len(y.ticks) + 2 + 2
    for place, (left, right, base, text) in enumerate(boxes):
        assert left >= 0, text
        assert right <= width_of(drawn) + 0.1, text
        for other_left, other_right, other_base, other in boxes[:place]:
            apart = left >= other_right or right <= other_left
            assert apart or abs(base - other_base) > 0.8 * SIZE, (text, other)
