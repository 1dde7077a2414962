"""The report of a load test: one HTML page that opens offline, made of the figures of ``summary``."""

import math
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from shortlist_client.loadtest.drawing import Line, histogram, line_chart, linear_axis, log_axis, time_axis
from shortlist_client.loadtest.summary import went_away_text

Figures = dict[str, Any]

_BARS = 70
_MARKED = ("p50", "p90", "p99", "p99.9")


def page_of(figures: Figures) -> str:
    """The page.

    Args:
        figures: of ``summary.figures_of``, or read back from its JSON.
    """
    style = files(__package__).joinpath("style.css").read_text(encoding="utf-8")
    answered = figures["latency_ms"]["count"] > 0
    parts = [
        _header(figures),
        _saturation(figures),
        _section(
            "Latency", _latency_note(figures), _latency_chart(figures) if answered else "", _latency_table(figures)
        ),
        _section(
            "Over time", "Latency counts at the moment a call was due, answers when they came.", _over_time(figures)
        ),
        _steps(figures),
        _errors(figures),
        _generator(figures),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>Load test of {escape(figures['server'])}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(parts)}</main>\n</body>\n</html>\n"
    )


def _header(figures: Figures) -> str:
    latency, objectives = figures["latency_ms"], figures["objectives"]
    failed = f"{figures['requests'] - figures['ok']:,} of {figures['requests']:,} calls"
    due = f"{figures['offered_rate']:,.0f}/s were due, {figures['loop']} loop"
    tiles = []
    if figures["saturation"]:
        rate = f"{figures['saturation']['rate']:,.0f}/s"
        name = (
            "sustained before it went away" if figures["saturation"]["server_went_away"] else "highest sustained rate"
        )
        tiles.append(_tile(name, rate, "the figures below are at that rate"))
    tiles += [
        _tile("answered", f"{figures['rate']:,.0f}/s", due),
        _tile("p50 latency", _ms(latency["p50"]), f"mean {_ms(latency['mean'])}"),
        _tile("p99 latency", _ms(latency["p99"]), f"p99.9 {_ms(latency['p99.9'])}, at most {_ms(latency['max'])}"),
        _tile("errors", f"{figures['error_share']:.2%}", failed),
    ]
    verdicts = "".join(
        f'<li class="{"met" if one["met"] else "missed"}"><b>{"met" if one["met"] else "missed"}</b> '
        f'<span>{escape(one["objective"])}</span> <span class="muted">{escape(one["measured"])}</span></li>'
        for one in objectives
    )
    warnings = []
    if figures["interrupted"]:
        warnings.append("It was stopped early.")
    if figures["saturation"] and figures["saturation"]["server_went_away"]:
        text = went_away_text(figures["saturation"])
        warnings.append(f"{text[0].upper()}{text[1:]}.")
    if figures["generator"]["bottleneck"]:
        warnings.append(f"The generator is the bottleneck: {figures['generator']['bottleneck']}.")
    mix = ", ".join(f"{share:.0%} {kind}" for kind, share in figures["mix"].items())
    return (
        f'<header><p class="eyebrow">Load test</p><h1>{escape(figures["server"])}</h1>'
        f'<p class="lead">{figures["requests"]:,} calls in {figures["seconds"]:.1f} seconds ({escape(mix)}), '
        f"on {escape(_date(figures['started']))}.</p>"
        + "".join(f'<p class="warning">{escape(text)}</p>' for text in warnings)
        + f'<div class="tiles">{"".join(tiles)}</div>'
        + (f'<ul class="objectives">{verdicts}</ul>' if verdicts else "")
        + "</header>"
    )


