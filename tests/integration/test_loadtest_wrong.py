"""What ``shortlist loadtest`` makes of answers that are wrong, and of calls that get none."""

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from multiprocessing.connection import Connection
from typing import Any

import pytest

from shortlist.v1 import recommender_pb2
from shortlist_client.loadtest.calls import CoreCalls
from shortlist_client.loadtest.connection import Target, open_channel
from shortlist_client.loadtest.generator import Run, Setup, generate
from shortlist_client.loadtest.schedule import Segment, constant
from shortlist_client.loadtest.workload import Kind, Workload
from tests.loadtesting import (
    GARBAGE,
    RECOMMEND,
    Load,
    answering,
    batch_of,
    counted,
    entry_of,
    generating,
    ranked,
    recommended,
)

CLOSED_LOOP = ("--concurrency", "4", "--duration", "0.6", "--warmup", "0")


def test_each_answer_that_cannot_be_read_is_one_wrong_answer_and_the_next_call_follows(load: Load) -> None:
    turns, garbage = itertools.count(1), []

    def batch(request: recommender_pb2.BatchRecommendRequest) -> bytes:
        if turn := next(turns) % 3:
            return batch_of(request).SerializeToString()
        garbage.append(turn)
        return GARBAGE

    with answering(recommended, batch=batch) as address:
        _, figures = load(address, "--mix", "batch", "--batch-size", "2", "--check", "0.01", *CLOSED_LOOP)
    wrong, answers = len(garbage), next(turns) - 1
    assert wrong >= 2
    assert list(figures["errors"]) == ["WRONG_ANSWER"]
    # Calls that followed at the very end were no longer due.
    assert wrong - 4 <= figures["errors"]["WRONG_ANSWER"] <= wrong
    assert answers - 4 <= figures["requests"] <= answers
    assert "WRONG_ANSWER: the answer to batch is no such message" in figures["error_examples"][0]


def test_a_message_of_a_stream_that_cannot_be_read_fails_what_waits_and_the_stream_is_opened_anew(load: Load) -> None:
    turns, opened = itertools.count(1), itertools.count()

    def stream(requests: Iterator[recommender_pb2.StreamRecommendRequest]) -> Iterator[bytes]:
        next(opened)
        for request in requests:
            yield entry_of(request).SerializeToString() if next(turns) % 10 else GARBAGE

    with answering(recommended, stream=stream) as address:
        options = ("--mix", "stream", "--check", "0.01", "--connections", "1")
        _, figures = load(address, *options, *CLOSED_LOOP)
    streams = next(opened)
    assert streams >= 3
    assert list(figures["errors"]) == ["WRONG_ANSWER"]
    # At most four wait for each message that cannot be read.
    assert streams - 2 <= figures["errors"]["WRONG_ANSWER"] <= 4 * streams
    assert figures["ok"] >= 3 * (streams - 2)
    assert "WRONG_ANSWER: a message of the stream is no answer" in figures["error_examples"][0]


@pytest.mark.parametrize("kind", ["batch", "stream"])
def test_an_error_that_says_ok_is_a_wrong_answer(load: Load, kind: str) -> None:
    error = recommender_pb2.RecommendOutcome(error={"code": 0, "message": "fine"})

    def batch(request: recommender_pb2.BatchRecommendRequest) -> bytes:
        outcomes = [*batch_of(request).outcomes[1:], error]
        return recommender_pb2.BatchRecommendResponse(outcomes=outcomes).SerializeToString()

    def stream(requests: Iterator[recommender_pb2.StreamRecommendRequest]) -> Iterator[bytes]:
        for request in requests:
            answer = recommender_pb2.StreamRecommendResponse(request_id=request.request_id, outcome=error)
            yield answer.SerializeToString()

    with answering(recommended, batch=batch, stream=stream) as address:
        _, figures = load(address, "--mix", kind, "--batch-size", "2", "--check", "0", *CLOSED_LOOP)
    assert figures["errors"] == {"WRONG_ANSWER": figures["requests"]}
    assert figures["error_examples"] == ["WRONG_ANSWER: an entry failed with the status OK: fine"]


def test_other_items_of_the_same_scores_are_noticed(load: Load) -> None:
    turns = itertools.count()

    def others(_: bytes) -> bytes:
        return ranked("u", next(turns) % 7 * 10).SerializeToString()

    with answering(others) as address:
        _, figures = load(address, "--check", "1", *CLOSED_LOOP)
    assert figures["errors"]["WRONG_ANSWER"] > figures["requests"] / 2


