"""A server process that is told to stop."""

import contextlib
import json
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shortlist_client import Client, Recommendations
from tests.reliability.processes import alive, children
from tests.running import SHORTLIST, HeldSearch, server_process, serving

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_process_stops_in_order_when_it_is_told_to(small_models: Path, number: signal.Signals) -> None:
    with server_process(small_models) as (process, address):
        with Client(address, timeout_seconds=10) as client:
            assert len(client.recommend("u0").items) == 10
        process.send_signal(number)
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_no_call_under_load_fails_while_the_server_drains(small_models: Path) -> None:
    """Clients that watch health and leave when it turns lose nothing: calls are answered for the whole drain time."""
    with server_process(small_models, "--drain-seconds", "1") as (process, address):
        errors: list[Exception] = []
        answered = [0]

        def ask() -> None:
            with grpc.insecure_channel(address) as channel, Client(address, timeout_seconds=10) as client:
                health = health_pb2_grpc.HealthStub(channel)
                try:
                    while health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == SERVING:
                        client.recommend("u0")
                        answered[0] += 1
                except Exception as error:  # noqa: BLE001 - whatever it is, the test reports it
                    errors.append(error)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        process.terminate()
        for thread in threads:
            thread.join(20)
        assert process.wait(20) == 0
        assert errors == []
        assert answered[0] > 20


def test_a_call_under_way_finishes_after_health_has_turned(
    small_models: Path, lane: str, slow_search: HeldSearch
) -> None:
    answers: list[Recommendations] = []
    states: list[int] = []
    with serving(small_models, lane) as app, Client(app.address, timeout_seconds=20) as client:
        call = threading.Thread(target=lambda: answers.append(client.recommend("u0")))
        call.start()
        slow_search.begun.wait(20)
        with grpc.insecure_channel(app.address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            states.append(next(watch).status)
            stop = threading.Thread(target=app.stop)
            stop.start()
            states.append(next(watch).status)  # before the call under way has finished
            time.sleep(0.5)  # long enough for a server that does not wait to have cut the call off
            assert stop.is_alive()
            assert answers == []
            slow_search.let_go()
            begun_to_wait = time.monotonic()
            call.join(20)
            stop.join(20)
            # A watcher of health does not hold the server for the whole grace time.
            assert time.monotonic() - begun_to_wait < 5
    assert states == [SERVING, NOT_SERVING]
    assert len(answers[0].items) == 10


def test_a_call_that_takes_longer_than_the_grace_time_is_cut_off(
    small_models: Path, lane: str, slow_search: HeldSearch
) -> None:
    with serving(small_models, lane, grace_seconds=0.3) as app, Client(app.address, timeout_seconds=20) as client:
        failed: list[Exception] = []

        def ask() -> None:
            try:
                client.recommend("u0")
            except Exception as error:  # noqa: BLE001 - whatever it is, the test looks at it
                failed.append(error)

        call = threading.Thread(target=ask)
        call.start()
        slow_search.begun.wait(20)
        started = time.monotonic()
        stop = threading.Thread(target=app.stop)
        stop.start()
        call.join(20)
        assert time.monotonic() - started < 5
        assert failed
        slow_search.let_go()
        stop.join(20)


def slow_to_read(models_dir: Path, small_models: Path) -> Path:
    """A version with a file whose checksum takes a minute, and hardly any disk; returns the file."""
    folder = Path(shutil.copytree(small_models, models_dir)) / "1"
    file = folder / "zeros"
    with file.open("wb") as zeros:
        zeros.truncate(60 << 30)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["manifest_sha256"]
    manifest["files"].insert(0, {"name": "zeros", "size_bytes": str(60 << 30), "sha256": "0" * 64})
    (folder / "manifest.json").write_text(json.dumps(manifest) + "\n")
    return file


def reads(pid: int, file: Path) -> bool:
    """Whether a process has a file open."""
    with contextlib.suppress(FileNotFoundError):
        return any(link.resolve() == file for link in Path(f"/proc/{pid}/fd").iterdir())
    return False


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_that_is_still_reading_its_first_version_stops_within_seconds(
    small_models: Path, tmp_path: Path, workers: int
) -> None:
    file = slow_to_read(tmp_path / "models", small_models)
    command = [*SHORTLIST, "serve", "--models-dir", str(tmp_path / "models"), "--port", "0", "--workers", str(workers)]
    with subprocess.Popen([*command, "--drain-seconds", "30"], stdout=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 60
            while not any(reads(pid, file) for pid in (process.pid, *children(process.pid))):
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.05)
            family = children(process.pid)
            assert len(family) == (workers if workers > 1 else 0)
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
            assert process.stdout is not None
            assert process.stdout.read() == ""
            assert not any(map(alive, family))
        finally:
            process.kill()


def test_a_server_that_was_stood_still_stops_when_it_is_told_to(small_models: Path, lane: str) -> None:
    """Linux may give a signal to any thread then, and Python acts on it in the main one alone."""
    for _ in range(3):
        with server_process(small_models, "--lane", lane) as (process, _):
            time.sleep(0.5)  # by which all threads wait
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.5)
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
