"""Servers whose standard streams lead nowhere serve all the same."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from shortlist_client import Client, ShortlistError
from tests.integration.test_metrics import free_port
from tests.reliability.processes import children
from tests.running import SHORTLIST


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    "redirections",
    ["", ">/dev/full", ">&-", "<&- >&- 2>&-"],
    ids=["nobody reads", "full", "output closed", "all closed"],
)
def test_a_server_serves_wherever_its_standard_streams_lead(
    small_models: Path, tmp_path: Path, workers: str, redirections: str
) -> None:
    port = str(free_port())
    options = ["--models-dir", str(small_models), "--port", port, "--workers", workers]
    command = ["sh", "-c", f'exec "$@" {redirections}', "sh", *SHORTLIST, "serve", *options]
    reads, writes = os.pipe()
    os.close(reads)
    log = tmp_path / "log"
    with log.open("w") as errors, subprocess.Popen(command, stdout=writes, stderr=errors) as process:
        os.close(writes)
        try:
            deadline = time.monotonic() + 60
            answered = 0
            while answered < 8:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                with Client(f"127.0.0.1:{port}", timeout_seconds=2) as client:
                    try:
                        answered += len(client.recommend("u0").items) == 10
                    except ShortlistError:  # nobody listens yet
                        time.sleep(0.2)
            processes = [process.pid, *children(process.pid)]
            standard = [str(Path(f"/proc/{pid}/fd/{number}").readlink()) for pid in processes for number in range(3)]
            assert not any("socket:" in target for target in standard), standard
            time.sleep(1)  # the last worker to be ready is answered for by the other
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0, log.read_text()
        finally:
            process.kill()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_answers_and_stops_though_whoever_reads_its_log_stands_still(small_models: Path, workers: str) -> None:
    port = str(free_port())
    options = ["--models-dir", str(small_models), "--port", port, "--workers", workers, "--access-log"]
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writes, bytes(4_096))
    os.set_blocking(writes, True)
    with subprocess.Popen([*SHORTLIST, "serve", *options], stdout=subprocess.DEVNULL, stderr=writes) as process:
        os.close(writes)
        try:
            deadline = time.monotonic() + 60
            answered = 0
            while answered < 20:
                assert process.poll() is None
                assert time.monotonic() < deadline
                with Client(f"127.0.0.1:{port}", timeout_seconds=5) as client:
                    try:
                        answered += len(client.recommend("u0").items) == 10
                    except ShortlistError:  # nobody listens yet
                        time.sleep(0.2)
            process.send_signal(signal.SIGTERM)
            assert process.wait(40) == 0
        finally:
            process.kill()
            os.close(reads)
