"""Log lines are written by a thread of their own, whatever whoever logs is doing."""

import io
import logging
import os
import re
import subprocess
import sys
import threading

import pytest

from shortlist_server.telemetry import logs
from shortlist_server.telemetry.logs import AsideHandler

_LOGS_WHEN_FREED = """
import faulthandler, gc, logging, sys, weakref
from shortlist_server.telemetry import logs
from shortlist_server.telemetry.logs import AsideHandler, finish_log

faulthandler.dump_traceback_later(50, exit=True)  # who waits for whom
logs._LINES_KEPT, logs._LAST_LINES_SECONDS = int(sys.argv[1]), 50
sys.setswitchinterval(1e-6)

class Freed:
    pass

logging.basicConfig(level=logging.INFO, handlers=[AsideHandler(sys.stdout)])
log = logging.getLogger("test")
finalizers = []
gc.set_threshold(1)  # so that the collector runs in the midst of everything
for number in range(30_000):
    freed = Freed()
    freed.itself = freed
    finalizers.append(weakref.finalize(freed, log.info, "%d is freed", number))
    del freed
    log.info("line %d", number)
gc.set_threshold(700)
while any(finalizer.alive for finalizer in finalizers):
    gc.collect()  # nothing, where the other thread collects already
finish_log()
"""


@pytest.mark.parametrize("kept", [100, logs._LINES_KEPT])  # lines are left out as well, or rarely
def test_what_is_logged_while_the_collector_frees_something_holds_nobody_up(kept: int) -> None:
    run = subprocess.run(
        [sys.executable, "-c", _LOGS_WHEN_FREED, str(kept)], check=False, capture_output=True, text=True, timeout=60
    )
    assert run.stderr == ""
    left_out = [int(count) for count in re.findall(r":(\d+) lines were left out", run.stdout)]
    told = re.findall(r"^INFO:test:(?:line \d+|\d+ is freed)$", run.stdout, re.MULTILINE)
    assert len(told) + sum(left_out) == 60_000
    assert len(told) >= kept
    assert run.returncode == 0


_TRACING_SAYS = """
import logging
from shortlist_server.telemetry.logs import finish_log, log_to_stderr

log_to_stderr()
logging.getLogger("opentelemetry.trace.span").warning("Invalid pair %s", "\\n2026 INFO all is well\\x1b[31m")
for name in ("opentelemetry.trace.span", "opentelemetry.exporter", "shortlist_server.app"):
    for number in range(100):
        logging.getLogger(name).warning("100%% of %s: %d", name, number)
finish_log()
"""


def test_what_opentelemetry_says_is_escaped_and_bounded_by_logger_and_nothing_else_is() -> None:
    run = subprocess.run([sys.executable, "-c", _TRACING_SAYS], capture_output=True, text=True, check=True, timeout=60)
    told = run.stderr.splitlines()
    assert told[0].endswith(r"WARNING 'Invalid pair \n2026 INFO all is well\x1b[31m'")
    counts = [
        sum(f"100% of {name}: " in line for line in told)
        for name in ("opentelemetry.trace.span", "shortlist_server.app")
    ]
    exporter = sum("100% of opentelemetry.exporter: " in line for line in told)
    assert 9 <= counts[0] <= 30  # the clock may turn meanwhile
    assert 10 <= exporter <= 30
    assert counts[1] == 100


def test_lines_that_nobody_takes_are_counted_and_hold_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_LINES_KEPT", 10)
    monkeypatch.setattr(logs, "_LAST_LINES_SECONDS", 0.1)
    begun, go_on = threading.Event(), threading.Event()

    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            begun.set()
            assert go_on.wait(10)
            return super().write(text)

    stream = Stuck()
    handler = AsideHandler(stream)
    logger = logging.Logger("test")
    logger.addHandler(handler)
    logger.warning("line %d", 0)
    assert begun.wait(10)
    for number in range(1, 16):
        logger.warning("line %d", number)
    handler.finish()  # a moment, and no longer
    go_on.set()
    monkeypatch.setattr(logs, "_LAST_LINES_SECONDS", 10)
    handler.finish()
    lines = stream.getvalue().splitlines()
    assert lines[:11] == [f"line {number}" for number in range(11)]
    assert lines[11:] == ["5 lines were left out, as nobody took those before them"]


def test_a_reader_that_is_gone_stops_nothing() -> None:
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "w") as stream:
        handler = AsideHandler(stream)
        logger = logging.Logger("test")
        logger.addHandler(handler)
        for _ in range(3):
            logger.warning("a line")
        handler.finish()
        assert handler._lines.empty()  # whoever writes goes on
        stream.close = lambda: None  # type: ignore[method-assign] # what is left in it goes nowhere
