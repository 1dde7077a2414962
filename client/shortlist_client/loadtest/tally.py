"""What became of the calls, counted so that threads and processes can be added up."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from shortlist_client.loadtest.histogram import Histogram
from shortlist_client.loadtest.workload import Kind

OK = "OK"
NOT_SENT = "NOT_SENT"
"""Too many calls were waiting for their answers when this one was due."""
WRONG_ANSWER = "WRONG_ANSWER"
"""An answer came and was checked, and cannot be right."""
LATE = "DEADLINE_EXCEEDED"

_MOST_EXAMPLES = 5


@dataclass
class Interval:
    """A stretch of the measured time.

    Attributes:
        due: calls that were due in it.
        answered: right answers that came in it.
        failed: calls due in it that failed.
        latencies: of calls due in it.
    """

    due: int = 0
    answered: int = 0
    failed: int = 0
    latencies: Histogram = field(default_factory=Histogram)

    def merge(self, other: "Interval") -> None:
        """Adds another to it."""
        self.due += other.due
        self.answered += other.answered
        self.failed += other.failed
        self.latencies.merge(other.latencies)


@dataclass
class Tally:
    """Calls that were due within the measured time, which begins at 0.

    Attributes:
        seconds: how long that is.
        step: length of an interval in seconds.
        statuses: calls by kind and status; "OK" is one.
        latencies: by kind, from when a call was due to the end of its answer. Of answered calls and of those that
            passed their deadline, which waited as long as they did; calls refused at once would flatter.
        lags: how late calls were sent.
        intervals: the time, cut into pieces.
        answers: calls that have ended so far, the warm-up's as well.
        failures: of these, those that failed.
        checked: answers that were looked into.
        examples: a few errors in words, each once.
    """

    seconds: float
    step: float
    statuses: Counter[tuple[Kind, str]] = field(default_factory=Counter)
    latencies: dict[Kind, Histogram] = field(default_factory=dict)
    lags: Histogram = field(default_factory=Histogram)
    intervals: list[Interval] = field(default_factory=list)
    answers: int = 0
    failures: int = 0
    checked: int = 0
    examples: dict[str, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.intervals:
            # A little over, as steps need not divide the time.
            self.intervals = [Interval() for _ in range(max(1, round(self.seconds / self.step + 0.49)))]

    def record(self, kind: Kind, due: float, ended: float, status: str) -> None:
        """Counts a call.

        Args:
            kind: what it asked.
            due: when it was due, in seconds since the measured time began.
            ended: when its answer was complete.
            status: a gRPC status or one of this module.
        """
        self.answers += 1
        right = status == OK
        self.failures += not right
        if right and 0 <= ended < self.seconds:
            self._interval(ended).answered += 1
        if not 0 <= due < self.seconds:
            return
        self.statuses[kind, status] += 1
        interval = self._interval(due)
        interval.due += 1
        if not right:
            interval.failed += 1
        if right or status in (LATE, WRONG_ANSWER):
            if kind not in self.latencies:
                self.latencies[kind] = Histogram()
            self.latencies[kind].record(ended - due)
            interval.latencies.record(ended - due)

    def record_lag(self, due: float, lag: float) -> None:
        """Counts how late a call was sent, in seconds."""
        if 0 <= due < self.seconds:
            self.lags.record(lag)

    def example(self, text: str) -> None:
        """Keeps an error's words."""
        if len(self.examples) < _MOST_EXAMPLES:
            self.examples[text] = None

    def turned_out_wrong(self, kind: Kind) -> None:
        """Takes back that a call was answered rightly."""
        if self.statuses[kind, OK]:
            self.statuses[kind, OK] -= 1
            self.statuses[kind, WRONG_ANSWER] += 1

    def merge(self, other: "Tally") -> None:
        """Adds another of the same time."""
        self.statuses += other.statuses
        for kind, histogram in other.latencies.items():
            self.latencies.setdefault(kind, Histogram()).merge(histogram)
        self.lags.merge(other.lags)
        for interval, more in zip(self.intervals, other.intervals, strict=True):
            interval.merge(more)
        self.answers += other.answers
        self.failures += other.failures
        self.checked += other.checked
        for text in other.examples:
            self.example(text)

    def _interval(self, time: float) -> Interval:
        return self.intervals[min(int(time / self.step), len(self.intervals) - 1)]

    @property
    def requests(self) -> int:
        """Calls that were due."""
        return self.statuses.total()

    @property
    def answered(self) -> int:
        """Right answers that came within the measured time."""
        return sum(interval.answered for interval in self.intervals)

    @property
    def errors(self) -> dict[str, int]:
        """Calls that failed, by status, the most frequent first."""
        by_status: Counter[str] = Counter()
        for (_, status), count in self.statuses.items():
            if status != OK and count:
                by_status[status] += count
        return dict(by_status.most_common())

    @property
    def all_latencies(self) -> Histogram:
        """Of every kind together."""
        return merged(self.latencies.values())


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """The sum of histograms."""
    together = Histogram()
    for histogram in histograms:
        together.merge(histogram)
    return together
