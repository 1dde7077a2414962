"""Several generator processes, run as one."""

import math
import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from shortlist_client.loadtest.generator import STOP_SECONDS, Counted, Run, Setup, generate
from shortlist_client.loadtest.schedule import Segment
from shortlist_client.loadtest.tally import Tally

_START_SECONDS = 60.0
_HEAD_START_SECONDS = 0.2
_PATIENCE_SECONDS = 30.0
_MOST_INTERVALS = 100
_SHORTEST_INTERVAL = 0.25
_BUSY = 0.85
_BUSY_IN_A_LOOP = 0.7  # where the next call waits for an answer, and so for whoever reads it
_LATE_SECONDS = 0.001  # earlier, nobody cares
_LATE_SHARE = 0.25  # of the 99th percentile of latency
_WAKE_SHARE = 0.05  # of the mean latency


class GeneratorFailed(Exception):
    """A generator process could not start or ended early; says why."""


@dataclass(frozen=True)
class Load:
    """What a run offers to the server.

    Attributes:
        segments: rates over time, in calls/s; none for a closed loop.
        in_flight: of a closed loop: calls that wait for answers at any time.
        poisson: arrivals are random; otherwise even.
        warmup_seconds: before the measured time.
        seconds: of measured time.
    """

    segments: tuple[Segment, ...]
    in_flight: int
    poisson: bool
    warmup_seconds: float
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What a run of all processes came to.

    Attributes:
        load: what was offered.
        tally: all calls.
        seconds: of measured time that passed.
        counted: of each process.
        interrupted: it was stopped early.
    """

    load: Load
    tally: Tally
    seconds: float
    counted: tuple[Counted, ...]
    interrupted: bool

    @property
    def rate(self) -> float:
        """Right answers per second of measured time."""
        return self.tally.answered / self.seconds if self.seconds else 0.0

    @property
    def offered_rate(self) -> float:
        """Calls per second that were due."""
        return self.tally.requests / self.seconds if self.seconds else 0.0

    @property
    def error_share(self) -> float:
        """Of the calls that were due, those that failed; 0 if there were none."""
        return sum(self.tally.errors.values()) / self.tally.requests if self.tally.requests else 0.0

    @property
    def busy(self) -> float:
        """Of the time of the busiest process, the share in which it computed or waited for a core: 1 for all of it."""
        return max(one.busy for one in self.counted)

    @property
    def bottleneck(self) -> str:
        """Why the generator, not the server, limited what was measured; empty if it did not."""
        lags, latencies = self.tally.lags, self.tally.latencies()
        if self.busy > (_BUSY if self.load.segments else _BUSY_IN_A_LOOP):
            return f"a generator process was busy, or waited for a core, for {self.busy:.0%} of the time"
        if not self.load.segments:
            # What answers wait in the generator is part of the time from one call to the next, and so of the rate.
            if lags.count and lags.mean() > _WAKE_SHARE * latencies.mean():
                return f"its threads woke up {lags.mean() * 1e3:.1f} ms late on average"
            return ""
        if (lag := lags.percentile(99)) > _LATE_SECONDS and lag > _LATE_SHARE * latencies.percentile(99):
            return f"calls were sent up to {lag * 1e3:.1f} ms (p99) after they were due, which is in their latency"
        return ""


def interval_seconds(load: Load) -> float:
    """How long an interval of a run is: every step of a profile is a whole number of them, so that it can be told."""
    step = max(_SHORTEST_INTERVAL, load.seconds / _MOST_INTERVALS)
    if len(load.segments) < 2:
        return step
    shortest = min(segment.seconds for segment in load.segments)
    return shortest / max(1, math.floor(shortest / step))


class Generators:
    """Processes that make calls together. Made by ``generators``."""

    def __init__(self, setups: Sequence[Setup], processes: Sequence[BaseProcess], pipes: Sequence[Any]) -> None:
        self._setups, self._processes, self._pipes = setups, processes, pipes

    def run(self, load: Load, progress: "Progress") -> Outcome:
        """Carries out a load; Ctrl-C ends it early, and what was measured so far comes back.

        Raises:
            GeneratorFailed: a process ended.
        """
        step = interval_seconds(load)
        start = time.perf_counter() + _HEAD_START_SECONDS + load.warmup_seconds
        run = Run(load.segments, 0, load.poisson, load.warmup_seconds, load.seconds, step, start)
        count = len(self._pipes)
        for place, pipe in enumerate(self._pipes):
            pipe.send(replace(run, in_flight=_part(load.in_flight, place, count)))
        progress.begin(start, load)
        interrupted = False
        try:
            counted = self._collect(progress)
        except KeyboardInterrupt:
            interrupted = True
            end = time.perf_counter() + STOP_SECONDS  # all processes measure until then
            for pipe in self._pipes:
                pipe.send(end)
            counted = self._collect(progress)
        tally = counted[0].tally
        for one in counted[1:]:
            tally.merge(one.tally)
        seconds = min(one.seconds for one in counted)
        return Outcome(load, tally, seconds, tuple(counted), interrupted)

    def _collect(self, progress: "Progress") -> list[Counted]:
        """Waits for what all processes counted, for as long as they are heard of.

        One that was to make far more calls than it can goes on after the run, counting those that it did not make. In
        the end it waits in silence for answers, for a timeout at most, and asks some questions again.
        """
        counted: dict[int, Counted] = {}
        silence = self._setups[0].timeout_seconds + _PATIENCE_SECONDS
        heard = [time.perf_counter()] * len(self._pipes)
        while len(counted) < len(self._pipes):
            ready = wait(self._pipes, timeout=1.0)
            for pipe in ready:
                assert isinstance(pipe, Connection)
                place = self._pipes.index(pipe)
                try:
                    what, *said = pipe.recv()
                except (EOFError, OSError):
                    raise GeneratorFailed("a generator process ended early") from None
                heard[place] = time.perf_counter()
                if what == "counted":
                    counted[place] = said[0]
                elif what == "progress":
                    progress.hear(place, *said)
            progress.show()
            if any(time.perf_counter() - last > silence for place, last in enumerate(heard) if place not in counted):
                raise GeneratorFailed("a generator process does not end")
        return [counted[place] for place in sorted(counted)]


class Progress:
    """One line a second on standard error, if somebody watches."""

    def __init__(self, label: str = "") -> None:
        self.label = label
        self._seen: dict[int, tuple[int, int]] = {}
        self._shown = (0.0, 0)
        self._start = self._next = 0.0
        self._seconds = 0.0

    def begin(self, start: float, load: Load) -> None:
        """A run begins."""
        self._seen = {}
        self._start, self._seconds = start, load.seconds
        self._next = time.perf_counter() + 1.0
        self._shown = (time.perf_counter(), 0)

    def hear(self, place: int, answers: int, failures: int) -> None:
        """A process says how far it is."""
        self._seen[place] = answers, failures

    def show(self) -> None:
        """Writes a line, unless the last one was a moment ago."""
        now = time.perf_counter()
        if now < self._next or not sys.stderr.isatty():
            return
        before, had = self._shown
        answers, failures = (sum(column) for column in zip(*self._seen.values(), strict=True)) if self._seen else (0, 0)
        time_ = now - self._start
        when = "warming up" if time_ < 0 else f"{min(time_, self._seconds):.0f} of {self._seconds:g} s"
        rate = (answers - had) / (now - before)
        sys.stderr.write(f"{self.label}{when}: {rate:,.0f} answers/s, {answers:,} so far, {failures:,} failed\n")
        self._shown, self._next = (now, answers), now + 1.0


@contextmanager
def generators(setup: Setup, count: int) -> Iterator[Generators]:
    """Starts so many processes that share the load, and ends them.

    Args:
        setup: of them all; ``most_in_flight`` and ``connections`` are of all together and are divided. There are no
            fewer connections than processes.
        count: how many.

    Raises:
        GeneratorFailed: one could not start, such as when there is no server.
    """
    context = multiprocessing.get_context("spawn")
    setups = [
        replace(
            setup,
            place=(place, count),
            connections=_part(setup.connections, place, count),
            most_in_flight=max(1, _part(setup.most_in_flight, place, count)),
        )
        for place in range(count)
    ]
    pipes, processes = [], []
    try:
        with _ctrl_c_ignored():  # so that it does not reach processes that have just begun
            for one in setups:
                ours, theirs = context.Pipe()
                process = context.Process(target=generate, args=(one, theirs), daemon=True)
                process.start()
                theirs.close()
                pipes.append(ours)
                processes.append(process)
        for pipe in pipes:
            _wait_until_ready(pipe)
        yield Generators(setups, processes, pipes)
        for pipe in pipes:
            pipe.send(None)
        for process in processes:
            process.join(_PATIENCE_SECONDS)
    finally:
        for process in processes:
            process.kill()
            process.join()
            process.close()


def _part(whole: int, place: int, count: int) -> int:
    """The part of one of so many processes: all parts together are the whole."""
    return whole // count + (place < whole % count)


def _wait_until_ready(pipe: Any) -> None:
    try:
        if not pipe.poll(_START_SECONDS):
            raise GeneratorFailed(f"a generator process was not ready after {_START_SECONDS:.0f} s")
        what, said = pipe.recv()
    except EOFError:
        raise GeneratorFailed("a generator process could not start") from None
    if what == "failed":
        raise GeneratorFailed(said)


@contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only there can it be said
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
