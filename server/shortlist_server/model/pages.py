"""Brings the pages of a version's files into a process before a request needs them."""

import contextlib
import ctypes
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from shortlist_server.model.folder import RANKER, SEEN, USER_EMBEDDINGS, USER_IDS

log = logging.getLogger(__name__)

_OF_USERS = frozenset({USER_EMBEDDINGS, USER_IDS, SEEN, RANKER})
"""Of which a request touches a few pages, and all of them together only as far as everybody comes."""

_SHARE_OF_MEMORY = 0.5
"""Two versions are there during a swap."""

_SECONDS = 20.0
_BYTES_AT_ONCE = 1 << 24
_MADV_POPULATE_READ = 22
"""Of Linux 5.14 and later. It reads what is not in memory and, unlike a program that looks at every page, outlives a
file that somebody has cut short meanwhile."""


def touch(folder: Path, keep_going: Callable[[], None], memory_bytes: int | None = None) -> int:
    """Touches what this process has mapped of a folder: all of it, or all but users' rows where that is too much.

    Checking a version's checksums has brought its files into the system's memory, if they fit; this makes them known to
    the process, which would otherwise find out page by page, at the cost of the first requests. Where a version
    takes more than half of the memory, rows of users stay where they are until somebody asks for them: brought in
    all at once, they would push out what every request needs. It takes twenty seconds at most, and does nothing on
    systems that cannot do it.

    Args:
        folder: the version's.
        keep_going: is called many times meanwhile, and may raise to end it.
        memory_bytes: what the process may have; None for what the machine, or its control group, tells.

    Returns:
        Bytes touched.
    """
    deadline = time.monotonic() + _SECONDS
    mapped = sorted(_mapped(folder.resolve()), key=lambda one: one[0] in _OF_USERS)
    room = _SHARE_OF_MEMORY * (_memory_bytes() if memory_bytes is None else memory_bytes)
    if sum(length for _, _, length in mapped) > room:
        log.info("version %s takes more than half of the memory: rows of users are read when asked for", folder.name)
        mapped = [one for one in mapped if one[0] not in _OF_USERS]
    touched = 0
    advise = ctypes.CDLL(None, use_errno=True).madvise if mapped else None
    for name, begin, length in mapped:
        for offset in range(0, length, _BYTES_AT_ONCE):
            keep_going()
            some = min(_BYTES_AT_ONCE, length - offset)
            assert advise is not None
            if advise(ctypes.c_void_p(begin + offset), ctypes.c_size_t(some), _MADV_POPULATE_READ):
                log.debug("the pages of %s cannot be touched: %s", name, os.strerror(ctypes.get_errno()))
                break
            touched += some
            if time.monotonic() > deadline:
                log.info("version %s is in memory as far as %s; the rest comes when asked for", folder.name, name)
                return touched
    return touched


def _mapped(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Name, address and length of each part of this process's memory that is a file of a folder."""
    if sys.platform != "linux":
        return
    with Path("/proc/self/maps").open() as maps:
        lines = maps.readlines()
    for line in lines:
        addresses, *_, path = line.rstrip("\n").split(maxsplit=5)
        if Path(path).parent == folder:
            begin, end = (int(address, 16) for address in addresses.split("-"))
            yield Path(path).name, begin, end - begin


def _memory_bytes() -> int:
    """What this process may have: the machine's memory, or less in a control group."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # there is none, or it is "max"
        return min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return memory