def _saturation(figures: Figures) -> str:
    found = figures["saturation"]
    if not found or not found["trials"]:
        return ""
    # Of a rate that was tried twice, the second.
    by_rate = {trial["asked_rate"]: trial for trial in found["trials"]}
    trials = [by_rate[rate] for rate in sorted(by_rate)]
    most = max(trial["offered_rate"] for trial in trials)
    rates = linear_axis(most, "calls/s offered")
    charts = [
        _figure(
            "Answered against offered", [("even", "offered"), ("series", "answered")],
            line_chart(rates, linear_axis(most, "answers/s"), [
                Line("offered", [(0.0, 0.0), (most, most)], "even"),
                Line("answered", [(trial["offered_rate"], trial["rate"]) for trial in trials], "series", dots=True),
            ]),
        )
    ]  # fmt: skip
    late = [value for trial in trials for value in (trial["p50_ms"], trial["p99_ms"]) if value]
    if late:
        lines = [
            Line(name, [(trial["offered_rate"], trial[key]) for trial in trials], style, dots=True)
            for name, key, style in (("p50", "p50_ms", "series"), ("p99", "p99_ms", "accent"))
        ]
        chart = line_chart(rates, log_axis(min(late), max(late), "latency, ms"), lines)
        charts.append(_figure("Latency against offered rate", [("series", "p50"), ("accent", "p99")], chart))
    rows = [
        [
            f"{trial['offered_rate']:,.0f}",
            f"{trial['rate']:,.0f}",
            _number(trial["p50_ms"]),
            _number(trial["p99_ms"]),
            trial["why"] or "sustained",
        ]
        for trial in found["trials"]
    ]
    table = _table(["offered/s", "answered/s", "p50 ms", "p99 ms", ""], rows, texts=(4,), style="trials")
    note = "Rates in the order in which they were tried. "
    if found["generator_limited"] and not found["server_went_away"]:
        note += "Above the highest sustained rate the generator was the bottleneck: the server may sustain more."
    return _section("Saturation", note, f'<div class="charts">{"".join(charts)}</div>', table)


def _latency_note(figures: Figures) -> str:
    since = "from when a call was due" if figures["loop"] == "open" else "from when a call was sent"
    return (
        f"Counted {since} to the end of its answer; of right answers, of calls that passed their deadline, and of "
        "other failed calls where they had waited for longer. "
        f"Percentiles are within {figures['latency_precision']:.1%} of the exact ones, on an axis that grows by powers."
    )


def _latency_chart(figures: Figures) -> str:
    buckets = [(max(each["from_ms"], 1e-3), each["to_ms"], each["count"]) for each in figures["histogram"]]
    x = log_axis(buckets[0][0], buckets[-1][1], "latency, ms")
    width = math.log(x.high / x.low) / _BARS
    counts = [0.0] * _BARS
    for low, high, count in buckets:
        counts[min(_BARS - 1, max(0, int(math.log((low + high) / 2 / x.low) / width)))] += count
    edges = [x.low * math.exp(width * place) for place in range(_BARS + 1)]
    bars = [(edges[place], edges[place + 1], count) for place, count in enumerate(counts) if count]
    marks = [(name, figures["latency_ms"][name]) for name in _MARKED]
    return _figure("Calls by latency", [], histogram(x, linear_axis(max(counts), "calls", whole=True), bars, marks))


def _latency_table(figures: Figures) -> str:
    names = [name for name in figures["latency_ms"] if name != "count"]
    kinds = figures["kinds"]
    rows = [["all", *_latency_row(figures, names)]] if len(kinds) != 1 else []
    rows += [[kind, *_latency_row(row, names)] for kind, row in kinds.items()]
    return _table(["calls", "number", "failed", *(f"{name} ms" for name in names)], rows)


def _latency_row(row: Figures, names: Sequence[str]) -> list[str]:
    failed = row["requests"] - row["ok"]
    return [f"{row['requests']:,}", f"{failed:,}", *(_number(row["latency_ms"][name]) for name in names)]


def _over_time(figures: Figures) -> str:
    rows = figures["intervals"]
    if not rows:
        return ""
    x = time_axis(rows[-1]["to"], "seconds")

    def per_second(name: str) -> list[tuple[float, float | None]]:
        return [((row["from"] + row["to"]) / 2, row[name] / max(row["to"] - row["from"], 1e-9)) for row in rows]

    lines = [Line("due", per_second("due"), "even"), Line("answered", per_second("answered"), "series")]
    keys = [("even", "due"), ("series", "answered")]
    if any(row["failed"] for row in rows):
        lines.append(Line("failed", per_second("failed"), "accent"))
        keys.append(("accent", "failed"))
    most = max(value or 0.0 for line in lines for _, value in line.points)
    charts = [_figure("Calls per second", keys, line_chart(x, linear_axis(most, "calls/s"), lines))]
    late = [row[key] for row in rows for key in ("p50_ms", "max_ms") if row[key]]
    if late:
        lines = [
            Line(name, [((row["from"] + row["to"]) / 2, row[f"{name}_ms"]) for row in rows], style)
            for name, style in (("max", "even"), ("p99", "accent"), ("p50", "series"))
        ]
        chart = line_chart(x, log_axis(min(late), max(late), "latency, ms"), lines)
        charts.append(_figure("Latency", [("series", "p50"), ("accent", "p99"), ("even", "max")], chart))
    return f'<div class="charts">{"".join(charts)}</div>'


