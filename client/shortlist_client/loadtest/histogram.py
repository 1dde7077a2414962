"""Latencies counted in buckets that are narrow everywhere, so that histograms of many processes can be added up."""

import math
from collections.abc import Iterator

_SUB_BUCKETS = 128  # of every power of two
_SUB_BITS = 7
PRECISION = 1 / (2 * _SUB_BUCKETS)
"""How far a percentile may be from the exact one, as a share of it: half of a bucket's width."""


class Histogram:
    """Counts durations, as HdrHistogram does (http://hdrhistogram.org): 128 buckets to each doubling.

    A bucket is named by a number: nanoseconds v below 256 are bucket v, and from there on bucket
    128·s + (v >> s), where s is by how much v must be shifted to lie below 256.

    Not safe to record into from several threads; each has its own, which are then merged.
    """

    __slots__ = ("_counts", "count", "maximum", "total_seconds")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.count = 0
        self.maximum = 0.0  # seconds
        self.total_seconds = 0.0

    def record(self, seconds: float) -> None:
        """Counts one duration; one below 0 counts as 0."""
        if seconds < 0:
            seconds = 0.0
        value = int(seconds * 1e9)
        shift = value.bit_length() - 8  # to below 256
        bucket = value if shift <= 0 else (shift << 7) + (value >> shift)
        counts = self._counts
        counts[bucket] = counts.get(bucket, 0) + 1
        self.count += 1
        self.total_seconds += seconds
        if seconds > self.maximum:
            self.maximum = seconds

    def merge(self, other: "Histogram") -> None:
        """Adds what another has counted."""
        for bucket, count in other._counts.items():
            self._counts[bucket] = self._counts.get(bucket, 0) + count
        self.count += other.count
        self.total_seconds += other.total_seconds
        self.maximum = max(self.maximum, other.maximum)

    def slower_than(self, seconds: float) -> "Histogram":
        """The durations of this one that exceed so many seconds, and what shares a bucket with them."""
        slower = Histogram()
        for bucket, count in self._counts.items():
            low, high = _bounds(bucket)
            if high > seconds:
                slower._counts[bucket] = count
                slower.count += count
                slower.total_seconds += count * (low + high) / 2
        if slower.count:
            slower.maximum = self.maximum
        return slower

    def percentile(self, percent: float) -> float:
        """Seconds that so many percent of the durations do not exceed, by nearest rank; NaN without any.

        It is within ``PRECISION`` of the exact one, and 100 gives the exact maximum.
        """
        if not self.count:
            return math.nan
        if percent >= 100:
            return self.maximum
        rank = max(1, math.ceil(round(percent / 100 * self.count, 6)))
        seen = 0
        for low, high, count in self.buckets():
            seen += count
            if seen >= rank:
                return min((low + high) / 2, self.maximum)
        raise AssertionError("the buckets hold fewer than were counted")

    def mean(self) -> float:
        """Seconds; NaN without any."""
        return self.total_seconds / self.count if self.count else math.nan

    def buckets(self) -> Iterator[tuple[float, float, int]]:
        """(from, to, count) of each bucket that holds anything, in seconds, ascending."""
        for bucket in sorted(self._counts):
            yield *_bounds(bucket), self._counts[bucket]


def _bounds(bucket: int) -> tuple[float, float]:
    """From where to where a bucket reaches, in seconds."""
    shift = max(0, (bucket >> _SUB_BITS) - 1)
    low = (bucket - (shift << _SUB_BITS)) << shift
    return low / 1e9, (low + (1 << shift)) / 1e9


class Latencies:
    """How long calls took, such that those which failed make no figure look better.

    Each figure is of the answered calls and of those failed ones that had waited longer than it says of the answered
    ones alone: what was refused at once is left out, since it would flatter, and what waited in vain for long is not.
    There are no figures without an answered call.

    Attributes:
        answered: of the calls that were answered, or passed their deadline and waited as long as they did.
        failed: of the others, how long they waited.
    """

    __slots__ = ("answered", "failed")

    def __init__(self) -> None:
        self.answered = Histogram()
        self.failed = Histogram()

    def merge(self, other: "Latencies") -> None:
        """Adds what another has counted."""
        self.answered.merge(other.answered)
        self.failed.merge(other.failed)

    def percentile(self, percent: float) -> float:
        """Seconds that so many percent of the calls do not exceed; see ``Histogram.percentile``."""
        return self._with_failed(self.answered.percentile(percent)).percentile(percent)

    def mean(self) -> float:
        """Seconds; NaN without any."""
        alone = self.answered.mean()
        return max(alone, self._with_failed(alone).mean())

    @property
    def maximum(self) -> float:
        """Seconds; 0 without any."""
        return self._with_failed(self.answered.maximum).maximum

    @property
    def count(self) -> int:
        """Calls that the median is of."""
        return self._of_median().count

    def buckets(self) -> Iterator[tuple[float, float, int]]:
        """(from, to, count) of the calls that the median is of; see ``Histogram.buckets``."""
        return self._of_median().buckets()

    def _of_median(self) -> Histogram:
        return self._with_failed(self.answered.percentile(50))

    def _with_failed(self, seconds: float) -> Histogram:
        """The answered calls and the failed ones that waited longer than so many seconds."""
        together = Histogram()
        together.merge(self.answered)
        if together.count:
            together.merge(self.failed.slower_than(seconds))
        return together
