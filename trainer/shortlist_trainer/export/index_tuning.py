"""Finds the approximate index that reaches a recall at the least cost, building as few of them as that takes."""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from shortlist_trainer.export.index_candidates import (
    CANDIDATES,
    NO_TRANSFORM,
    SQUARED_LENGTH,
    Candidate,
    IndexBuilder,
    bytes_of,
    dials,
    search_of,
)
from shortlist_trainer.export.index_measuring import (
    Float32Array,
    FloatArray,
    GroundTruth,
    Measured,
    Search,
    cost_of,
    rounded_up,
)

_PILOT_ITEMS = 20_000
"""Catalogues of more than twice as many try every candidate on a sample of this size first."""

_EXACT_QUERIES = 128

_HOPELESS = 4
"""An index that costs so many times as much as another of its family on the sample is not tried further."""

_BEYOND = 2
"""So many times the cost of the best index so far, no setting is tried: the curve tells enough by then."""

_ROUNDS = 5
"""So many times the best are timed again."""

_MARGINS = (2.0, 4.0)
"""Standard errors by which the half of the queries that a setting is chosen by must exceed the target, so that the
other half meets it too; the second where the first was not enough."""


@dataclass(frozen=True)
class IndexGoal:
    """What an index shall reach, and by what means.

    Attributes:
        recall: the least share of the true best ``k`` that it may return.
        k: how many items are asked for.
        memory_bytes: the most that it may take beside the embeddings, which every server holds; None for any size.
        exact_below: catalogues of fewer numbers (items times columns) are searched exactly without a further look. At
            64 columns that is 2,000 items.
        seconds: no index is begun that would end later than so long after the first, or so long for every million
            items.
    """

    recall: float = 0.99
    k: int = 10
    memory_bytes: int | None = None
    exact_below: int = 128_000
    seconds: float = 400.0

    @property
    def usual_k(self) -> int:
        """How many items a server asks for."""
        return rounded_up(self.k)

    def __str__(self) -> str:
        within = "" if self.memory_bytes is None else f" within {self.memory_bytes / 1e6:,g} MB"
        return f"recall {self.recall:g} at {self.k}{within}"


@dataclass(frozen=True)
class IndexPoint:
    """An index with a setting, as measured.

    Attributes:
        kind: as in ``BuiltIndex``; "flat-faiss" is FAISS's own exact search.
        transform: "none" or "l2-augmented".
        search_parameters: by FAISS's names.
        recall: at the goal's k; of approximate indexes, on queries that had no say in the choice.
        single_query_micros: time of a query that comes alone, on one thread: a quarter took less.
        batch_micros_per_query: time of a batch of 64 by its size, on one thread: a quarter took less.
        bytes: how large the index is.
        chosen: whether it is the one that was published.
    """

    kind: str
    transform: str
    search_parameters: Mapping[str, float]
    recall: float
    single_query_micros: float
    batch_micros_per_query: float
    bytes: int
    chosen: bool = False

    @property
    def cost(self) -> float:
        """As ``cost_of`` has it."""
        return cost_of(self.single_query_micros, self.batch_micros_per_query)

    @property
    def name(self) -> str:
        """The index and its setting for people."""
        dial = (f"{name} {value:g}" for name, value in self.search_parameters.items() if name != SQUARED_LENGTH)
        return " ".join([self.kind, *([] if self.transform == NO_TRANSFORM else [self.transform]), *dial])

    def __str__(self) -> str:
        times = f"{self.single_query_micros:,.0f} µs a query alone, {self.batch_micros_per_query:,.0f} µs in a batch"
        return f"{self.name}: recall {self.recall:.4f}, {times}"


@dataclass
class Tuning:
    """What was found.

    Attributes:
        best: the FAISS index, its point and its search; None where no approximate index is worth it.
        exact: exact search, timed again beside the best of the others.
        points: all others that were measured at full size.
        left_out: the candidates that were not, each with the reason.
        why: the reason of the choice, as the rest of a sentence.
        scan_cost: how many times a search of the best, nothing being left out, it takes to score every item.
    """

    exact: IndexPoint
    best: tuple[Any, IndexPoint, Search] | None = None
    points: list[IndexPoint] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    why: str = ""
    scan_cost: float = 0.0


def exact_point(kind: str, truth: GroundTruth, search: Search, goal: IndexGoal, size: int) -> IndexPoint:
    """The point of an exact search."""
    # Of what finds everything, few queries tell enough: a thousand of a million items take minutes. Who scores every
    # item asks for no more than k: what is left out is passed over.
    measured = truth.first(_EXACT_QUERIES).with_nothing_left_out().measure(search, goal.k)
    return _point(kind, NO_TRANSFORM, {}, measured, measured.shares, size)


