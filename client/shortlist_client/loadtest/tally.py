"""What became of the calls, counted so that threads and processes can be added up."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from shortlist_client.loadtest.histogram import Histogram, Latencies
from shortlist_client.loadtest.workload import Kind

OK = "OK"
NOT_SENT = "NOT_SENT"
"""Too many calls were waiting for their answers when this one was due."""
WRONG_ANSWER = "WRONG_ANSWER"
"""An answer came and was checked, and cannot be right."""
LATE = "DEADLINE_EXCEEDED"

_MOST_EXAMPLES = 5


@dataclass(slots=True)
class Interval:
    """A stretch of the measured time.

    Attributes:
        due: calls that were due in it.
        answered: right answers that came in it.
        failed: calls due in it that failed.
        latencies: of calls due in it, by kind.
    """

    due: int = 0
    answered: int = 0
    failed: int = 0
    latencies: dict[Kind, Latencies] = field(default_factory=dict)

    def merge(self, other: "Interval") -> None:
        """Adds another to it."""
        self.due += other.due
        self.answered += other.answered
        self.failed += other.failed
        for kind, latencies in other.latencies.items():
            self.latencies.setdefault(kind, Latencies()).merge(latencies)


@dataclass
class Tally:
    """Calls that were due within the measured time, which begins at 0.

    Latencies are counted from when a call was due to the end of its answer. They are those of right answers and of
    calls that passed their deadline, which waited as long as they did; of other failed calls, those that waited longer
    than a figure of latency says count for it as well: see ``Latencies``.

    Attributes:
        seconds: how long the measured time is; less than was planned once it was stopped.
        step: length of an interval in seconds.
        statuses: calls by kind and status; "OK" is one.
        lags: how late calls were sent; of a closed loop, how late a thread of the generator woke up.
        intervals: the time, cut into pieces.
        answers: calls that have ended so far, the warm-up's as well.
        failures: of these, those that failed.
        checked: answers to these calls that were looked into, whatever was wrong among them.
        examples: a few errors in words, each once.
    """

    seconds: float
    step: float
    statuses: Counter[tuple[Kind, str]] = field(default_factory=Counter)
    lags: Histogram = field(default_factory=Histogram)
    intervals: list[Interval] = field(default_factory=list)
    answers: int = 0
    failures: int = 0
    checked: int = 0
    examples: dict[str, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.intervals:
            # One more than fit, for what rounds up to the end.
            self.intervals = [Interval() for _ in range(math.ceil(self.seconds / self.step) + 1)]

    def record(
        self, kind: Kind, due: float, ended: float, status: str, why: str = "", looked_into: bool = False
    ) -> None:
        """Counts a call; as quick as it can be, for it is part of what a call costs.

        Args:
            kind: what it asked.
            due: when it was due, in seconds since the measured time began.
            ended: when its answer was complete.
            status: a gRPC status or one of this module.
            why: an error in words.
            looked_into: its answer was.
        """
        self.answers += 1
        right = status == OK
        if right:
            if 0 <= ended < self.seconds:
                self.intervals[int(ended / self.step)].answered += 1
        else:
            self.failures += 1
        if not 0 <= due < self.seconds:
            return
        if status == WRONG_ANSWER or (looked_into and right):
            self.checked += 1
        if why:
            self.example(f"{status}: {why}")
        key = kind, status
        self.statuses[key] = self.statuses.get(key, 0) + 1
        interval = self.intervals[int(due / self.step)]
        interval.due += 1
        if not right:
            interval.failed += 1
        latencies = interval.latencies.get(kind)
        if latencies is None:
            latencies = interval.latencies[kind] = Latencies()
        (latencies.answered if right or status == LATE else latencies.failed).record(ended - due)

    def record_lag(self, due: float, lag: float) -> None:
        """Counts how late a call was sent, or a thread woke up, in seconds."""
        if 0 <= due < self.seconds:
            self.lags.record(lag)

    def example(self, text: str) -> None:
        """Keeps an error's words."""
        if len(self.examples) < _MOST_EXAMPLES:
            self.examples[text] = None

    def turned_out_wrong(self, kind: Kind, due: float, ended: float) -> None:
        """Takes back that a call was answered rightly, from every figure but its latency.

        Args:
            kind: as it was recorded, and so the rest.
            due: within the measured time.
            ended: when its answer was complete.
        """
        self.statuses[kind, OK] -= 1
        self.statuses[kind, WRONG_ANSWER] += 1
        self.failures += 1
        self.intervals[int(due / self.step)].failed += 1
        if ended < self.seconds:
            self.intervals[int(ended / self.step)].answered -= 1

    def merge(self, other: "Tally") -> None:
        """Adds another of the same time."""
        self.statuses += other.statuses
        self.lags.merge(other.lags)
        for interval, more in zip(self.intervals, other.intervals, strict=True):
            interval.merge(more)
        self.answers += other.answers
        self.failures += other.failures
        self.checked += other.checked
        for text in other.examples:
            self.example(text)

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

    def latencies(self, kind: Kind | None = None) -> Latencies:
        """Of one kind of calls, or of all together."""
        return merged(
            latencies
            for interval in self.intervals
            for each, latencies in interval.latencies.items()
            if kind in (None, each)
        )


def merged(several: Iterable[Latencies]) -> Latencies:
    """The sum of latencies."""
    together = Latencies()
    for latencies in several:
        together.merge(latencies)
    return together
