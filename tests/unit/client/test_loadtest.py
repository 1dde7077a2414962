"""The parts of the load test, each against what it should come to by arithmetic."""

import itertools
import json
import math
import random
import re
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from shortlist.v1 import recommender_pb2
from shortlist_client.loadtest.drawing import histogram, linear_axis, log_axis
from shortlist_client.loadtest.generator import Counted
from shortlist_client.loadtest.histogram import PRECISION, Histogram
from shortlist_client.loadtest.ids import MOST_SKEW, IdsError, ModelIds, Zipf, newest_version, read_ids
from shortlist_client.loadtest.processes import Load, Outcome, interval_seconds
from shortlist_client.loadtest.report import page_of
from shortlist_client.loadtest.saturation import Trial, find_saturation
from shortlist_client.loadtest.schedule import Segment, arrivals, constant, parse_profile
from shortlist_client.loadtest.slo import parse_slo
from shortlist_client.loadtest.summary import Question, figures_of, text_of
from shortlist_client.loadtest.tally import NOT_SENT, OK, WRONG_ANSWER, Tally
from shortlist_client.loadtest.verify import Checker, WrongAnswer, check_answer
from shortlist_client.loadtest.workload import Call, Kind, Workload, draw_calls, parse_mix


def exact_percentile(values: Sequence[float], percent: float) -> float:
    """By nearest rank."""
    return sorted(values)[max(1, math.ceil(percent / 100 * len(values))) - 1]


def test_percentiles_are_within_the_stated_precision_of_the_exact_ones() -> None:
    draw = random.Random(1)
    values = [draw.lognormvariate(-6, 2) for _ in range(20_000)]
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    for percent in (0.1, 10, 50, 90, 99, 99.9, 99.99):
        assert histogram.percentile(percent) == pytest.approx(exact_percentile(values, percent), rel=PRECISION)
    assert histogram.percentile(100) == max(values)
    assert histogram.mean() == pytest.approx(sum(values) / len(values))
    assert sum(count for _, _, count in histogram.buckets()) == len(values)


def test_a_bucket_holds_what_was_put_into_it() -> None:
    for nanoseconds in [*range(1_000), 10**6 + 1, 123_456_789, 10**11 + 3]:
        histogram = Histogram()
        histogram.record((nanoseconds + 0.5) / 1e9)
        ((low, high, count),) = histogram.buckets()
        assert low * 1e9 - 0.01 <= nanoseconds < high * 1e9 + 0.01
        assert count == 1
        assert (high - low) * 1e9 <= max(1.01, nanoseconds * 2 * PRECISION)


def test_merged_histograms_count_what_both_did() -> None:
    first, second, both = Histogram(), Histogram(), Histogram()
    for place in range(1, 1_001):
        (first if place % 3 else second).record(place / 1e4)
        both.record(place / 1e4)
    first.merge(second)
    assert list(first.buckets()) == list(both.buckets())
    assert (first.count, first.maximum) == (both.count, both.maximum)


def test_nothing_measured_has_no_percentile() -> None:
    assert math.isnan(Histogram().percentile(50))


@pytest.mark.parametrize("skew", [0.0, 0.5, 0.99, 1.0, 1.5, 3.0])
def test_ranks_come_up_in_proportion_to_the_power_of_their_place(skew: float) -> None:
    zipf = Zipf(1_000, skew, random.Random(2))
    drawn = Counter(zipf.rank() for _ in range(30_000))
    weights = [rank**-skew for rank in range(1, 1_001)]
    for rank in (1, 2, 5, 20):
        expected = 30_000 * weights[rank - 1] / sum(weights)
        assert abs(drawn[rank] - expected) < 5 * math.sqrt(expected) + 1
    assert min(drawn) >= 1
    assert max(drawn) <= 1_000


