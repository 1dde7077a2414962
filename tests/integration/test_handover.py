"""Real workers that read a version at different speeds, and answer from it together."""

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
import pytest

from shortlist.v1 import model_pb2
from shortlist.v1.common_pb2 import ModelSelector
from shortlist.v1.model_pb2_grpc import ModelServiceStub
from shortlist.v1.recommender_pb2 import RecommendRequest
from shortlist.v1.recommender_pb2_grpc import RecommenderServiceStub
from tests.running import server_process

STOPPED_SECONDS = 3.0

SOON_SECONDS = 0.3
"""Workers look twenty times a second while they wait for each other, and the machine may be busy."""


@dataclass
class Served:
    """A server of two workers.

    Attributes:
        models_dir: what it watches; a test publishes its versions there.
        address: where it listens.
    """

    models_dir: Path
    address: str

    def publish_again(self) -> int:
        """Publishes version 1 once more, by renaming it to where it is seen; returns its new number."""
        number = max(int(folder.name) for folder in self.models_dir.iterdir() if folder.name.isdecimal()) + 1
        aside = Path(shutil.copytree(self.models_dir / "1", self.models_dir / ".publishing"))
        manifest = aside / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"version": "1"', f'"version": "{number}"'))
        aside.rename(self.models_dir / str(number))
        return number


@contextmanager
def two_workers(folder: Path, small_models: Path, *options: str) -> Iterator[Served]:
    models_dir = Path(shutil.copytree(small_models, folder / "models"))
    with server_process(models_dir, "--workers", "2", *options) as (process, address):
        yield Served(models_dir, address)
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, small_models: Path) -> Iterator[Served]:
    """Two workers that wait for each other longer than any test takes."""
    options = ("--handover-seconds", "90", "--admin")
    with two_workers(tmp_path_factory.mktemp("patient"), small_models, *options) as server:
        yield server


class Connection:
    """A connection of its own, which goes to one of the workers; clients of one process would share theirs."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        self._recommender = RecommenderServiceStub(self.channel)
        self.models = ModelServiceStub(self.channel)

    def pid(self) -> int:
        """The worker's process."""
        return self.models.ListModels(model_pb2.ListModelsRequest(), timeout=20).status.pid

    def listed(self) -> dict[int, model_pb2.Model]:
        """The versions by number."""
        listed = self.models.ListModels(model_pb2.ListModelsRequest(), timeout=20).models
        return {model.version: model for model in listed}

    def answering(self, **selector: Any) -> int:
        """The version that answers the one named, or none."""
        request = RecommendRequest(user_id="u0", model=ModelSelector(**selector) if selector else None)
        return self._recommender.Recommend(request, timeout=20).model_version


class Clients:
    """A connection to each of two workers.

    Attributes:
        by_pid: the connections by the workers' processes.
        first_answers: by the same, when a worker answered from the version that is watched for.
    """

    def __init__(self, address: str) -> None:
        self.by_pid: dict[int, Connection] = {}
        self.first_answers: dict[int, float] = {}
        self._enough = threading.Event()
        self._threads: list[threading.Thread] = []
        deadline = time.monotonic() + 60
        while len(self.by_pid) < 2:
            assert time.monotonic() < deadline
            connection = Connection(address)
            with contextlib.suppress(grpc.RpcError):  # a worker has been started again, and does not answer yet
                if self.by_pid.setdefault(connection.pid(), connection) is not connection:
                    connection.channel.close()

    def watch_for(self, version: int) -> None:
        """Notes, from now on, when each worker answers from a version for the first time."""
        for pid in self.by_pid:
            self._threads.append(threading.Thread(target=self._watch, args=(pid, version), daemon=True))
            self._threads[-1].start()

    def _watch(self, pid: int, version: int) -> None:
        while not self._enough.is_set():
            with contextlib.suppress(grpc.RpcError):  # it is stopped, or dead
                if self.by_pid[pid].answering() == version:
                    self.first_answers[pid] = time.monotonic()
                    return
            time.sleep(0.01)

    def wait_for(self, count: int, seconds: float = 40) -> None:
        """Waits until so many workers have answered from the version that is watched for."""
        deadline = time.monotonic() + seconds
        while len(self.first_answers) < count:
            assert time.monotonic() < deadline, self.first_answers
            time.sleep(0.02)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        for pid in self.by_pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        for thread in self._threads:
            thread.join(30)
        for connection in self.by_pid.values():
            connection.channel.close()


def test_a_worker_that_reads_slowly_is_waited_for_and_all_begin_within_a_second(served: Served) -> None:
    with Clients(served.address) as clients:
        quick, slow = clients.by_pid
        before = clients.by_pid[quick].answering()
        os.kill(slow, signal.SIGSTOP)
        published = time.monotonic()
        version = served.publish_again()
        clients.watch_for(version)
        time.sleep(STOPPED_SECONDS)
        assert clients.by_pid[quick].answering() == before
        reason = clients.by_pid[quick].listed()[version].state_reason
        assert reason == "read and warmed; answers once the other workers have it"
        os.kill(slow, signal.SIGCONT)
        clients.wait_for(2)
        first, last = sorted(clients.first_answers.values())
        assert first - published > STOPPED_SECONDS
        assert last - first < 1


def test_a_worker_that_dies_meanwhile_is_waited_for_no_longer_and_starts_with_what_the_other_answers(
    served: Served,
) -> None:
    with Clients(served.address) as clients:
        _, dies = clients.by_pid
        os.kill(dies, signal.SIGSTOP)
        version = served.publish_again()
        clients.watch_for(version)
        time.sleep(1.5)
        assert clients.first_answers == {}
        os.kill(dies, signal.SIGKILL)
        clients.wait_for(1, seconds=20)
    with Clients(served.address) as clients:
        assert dies not in clients.by_pid
        assert {one.answering() for one in clients.by_pid.values()} == {version}


def test_what_is_loaded_or_labelled_by_hand_answers_on_every_worker_as_soon_as_that_is_said(served: Served) -> None:
    with Clients(served.address) as clients:
        one, other = clients.by_pid.values()
        while one.listed()[1].state != model_pb2.MODEL_STATE_AVAILABLE:
            clients.first_answers.clear()
            clients.watch_for(served.publish_again())
            clients.wait_for(2)
            time.sleep(0.2)
        one.models.LoadModel(model_pb2.LoadModelRequest(version=1), timeout=20)
        time.sleep(SOON_SECONDS)
        assert {one.answering(version=1), other.answering(version=1)} == {1}
        other.models.SetLabel(model_pb2.SetLabelRequest(label="stable", version=2), timeout=20)
        time.sleep(SOON_SECONDS)
        assert {one.answering(version=2), other.answering(version=2)} == {2}


def test_a_worker_that_never_gets_ready_holds_the_others_up_for_as_long_as_they_are_told_to_wait(
    tmp_path: Path, small_models: Path
) -> None:
    with (
        two_workers(tmp_path, small_models, "--handover-seconds", "2") as served,
        Clients(served.address) as clients,
    ):
        quick, hung = clients.by_pid
        os.kill(hung, signal.SIGSTOP)
        published = time.monotonic()
        clients.watch_for(served.publish_again())
        clients.wait_for(1)
        assert clients.first_answers.keys() == {quick}
        assert 2 < clients.first_answers[quick] - published < 10
        os.kill(hung, signal.SIGCONT)  # it follows as soon as it has read the version
        clients.wait_for(2)
