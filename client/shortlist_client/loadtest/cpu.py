"""How busy a generator process is: whether it, not the server, limits what is measured."""

import math
import os
from collections.abc import Iterable
from pathlib import Path


def wanted_seconds() -> dict[str, float]:
    """How long each thread of this process has run or been ready to run without a core, where Linux counts it."""
    wanted = {}
    for statistics in Path(f"/proc/{os.getpid()}/task").glob("*/schedstat"):
        try:
            ran, waited = statistics.read_text().split()[:2]
        except (OSError, ValueError):  # a thread that has just ended, or a system that does not count
            continue
        wanted[statistics.parent.name] = (int(ran) + int(waited)) / 1e9
    return wanted


def busy_share(cpu_seconds: float, wanted: Iterable[float], seconds: float) -> float:
    """The share of a time in which a process computed, or would have if it had had a core.

    Threads wait at the same time as others run: their sum would say too much. They are taken to do so independently.

    Args:
        cpu_seconds: of the whole process.
        wanted: of each thread, the seconds it ran or was ready to.
        seconds: how long that was.
    """
    if seconds <= 0:
        return 0.0
    idle = math.prod(max(0.0, 1 - each / seconds) for each in wanted)
    return max(cpu_seconds / seconds, 1 - idle)
