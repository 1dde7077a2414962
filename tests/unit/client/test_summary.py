"""What is said of a load: counts, figures, objectives."""

import json
import math
import re
from dataclasses import replace

import pytest

from shortlist_client.loadtest.drawing import TEXT_SIZE
from shortlist_client.loadtest.generator import Counted
from shortlist_client.loadtest.processes import Load, Outcome
from shortlist_client.loadtest.report import page_of
from shortlist_client.loadtest.saturation import Saturation, Trial
from shortlist_client.loadtest.schedule import constant, parse_profile
from shortlist_client.loadtest.slo import parse_slo
from shortlist_client.loadtest.summary import Question, figures_of, text_of
from shortlist_client.loadtest.tally import NOT_SENT, OK, WRONG_ANSWER, Tally
from shortlist_client.loadtest.workload import Kind


def outcome_of(tally: Tally, busy: float = 0.1) -> Outcome:
    counted = Counted(tally, tally.seconds, tally.seconds, 1.0, busy, tally.requests, "gRPC core")
    load = Load(constant(10.0, tally.seconds), 0, poisson=True, warmup_seconds=0.0, seconds=tally.seconds)
    return Outcome(load, tally, tally.seconds, (counted,), interrupted=False)


def measured() -> Outcome:
    """A hundred calls of 1 to 100 ms over 10 s, of which one failed and one was wrong."""
    tally = Tally(10.0, 0.25)
    for place in range(1, 99):
        tally.record(Kind.UNARY, place / 10, place / 10 + place / 1e3, OK)
    tally.record(Kind.UNARY, 9.9, 9.999, WRONG_ANSWER)
    tally.record(Kind.BATCH, 0.0, 0.001, "UNAVAILABLE")
    return outcome_of(tally)


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("p99<200ms", True),
        ("p99<50ms", False),
        ("p50<=51ms", True),
        ("p99.9 < 0.2s", True),
        ("max>90ms", True),
        ("mean<49000us", False),
        ("errors<2.5%", True),
        ("errors<1%", False),
        ("rate>9", True),
        ("rate>=10/s", False),
        ("unary.p99<200ms", True),
        ("similar.p99<200ms", False),  # nothing was measured
    ],
)
def test_objectives_are_held_against_what_was_measured(text: str, met: bool) -> None:
    (objective,) = parse_slo(text)
    assert objective.met(measured()) is met


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "an objective is"),
        ("p99", "an objective is"),
        ("p99<20", "measured in us, ms or s"),
        ("p99<20%", "measured in us, ms or s"),
        ("errors<1", "measured in %"),
        ("rate>5ms", "measured in /s"),
        ("p0<1ms", "percentile"),
        ("p101<1ms", "percentile"),
        ("speed>5", "no 'speed'"),
        ("score.p99<5ms", "no calls 'score'"),
        ("batch.rate>5", "of all calls"),
        ("p99<20ms,,rate>5", "an objective is"),
        ("p99=20ms", "an objective is"),
    ],
)
def test_what_is_no_objective_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_slo(text)


def test_calls_are_counted_by_when_they_were_due_and_answers_by_when_they_came() -> None:
    tally = Tally(1.0, 0.25)
    tally.record(Kind.UNARY, -0.1, 0.1, OK)  # of the warm-up: an answer, not a call
    tally.record(Kind.UNARY, 0.3, 1.2, OK)  # a call, answered too late to count for the rate
    tally.record(Kind.UNARY, 0.3, 0.3, NOT_SENT)
    assert (tally.requests, tally.answered, tally.errors) == (2, 1, {NOT_SENT: 1})
    assert tally.intervals[1].due == 2
    assert tally.latencies().count == 1
    assert tally.latencies().maximum == pytest.approx(0.9)


@pytest.mark.parametrize("status", ["UNAVAILABLE", WRONG_ANSWER])
def test_a_failed_call_makes_figures_worse_by_its_wait_and_never_better(status: str) -> None:
    def figures(*waits: float) -> list[float]:
        tally = Tally(10.0, 0.25)
        for place in range(1, 101):
            tally.record(Kind.UNARY, 1.0, 1.0 + place / 1e3, OK)
        for wait in waits:
            tally.record(Kind.UNARY, 1.0, 1.0 + wait, status)
        latencies = tally.latencies()
        return [latencies.mean(), *(latencies.percentile(percent) for percent in (1, 50, 90, 99, 99.9, 100))]

    answered = figures()
    assert figures(*[0.0] * 500) == answered
    assert all(worse >= alone for worse, alone in zip(figures(*[0.02] * 500), answered, strict=True))
    assert figures(*[0.06] * 500)[2:] == pytest.approx(
        [0.06, *answered[3:]], rel=0.005
    )  # 90% of the answers took longer
    # The mean is of 100 calls of 50.5 ms and ten of 1.4 s.
    assert figures(*[1.4] * 10) == pytest.approx([19.05 / 110, 0.002, 0.055, 0.099, 1.4, 1.4, 1.4], rel=0.005)


