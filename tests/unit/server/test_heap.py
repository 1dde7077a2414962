"""What a server's heap gives back."""

import sys
import threading

import pytest

from shortlist_server import heap
from tests.scraping import patiently

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_what_is_freed_below_what_is_used_goes_back_to_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "TIDY_SECONDS", 0.01)
    blocks = [bytes(2_000) for _ in range(40_000)]
    last = blocks.pop()
    blocks.clear()
    stop = threading.Event()
    before = heap._own_bytes()  # with all that is free, as the last lies above it
    tidying = threading.Thread(target=heap.tidy_until, args=(stop,))
    tidying.start()
    try:
        patiently(lambda: heap._own_bytes() < before - 40_000_000)
    finally:
        stop.set()
        tidying.join()
    assert len(last) == 2_000
