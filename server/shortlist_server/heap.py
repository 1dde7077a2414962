"""A server's own memory stays flat: threads share a heap, and what is free of it goes back to the system."""

import contextlib
import ctypes
import gc
import os
import sys
import threading
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

TIDY_SECONDS = 60.0
"""It takes 3 to 25 ms, in which calls wait."""

_WORTHWHILE_BYTES = 1 << 20

_TUNABLES = "GLIBC_TUNABLES"
_ONE_HEAP = "glibc.malloc.arena_max=1:glibc.malloc.tcache_count=0"
_STARTED_AGAIN = "SHORTLIST_STARTED_AGAIN"


def share_one_heap() -> None:
    """Has all threads allocate from one heap and keep nothing of it to themselves: starts this program again, once.

    glibc reads that when a program starts, from ``GLIBC_TUNABLES``, where what is there already stays. Where the C
    library is another, nothing happens. The program starts from its beginning: nothing may have been done before.

    glibc gives threads heaps of their own, up to eight for each core, and what calls leave in one is of no use to the
    others: under callers who misbehave, a server grew from 554 to 651 MB while 25,000 connections came and went, and by
    1 MB with one heap. Of what a thread frees it keeps up to seven pieces of each of 64 sizes, which hold pages
    anywhere on the heap: at rest the heap of a server of 88 threads grew by 8.8 MB while 15,000 connections came and
    went, and by .4 MB without. Neither costs anything: under the interpreter's lock, threads seldom allocate at the
    same time.
    """
    if "CS_GNU_LIBC_VERSION" not in os.confstr_names or not sys.orig_argv or _STARTED_AGAIN in os.environ:
        return
    os.environ[_STARTED_AGAIN] = "1"  # a program with rights of its own never sees the other variable
    os.environ[_TUNABLES] = ":".join(filter(None, (os.environ.get(_TUNABLES), _ONE_HEAP)))
    with contextlib.suppress(OSError):  # it may not start programs: it grows, but it serves
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - what runs already


def share_what_libraries_allocate(*, many_threads: bool) -> None:
    """Has Arrow, and of many threads MKL as well, allocate from that heap; does nothing if they are loaded already.

    Both keep memory for every thread that has ever used them, for as long as it lives: MKL, which multiplies for torch,
    70 KB, and Arrow's mimalloc a place in huge pages of 2 MB. A server of 74 threads grew by 8 MB, of 228, while
    malformed messages reached one after the other of them. What MKL gives back it must ask for again, which costs
    requests that few threads answer some 1% of their rate.

    Args:
        many_threads: whether there is a thread for every call that may wait.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    if many_threads:
        os.environ.setdefault("MKL_DISABLE_FAST_MM", "1")


def tidy_until(stop: threading.Event) -> None:
    """Gives the system back, in the two minutes after it has grown, what is free; returns when an event is set.

    What is free keeps its pages where something in use lies above it on the heap: many calls at once, or a version that
    came and went, would raise a server's memory for good. After 20,000 misbehaving connections it had 312 MB, of which
    235 were in use.
    """
    kept, grew = 0, False
    while not stop.wait(TIDY_SECONDS):
        grows = _own_bytes() > kept + _WORTHWHILE_BYTES
        if grows or grew:  # once more after it has grown: what was in use a minute ago may be free now
            gc.collect()  # what lies in cycles is free as well
            with contextlib.suppress(OSError, AttributeError):  # the C library is not glibc
                ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))
            kept = _own_bytes()
        grew = grows


def _own_bytes() -> int:
    """Resident memory that is no file's; 0 where that is not known."""
    try:
        _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
    except (OSError, ValueError):
        return 0
    return (int(resident) - int(shared)) * _PAGE_BYTES