@pytest.mark.parametrize("count", [1, 2, 1_000, 1_000_000_000])
def test_the_steepest_curve_asks_for_the_most_popular_alone(count: int) -> None:
    zipf = Zipf(count, MOST_SKEW, random.Random(5))
    assert Counter(zipf.rank() for _ in range(10_000)).most_common(1)[0] >= (1, 9_990)


@pytest.mark.parametrize("count", [1, 2, 7, 1_000])
def test_every_place_of_a_list_belongs_to_one_rank(count: int) -> None:
    zipf = Zipf(count, 0.0, random.Random(3))
    assert {zipf.draw() for _ in range(count * 15)} == set(range(count))


def test_a_hundred_million_users_take_no_table() -> None:
    zipf = Zipf(100_000_000, 0.99, random.Random(4))
    drawn = [zipf.draw() for _ in range(1_000)]
    assert all(0 <= place < 100_000_000 for place in drawn)
    assert len(set(drawn)) > 500


def test_even_arrivals_of_several_generators_interleave_to_the_whole_rate() -> None:
    times = sorted(
        time for place in range(3) for time in arrivals(constant(30.0, 2.0), start=5.0, share=(place, 3), rng=None)
    )
    assert len(times) == 60
    assert times == pytest.approx([5.0 + (place + 0.5) / 30 for place in range(60)])


def test_random_arrivals_have_the_rate_and_the_spread_of_a_poisson_process() -> None:
    rng = random.Random(5)
    times = list(arrivals(constant(2_000.0, 10.0), start=0.0, share=(1, 2), rng=rng))
    assert len(times) == pytest.approx(10_000, abs=400)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert deviation == pytest.approx(mean, rel=0.05)


def test_a_ramp_makes_as_many_calls_as_the_area_under_it() -> None:
    (ramp,) = parse_profile("ramp:100-500/4s")
    times = list(arrivals([ramp], start=0.0, share=(0, 1), rng=None))
    assert len(times) == 1_200
    assert sum(time < 2 for time in times) == pytest.approx(400, abs=1)
    assert list(arrivals(parse_profile("ramp:0-10/2s"), 0.0, (0, 1), None))[-1] < 2


def test_steps_follow_one_another() -> None:
    steps = parse_profile("steps:10,20,5/500ms")
    assert steps == (Segment(0.5, 10, 10), Segment(0.5, 20, 20), Segment(0.5, 5, 5))
    times = list(arrivals(steps, 0.0, (0, 1), None))
    assert [sum(low <= time < low + 0.5 for time in times) for low in (0, 0.5, 1.0)] == [5, 10, 2]


@pytest.mark.parametrize(
    "text", ["ramp:1-2", "steps:1,,2/3s", "wave:1-2/3s", "ramp:0-0/3s", "steps:0,5/1s", "ramp:1-2/1ms"]
)
def test_a_profile_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"profile|ramp|step"):
        parse_profile(text)


def test_a_mix_is_read_as_shares() -> None:
    assert parse_mix("unary=80,batch=20") == {Kind.UNARY: 0.8, Kind.BATCH: 0.2}
    assert parse_mix("similar") == {Kind.SIMILAR: 1.0}


@pytest.mark.parametrize("text", ["", "unary=0", "unary=x", "score=5", "unary=1,unary=2", "unary=nan"])
def test_a_mix_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"mix|weight"):
        parse_mix(text)


def test_calls_are_drawn_in_their_shares_and_ask_what_they_say() -> None:
    users, items = [f"u{place}" for place in range(50)], ["i1", "i2"]
    workload = Workload(parse_mix("unary=50,batch=25,similar=25"), users, items, k=7, batch_size=3)
    calls = draw_calls(workload, random.Random(6), most=3_000)
    kinds = Counter(call.kind for call in calls)
    assert kinds[Kind.UNARY] / len(calls) == pytest.approx(0.5, abs=0.05)
    for call in calls[:50]:
        if call.kind is Kind.BATCH:
            batch = recommender_pb2.BatchRecommendRequest.FromString(call.message)
            assert tuple(each.user_id for each in batch.requests) == call.asked
            assert {each.k for each in batch.requests} == {7}
        elif call.kind is Kind.SIMILAR:
            assert recommender_pb2.SimilarItemsRequest.FromString(call.message).item_ids == list(call.asked)
        else:
            assert recommender_pb2.RecommendRequest.FromString(call.message).user_id == call.asked[0]


