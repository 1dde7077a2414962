"""Signals that ask a server to stop."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends signals")

_STOPPED_BY = """
import os, signal, threading, time
from shortlist_server.signals import on_stop_signals
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # it is ignored under nohup, and by whatever is started there
{before}
stop = threading.Event()
on_stop_signals(stop.set)
with stop._cond:  # as the code has it that sets the event, or waits for it, when a signal comes
    os.kill(os.getpid(), signal.{name})
    time.sleep(0.2)
print("stopped" if stop.wait({seconds}) else "goes on")
"""


def _run(name: str, seconds: float = 10, before: str = "") -> str:
    script = _STOPPED_BY.format(name=name, seconds=seconds, before=before)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    return run.stdout.strip() or f"{run.returncode}: {run.stderr}"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_stops_a_server_whatever_its_code_holds_at_that_moment(name: str) -> None:
    assert _run(name) == "stopped"


def test_an_interrupt_is_heard_in_the_background_as_well() -> None:
    assert _run("SIGINT", before="signal.signal(signal.SIGINT, signal.SIG_IGN)") == "stopped"


def test_who_is_to_outlive_a_terminal_does_not_hear_that_it_was_closed() -> None:
    assert _run("SIGHUP", 0.3, "signal.signal(signal.SIGHUP, signal.SIG_IGN)") == "goes on"