def _steps(figures: Figures) -> str:
    if not figures["steps"]:
        return ""
    rows = [
        [
            f"{step['asked_rate']:,g}", f"{step['offered_rate']:,.1f}", f"{step['rate']:,.1f}",
            _number(step["p50_ms"]), _number(step["p99_ms"]), _number(step["max_ms"]), f"{step['failed']:,}",
        ]
        for step in figures["steps"]
    ]  # fmt: skip
    heads = ["asked for, calls/s", "due/s", "answered/s", "p50 ms", "p99 ms", "max ms", "failed"]
    note = "Each step of the profile by itself: the calls that were due in it, and how many of these were answered."
    return _section("Steps", note, _table(heads, rows))


def _errors(figures: Figures) -> str:
    checked = (
        f"{figures['answers_checked']:,} answers were looked into, {figures['answers_wrong']:,} of them were wrong."
    )
    if not figures["errors"]:
        return _section("Errors", f"None. {checked}")
    rows = [[status, f"{count:,}", f"{count / figures['requests']:.3%}"] for status, count in figures["errors"].items()]
    examples = "".join(f"<li>{escape(text)}</li>" for text in figures["error_examples"])
    listed = f'<ul class="examples">{examples}</ul>' if examples else ""
    return _section("Errors", checked, _table(["status", "calls", "share"], rows), listed)


def _generator(figures: Figures) -> str:
    generator = figures["generator"]
    micros = generator["cpu_micros_per_call"]
    cost = {
        "processes": str(generator["processes"]),
        "calls made by": generator["way"],
        "cores used": f"{generator['cores_used']:.2f}",
        "CPU per call": "-" if micros is None else f"{micros:,.0f} µs",
        "busiest process": f"{generator['busiest_process']:.0%} busy or waiting for a core",
        "calls sent late by, p99": _ms(generator["send_lag_ms"]["p99"])
        if figures["loop"] == "open"
        else "sent when one ends",
    }
    asked = {
        **figures["options"],
        "warm-up": f"{figures['warmup_seconds']:g} s, not counted",
        "machine": figures["machine"],
    }
    cards = _facts("What it took", cost) + _facts("What was asked for", asked)
    return _section("The generator", "What the measuring itself cost.", f'<div class="cards">{cards}</div>')


def _tile(name: str, value: str, note: str) -> str:
    return (
        f'<div><p class="name">{escape(name)}</p><p class="value">{escape(value)}</p>'
        f'<p class="note">{escape(note)}</p></div>'
    )


def _section(heading: str, note: str, *children: str) -> str:
    return f'<section><h2>{escape(heading)}</h2><p class="note">{escape(note)}</p>{"".join(children)}</section>'


def _figure(heading: str, keys: Iterable[tuple[str, str]], drawing: str) -> str:
    named = "".join(f'<span class="key {style}">{escape(name)}</span>' for style, name in keys)
    caption = f"<figcaption><strong>{escape(heading)}</strong>{named}</figcaption>"
    return f'<figure>{caption}<div role="img" aria-label="{escape(heading)}">{drawing}</div></figure>'


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], texts: Sequence[int] = (), style: str = "") -> str:
    def cells(row: Sequence[str], element: str) -> str:
        return "".join(
            f"<{element}{'' if place == 0 or place in texts else ' class=number'}>{escape(cell)}</{element}>"
            for place, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    head = f"<thead><tr>{cells(heads, 'th')}</tr></thead>"
    return f'<div class="scroll"><table class="{style}">{head}<tbody>{body}</tbody></table></div>'


def _facts(heading: str, values: dict[str, str]) -> str:
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in values.items())
    return f'<div class="card"><h3>{escape(heading)}</h3><dl>{rows}</dl></div>'


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{_number(value)} ms"


def _number(value: float | None) -> str:
    """Milliseconds in three digits or so."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _date(started: str) -> str:
    return started.replace("T", " ").replace("+00:00", " UTC")
