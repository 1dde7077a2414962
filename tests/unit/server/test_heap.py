"""What a server's heap gives back."""

import gc
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from shortlist_server import heap
from tests.scraping import patiently

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def tidied(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """What was left each time that something was given back, while a thread tidies every half second."""
    monkeypatch.setattr(heap, "TIDY_SECONDS", 0.5)
    left: list[int] = []
    collect = gc.collect
    monkeypatch.setattr("gc.collect", lambda: left.append(collect()))
    stop = threading.Event()
    tidying = threading.Thread(target=heap.tidy_until, args=(stop,))
    tidying.start()
    yield left
    stop.set()
    tidying.join()


def test_what_is_freed_below_what_is_used_goes_back_to_the_system(tidied: list[int]) -> None:
    blocks = [bytes(2_000) for _ in range(40_000)]
    last = blocks.pop()
    before = heap._own_bytes()
    blocks.clear()  # and all of it stays, as the last lies above it
    patiently(lambda: heap._own_bytes() < before - 40_000_000)
    assert len(last) == 2_000


def test_what_is_freed_just_after_the_rest_was_given_back_goes_back_as_well(tidied: list[int]) -> None:
    blocks = [bytes(2_000) for _ in range(40_000)]
    last, before = blocks.pop(), heap._own_bytes()
    patiently(lambda: len(tidied) > 0)
    time.sleep(0.05)
    blocks.clear()
    patiently(lambda: heap._own_bytes() < before - 40_000_000)
    assert len(last) == 2_000
