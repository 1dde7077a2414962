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


@pytest.mark.parametrize("generators", [1, 3])
def test_random_arrivals_are_as_many_as_were_asked_for(generators: int) -> None:
    segments = (Segment(0.7, 100, 100), Segment(5.0, 183.4, 183.4), *parse_profile("ramp:0-40/3s"))
    for seed in range(50):
        rng = random.Random(seed)
        times = [time for place in range(generators) for time in arrivals(segments, 2.0, (place, generators), rng)]
        assert [sum(low <= time < high for time in times) for low, high in ((2, 2.7), (2.7, 7.7), (7.7, 10.7))] == [
            70,
            917,
            60,
        ]


@pytest.mark.parametrize("seed", range(5))
def test_random_arrivals_in_a_stretch_vary_as_those_of_a_poisson_process(seed: int) -> None:
    rng = random.Random(seed)
    times = list(arrivals(constant(1_000.0, 20.0), 0.0, (0, 1), rng))
    assert times == sorted(times)
    counts = [0] * 2_000  # in 10 ms each
    for time in times:
        counts[int(time * 100)] += 1
    variance = sum((count - 10) ** 2 for count in counts) / len(counts)
    assert variance == pytest.approx(10, rel=0.15)  # of even arrivals it would be 0


def test_a_rising_rate_makes_random_arrivals_denser() -> None:
    (ramp,) = parse_profile("ramp:0-400/10s")
    times = list(arrivals([ramp], 0.0, (0, 1), random.Random(8)))
    assert sum(time < 5 for time in times) == pytest.approx(500, abs=4 * math.sqrt(500 * 0.75))


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
