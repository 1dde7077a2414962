"""The highest rate that a server sustains: raised until it fails, then closed in on by halves."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

ACHIEVED = 0.95
"""Of the offered rate, the share that must be answered."""
MOST_ERRORS = 0.01
"""Of the calls, the share that may fail."""
_DUE = 0.9  # of what was asked for, the share that must be due; of ten calls, rounding may take one
FEWEST_CALLS = 10
"""That must be due at a rate: fewer show nothing, good or bad."""
_EXPLODED = 10.0  # times the lowest 99th percentile of any rate
_CALM_SECONDS = 0.05  # below which a 99th percentile has not exploded, whatever the lowest was
_PRECISION = 1.08  # between the highest rate that was sustained and the lowest that was not
_FACTOR = 2.0
_MOST_TRIALS = 40


@dataclass(frozen=True)
class Trial:
    """One rate that was tried.

    Attributes:
        asked: calls/s that were asked for.
        offered: calls/s that were due: what was asked for, rounded to whole calls.
        achieved: right answers/s.
        p50: seconds.
        p99: seconds.
        error_share: of the calls that were due.
        calls: how many were due.
        generator_limited: the generator was the bottleneck.
        sustained: the server kept up; empty where it did.
        why: what shows that it did not.
    """

    asked: float
    offered: float
    achieved: float
    p50: float
    p99: float
    error_share: float
    calls: int
    generator_limited: bool = False
    sustained: bool = True
    why: str = ""


@dataclass(frozen=True)
class Saturation:
    """What the search came to.

    Attributes:
        rate: of the highest rate that was sustained, the calls/s that were due or, where they are fewer, answered; 0 if
            none was.
        trials: all rates that were tried, in the order of trying.
        generator_limited: the generator was the bottleneck at every rate that was not sustained, so that the server
            may sustain more.
        most_p99: the 99th percentile in seconds from which on a rate was not sustained.
        complete: the search was not stopped early.
        server_went_away: the search ended because the server gave no right answer any more, not even at the highest
            rate that it had sustained before.
    """

    rate: float
    trials: tuple[Trial, ...]
    generator_limited: bool
    most_p99: float
    complete: bool
    server_went_away: bool = False


def judge(trial: Trial, most_p99: float) -> str:
    """Why a rate was not sustained; empty if it was.

    Args:
        trial: what was measured.
        most_p99: seconds.
    """
    if trial.calls < FEWEST_CALLS:
        return f"only {trial.calls} calls were due, too few to tell"
    if trial.error_share > MOST_ERRORS:
        return f"{trial.error_share:.1%} of the calls failed"
    if trial.offered < _DUE * trial.asked:
        return f"only {trial.offered / trial.asked:.0%} of the calls asked for were due"
    if trial.achieved < ACHIEVED * trial.offered:
        return f"only {trial.achieved / trial.offered:.0%} of the offered rate was answered"
    if trial.p99 > most_p99:
        return f"p99 rose to {trial.p99 * 1e3:,.0f} ms"
    return ""


def _next_rate(low: float, high: float) -> float:
    """The rate to try after the highest that was sustained and the lowest that was not; 0 if none is left to try."""
    if low and high:
        return (low * high) ** 0.5 if high / low >= _PRECISION else 0.0
    if high:
        rate = high / (_FACTOR * _FACTOR)
        return rate if rate >= 1 else 0.0
    return low * _FACTOR


def find_saturation(
    measure: Callable[[float], Trial | None], first_rate: float, most_p99: float | None = None
) -> Saturation:
    """Doubles the rate until it is not sustained, and then halves the gap until it is below 8%.

    A rate that was not sustained is tried once more, since anything else on the machine may have been the cause. Where
    no right answer came at all, the highest rate that was sustained is tried again: if none comes there either, the
    server went away, and no rate would show anything any more.

    Args:
        measure: loads the server with so many calls/s; None when it is to stop.
        first_rate: calls/s, to begin with; if that is not sustained, a quarter of it and so on.
        most_p99: seconds; None for ten times the lowest that was seen, and 50 ms at least.
    """
    trials: list[Trial] = []
    low, high, rate, sustained_rate = 0.0, 0.0, first_rate, 0.0
    limit, calmest = most_p99 or math.inf, math.inf
    complete, went_away = True, False

    def tried(rate: float) -> Trial | None:
        nonlocal limit, calmest
        trial = measure(rate)
        if trial is None:
            return None
        calmest = min(calmest, trial.p99) if trial.p99 > 0 else calmest  # NaN where nothing was answered
        limit = most_p99 or max(_EXPLODED * calmest, _CALM_SECONDS)
        why = judge(trial, limit)
        trials.append(replace(trial, sustained=not why, why=why))
        return trials[-1]

    while rate and len(trials) < _MOST_TRIALS:
        trial = tried(rate)
        if trial is not None and not trial.sustained:
            trial = tried(rate)
        # An overload of a few per cent is not told from chance: what was answered is sure.
        answered = min(trial.offered, trial.achieved) if trial is not None and trial.sustained else 0.0
        if trial is not None and low and not trial.achieved:
            trial = tried(low)
            went_away = trial is not None and not trial.achieved
        complete = trial is not None
        if went_away or not complete:
            break
        if answered:
            low, sustained_rate = rate, answered
        else:
            high = rate
        rate = _next_rate(low, high)
    failed = [trial for trial in trials if not trial.sustained]
    limited = bool(failed) and all(trial.generator_limited for trial in failed)
    return Saturation(sustained_rate, tuple(trials), limited, limit, complete, went_away)
