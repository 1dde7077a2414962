"""One process of the load generator: makes its share of the calls when they are due and counts what comes back."""

import contextlib
import gc
import itertools
import math
import queue
import random
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from shortlist_client.loadtest.calls import Calls, NotConnected, connect
from shortlist_client.loadtest.connection import Target
from shortlist_client.loadtest.cpu import busy_share, wanted_seconds
from shortlist_client.loadtest.ids import IdsError
from shortlist_client.loadtest.schedule import Segment, arrivals
from shortlist_client.loadtest.streams import Stream
from shortlist_client.loadtest.tally import LATE, NOT_SENT, OK, WRONG_ANSWER, Tally
from shortlist_client.loadtest.verify import Checker, WrongAnswer, batch_status
from shortlist_client.loadtest.workload import PATHS, Call, Kind, Workload, endless_calls

_LOOK_SECONDS = 0.1  # how often the parent is listened to
STOP_SECONDS = 2 * _LOOK_SECONDS
"""How long before a run is to end early it must be told, to be heard in time."""
_PROGRESS_SECONDS = 1.0
_WAKE_SECONDS = 0.01
_ALWAYS_CHECKED = 20  # first answers of a connection
_ASKED_AGAIN = 20
_ASK_AGAIN_SECONDS = 10.0  # for all of them: whoever collects what was counted does not wait for ever
_SLACK_SECONDS = 1.0


@dataclass(frozen=True)
class Setup:
    """What stays the same for all runs of a generator.

    Attributes:
        target: the server.
        workload: what is asked.
        place: (i, n): the i-th of n processes.
        connections: of this process.
        timeout_seconds: the deadline of every call.
        most_in_flight: calls of this process that may wait for their answers; what is due beyond them is not sent and
            counts as failed.
        check_share: of the answers that are looked into.
        seed: of every random choice.
    """

    target: Target
    workload: Workload
    place: tuple[int, int]
    connections: int
    timeout_seconds: float
    most_in_flight: int
    check_share: float
    seed: int


@dataclass(frozen=True)
class Run:
    """One stretch of load.

    Attributes:
        segments: rates over time of all processes together, or none to wait for answers instead.
        in_flight: calls of this process that wait for answers at any time; the next one goes out when one comes back.
        poisson: arrivals are random; otherwise even.
        warmup_seconds: calls before the measured time, at its first rate.
        seconds: of measured time.
        step_seconds: of an interval.
        start: when the measured time begins, by ``time.perf_counter``, which all processes of a machine share.
    """

    segments: tuple[Segment, ...]
    in_flight: int
    poisson: bool
    warmup_seconds: float
    seconds: float
    step_seconds: float
    start: float


@dataclass(frozen=True)
class Counted:
    """What a process counted, and what that took.

    Attributes:
        tally: its calls.
        seconds: of measured time that passed: fewer than planned if it was stopped.
        busy_seconds: how long calls were made, with the warm-up.
        cpu_seconds: of this process meanwhile.
        busy: the share of that time in which it computed or was ready to and had no core.
        calls_made: meanwhile.
        way: how calls were made.
    """

    tally: Tally
    seconds: float
    busy_seconds: float
    cpu_seconds: float
    busy: float
    calls_made: int
    way: str


