"""Who may work, who waits, and who is refused."""

import threading
import time

import pytest

from shortlist_server.admission import Admission, Line
from shortlist_server.errors import DeadlinePassed, QueueFull


class Clock:
    """Time that passes when a test says so, for what is reckoned from time: on a busy machine a sleep takes longer."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def test_a_free_server_lets_a_request_work_at_once() -> None:
    started = time.monotonic()
    with Admission(1, 0).turn(None):
        assert time.monotonic() - started < 1


def test_a_request_beyond_the_queue_is_refused() -> None:
    admission = Admission(working=1, waiting=0)
    with admission.turn(None), pytest.raises(QueueFull), admission.turn(None):
        pass
    with admission.turn(None):  # the refused one took no place
        pass


def test_a_place_is_kept_until_it_is_left() -> None:
    admission = Admission(working=1, waiting=1)
    admission.enter()
    with admission.turn(None), pytest.raises(QueueFull):
        admission.enter()
    admission.leave()
    admission.enter()


def test_a_request_whose_deadline_passes_while_it_waits_never_works() -> None:
    admission = Admission(working=1, waiting=1)
    with admission.turn(None), pytest.raises(DeadlinePassed), admission.turn(0.05):
        pytest.fail("it worked")
    with admission.turn(None):
        pass


@pytest.mark.parametrize("seconds_left", [0.0, -1.0])
def test_a_request_whose_deadline_has_passed_never_works(seconds_left: float) -> None:
    with pytest.raises(DeadlinePassed), Admission(1, 1).turn(seconds_left):
        pytest.fail("it worked")


def test_a_waiting_request_works_when_the_turn_is_free() -> None:
    admission = Admission(working=1, waiting=1)
    begun = threading.Event()
    waits: list[float] = []

    def wait() -> None:
        begun.set()
        started = time.monotonic()
        with admission.turn(10):
            waits.append(time.monotonic() - started)

    thread = threading.Thread(target=wait)
    with admission.turn(None):
        thread.start()
        begun.wait()
        time.sleep(0.1)
    thread.join()
    assert 0.05 < waits[0] < 5


def test_an_error_in_the_work_frees_the_turn() -> None:
    admission = Admission(1, 0)
    with pytest.raises(ZeroDivisionError), admission.turn(None):
        _ = 1 / 0
    with admission.turn(None):
        pass


def test_whoever_would_not_be_answered_in_time_is_refused_and_told_when_to_come_back(clock: Clock) -> None:
    admission = Admission(working=1, waiting=100)
    for _ in range(5):
        with admission.turn(None):
            clock.seconds += 0.02
    for _ in range(10):
        admission.enter(5.0)
    assert admission.waiting_seconds == pytest.approx(0.2)
    with pytest.raises(QueueFull) as refused:
        admission.enter(0.219)
    assert refused.value.retry_seconds == pytest.approx(0.2)
    admission.enter(0.221)
    admission.enter(1.0)
    admission.enter(None)


def test_a_batch_counts_as_its_requests(clock: Clock) -> None:
    admission = Admission(working=1, waiting=100)
    with admission.turn(None, requests=10):
        clock.seconds += 0.05
    admission.enter(None, requests=100)
    assert admission.waiting_seconds == pytest.approx(0.5)
    admission.leave(requests=100)
    assert admission.waiting_seconds == 0


def test_expectations_that_were_too_high_are_corrected_by_calls_that_come_alone(clock: Clock) -> None:
    admission = Admission(working=1, waiting=100)
    with admission.turn(None):
        clock.seconds += 0.3
    admission.enter(None)
    with pytest.raises(QueueFull):
        admission.enter(0.1)
    admission.leave()
    for _ in range(30):
        with admission.turn(0.1):
            clock.seconds += 0.001
    admission.enter(None)
    admission.enter(0.1)


def _order_of_turns(*lines: tuple[str, Line, int]) -> str:
    """In which order turns are given to those who wait, by name, line and size."""
    admission = Admission(working=1, waiting=100)
    order: list[str] = []

    def work(name: str, line: Line, requests: int) -> None:
        with admission.work(10, requests, line=line):
            order.append(name)

    threads = []
    with admission.work():
        for one in lines:
            threads.append(threading.Thread(target=work, args=one))
            threads[-1].start()
            time.sleep(0.05)
    for thread in threads:
        thread.join()
    return " ".join(order)


def test_turns_are_given_in_the_order_of_coming_but_first_to_those_in_the_first_line() -> None:
    lines = ("a", Line.OTHERS, 1), ("b", Line.OTHERS, 1), ("first", Line.FIRST, 1), ("c", Line.OTHERS, 1)
    assert _order_of_turns(*lines) == "first a b c"


def test_a_batch_goes_on_before_others_begin_and_single_requests_have_half_of_the_work() -> None:
    lines = (
        *(("new", Line.BATCHES, 64), ("on", Line.GOES_ON, 64), ("newer", Line.BATCHES, 64)),
        *(("a", Line.OTHERS, 1), ("b", Line.OTHERS, 63), ("c", Line.OTHERS, 30), ("d", Line.OTHERS, 60)),
        ("e", Line.OTHERS, 1),
    )
    assert _order_of_turns(*lines) == "a b on c d new e newer"


def test_a_turn_that_is_given_to_somebody_who_has_gone_goes_to_the_next() -> None:
    admission = Admission(working=1, waiting=100)
    done: list[int] = []

    def try_often() -> None:
        for _ in range(200):
            try:
                with admission.work(0.0005):
                    pass
            except DeadlinePassed:
                pass
        done.append(1)

    threads = [threading.Thread(target=try_often) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(done) == 6
    with admission.work(1):  # no turn was lost
        pass


def test_who_is_dropped_says_nothing_of_how_long_answers_take(clock: Clock) -> None:
    admission = Admission(working=1, waiting=100)
    for _ in range(100):
        admission.enter()
    clock.seconds += 0.06
    for _ in range(99):
        admission.leave(dropped=True)
    assert admission.seconds_per_request == 0
    admission.leave()
    assert admission.seconds_per_request == pytest.approx(0.06)


def test_who_gives_up_while_it_waits_says_nothing_of_it_either(clock: Clock) -> None:
    admission = Admission(working=1, waiting=100)
    with admission.turn(None):
        for _ in range(99):
            with pytest.raises(DeadlinePassed), admission.turn(0.0001):
                pytest.fail("it worked")
        clock.seconds += 0.06
    assert admission.seconds_per_request == pytest.approx(0.06)


def test_after_it_stood_still_a_server_soon_expects_what_it_did_before(clock: Clock) -> None:
    admission = Admission(working=1, waiting=100)
    for _ in range(1_000):
        with admission.turn(None):
            clock.seconds += 0.001
    with admission.turn(None):
        clock.seconds += 5
    assert admission.seconds_per_request > 0.01
    for _ in range(500):
        with admission.turn(None):
            clock.seconds += 0.001
    assert admission.seconds_per_request < 0.002


def test_those_who_are_answered_together_took_their_seconds_together(clock: Clock) -> None:
    admission = Admission(working=1, waiting=100)
    for _ in range(64):
        admission.enter()
    clock.seconds += 5
    for _ in range(64):
        admission.leave(together=True)
    admission.reckon()
    assert admission.seconds_per_request == pytest.approx(5 / 64)


def test_those_who_were_answered_together_count_though_somebody_else_comes_first(clock: Clock) -> None:
    admission = Admission(working=1, waiting=100)
    admission.enter()
    clock.seconds += 0.02
    admission.leave(together=True)
    admission.enter()
    admission.reckon()
    assert admission.seconds_per_request == pytest.approx(0.02)


def test_a_newcomer_reckons_with_those_who_come_before_it_and_are_answered_together_with_it(clock: Clock) -> None:
    admission = Admission(working=1, waiting=100)
    with admission.turn(None):
        clock.seconds += 0.01
    assert admission.expected_seconds(4, coming=5) == 0  # nobody is here: it is worth a try
    admission.enter()
    admission.enter()
    assert admission.expected_seconds(4) == pytest.approx(0.02 + 0.01)
    assert admission.expected_seconds(4, coming=1) == pytest.approx(0.02 + 0.01 + 0.01)
    assert admission.expected_seconds(4, coming=2) == pytest.approx(0.02 + 0.02 + 0.04)


def test_calls_of_several_requests_leave_half_of_the_places_to_others() -> None:
    admission = Admission(working=1, waiting=5)
    for _ in range(3):
        admission.enter(requests=2)
    with pytest.raises(QueueFull):
        admission.enter(requests=2)
    for _ in range(3):
        admission.enter()
    admission.leave(requests=2)
    admission.enter(requests=2)
    with pytest.raises(QueueFull):
        admission.enter()


def test_messages_that_wait_have_so_many_bytes_at_most_but_one_is_always_let_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shortlist_server.admission._MOST_BYTES", 100)
    admission = Admission(working=1, waiting=5)
    admission.enter(size=1_000)
    with pytest.raises(QueueFull):
        admission.enter(size=1)
    admission.leave(size=1_000)
    admission.enter(size=60)
    assert not admission.has_room_for(41)
    admission.enter(size=40)
    admission.enter()


def test_a_single_request_need_not_have_the_time_for_batches_that_are_here_before_it(clock: Clock) -> None:
    admission = Admission(working=1, waiting=100)
    with admission.turn(None, requests=100):
        clock.seconds += 1.0  # 10 ms each
    admission.enter(requests=1_000)
    with pytest.raises(QueueFull):  # of several requests
        admission.enter(9.0, requests=2)
    with pytest.raises(QueueFull):
        admission.enter(0.64)
    admission.enter(0.66)  # after a turn of the batch
    with pytest.raises(QueueFull):
        admission.enter(0.66)
    admission.enter(0.68)
    assert admission.expected_seconds(10, several=True) == pytest.approx(10.12)
    assert admission.expected_seconds(10) == pytest.approx(0.78)
    for _ in range(90):
        admission.enter()
    admission.leave(requests=1_000)
    assert admission.expected_seconds(10) == pytest.approx(
        admission.waiting_seconds + 10 * admission.seconds_per_request
    )
