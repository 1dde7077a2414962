"""When calls are due."""

import itertools
import math
import random

import pytest

from shortlist_client.loadtest.processes import Load, interval_seconds
from shortlist_client.loadtest.schedule import Segment, arrivals, constant, parse_profile


def test_even_arrivals_of_several_generators_interleave_to_the_whole_rate() -> None:
    times = sorted(
        time for place in range(3) for time in arrivals(constant(30.0, 2.0), start=5.0, share=(place, 3), rng=None)
    )
    assert len(times) == 60
    assert times == pytest.approx([5.0 + (place + 0.5) / 30 for place in range(60)])


def test_random_arrivals_have_the_rate_and_the_spread_of_a_poisson_process() -> None:
    rng = random.Random(5)
    times = list(arrivals(constant(2_000.0, 10.0), start=0.0, share=(1, 2), rng=rng))
    assert len(times) == pytest.approx(10_000, abs=400)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert deviation == pytest.approx(mean, rel=0.05)


def test_a_ramp_makes_as_many_calls_as_the_area_under_it() -> None:
    (ramp,) = parse_profile("ramp:100-500/4s")
    times = list(arrivals([ramp], start=0.0, share=(0, 1), rng=None))
    assert len(times) == 1_200
    assert sum(time < 2 for time in times) == pytest.approx(400, abs=1)
    assert list(arrivals(parse_profile("ramp:0-10/2s"), 0.0, (0, 1), None))[-1] < 2


def test_steps_follow_one_another() -> None:
    steps = parse_profile("steps:10,20,5/500ms")
    assert steps == (Segment(0.5, 10, 10), Segment(0.5, 20, 20), Segment(0.5, 5, 5))
    times = list(arrivals(steps, 0.0, (0, 1), None))
    assert [sum(low <= time < low + 0.5 for time in times) for low in (0, 0.5, 1.0)] == [5, 10, 2]


@pytest.mark.parametrize(
    "text", ["ramp:1-2", "steps:1,,2/3s", "wave:1-2/3s", "ramp:0-0/3s", "steps:0,5/1s", "ramp:1-2/1ms"]
)
def test_a_profile_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"profile|ramp|step"):
        parse_profile(text)


@pytest.mark.parametrize("profile", ["steps:1,2,3/100ms", "steps:1,2,3/0.3s", "steps:1,2/7s", "steps:1,2,3/100s"])
def test_every_step_is_a_whole_number_of_intervals(profile: str) -> None:
    segments = parse_profile(profile)
    seconds = sum(segment.seconds for segment in segments)
    each = segments[0].seconds / interval_seconds(Load(segments, 0, True, 0.0, seconds))
    assert each == pytest.approx(round(each))
    assert 1 <= round(each) <= 50
