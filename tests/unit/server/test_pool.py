"""Threads for calls where the machine has no more of them to give."""

import threading
import time

import pytest

from shortlist_server.service.pool import SteadyPool


def test_work_is_done_by_the_threads_there_are_where_no_other_can_be_started(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pool = SteadyPool(3, "test")
    go_on = threading.Event()
    start = threading.Thread.start

    def refused(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    held = pool.submit(go_on.wait, 20)
    monkeypatch.setattr(threading.Thread, "start", refused)
    waiting = [pool.submit(pow, 2, number) for number in range(5)]
    assert not any(future.done() for future in waiting)
    go_on.set()
    assert held.result(20)
    assert [future.result(20) for future in waiting] == [1, 2, 4, 8, 16]
    for _ in range(2):  # a thread that is free for the one and not for the other
        go_on.clear()
        held = pool.submit(go_on.wait, 20)
        waiting = [pool.submit(int)]
        go_on.set()
        assert held.result(20)
        assert waiting[0].result(20) == 0
        time.sleep(0.1)
    assert caplog.messages == ["calls have 1 threads and get no more: can't start new thread"]
    monkeypatch.setattr(threading.Thread, "start", start)
    together = threading.Barrier(3)
    assert {*map(bool, pool.map(lambda _: together.wait(20) >= 0, range(3)))} == {True}
    pool.shutdown()


def test_a_pool_that_gets_no_thread_at_all_says_so_when_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        SteadyPool(3, "test")
