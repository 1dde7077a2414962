"""kill -9 of workers, servers and publishers at random moments: nothing is lost, and the next start serves."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess as Process
from pathlib import Path

import numpy as np
import pytest

from shortlist_client import Client, ShortlistError
from shortlist_server.model.folder import load_model
from shortlist_trainer.export.publish import versions
from tests.reliability.conftest import Size
from tests.reliability.load import Load
from tests.reliability.processes import alive, children, served, wait_until
from tests.reliability.worlds import USERS, digests, publish_for_ever, publish_kinds
from tests.running import SHORTLIST

USER_IDS = [f"u{number}" for number in range(30)]


@pytest.fixture
def models_dir(tmp_path: Path, small_models: Path) -> Path:
    """A models folder of the test's own."""
    return Path(shutil.copytree(small_models, tmp_path / "models"))


def answers(address: str, times: int = 1) -> bool:
    """Whether a server answers so many new connections in a row."""
    try:
        for _ in range(times):
            with Client(address, timeout_seconds=5) as client:
                assert len(client.recommend("u0").items) == 10
    except ShortlistError:
        return False
    return True


def test_workers_that_are_killed_are_replaced_and_end_with_their_supervisor(
    models_dir: Path, tmp_path: Path, rng: np.random.Generator, size: Size, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digests(models_dir / "1")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    with served(models_dir, tmp_path / "log", "--workers", "2", "--device", "auto", "--metrics-port", "0") as server:
        supervisor = server.process.pid
        with Load(server.address, USER_IDS, workers=2, timeout=2):
            for _ in range(size.of(1, 50)):
                time.sleep(rng.uniform(0, 1.5))
                killed = sorted(children(supervisor))
                if rng.random() < 0.3:  # else both, so that for a moment nobody serves
                    killed = killed[:1]
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)
                wait_until(
                    lambda killed=set(killed): len(children(supervisor) - killed) == 2,  # type: ignore[misc]
                    60,
                    "two workers run",
                )
                wait_until(lambda: answers(server.address, 6), 60, "workers answer")
        workers = children(supervisor)
        assert len([*temporary.glob("shortlist-*")]) == 3
        server.process.kill()
        server.process.wait()
        wait_until(lambda: not any(map(alive, workers)), 20, "workers ended with their supervisor")
        assert [*temporary.glob("shortlist-*")] == []
        assert "Traceback" not in server.log.read_text()
        with served(models_dir, tmp_path / "log", "--workers", "2", port=server.port) as again:
            assert answers(again.address)
            again.process.send_signal(signal.SIGTERM)
            assert again.process.wait(30) == 0
    assert digests(models_dir / "1") == before


def test_a_version_that_ends_whoever_reads_it_is_named_and_given_up_and_the_one_before_answers(
    models_dir: Path, tmp_path: Path
) -> None:
    """As where memory runs out: the kernel kills the process, which cannot say why."""
    shutil.copytree(models_dir / "1", tmp_path / "9")
    manifest = tmp_path / "9" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": "1"', '"version": "9"'))
    over = threading.Event()

    def kill_whoever_reads(supervisor: int) -> None:
        while not over.wait(0.002):
            for pid in children(supervisor):
                with contextlib.suppress(OSError):
                    if f"{models_dir}/9/" in Path(f"/proc/{pid}/maps").read_text():
                        os.kill(pid, signal.SIGKILL)

    with served(models_dir, tmp_path / "log", "--workers", "2") as server:
        killer = threading.Thread(target=kill_whoever_reads, args=(server.process.pid,))
        killer.start()
        try:
            (tmp_path / "9").rename(models_dir / "9")
            refused = r"version 9 in .* is refused: workers that have died while they read it: \d"
            wait_until(lambda: bool(re.search(refused, server.log.read_text())), 60, "version 9 is refused")
            wait_until(lambda: answers(server.address, 12), 60, "workers answer from version 1")
            assert "version 9 is being read" in server.log.read_text()
        finally:
            over.set()
            killer.join()
        wait_until(lambda: "version 9 answers now" in server.log.read_text(), 90, "version 9 is tried again")


def test_a_server_killed_at_any_moment_serves_at_its_next_start(
    models_dir: Path, tmp_path: Path, rng: np.random.Generator, size: Size
) -> None:
    before = digests(models_dir / "1")
    port = "0"
    for _ in range(size.of(1, 50)):
        with (
            served(models_dir, tmp_path / "log", port=port) as server,
            Load(server.address, USER_IDS, timeout=2) as load,
        ):
            port = server.port
            time.sleep(rng.uniform(0.05, 0.6))
            server.process.kill()
            server.process.wait()
        assert load.outcomes
        killed_while_it_starts(models_dir, port, rng.uniform(0, 4))
    with served(models_dir, tmp_path / "log", port=port) as server:
        assert answers(server.address)
    assert "Traceback" not in server.log.read_text()
    assert digests(models_dir / "1") == before
    assert {path.name for path in models_dir.iterdir()} <= {"1", ".publish.lock"}


def killed_while_it_starts(models_dir: Path, port: str, after_seconds: float) -> None:
    """Starts a server and kills it so soon that it may not have come to listening."""
    command = [*SHORTLIST, "serve", "--models-dir", str(models_dir), "--port", port]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        time.sleep(after_seconds)
        assert process.poll() is None  # the port was free
        process.kill()


def test_a_publisher_killed_at_any_moment_leaves_the_versions_that_were_there_as_they_were(
    tmp_path: Path, rng: np.random.Generator, size: Size, start: Callable[..., Process]
) -> None:
    models_dir = tmp_path / "models"
    publish_kinds(models_dir, "hnsw", "ivf")
    known = {1: digests(models_dir / "1")}
    for _ in range(size.of(6, 100)):
        publisher = start(publish_for_ever, models_dir)
        time.sleep(rng.uniform(0, 1))
        publisher.kill()
        publisher.join(60)
        for version in versions(models_dir):
            there = digests(models_dir / str(version))
            assert known.setdefault(version, there) == there
        assert known.keys() == set(versions(models_dir))
        for version in sorted(known)[:-2]:  # or there were hundreds
            shutil.rmtree(models_dir / str(version))
            del known[version]
        for version in known:
            assert len(load_model(models_dir / str(version), "cpu").recommender.user_ids) == USERS
    # No lock is stale, and the next publisher removes what the others left.
    publish_kinds(models_dir, "hnsw", "ivf")
    assert {path.name for path in models_dir.iterdir() if not path.name.isdecimal()} == {".publish.lock"}
    assert len(versions(models_dir)) == len(known) + 1
