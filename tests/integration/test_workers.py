"""Several worker processes on one port."""

import os
import signal
import subprocess
import time
from pathlib import Path

from shortlist_client import Client, ShortlistError
from tests.running import server_process, shortlist


def workers_of(process: subprocess.Popen[str]) -> set[int]:
    """The pids of a server's worker processes."""
    listed = subprocess.run(
        ["ps", "--ppid", str(process.pid), "-o", "pid="], capture_output=True, text=True, check=False
    )
    return {int(pid) for pid in listed.stdout.split()}


def test_workers_share_a_port_are_replaced_when_they_die_and_stop_together(small_models: Path) -> None:
    with server_process(small_models, "--workers", "2") as (process, address):
        workers = workers_of(process)
        assert len(workers) == 2
        for _ in range(8):  # each connection goes to either
            with Client(address, timeout_seconds=10) as client:
                assert len(client.recommend("u0").items) == 10
        for options in (["--workers", "2"], []):
            port = address.rpartition(":")[2]
            second = shortlist("serve", "--models-dir", str(small_models), "--port", port, *options)
            assert second.returncode == 1
            assert "cannot listen on" in second.stderr

        dead = min(workers)
        os.kill(dead, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while len(workers_of(process) - {dead}) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        now = workers_of(process)
        assert dead not in now
        assert len(now) == 2
        answered = 0
        while answered < 8 and time.monotonic() < deadline:
            with Client(address, timeout_seconds=10) as client:
                try:
                    answered += len(client.recommend("u0").items) == 10
                except ShortlistError:  # dealt to the dead one, or to the new one before it has its model
                    time.sleep(0.2)
        assert answered == 8
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in now)
