"""Who may work, who waits, and who is refused."""

import threading
import time

import pytest

from shortlist_server.admission import Admission
from shortlist_server.errors import DeadlinePassed, QueueFull


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