def id_table(path: Path, ids: Sequence[str], **changed: object) -> Path:
    """Writes an id table as the model folder has it, with parts of its header changed."""
    text = "".join(ids).encode()
    offsets = [0]
    for one in ids:
        offsets.append(offsets[-1] + len(one.encode()))
    data = text + struct.pack(f"<{len(offsets)}Q", *offsets)
    header: dict[str, object] = {
        "text": {"dtype": "U8", "shape": [len(text)], "data_offsets": [0, len(text)]},
        "offsets": {"dtype": "U64", "shape": [len(offsets)], "data_offsets": [len(text), len(data)]},
    }
    head = json.dumps(header | changed).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)
    return path


def test_ids_of_a_published_model_are_read_without_any_library(small_models: Path) -> None:
    ids = ModelIds(small_models / "1" / "user_ids.safetensors")
    assert len(ids) == 30
    assert {ids[row] for row in range(30)} == {f"u{number}" for number in range(30)}
    assert newest_version(small_models) == small_models / "1"


def test_ids_may_be_of_any_script_and_length(tmp_path: Path) -> None:
    given = ["a", "ключ", "日本", "x" * 512]
    ids = ModelIds(id_table(tmp_path / "ids", given))
    assert [ids[row] for row in range(len(ids))] == given


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"text": 5}, "flat tensor 'text'"),
        ({"offsets": {"dtype": "U32", "shape": [3], "data_offsets": [2, 14]}}, "flat tensor 'offsets'"),
        ({"offsets": {"dtype": "U64", "shape": [1_000], "data_offsets": [2, 8_002]}}, "shorter than its header"),
        ({"offsets": {"dtype": "U64", "shape": [1], "data_offsets": [2, 10]}}, "holds no id"),
    ],
)
def test_a_broken_id_table_is_named(tmp_path: Path, changed: dict[str, object], why: str) -> None:
    with pytest.raises(IdsError, match=why) as failed:
        ModelIds(id_table(tmp_path / "ids.safetensors", ["a", "b"], **changed))
    assert "ids.safetensors" in str(failed.value)


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, struct.pack("<Q", 4) + b"[1] "])
def test_what_is_no_safetensors_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ids.safetensors").write_bytes(content)
    with pytest.raises(IdsError, match=r"ids\.safetensors"):
        ModelIds(tmp_path / "ids.safetensors")


def test_ids_come_from_a_file_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "users"
    file.write_text("7\n\nanna b\n")
    assert read_ids(file) == ("7", "anna b")
    file.write_bytes(b"\xef\xbb\xbf7 \r\n  \r\nanna b\t\r\n")  # as some editors and spreadsheets write it
    assert read_ids(file) == ("7", "anna b")
    file.write_text("7\n" + "x" * 513)
    with pytest.raises(IdsError, match="line 2"):
        read_ids(file)
    file.write_text("\n")
    with pytest.raises(IdsError, match="no id"):
        read_ids(file)


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


@pytest.mark.parametrize("profile", ["steps:1,2,3/100ms", "steps:1,2,3/0.3s", "steps:1,2/7s", "steps:1,2,3/100s"])
def test_every_step_is_a_whole_number_of_intervals(profile: str) -> None:
    segments = parse_profile(profile)
    seconds = sum(segment.seconds for segment in segments)
    each = segments[0].seconds / interval_seconds(Load(segments, 0, True, 0.0, seconds))
    assert each == pytest.approx(round(each))
    assert 1 <= round(each) <= 50