def tune(
    vectors: Float32Array,
    truth: GroundTruth,
    goal: IndexGoal,
    exact: tuple[IndexPoint, Search],
    worth: float,
    seed: int,
    say: Callable[[str], None],
) -> Tuning:
    """Looks for the approximate index that reaches a goal at the least cost.

    Of a large catalogue, a sample shows first which of the indexes of one family, whose times grow alike, is the best.
    A setting is chosen by one half of the queries with a margin, and counts if the other half meets the target. The
    best settings are timed once more, in turns, as the speed of a machine changes from minute to minute.

    Args:
        vectors: (items, d) float32.
        truth: the exact answers.
        goal: what to reach.
        exact: exact search, as measured.
        worth: an index must cost less than this share of exact search to be of use.
        seed: of k-means and of the sample.
        say: is told how it goes.
    """
    began, tuning = time.monotonic(), Tuning(exact[0])
    most_cost = exact[0].cost
    builder = IndexBuilder(vectors, seed)
    candidates = [candidate for candidate in CANDIDATES if builder.suits(candidate)]
    seconds: dict[Candidate, float] = {}
    piloted = len(vectors) > 2 * _PILOT_ITEMS
    if piloted:
        candidates, seconds = _pilot(vectors, truth, goal, candidates, seed, tuning.left_out, say)
    met: list[tuple[Any, IndexPoint, Search]] = []
    done = set[str]()
    for candidate in candidates:
        if candidate.family in done:
            continue
        if seconds.get(candidate, 0) > goal.seconds * max(1, len(vectors) / 1e6) - (time.monotonic() - began):
            tuning.left_out.append(f"{candidate}: building it takes about {seconds[candidate]:,.0f} s, too long")
            continue
        say(f"building {candidate}")
        index = builder.build(candidate)
        sweep = _Sweep(candidate, index, builder, truth, goal)
        if sweep.too_large is not None:
            tuning.left_out.append(sweep.too_large)
            continue
        best = sweep.cheapest(most_cost)
        tuning.points += sorted(sweep.points, key=lambda point: point.cost)
        say(str(best or f"no more than {sweep.most}"))
        if piloted and (best is not None or max(point.cost for point in sweep.points) >= most_cost):
            done.add(candidate.family)  # on the sample the others of the family cost more
        if best is not None:
            most_cost = min(most_cost, best.cost)
            met = [one for one in met if one[1].cost < _BEYOND * most_cost]
            met.append((index, best, sweep.search(best.search_parameters)))
    _choose(tuning, met, exact, worth, truth, goal)
    return tuning


def _choose(
    tuning: Tuning,
    met: Sequence[tuple[Any, IndexPoint, Search]],
    exact: tuple[IndexPoint, Search],
    worth: float,
    truth: GroundTruth,
    goal: IndexGoal,
) -> None:
    """Times those that reach the goal in turns with exact search, and takes the cheapest that is worth it."""
    if not met:
        tuning.why = f"no approximate index reaches {goal} at less than the cost of exact search"
        return
    most_cost = _BEYOND * min(point.cost for _, point, _ in met)
    finalists = [(None, *exact), *(one for one in met if one[1].cost < most_cost)]
    few = truth.first(_EXACT_QUERIES)
    shallow = few.with_nothing_left_out()
    truths = [shallow, *[few] * (len(finalists) - 1)]
    rounds = [
        [one.measure(search, goal.k) for one, (_, _, search) in zip(truths, finalists, strict=True)]
        for _ in range(_ROUNDS)
    ]
    timed = []
    for (index, point, search), measured in zip(finalists, zip(*rounds, strict=True), strict=True):
        single = statistics.median(one.single_query_micros for one in measured)
        batch = statistics.median(one.batch_micros_per_query for one in measured)
        timed.append((index, replace(point, single_query_micros=single, batch_micros_per_query=batch), search))
    again = {id(point): new for (_, point, _), (_, new, _) in zip(finalists, timed, strict=True)}
    tuning.points = [again.get(id(point), point) for point in tuning.points]
    tuning.exact = timed[0][1]
    best = min(timed[1:], key=lambda one: one[1].cost)
    if best[1].cost < worth * tuning.exact.cost:
        tuning.best, tuning.why = best, f"the cheapest that reaches {goal}"
        turns = [[shallow.measure(search, goal.k).cost for search in (exact[1], best[2])] for _ in range(_ROUNDS)]
        tuning.scan_cost = statistics.median(scan / usual for scan, usual in turns)
    else:
        tuning.why = f"no approximate index that reaches {goal} is cheaper than exact search"