def test_failures_alone_are_no_latency_and_the_histogram_shows_what_makes_the_median_worse() -> None:
    tally = Tally(1.0, 1.0)
    tally.record(Kind.UNARY, 0.1, 0.9, "UNAVAILABLE")
    tally.record(Kind.UNARY, 0.1, 0.1, "UNAVAILABLE")
    assert math.isnan(tally.latencies().percentile(99))
    assert math.isnan(tally.latencies().mean())
    assert tally.latencies().count == 0
    tally.record(Kind.UNARY, 0.1, 0.2, OK)
    assert tally.latencies().count == sum(count for *_, count in tally.latencies().buckets()) == 2


def test_what_the_generator_itself_costs_is_said() -> None:
    tally = measured().tally
    assert outcome_of(tally).bottleneck == ""
    assert "busy" in outcome_of(tally, busy=0.95).bottleneck
    for _ in range(10):
        tally.record_lag(1.0, 0.08)
    assert "after they were due" in outcome_of(tally).bottleneck


def test_a_closed_loop_feels_a_busy_generator_earlier() -> None:
    open_loop = outcome_of(measured().tally, busy=0.8)
    assert open_loop.bottleneck == ""
    assert "busy" in replace(open_loop, load=replace(open_loop.load, segments=(), in_flight=8)).bottleneck


def test_figures_add_up_and_say_what_was_missed() -> None:
    question = Question("h:1", {"unary": 1.0}, {}, parse_slo("p99<50ms,rate>1"), 0.0)
    figures = json.loads(json.dumps(figures_of(question, measured(), None), allow_nan=False))
    assert figures["requests"] == figures["ok"] + sum(figures["errors"].values()) == 100
    assert sum(kind["requests"] for kind in figures["kinds"].values()) == 100
    assert sum(interval["due"] for interval in figures["intervals"]) == 100
    text = text_of(figures)
    assert "MISSED  p99<50ms" in text
    assert "met     rate>1" in text


def test_columns_of_a_table_are_as_wide_as_their_words() -> None:
    page = page_of(figures_of(Question("h:1", {"unary": 1.0}, {}, (), 0.0), measured(), None))
    # Where "anywhere" holds, a narrow page makes a column one letter wide.
    assert re.search(r"^th, td \{[^}]*overflow-wrap: break-word;", page, re.MULTILINE)


def test_answers_to_a_step_that_overloads_count_as_that_step_s() -> None:
    tally = Tally(2.0, 0.25)
    for place in range(100):
        tally.record(Kind.UNARY, place / 100, 1.5, OK)  # all answered during the second step
    for place in range(10):
        tally.record(Kind.UNARY, 1 + place / 10, 1.99, OK if place else NOT_SENT)
    outcome = outcome_of(tally)
    outcome = replace(outcome, load=replace(outcome.load, segments=parse_profile("steps:100,10/1s")))
    figures = figures_of(Question("h:1", {"unary": 1.0}, {}, (), 0.0), outcome, None)
    first, second = figures["steps"]
    assert (first["due"], first["answered"], first["offered_rate"], first["rate"]) == (100, 100, 100, 100)
    assert (second["due"], second["answered"], second["offered_rate"], second["rate"]) == (10, 9, 10, 9)
    assert "step 10/s: 10.0/s due, 9.0/s of these answered, p50" in text_of(figures)
    row = "<td>10</td><td class=number>10.0</td><td class=number>9.0</td>"
    assert row in page_of(figures)


def test_text_of_charts_can_be_read_on_a_telephone() -> None:
    page = page_of(figures_of(Question("h:1", {"unary": 1.0}, {}, (), 0.0), measured(), None))
    narrow = page.partition("@media (max-width: 560px)")[2]
    size = re.search(r"svg text[^{]*\{ font-size: ([\d.]+)px; \}", narrow)
    drawings = re.findall(r'viewBox="0 0 (\d+) ', page)
    assert size is not None
    for width in drawings:
        assert float(size[1]) * 332 / int(width) > 11  # 332 of 390 pixels are the drawing's
    assert float(size[1]) == TEXT_SIZE
    assert len(drawings) == 3


def test_why_a_rate_was_not_sustained_stands_below_its_figures_on_a_telephone() -> None:
    trial = Trial(200.0, 200.0, 100.0, 0.001, 0.002, 0.0, 1_000, sustained=False, why="too late")
    found = Saturation(0.0, (trial,), generator_limited=False, most_p99=0.05, complete=True)
    page = page_of(figures_of(Question("h:1", {"unary": 1.0}, {}, (), 0.0), measured(), found))
    (table,) = re.findall(r'<table class="trials">.*?</table>', page)
    narrow = page.partition("@media (max-width: 560px)")[2]
    columns = re.search(r"\.trials tr \{ display: grid; grid-template-columns: repeat\((\d), 1fr\); \}", narrow)
    assert columns is not None
    assert table.count("<td") == int(columns[1]) + 1
    assert table.endswith("<td>too late</td></tr></tbody></table>")
    assert ".trials td:last-child { grid-column: 1 / -1;" in narrow