def trial_of(rate: float, capacity: float, p99: float = 0.002) -> Trial:
    """A server that answers so many calls/s at most."""
    return Trial(rate, rate, min(rate, capacity), 0.001, p99 if rate <= capacity else 1.0, 0.0, calls=1_000)


@pytest.mark.parametrize("capacity", [90.0, 1_000.0, 12_345.0])
def test_saturation_is_found_within_the_stated_gap(capacity: float) -> None:
    found = find_saturation(lambda rate: trial_of(rate, capacity), 200.0)
    assert capacity / 1.1 < found.rate < capacity * 1.06  # 95% of a rate may be missing
    assert found.complete


def test_a_rate_that_failed_once_by_chance_is_tried_again() -> None:
    tried: list[float] = []

    def measure(rate: float) -> Trial:
        tried.append(rate)
        return trial_of(rate, 0.0 if len(tried) == 2 else 1_000.0)

    assert find_saturation(measure, 200.0).rate > 900


def test_a_p99_that_explodes_is_no_sustained_rate() -> None:
    found = find_saturation(lambda rate: trial_of(rate, 1e9, p99=0.002 if rate < 1_000 else 0.5), 200.0)
    assert 900 < found.rate < 1_000
    assert "p99 rose to 500 ms" in {trial.why for trial in found.trials}
    generous = find_saturation(lambda rate: trial_of(rate, 5_000, p99=0.4), 200.0, most_p99=0.6)
    assert generous.rate > 4_500


def test_a_search_that_is_stopped_keeps_what_it_found() -> None:
    found = find_saturation(lambda rate: trial_of(rate, 1e9) if rate < 1_000 else None, 200.0)
    assert (found.rate, found.complete) == (800.0, False)


def test_a_server_that_answers_nothing_sustains_nothing() -> None:
    found = find_saturation(lambda rate: Trial(rate, rate, 0.0, math.nan, math.nan, 1.0, 1_000), 200.0)
    assert found.rate == 0


def nothing(rate: float) -> Trial:
    """At which no right answer came."""
    return Trial(rate, rate, 0.0, math.nan, math.nan, 1.0, 1_000)


def test_a_server_that_goes_away_ends_the_search() -> None:
    tried: list[float] = []

    def measure(rate: float) -> Trial:
        tried.append(rate)
        return trial_of(rate, 1e9) if len(tried) < 3 else nothing(rate)

    found = find_saturation(measure, 200.0)
    assert tried == [200, 400, 800, 800, 400]
    assert found.server_went_away
    assert (found.rate, found.complete) == (400, True)


def test_a_server_that_answers_nothing_above_what_it_sustains_has_not_gone_away() -> None:
    found = find_saturation(lambda rate: trial_of(rate, 1e9) if rate < 1_000 else nothing(rate), 200.0)
    assert not found.server_went_away
    assert 900 < found.rate < 1_000


@pytest.mark.parametrize("calls", [0, 1, 9])
def test_a_rate_at_which_next_to_nothing_was_asked_is_not_sustained(calls: int) -> None:
    found = find_saturation(lambda rate: replace(trial_of(rate, 1e9), calls=calls), 200.0)
    assert found.rate == 0
    assert {trial.why for trial in found.trials} == {f"only {calls} calls were due, too few to tell"}


def answer(*items: tuple[str, float], short: bool = False, version: int = 1) -> recommender_pb2.RecommendResponse:
    return recommender_pb2.RecommendResponse(
        items=[recommender_pb2.ScoredItem(item_id=item_id, score=score) for item_id, score in items],
        shortfall_reason=recommender_pb2.ShortfallReason.SHORTFALL_REASON_CATALOGUE_EXHAUSTED
        if short
        else recommender_pb2.ShortfallReason.SHORTFALL_REASON_UNSPECIFIED,
        model_version=version,
    )