def _pilot(
    vectors: Float32Array,
    truth: GroundTruth,
    goal: IndexGoal,
    candidates: Iterable[Candidate],
    seed: int,
    left_out: list[str],
    say: Callable[[str], None],
) -> tuple[list[Candidate], dict[Candidate, float]]:
    """The candidates worth building, the best of each family before its others, and about how long each takes."""
    rows, sampled = truth.sample(_PILOT_ITEMS, goal.k, seed)
    growth = len(vectors) / len(rows)
    builder = IndexBuilder(vectors[rows], seed)
    costs: dict[Candidate, float] = {}
    seconds: dict[Candidate, float] = {}
    for candidate in candidates:
        began = time.monotonic()
        index = builder.build(candidate)
        # Half as much again: graphs and lists take a little longer with each doubling.
        seconds[candidate] = 1.5 * growth * (time.monotonic() - began)
        sweep = _Sweep(candidate, index, builder, sampled, goal, growth)
        if sweep.too_large is not None:
            left_out.append(sweep.too_large)
            continue
        relatives = [cost for other, cost in costs.items() if other.family == candidate.family]
        best = sweep.cheapest(_HOPELESS * min(relatives, default=math.inf))
        say(f"of {len(rows):,} items, {best or f'no more than {sweep.most}'}")
        if best is None:
            left_out.append(f"{candidate}: on a sample of {len(rows):,} items, no more than {sweep.most}")
        else:
            costs[candidate] = best.cost
    families = list(dict.fromkeys(candidate.family for candidate in CANDIDATES))
    return sorted(costs, key=lambda candidate: (families.index(candidate.family), costs[candidate])), seconds


class _Sweep:
    """One index with all the settings that were tried.

    Args:
        candidate: what it is.
        index: its FAISS index.
        builder: who built it.
        truth: the exact answers.
        goal: what to reach.
        growth: how many times as many items the catalogue has.
    """

    def __init__(
        self,
        candidate: Candidate,
        index: Any,
        builder: IndexBuilder,
        truth: GroundTruth,
        goal: IndexGoal,
        growth: float = 1.0,
    ) -> None:
        self._candidate, self._index, self._truth, self._goal = candidate, index, truth, goal
        self._vectors, self._extra = builder.vectors, builder.squared_length(candidate.transform)
        self._bytes = bytes_of(index)
        self._middle = len(truth.halves()[0].queries)
        self._measured: dict[tuple[tuple[str, float], ...], tuple[Measured, IndexPoint]] = {}
        self.too_large = None
        if goal.memory_bytes is not None and self._bytes * growth > goal.memory_bytes:
            self.too_large = f"{candidate}: takes {self._bytes * growth / 1e6:,.1f} MB"

    @property
    def points(self) -> list[IndexPoint]:
        """All that was measured."""
        return [point for _, point in self._measured.values()]

    @property
    def most(self) -> IndexPoint:
        """The one that found the most."""
        return max(self.points, key=lambda point: point.recall)

    def search(self, setting: Mapping[str, float]) -> Search:
        """How a server searches the index with a setting."""
        return search_of(self._index, self._candidate.transform, setting, self._vectors, self._goal.usual_k)

    def cheapest(self, most_cost: float) -> IndexPoint | None:
        """The cheapest setting that reaches the goal; None where none does at less than about ``most_cost``."""
        reached = []
        for dial in dials(self._candidate, self._index, self._goal.k):
            for margin in _MARGINS:
                place = self._least(dial, margin, most_cost)
                if place is None:
                    break
                point = self._at(dial[place])[1]
                if point.recall >= self._goal.recall:
                    reached.append(point)
                    break
        return min(reached, key=lambda point: point.cost, default=None)

    def _least(self, dial: list[dict[str, float]], margin: float, most_cost: float) -> int | None:
        """The place of the least setting that reaches the goal by the half of the queries to choose by.

        The dial is turned up in growing steps until the goal is reached or the cost is well past ``most_cost``, so that
        the settings that take long are only tried where they are needed; the rest is bisection.
        """
        below, place, step = -1, len(dial) // 3, 2
        while not self._meets(dial[place], margin):
            point = self._at(dial[place])[1]
            saturated = below >= 0 and point.recall <= self._at(dial[below])[1].recall
            if saturated or place == len(dial) - 1 or point.cost >= _BEYOND * most_cost:
                return None
            below, place, step = place, min(place + step, len(dial) - 1), step * 2
        while place - below > 1:
            between = (below + place) // 2
            below, place = (below, between) if self._meets(dial[between], margin) else (between, place)
        return place

    def _meets(self, setting: Mapping[str, float], margin: float) -> bool:
        shares = self._at(setting)[0].shares[: self._middle]
        return float(shares.mean()) >= self._goal.recall + margin * float(shares.std()) / math.sqrt(len(shares))

    def _at(self, setting: Mapping[str, float]) -> tuple[Measured, IndexPoint]:
        key = tuple(setting.items())
        if key not in self._measured:
            measured = self._truth.measure(self.search(setting), self._goal.k)
            kind, transform = self._candidate.kind, self._candidate.transform
            held_out = measured.shares[-self._middle :]
            point = _point(kind, transform, {**setting, **self._extra}, measured, held_out, self._bytes)
            self._measured[key] = measured, point
        return self._measured[key]


def _point(
    kind: str, transform: str, parameters: Mapping[str, float], measured: Measured, shares: FloatArray, size: int
) -> IndexPoint:
    single, batch = measured.single_query_micros, measured.batch_micros_per_query
    return IndexPoint(kind, transform, parameters, float(shares.mean()), single, batch, size)
