"""Several worker processes on one port."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent import futures
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

from shortlist_client import Client, ShortlistError
from shortlist_server import workers as workers_module
from shortlist_server.app import ServerApp
from shortlist_server.config import ServerConfig
from shortlist_server.heartbeat import BEAT_SECONDS, Heartbeat
from shortlist_server.model import shelf
from shortlist_server.retrieval.item_index import ItemIndex
from shortlist_server.workers import Workers
from tests.running import HeldSearch, server_process, shortlist
from tests.scraping import patiently


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


def test_a_worker_that_hangs_is_replaced(small_models: Path) -> None:
    with server_process(small_models, "--workers", "2", "--hung-seconds", "4") as (process, address):
        workers = workers_of(process)
        hung = min(workers)
        os.kill(hung, signal.SIGSTOP)
        deadline = time.monotonic() + 90
        while (hung in workers_of(process) or len(workers_of(process)) < 2) and time.monotonic() < deadline:
            time.sleep(0.1)
        now = workers_of(process)
        assert hung not in now
        assert workers - {hung} < now, "the one that answers was replaced as well"
        answered = 0
        while answered < 8 and time.monotonic() < deadline:
            with Client(address, timeout_seconds=10) as client:
                try:
                    answered += len(client.recommend("u0").items) == 10
                except ShortlistError:  # dealt to the one that hung, and cut off with it
                    time.sleep(0.2)
        assert answered == 8
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stderr is not None
        logged = process.stderr.read()
        assert f"worker {hung} has answered no calls for 4 s and is ended" in logged
        assert f"worker {hung} did not end by itself and is killed" in logged


_HANGS_WHEN_TOLD = """
import os, sys, time
from pathlib import Path
from shortlist_client.main import main
from shortlist_server.model import shelf
from shortlist_server.retrieval.item_index import ItemIndex

search, told = ItemIndex.search, Path(os.environ["HANG_WHEN"])

def hang(self, searches):
    if told.exists():
        time.sleep(600)
    return search(self, searches)