def test_right_answers_pass() -> None:
    check_answer(answer(("a", 3), ("b", 3), ("c", -1)), 3)
    check_answer(answer(("a", 3), short=True), 3)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (answer(("a", 3)), "1 items instead of 3"),
        (answer(*[(str(place), 0) for place in range(4)]), "4 items instead of 3"),
        (answer(("a", 3), ("a", 2), ("b", 1)), "twice"),
        (answer(("a", 1), ("b", 2), ("c", 0)), "ascend"),
        (answer(("a", math.inf), ("b", 2), ("c", 0)), "finite"),
        (answer(("a", 3), ("q", 2), ("c", 0)), "own neighbours"),
    ],
)
def test_what_cannot_be_right_is_told(wrong: recommender_pb2.RecommendResponse, why: str) -> None:
    with pytest.raises(WrongAnswer, match=why):
        check_answer(wrong, 3, "q")


def test_the_same_question_must_get_the_same_answer_of_the_same_version() -> None:
    checker, call = Checker(2), Call(Kind.UNARY, b"", ("u",))
    checker.check(call, answer(("a", 2), ("b", 1)).SerializeToString())
    checker.check(call, answer(("c", 2), ("d", 1), version=2).SerializeToString())
    checker.check(call, answer(("a", 2), ("z", 1.00001)).SerializeToString())  # as good as b
    with pytest.raises(WrongAnswer, match="other items than before: a c after a b"):
        checker.check(call, answer(("a", 2), ("c", 1.5)).SerializeToString())
    with pytest.raises(WrongAnswer, match="no such message"):
        checker.check(call, b"\xff\xff")


def test_axes_end_at_round_numbers_around_the_values() -> None:
    assert linear_axis(870, "").ticks == (0, 200, 400, 600, 800, 1000)
    axis = log_axis(0.7, 30, "")
    assert (axis.low, axis.high) == pytest.approx((0.5, 50))
    assert axis.share(math.sqrt(0.5 * 50)) == pytest.approx(0.5)


@pytest.mark.parametrize("most", [1, 2, 3, 4, 7, 11, 12, 24, 60, 230])
def test_an_axis_of_counts_has_whole_numbers_alone(most: int) -> None:
    ticks = linear_axis(most, "calls", whole=True).ticks
    assert all(tick == round(tick) for tick in ticks)
    assert ticks[-1] >= most
    assert 2 <= len(ticks) <= 6


@pytest.mark.parametrize("values", [(1.0, 1.01, 1.02, 1.03), (1, 1.2, 1.25, 9.9), (1, 1.05, 1.26, 1.3), (1, 3, 6, 10)])
def test_no_mark_runs_through_the_name_of_another(values: tuple[float, ...]) -> None:
    names = ("p50", "p90", "p99", "p99.9")
    drawn = histogram(log_axis(1, 10, "ms"), linear_axis(5, "calls"), [], list(zip(names, values, strict=True)))
    lines = re.findall(r'<line class="mark" x1="([\d.]+)" x2="[\d.]+" y1="([\d.]+)"', drawn)
    texts = re.findall(r'<text class="mark" x="([\d.]+)" y="([\d.]+)">([^<]+)<', drawn)
    assert [name for *_, name in texts] == list(names)
    for place, (left, baseline, name) in enumerate(texts):
        right = float(left) + 7 * len(name)
        assert right < 640  # the width of the drawing
        for other, (at, top) in enumerate(lines):
            if other != place:
                assert not (float(left) - 1 < float(at) < right and float(top) < float(baseline))


def test_columns_of_a_table_are_as_wide_as_their_words() -> None:
    page = page_of(figures_of(Question("h:1", {"unary": 1.0}, {}, (), 0.0), measured(), None))
    # Where "anywhere" holds, a narrow page makes a column one letter wide.
    assert re.search(r"^th, td \{[^}]*overflow-wrap: break-word;", page, re.MULTILINE)
