"""When calls are due: rates over time, and random or even arrivals at them."""

import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_DURATION = r"(?P<length>\d+(?:\.\d+)?)(?P<unit>ms|s|m|h)"
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_NUMBER = r"\d+(?:\.\d+)?"
_SHORTEST_SECONDS = 0.1

MOST_RATE = 1_000_000
"""In calls/s: above what any machine makes, and few enough that those that were not made can be counted one by one."""


@dataclass(frozen=True)
class Segment:
    """A stretch of time over which the rate changes evenly.

    Attributes:
        seconds: how long.
        first_rate: calls/s at its beginning.
        last_rate: calls/s at its end.
    """

    seconds: float
    first_rate: float
    last_rate: float

    @property
    def calls(self) -> float:
        """How many calls are due in it, on average."""
        return (self.first_rate + self.last_rate) / 2 * self.seconds

    def time_of(self, calls: float) -> float:
        """Seconds from its beginning until so many calls are due: the inverse of the integral of the rate."""
        growth = 2 * (self.last_rate - self.first_rate) * calls / self.seconds
        return 2 * calls / (self.first_rate + math.sqrt(max(0.0, self.first_rate**2 + growth)))


def constant(rate: float, seconds: float) -> tuple[Segment, ...]:
    """One rate throughout."""
    return (Segment(seconds, rate, rate),)


def parse_profile(text: str) -> tuple[Segment, ...]:
    """Reads ``ramp:100-2000/30s``, which rises or falls evenly, or ``steps:500,1000/10s``, each held for so long.

    Raises:
        ValueError: the text is neither; says what it should be.
    """
    ramp = re.fullmatch(rf"ramp:(?P<first>{_NUMBER})-(?P<last>{_NUMBER})/{_DURATION}", text)
    steps = re.fullmatch(rf"steps:(?P<rates>{_NUMBER}(?:,{_NUMBER})*)/{_DURATION}", text)
    found = ramp or steps
    if found is None:
        raise ValueError(
            f"a profile is ramp:FROM-TO/TIME or steps:RATE,RATE,…/TIME, such as ramp:100-2000/30s, not {text}"
        )
    seconds = float(found["length"]) * _UNITS[found["unit"]]
    if seconds < _SHORTEST_SECONDS:
        raise ValueError(f"a profile's time must be {_SHORTEST_SECONDS} s or more, not {seconds:g} s")
    rates = [float(rate) for rate in re.findall(_NUMBER, text.partition("/")[0])]
    if max(rates) > MOST_RATE:
        raise ValueError(f"the rates of a profile must be {MOST_RATE:,} at most, not {max(rates):,.10g}")
    if ramp:
        first, last = rates
        if not max(first, last):
            raise ValueError("a ramp from 0 to 0 asks for nothing")
        return (Segment(seconds, first, last),)
    if not all(rates):
        raise ValueError("the rate of every step must be above 0")
    return tuple(Segment(seconds, rate, rate) for rate in rates)


def arrivals(
    segments: Sequence[Segment], start: float, share: tuple[int, int], rng: random.Random | None
) -> Iterator[float]:
    """Yields when calls are due, ascending, in seconds.

    Every segment has exactly as many calls as its rates come to, but for what rounding to whole calls carries over to
    the next. Random ones lie as those of a Poisson process do of which that count is known: independently of one
    another, as densely as the rate is high. A draw of the count itself would now and then ask for a tenth less than was
    meant.

    Args:
        segments: the rates of all generators together.
        start: the time of the first segment's beginning.
        share: (i, n): the i-th of n generators, each of which makes every n-th call.
        rng: draws random times; None for even spacing.
    """
    place, generators = share
    before = 0.0  # calls due until the segment begins
    for segment in segments:
        # The call of number n is due, if they are even, when n + 0.5 calls are.
        first, end = math.ceil(before - 0.5), math.ceil(before + segment.calls - 0.5)
        mine = range(first + (place - first) % generators, end, generators)
        for calls in _ascending(len(mine), segment.calls, rng) if rng else (call + 0.5 - before for call in mine):
            yield start + segment.time_of(calls)
        before += segment.calls
        start += segment.seconds


def _ascending(count: int, below: float, rng: random.Random) -> Iterator[float]:
    """Yields so many independent numbers, evenly distributed from 0 on, in ascending order and without keeping them."""
    reached = 0.0
    for left in range(count, 0, -1):
        # The lowest of those that are left lies so far from where they begin.
        reached += (below - reached) * -math.expm1(-rng.expovariate(left))
        yield reached