def test_the_first_answers_that_are_checked_are_those_of_measured_calls(load: Load) -> None:
    turns = itertools.count()

    def wrong_later(request: bytes) -> bytes:
        return recommended(request) if next(turns) < 30 else GARBAGE

    with answering(wrong_later) as address:
        options = ("--check", "0.000001", "--connections", "1", "--warmup", "0.8")
        _, figures = load(address, *CLOSED_LOOP, *options)
    assert figures["errors"] == {"WRONG_ANSWER": min(20, figures["requests"])}
    assert figures["answers_checked"] == figures["answers_wrong"]


def test_nothing_that_happens_in_the_warm_up_is_counted(load: Load) -> None:
    turns = itertools.count()

    def wrong_first(request: bytes) -> bytes:
        return GARBAGE if next(turns) < 10 else recommended(request)

    with answering(wrong_first) as address:
        _, figures = load(address, *CLOSED_LOOP, "--check", "1", "--warmup", "0.8")
    assert figures["requests"] <= figures["answers_checked"] <= figures["requests"] + 20  # that many are asked again
    assert (figures["errors"], figures["error_examples"]) == ({}, [])


@pytest.mark.parametrize("kind", ["unary", "batch", "stream"])
def test_what_turns_out_wrong_when_asked_again_is_taken_back_from_every_figure(load: Load, kind: str) -> None:
    turns = itertools.count()

    def changing(request: bytes) -> bytes:
        """Right until the load is over, after which some questions are asked again, one at a time."""
        if kind == "unary" and next(turns) < 50:
            return recommended(request)
        return ranked("other").SerializeToString()

    def batch(request: recommender_pb2.BatchRecommendRequest) -> bytes:
        return batch_of(request).SerializeToString()

    def stream(requests: Iterator[recommender_pb2.StreamRecommendRequest]) -> Iterator[bytes]:
        return (entry_of(request).SerializeToString() for request in requests)

    with answering(changing, batch=batch, stream=stream) as address:
        options = ("--rate", "100", "--arrivals", "even", "--duration", "0.5", "--warmup", "0", "--connections", "2")
        _, figures = load(address, "--mix", kind, "--batch-size", "2", "--zipf", "0", "--check", "1", *options)
    wrong = figures["answers_wrong"]
    assert figures["requests"] == 50
    assert 10 <= wrong <= 20
    assert figures["ok"] == 50 - wrong
    assert figures["kinds"][kind]["errors"] == figures["errors"] == {"WRONG_ANSWER": wrong}
    assert figures["rate"] * 0.5 <= figures["ok"]
    assert sum(each["answered"] for each in figures["intervals"]) <= figures["ok"]
    assert sum(each["failed"] for each in figures["intervals"]) == wrong
    assert "with other items than before" in figures["error_examples"][0]


def losing(setup: Setup, parent: Connection) -> None:
    """A generator that never hears of every fifth call again."""
    start, turns = CoreCalls.start, itertools.count(1)

    def started(self: CoreCalls, path: str, message: bytes, done: Any) -> None:
        lost = path == RECOMMEND and not next(turns) % 5
        start(self, path, message, (lambda *_: None) if lost else done)

    CoreCalls.start = started  # type: ignore[method-assign]
    generate(setup, parent)


@pytest.mark.parametrize(("segments", "in_flight"), [(constant(50.0, 1.0), 0), ((), 10)])
def test_a_call_that_never_ends_is_counted_as_late(segments: tuple[Segment, ...], in_flight: int) -> None:
    with answering(recommended) as address:
        setup = Setup(Target(address), Workload({Kind.UNARY: 1.0}, ("u1",)), (0, 1), 1, 1.0, 1_000, 0.0, seed=0)
        with generating(setup, losing) as pipe:
            pipe.send(Run(segments, in_flight, False, 0.0, 1.0, 1.0, time.perf_counter() + 0.1))
            result = counted(pipe)
    tally = result.tally
    # Of a closed loop each of the ten that wait is lost sooner or later, and no other call follows it.
    assert tally.requests == result.calls_made == 50
    assert tally.errors == {"DEADLINE_EXCEEDED": 10}
    assert tally.latencies().count == 50
    assert tally.latencies().maximum > 1.0


def test_who_reads_answers_outlives_what_is_raised_at_one(caplog: pytest.LogCaptureFixture) -> None:
    heard, answered = threading.Event(), futures.Future[str]()

    def raising(*_: Any) -> None:
        heard.set()
        raise RuntimeError("as nobody foresaw")

    with answering(recommended) as address:
        calls = CoreCalls(open_channel(Target(address)), Target(address), 5.0, [RECOMMEND])
        calls.start(RECOMMEND, b"", raising)
        assert heard.wait(10)
        calls.start(RECOMMEND, b"", lambda status, *_: answered.set_result(status))
        assert answered.result(10) == "OK"
        calls.close()
    assert "as nobody foresaw" in caplog.text