def generate(setup: Setup, parent: Connection) -> None:
    """The process; see ``_generate``. It ends quietly when its parent is gone, such as by SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    with contextlib.suppress(EOFError, ConnectionError):
        _generate(setup, parent)


def _generate(setup: Setup, parent: Connection) -> None:
    """Connects, says ("ready", how) or ("failed", why), and carries out each Run that it is sent.

    Meanwhile it says ("progress", answers so far, of them failed) every second and ("counted", Counted) in the end; a
    time of ``time.perf_counter`` during a run ends that early, and None ends the process.

    Raises:
        EOFError, ConnectionError: the parent is gone.
    """
    connections: list[_Connection] = []
    try:
        rng = random.Random(f"{setup.seed}/{setup.place[0]}")  # noqa: S311  # a load is no secret
        calls = endless_calls(setup.workload, rng)
        connections = [_Connection(setup) for _ in range(setup.connections)]
    except (IdsError, NotConnected) as error:
        parent.send(("failed", str(error)))
        return
    checker = Checker(setup.workload.k)
    gc.collect()
    gc.freeze()  # the requests need not be looked through again and again
    parent.send(("ready", connections[0].calls.name))
    while (run := parent.recv()) is not None:
        if isinstance(run, Run):
            callers = [_Caller(setup, run, connection, calls, checker) for connection in connections]
            parent.send(("counted", _carry_out(setup, run, callers, rng, parent)))
    for connection in connections:
        connection.close()


class _Connection:
    """The unary calls of a connection, and the stream beside them where the mix has one."""

    def __init__(self, setup: Setup) -> None:
        # Of whatever mix, some questions are asked again as single requests.
        paths = [PATHS[kind] for kind in {Kind.UNARY, *setup.workload.mix} if kind is not Kind.STREAM]
        self.calls: Calls = connect(setup.target, setup.timeout_seconds, paths)
        self.stream = Stream(setup.target, setup.timeout_seconds) if Kind.STREAM in setup.workload.mix else None

    def close(self) -> None:
        self.calls.close()
        if self.stream is not None:
            self.stream.close()


_Right = tuple[Call, float, float]
"""A call that was answered rightly, and when it was due and ended, in seconds since the measured time began."""


class _Caller:
    """Makes the calls of one connection during a run and counts them."""

    def __init__(
        self, setup: Setup, run: Run, connection: _Connection, calls: Iterator[Call], checker: Checker
    ) -> None:
        self.tally = Tally(run.seconds, run.step_seconds)
        self.made = 0
        self._open: dict[int, tuple[Kind, float]] = {}  # calls without an answer so far, and when they were due
        self.right: list[_Right] = []  # the first few that were looked into
        self.end = run.start + run.seconds  # until when closed-loop calls follow one another
        self._zero = run.start
        self.way = connection.calls.name
        self._connection = connection
        self.calls = calls
        self._checker = checker
        self._closed_loop = not run.segments
        self._lock = threading.Lock()
        self._random = random.Random(setup.seed).random  # noqa: S311  # which answers are looked into is no secret
        self._check_share = setup.check_share

    @property
    def open_calls(self) -> int:
        """Calls that wait for their answers."""
        return len(self._open)

    def call(self, call: Call, due: float) -> None:
        """Makes a call that is or was due."""
        with self._lock:
            number = self.made
            self.made += 1
            self._open[number] = call.kind, due

        def done(status: str, message: bytes, details: str) -> None:
            self._done(number, call, due, status, message, details)

        if call.kind is Kind.STREAM:
            assert self._connection.stream is not None
            self._connection.stream.start(call.message, done)
        else:
            self._connection.calls.start(PATHS[call.kind], call.message, done)

    def not_sent(self, call: Call, due: float) -> None:
        """Counts a call that could not be made when it was due."""
        with self._lock:
            self.tally.record(call.kind, due - self._zero, due - self._zero, NOT_SENT)

    def stop_at(self, time_: float) -> None:
        """Ends the measured time early: neither what is due nor what is answered later counts."""
        with self._lock:
            self.tally.seconds = min(max(time_ - self._zero, 0.0), self.tally.seconds)

    def give_up(self) -> None:
        """Counts the calls that nobody has heard of long after their deadline as late: none may go uncounted."""
        ended = time.perf_counter()
        with self._lock:
            for kind, due in self._open.values():
                self.tally.record(kind, due - self._zero, ended - self._zero, LATE, "a call never ended")
            self._open.clear()

    def ask_again(self, calls: Iterable[_Right]) -> None:
        """Asks some of what was asked again, now that nobody else asks: the answers must be the same.

        Those that a server is too slow to give are not looked into.

        Args:
            calls: what was answered rightly, and has been recorded in this tally by now.
        """
        until = time.perf_counter() + _ASK_AGAIN_SECONDS
        for call, due, ended in itertools.islice(calls, _ASKED_AGAIN):
            answers: queue.SimpleQueue[tuple[str, bytes, str]] = queue.SimpleQueue()
            single = self._checker.single(call)
            self._connection.calls.start(PATHS[single.kind], single.message, lambda *answer, to=answers: to.put(answer))
            try:
                status, message, _ = answers.get(timeout=max(0.0, until - time.perf_counter()))
            except queue.Empty:
                return
            if status == OK:
                status, why = self._judged(single, message, looked_into=True)
                self.tally.checked += 1
                if status == WRONG_ANSWER:
                    self.tally.example(f"{status}: {why}")
                    self.tally.turned_out_wrong(call.kind, due, ended)

    def _done(self, number: int, call: Call, due: float, status: str, message: bytes, details: str) -> None:
        ended = time.perf_counter()
        looked_into = status == OK and self._looks_into(due)
        if status == OK:
            status, details = self._judged(call, message, looked_into)
        with self._lock:
            if self._open.pop(number, None) is not None:  # else it was given up
                times = due - self._zero, ended - self._zero
                self.tally.record(call.kind, *times, status, details, looked_into)
                if looked_into and status == OK and len(self.right) < _ASKED_AGAIN:
                    self.right.append((call, *times))
        if self._closed_loop and ended < self.end:
            self.call(next(self.calls), time.perf_counter())

    def _looks_into(self, due: float) -> bool:
        """Whether to look into an answer: into those of measured calls alone."""
        return (
            self._check_share > 0
            and 0 <= due - self._zero < self.tally.seconds
            and (self.tally.checked < _ALWAYS_CHECKED or self._random() < self._check_share)
        )

    def _judged(self, call: Call, message: bytes, looked_into: bool) -> tuple[str, str]:
        """The status that an answer counts with, and why it is not right."""
        status, why = OK, ""
        try:
            # What a batch holds tells whether it failed, so that each is read.
            if call.kind is Kind.BATCH:
                status, why = batch_status(message)
            if looked_into and status == OK:
                self._checker.check(call, message)
        except WrongAnswer as wrong:
            status, why = WRONG_ANSWER, str(wrong)
        except Exception as unforeseen:  # noqa: BLE001  # whatever it is: the answer cannot be made sense of
            status, why = WRONG_ANSWER, repr(unforeseen)
        return status, why


def _carry_out(setup: Setup, run: Run, callers: Sequence[_Caller], rng: random.Random, parent: Connection) -> Counted:
    listener = _Listener(parent, callers)
    _sleep_until(run.start - run.warmup_seconds, listener)
    began, cpu, wanted = time.perf_counter(), time.process_time(), wanted_seconds()
    if run.segments:
        _open_loop(setup, run, callers, rng, listener)
    else:
        for slot in range(run.in_flight):
            callers[slot % len(callers)].call(next(callers[0].calls), time.perf_counter())
        _watch_closed_loop(run, callers[0].tally, listener)
    ended = time.perf_counter()
    cpu = time.process_time() - cpu
    busy = busy_share(
        cpu, (later - wanted.get(thread, 0.0) for thread, later in wanted_seconds().items()), ended - began
    )
    made = sum(caller.made for caller in callers)
    for caller in callers:
        caller.end = ended
    patience = ended + setup.timeout_seconds + _SLACK_SECONDS
    while any(caller.open_calls for caller in callers) and time.perf_counter() < patience:
        time.sleep(0.005)
    for caller in callers:
        caller.give_up()
    tally = callers[0].tally
    for caller in callers[1:]:
        tally.merge(caller.tally)
    if setup.check_share:
        right = {one[0].asked[0]: one for caller in callers for one in caller.right}
        callers[0].ask_again(right.values())
    return Counted(tally, tally.seconds, ended - began, cpu, busy, made, callers[0].way)


def _open_loop(setup: Setup, run: Run, callers: Sequence[_Caller], rng: random.Random, listener: "_Listener") -> None:
    first_rate = run.segments[0].first_rate
    segments = (
        (Segment(run.warmup_seconds, first_rate, first_rate), *run.segments) if run.warmup_seconds else run.segments
    )
    times = arrivals(segments, run.start - run.warmup_seconds, setup.place, rng if run.poisson else None)
    give_up = run.start + run.seconds + min(setup.timeout_seconds, _SLACK_SECONDS)
    clock = time.perf_counter
    for due, caller in zip(times, itertools.cycle(callers), strict=False):
        _sleep_until(due, listener)
        if listener.stopped:
            return
        now = clock()
        call = next(caller.calls)
        if now > give_up or sum(each.open_calls for each in callers) >= setup.most_in_flight:
            caller.not_sent(call, due)
            continue
        caller.call(call, due)
        caller.tally.record_lag(due - run.start, now - due)
    _sleep_until(run.start + run.seconds, listener)


def _watch_closed_loop(run: Run, tally: Tally, listener: "_Listener") -> None:
    """Waits for the end of a run whose calls follow one another on the threads of their connections.

    A thread that wants to wake up every few milliseconds tells how late the others wake up to an answer.
    """
    while not listener.stopped and (now := time.perf_counter()) < run.start + run.seconds:
        due = now + _WAKE_SECONDS
        _sleep_until(due, listener)
        tally.record_lag(due - run.start, time.perf_counter() - due)


class _Listener:
    """Hears when the parent wants a run to end, and tells it how far it is."""

    def __init__(self, parent: Connection, callers: Sequence[_Caller]) -> None:
        self.stopped = False
        self._end = math.inf
        self._parent = parent
        self._callers = callers
        self._look = self._tell = time.perf_counter()

    def due(self, now: float) -> None:
        """Looks, unless it did a moment ago."""
        self.stopped = now >= self._end
        if now < self._look:
            return
        self._look = now + _LOOK_SECONDS
        if self._parent.poll(0):
            self._end = self._parent.recv()
            for caller in self._callers:
                caller.stop_at(self._end)
        if now >= self._tell:
            self._tell = now + _PROGRESS_SECONDS
            tallies = [caller.tally for caller in self._callers]
            answers, failures = sum(tally.answers for tally in tallies), sum(tally.failures for tally in tallies)
            self._parent.send(("progress", answers, failures))


def _sleep_until(time_: float, listener: _Listener) -> None:
    """Returns at a time of ``time.perf_counter``, at once if it has passed, or when the run is to end."""
    while True:
        now = time.perf_counter()
        listener.due(now)
        if listener.stopped or now >= time_:
            return
        time.sleep(min(time_ - now, _LOOK_SECONDS))
