"""Objectives that a load test is held against: ``p99<20ms,errors<0.1%,rate>500``."""

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from shortlist_client.loadtest.processes import Outcome
from shortlist_client.loadtest.workload import Kind

_OBJECTIVE = re.compile(
    r"(?:(?P<kind>[a-z]+)\.)?(?P<metric>p(?P<percent>\d+(?:\.\d+)?)|[a-z]+)\s*(?P<relation><=|>=|<|>)\s*"
    r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>us|µs|ms|s|%|/s)?"
)
_SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
_RELATIONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_SHAPE = "an objective is METRIC<NUMBER or >, such as p99<20ms, mean<5ms, max<1s, errors<0.1% or rate>500"


@dataclass(frozen=True)
class Objective:
    """One of them.

    Attributes:
        text: as it was given.
        metric: "errors", "rate", "mean", "max" or "percentile".
        percent: of a percentile.
        kind: of the calls that it is about; None for all. Only of latencies.
        relation: between what was measured and the limit.
        limit: seconds, a share, or answers per second.
    """

    text: str
    metric: str
    percent: float
    kind: Kind | None
    relation: str
    limit: float

    def measured(self, outcome: Outcome) -> float:
        """The figure that it limits; NaN where nothing was measured."""
        if self.metric == "errors":
            return outcome.error_share if outcome.tally.requests else math.nan
        if self.metric == "rate":
            return outcome.rate
        tally = outcome.tally
        latencies = tally.latencies(self.kind)
        return latencies.mean() if self.metric == "mean" else latencies.percentile(self.percent)

    def met(self, outcome: Outcome) -> bool:
        """Whether it was; what was not measured was not met."""
        return _RELATIONS[self.relation](self.measured(outcome), self.limit)

    def shown(self, outcome: Outcome) -> str:
        """The measured figure in words."""
        value = self.measured(outcome)
        if math.isnan(value):
            return "nothing measured"
        if self.metric == "errors":
            return f"{value:.3%}"
        return f"{value:,.1f}/s" if self.metric == "rate" else f"{value * 1e3:.2f} ms"


def parse_slo(text: str) -> tuple[Objective, ...]:
    """Reads objectives, separated by commas; that of a latency may begin with a kind of call, as batch.p99<50ms.

    Raises:
        ValueError: says which objective is wrong and why.
    """
    return tuple(_objective(part.strip()) for part in text.split(","))


def _objective(text: str) -> Objective:
    found = _OBJECTIVE.fullmatch(text)
    if found is None:
        raise ValueError(f"{_SHAPE}, not {text!r}")
    metric, unit, number = found["metric"], found["unit"], float(found["number"])
    percent = 100.0
    if found["percent"] is not None:
        metric, percent = "percentile", float(found["percent"])
        if not 0 < percent <= 100:
            raise ValueError(f"{text!r}: a percentile lies above 0 and is 100 at most")
    try:
        kind = Kind(found["kind"]) if found["kind"] else None
    except ValueError:
        raise ValueError(f"{text!r}: there are no calls {found['kind']!r}, only {', '.join(Kind)}") from None
    units: dict[str, list[str | None]] = {"errors": ["%"], "rate": ["/s", None]}
    if metric not in ("errors", "rate", "mean", "max", "percentile"):
        raise ValueError(f"{text!r}: there is no {metric!r}; {_SHAPE}")
    if kind is not None and metric in units:
        raise ValueError(f"{text!r}: {metric} is of all calls together")
    if unit not in units.get(metric, list(_SECONDS)):
        wanted = {"errors": "%", "rate": "/s or no unit"}.get(metric, "us, ms or s")
        raise ValueError(f"{text!r}: {metric} is measured in {wanted}")
    limit = number / 100 if metric == "errors" else number * _SECONDS.get(unit or "", 1.0)
    return Objective(text, metric, percent, kind, found["relation"], limit)