ItemIndex.search = hang
sys.exit(main())
"""


@pytest.mark.parametrize(("hung_seconds", "ends"), [("3", True), ("0", False)])
def test_a_process_without_workers_ends_when_its_calls_hang_and_says_where(
    small_models: Path, tmp_path: Path, hung_seconds: str, *, ends: bool
) -> None:
    told = tmp_path / "told"
    arguments = ["serve", "--models-dir", str(small_models), "--port", "0", "--hung-seconds", hung_seconds]
    with subprocess.Popen(
        [sys.executable, "-c", _HANGS_WHEN_TOLD, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HANG_WHEN": str(told)},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            with Client(process.stdout.readline().split()[-1], timeout_seconds=4) as client:
                process.send_signal(signal.SIGSTOP)
                time.sleep(5)  # stopped, and not hanging
                process.send_signal(signal.SIGCONT)
                assert len(client.recommend("u0").items) == 10
                told.touch()
                with pytest.raises(ShortlistError):
                    client.recommend("u0")
            if ends:
                assert process.wait(30) == 1
                logged = process.stderr.read()
                assert "no calls have been answered for 3 s" in logged
                assert "in hang" in logged
            else:
                time.sleep(2)
                assert process.poll() is None
        finally:
            process.kill()


def test_a_process_that_hangs_ends_though_nobody_reads_what_it_says(small_models: Path, tmp_path: Path) -> None:
    told = tmp_path / "told"
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writes, bytes(65_536))
    os.set_blocking(writes, True)
    command = [sys.executable, "-c", _HANGS_WHEN_TOLD, "serve", "--models-dir", str(small_models), "--port", "0"]
    with subprocess.Popen(
        [*command, "--hung-seconds", "3"],
        stdout=subprocess.PIPE,
        stderr=writes,
        text=True,
        env={**os.environ, "HANG_WHEN": str(told)},
    ) as process:
        try:
            assert process.stdout is not None
            with Client(process.stdout.readline().split()[-1], timeout_seconds=4) as client:
                told.touch()
                with pytest.raises(ShortlistError):
                    client.recommend("u0")
            assert process.wait(30) == -signal.SIGALRM
        finally:
            process.kill()
            os.close(reads)
            os.close(writes)


@pytest.mark.parametrize("lane", ["fast", "plain"])
def test_who_answers_calls_says_that_it_does(small_models: Path, lane: str) -> None:
    beats: list[str] = []
    config = ServerConfig(models_dir=small_models, port=0, device="cpu", lane=lane)
    app = ServerApp(config, lambda: beats.append(threading.current_thread().name))
    app.start()
    try:
        patiently(lambda: len(beats) >= 2)
        assert all(name.startswith("fast-lane" if lane == "fast" else "rpc") for name in beats)
    finally:
        app.stop()


def test_a_server_that_ends_slowly_is_not_taken_for_one_that_hangs(
    small_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models_dir = tmp_path / "models"
    shutil.copytree(small_models, models_dir)
    beats: list[float] = []
    app = ServerApp(
        ServerConfig(models_dir=models_dir, port=0, device="cpu", look_seconds=0.05),
        lambda: beats.append(time.monotonic()),
    )
    app.start()
    reading = threading.Event()

    def slow(*_: object) -> None:
        reading.set()
        time.sleep(4)
        raise MemoryError

    monkeypatch.setattr(shelf, "load_model", slow)
    (models_dir / "1" / "seen.safetensors").touch()
    assert reading.wait(10)
    app.stop()
    ended = [*beats, time.monotonic()]
    assert max(after - before for before, after in pairwise(ended)) < 2


def test_nobody_says_that_calls_are_answered_while_they_are_not(
    small_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = HeldSearch()
    monkeypatch.setattr(ItemIndex, "search", held.around(ItemIndex.search))
    beats: list[float] = []
    config = ServerConfig(models_dir=small_models, port=0, device="cpu", lane="fast")
    app = ServerApp(config, lambda: beats.append(time.monotonic()))
    app.start()
    try:
        with Client(app.address, timeout_seconds=20) as client, futures.ThreadPoolExecutor(1) as callers:
            answer = callers.submit(client.recommend, "u0")
            assert held.begun.wait(10)
            before = len(beats)
            time.sleep(0.5)  # more than two rounds
            assert len(beats) == before
            held.let_go()
            assert len(answer.result().items) == 10
            patiently(lambda: len(beats) > before)
    finally:
        app.stop()


def test_heartbeats_never_wait_for_whoever_reads_them() -> None:
    reads, writes = os.pipe()
    try:
        heart = Heartbeat(writes)
        heart.beat()
        assert os.read(reads, 9) == b"."
        with suppress(BlockingIOError):
            while True:
                os.write(writes, bytes(65_536))
        time.sleep(BEAT_SECONDS)
        heart.beat()  # the pipe is full, and this returns all the same
    finally:
        os.close(reads)
        os.close(writes)


def test_a_supervisor_ends_while_a_worker_is_not_ready_and_says_what_it_waits_for(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module, "_LOADING_SECONDS", 0.3)
    workers = Workers([sys.executable, "-c", "import time; time.sleep(60)"], 2, None, 30)
    with futures.ThreadPoolExecutor(1) as runs:
        ended = runs.submit(workers.run, "nowhere")
        time.sleep(1)
        workers.stop()
        assert ended.result(5) == 0
    assert "listening" not in capfd.readouterr().out
    assert "is not ready after 0 s" in caplog.text


def test_a_worker_that_is_killed_while_the_server_starts_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers_module, "_RESTART_SECONDS", 0.1)
    worker = (
        f"mkdir {tmp_path}/killed 2>/dev/null && kill -9 $$; echo listening on x; trap 'exit 0' TERM; sleep 60 & wait"
    )
    workers = Workers(["sh", "-c", worker], 2, None, 0)
    with futures.ThreadPoolExecutor(1) as runs:
        ended = runs.submit(workers.run, "everywhere")
        try:
            patiently(lambda: "listening on everywhere" in capfd.readouterr().out)
        finally:
            workers.stop()
        assert ended.result(20) == 0
    assert "ended with -9 and is started again" in caplog.text


def test_a_worker_that_cannot_be_started_again_for_a_while_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers_module, "_RESTART_SECONDS", 0.3)
    started = tmp_path / "started"
    started.mkdir()
    script = (
        "import os, pathlib, time; "
        f"pathlib.Path({str(started)!r}, str(os.getpid())).touch(); print('listening on', flush=True); time.sleep(60)"
    )
    workers = Workers([sys.executable, "-c", script], 2, None, 30)
    popen = subprocess.Popen

    def no_memory(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    def pids() -> set[int]:
        return {int(file.name) for file in started.iterdir()}

    with futures.ThreadPoolExecutor(1) as runs:
        ended = runs.submit(workers.run, "nowhere")
        patiently(lambda: len(pids()) == 2)
        first, other = sorted(pids())
        time.sleep(0.5)
        monkeypatch.setattr(subprocess, "Popen", no_memory)
        os.kill(first, signal.SIGKILL)
        patiently(lambda: "none can be started in its place yet: [Errno 12] Cannot allocate memory" in caplog.text)
        time.sleep(1)  # by when it has been tried again
        assert not ended.done()
        os.kill(other, 0)
        monkeypatch.setattr(subprocess, "Popen", popen)
        patiently(lambda: len(pids()) == 3)
        time.sleep(0.5)
        workers.stop()
        ended.result(10)
    assert caplog.text.count("none can be started") == 1
    assert caplog.text.count("is started again") == 1


def test_a_worker_that_does_not_end_is_killed_though_it_may_hang_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers_module, "_LATE_SECONDS", 0.5)
    stubborn = "trap '' TERM; echo listening on x; while :; do sleep 1; done"
    workers = Workers(["sh", "-c", stubborn], 1, None, hung_seconds=0, ending_seconds=0.5)
    with futures.ThreadPoolExecutor(1) as runs:
        ended = runs.submit(workers.run, "everywhere")
        patiently(lambda: any(worker.ready for worker in workers._workers))
        workers.stop()
        assert ended.result(20) == 1
    assert "was told to end and did not, so it is killed" in caplog.text


def test_a_supervisor_that_stood_still_itself_takes_nobody_for_hung(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = workers_module._Worker(["sh", "-c", "echo listening on x; sleep 60"], None)
    try:
        while not worker.ready:
            worker.look()
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 3_600)
        worker.look()
        assert worker.silent_seconds < 1
    finally:
        worker.process.kill()
        worker.process.wait()
        worker.close()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--workers", "0", "workers must lie between 1 and 1,024, not be 0"),
        ("--hung-seconds", "-1", "hung_seconds must be 0, for never, or lie between 3 and 86,400, not be -1.0"),
        ("--hung-seconds", "0.01", "hung_seconds must be 0, for never, or lie between 3 and 86,400, not be 0.01"),
    ],
)
def test_workers_out_of_range_are_refused(small_models: Path, option: str, value: str, message: str) -> None:
    refused = shortlist("serve", "--models-dir", str(small_models), "--port", "0", option, value)
    assert refused.returncode == 1
    assert refused.stderr == f"shortlist: {message}\n"


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(("option", "number"), [("--port", 65_536), ("--port", -1), ("--metrics-port", 73_616)])
def test_a_port_that_is_none_is_refused_with_workers_as_without(
    small_models: Path, workers: str, option: str, number: int
) -> None:
    asked = ("--workers", workers, "--port", "0", option, str(number))
    refused = shortlist("serve", "--models-dir", str(small_models), *asked)
    name = option[2:].replace("-", "_")
    assert refused.returncode == 1
    assert refused.stderr == f"shortlist: {name} must lie between 0 and 65,535, not be {number:,}\n"
