"""The figures of a load test: as JSON, and as text to be read."""

import datetime as dt
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from shortlist_client.loadtest.histogram import PRECISION, Histogram, Latencies
from shortlist_client.loadtest.processes import Outcome
from shortlist_client.loadtest.saturation import Saturation
from shortlist_client.loadtest.slo import Objective
from shortlist_client.loadtest.tally import OK, WRONG_ANSWER, Interval, merged

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
Figures = dict[str, Any]

_RENAMED = ("asked", "offered", "achieved", "p50", "p99")


@dataclass(frozen=True)
class Question:
    """What was to be found out.

    Attributes:
        server: its address.
        mix: kind of call to its share.
        options: other options of the command that matter to a reader, by name.
        objectives: what the outcome is held against.
        started: when, in seconds since the epoch.
    """

    server: str
    mix: Mapping[str, float]
    options: Mapping[str, str]
    objectives: Sequence[Objective]
    started: float


def figures_of(question: Question, outcome: Outcome, saturation: Saturation | None) -> Figures:
    """Everything that was measured, in values that JSON knows; times of latencies in milliseconds.

    Args:
        question: what was asked for.
        outcome: the run; of a search for saturation, that of the highest rate that was sustained.
        saturation: what the search came to, if there was one.
    """
    tally, counted = outcome.tally, outcome.counted
    cpu, made = sum(one.cpu_seconds for one in counted), sum(one.calls_made for one in counted)
    errors = tally.errors
    return {
        "server": question.server,
        "started": dt.datetime.fromtimestamp(question.started, dt.UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "options": dict(question.options),
        "loop": "open" if outcome.load.segments else "closed",
        "mix": dict(question.mix),
        "interrupted": outcome.interrupted or (saturation is not None and not saturation.complete),
        "seconds": outcome.seconds,
        "warmup_seconds": outcome.load.warmup_seconds,
        "requests": tally.requests,
        "ok": tally.requests - sum(errors.values()),
        "errors": errors,
        "error_share": outcome.error_share,
        "error_examples": list(tally.examples),
        "offered_rate": outcome.offered_rate,
        "rate": outcome.rate,
        "latency_ms": _latency(tally.latencies()),
        "latency_precision": PRECISION,
        "kinds": {
            str(kind): {
                "requests": sum(count for (each, _), count in tally.statuses.items() if each == kind),
                "ok": tally.statuses[kind, OK],
                "errors": {
                    status: count
                    for (each, status), count in tally.statuses.items()
                    if each == kind and status != OK and count
                },
                "latency_ms": _latency(tally.latencies(kind)),
            }
            for kind in sorted({kind for kind, _ in tally.statuses})
        },
        "answers_checked": tally.checked,
        "answers_wrong": errors.get(WRONG_ANSWER, 0),
        "generator": {
            "processes": len(counted),
            "way": counted[0].way,
            "cpu_seconds": cpu,
            "cpu_micros_per_call": cpu / made * 1e6 if made else None,
            "cores_used": cpu / max(one.busy_seconds for one in counted),
            "busiest_process": outcome.busy,
            "send_lag_ms": _latency(tally.lags),
            "bottleneck": outcome.bottleneck,
        },
        "steps": _steps(outcome),
        "intervals": [
            {"from": row * tally.step, "to": min((row + 1) * tally.step, tally.seconds), **_interval(interval)}
            for row, interval in enumerate(tally.intervals)
            if row * tally.step < outcome.seconds - 1e-9  # not what rounding left over
        ],
        "histogram": [
            {"from_ms": low * 1e3, "to_ms": high * 1e3, "count": count}
            for low, high, count in tally.latencies().buckets()
        ],
        "saturation": _saturation(saturation),
        "objectives": [
            {"objective": one.text, "measured": one.shown(outcome), "met": one.met(outcome)}
            for one in question.objectives
        ],
    }


def _latency(histogram: Histogram | Latencies) -> Figures:
    figures = {"mean": histogram.mean()}
    figures |= {f"p{percent:g}": histogram.percentile(percent) for percent in PERCENTILES}
    figures["max"] = histogram.percentile(100)
    return {"count": histogram.count, **{name: _number(value * 1e3) for name, value in figures.items()}}


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def _interval(interval: Interval) -> Figures:
    latencies = merged(interval.latencies.values())
    return {
        "due": interval.due,
        "answered": interval.answered,
        "failed": interval.failed,
        "p50_ms": _number(latencies.percentile(50) * 1e3),
        "p99_ms": _number(latencies.percentile(99) * 1e3),
        "max_ms": _number(latencies.percentile(100) * 1e3),
    }


def _steps(outcome: Outcome) -> list[Figures]:
    """Each step of a profile by itself; empty where there is only one."""
    segments = outcome.load.segments
    if len(segments) < 2:
        return []
    step, rows, begin = outcome.tally.step, [], 0.0
    for segment in segments:
        end = begin + segment.seconds
        together = Interval()
        within = range(math.ceil(begin / step - 1e-9), math.floor(min(end, outcome.seconds) / step + 1e-9))
        for row in within:  # intervals that lie in two steps belong to neither
            together.merge(outcome.tally.intervals[row])
        seconds = len(within) * step
        if seconds:
            # Of the calls due in the step, as latencies are: answers that come in it may be to the step before.
            together.answered = together.due - together.failed
            rates = {"offered_rate": together.due / seconds, "rate": together.answered / seconds}
            rows.append({"from": begin, "to": end, "asked_rate": segment.first_rate, **rates, **_interval(together)})
        begin = end
    return rows


def _saturation(saturation: Saturation | None) -> Figures | None:
    if saturation is None:
        return None
    trials = [
        {
            "asked_rate": trial.asked,
            "offered_rate": trial.offered,
            "rate": trial.achieved,
            "p50_ms": _number(trial.p50 * 1e3),
            "p99_ms": _number(trial.p99 * 1e3),
            **{key: value for key, value in asdict(trial).items() if key not in _RENAMED},
        }
        for trial in saturation.trials
    ]
    return {
        "rate": saturation.rate,
        "generator_limited": saturation.generator_limited,
        "server_went_away": saturation.server_went_away,
        "p99_limit_ms": saturation.most_p99 * 1e3 if math.isfinite(saturation.most_p99) else None,
        "trials": trials,
    }


def went_away_text(saturation: Figures) -> str:
    """That the server went away during the search, and what it had sustained until then.

    Args:
        saturation: of ``figures_of``, of a search that ended so.
    """
    trials = saturation["trials"]
    rates = sorted({trial["offered_rate"] for trial in trials if trial["sustained"]})
    sustained = ", ".join(f"{rate:,.0f}/s" for rate in rates)
    return (
        f"the server went away during the search: no right answer came at {trials[-2]['offered_rate']:,.0f}/s, nor any "
        f"longer at {trials[-1]['offered_rate']:,.0f}/s; it had sustained {sustained}"
    )


def text_of(figures: Figures) -> str:
    """The figures in lines for a terminal."""
    lines = []
    if figures["interrupted"]:
        lines.append("stopped early; what was measured so far:")
    if figures["saturation"]:
        lines += _saturation_lines(figures["saturation"])
    lines.append(
        f"{figures['requests']:,} calls in {figures['seconds']:.1f} s, {figures['loop']} loop: "
        f"{figures['offered_rate']:,.1f}/s due, {figures['rate']:,.1f}/s answered"
    )
    lines.append(f"{'latency, ms':<12}" + "".join(f"{name:>10}" for name in figures["latency_ms"]))
    kinds = figures["kinds"]
    rows = {"all": figures["latency_ms"], **{kind: kinds[kind]["latency_ms"] for kind in kinds if len(kinds) > 1}}
    lines += [f"{name:<12}" + "".join(f"{_cell(value):>10}" for value in row.values()) for name, row in rows.items()]
    for step in figures["steps"]:
        lines.append(
            f"step {step['asked_rate']:,g}/s: {step['offered_rate']:,.1f}/s due, {step['rate']:,.1f}/s of these "
            f"answered, p50 {_cell(step['p50_ms'])} ms, p99 {_cell(step['p99_ms'])} ms, {step['failed']:,} failed"
        )
    if figures["errors"]:
        by_status = ", ".join(f"{status} {count:,}" for status, count in figures["errors"].items())
        lines.append(f"errors: {figures['error_share']:.3%} ({by_status})")
        lines += [f"  {text}" for text in figures["error_examples"]]
    else:
        lines.append("errors: none")
    lines.append(f"answers checked: {figures['answers_checked']:,}, wrong: {figures['answers_wrong']:,}")
    lines.append(_generator_line(figures["generator"], open_loop=figures["loop"] == "open"))
    if figures["generator"]["bottleneck"]:
        lines.append(f"the generator is the bottleneck: {figures['generator']['bottleneck']}")
    for one in figures["objectives"]:
        lines.append(f"{'met' if one['met'] else 'MISSED':<7} {one['objective']}: {one['measured']}")
    return "\n".join(lines) + "\n"


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def _generator_line(generator: Figures, *, open_loop: bool) -> str:
    micros = generator["cpu_micros_per_call"]
    line = (
        f"generator: {generator['processes']} process{'es' if generator['processes'] > 1 else ''} "
        f"by {generator['way']}, "
        f"{generator['cores_used']:.2f} cores, {'-' if micros is None else f'{micros:,.0f}'} µs of CPU a call"
    )
    lag = generator["send_lag_ms"]
    return f"{line}; calls sent late by p99 {_cell(lag['p99'])} ms" if open_loop else line


def _saturation_lines(saturation: Figures) -> list[str]:
    lines = [
        f"{trial['offered_rate']:>10,.1f}/s offered {trial['rate']:>10,.1f}/s answered"
        f"   p50 {_cell(trial['p50_ms']):>8} ms   p99 {_cell(trial['p99_ms']):>8} ms   {trial['why'] or 'sustained'}"
        for trial in saturation["trials"]
    ]
    if not saturation["rate"]:
        return [*lines, "no rate was sustained"]
    if saturation["server_went_away"]:
        return [
            *lines,
            went_away_text(saturation),
            f"before that, at {saturation['trials'][-1]['offered_rate']:,.0f}/s:",
        ]
    lines.append(f"highest sustained rate: {saturation['rate']:,.0f}/s")
    if saturation["generator_limited"]:
        lines.append(
            "above it the generator was the bottleneck, not the server: use more --processes, or another machine"
        )
    lines.append("at that rate:")
    return lines
