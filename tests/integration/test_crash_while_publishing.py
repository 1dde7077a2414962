"""kill -9 in the middle of publishing, at every system call that changes the disk: the store always loads."""

import itertools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess as Process
from pathlib import Path

import numpy as np
import pytest

from shortlist_server.model.folder import load_model
from shortlist_server.model.store import ModelStore
from shortlist_trainer.export.publish import versions
from tests.small_world import publish_embeddings, random_dataset, random_embeddings


def publish_one(models_dir: Path) -> None:
    rng = np.random.default_rng(3)
    publish_embeddings(models_dir, random_dataset(8, 20, 4, rng), random_embeddings(8, 20, 4, rng))


def publish_for_ever(models_dir: Path) -> None:
    """Publishes one version after the other."""
    while True:
        publish_one(models_dir)


def publish_until_killed(models_dir: Path, kill_at: int) -> None:
    """Publishes a version in this process, which kills itself at the given audited system call.

    Python announces each open, mkdir, rename, rmdir, chmod, … under the models folder before it happens. What FAISS,
    safetensors and Arrow write comes without an announcement, between two that are.
    """
    calls = itertools.count(1)

    def count(event: str, arguments: tuple[object, ...]) -> None:
        path = next((one for one in arguments if isinstance(one, str | os.PathLike)), None)
        concerns_store = path is not None and str(path).startswith(str(models_dir))
        if concerns_store and next(calls) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    publish_one(models_dir)


@pytest.fixture(scope="module")
def start() -> Callable[..., Process]:
    """Starts a function in a process of its own, forked from one that has loaded the libraries already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.small_world"])

    def start(function: Callable[..., None], *arguments: object) -> Process:
        process = context.Process(target=function, args=arguments)
        process.start()
        return process

    return start


def check_store(models_dir: Path) -> int:
    """Loads every version of a store; returns how many there are."""
    found = versions(models_dir)
    for version in found:
        load_model(models_dir / str(version), "cpu")  # raises when a version is not complete
    store = ModelStore(models_dir, "cpu")
    assert store.refresh()
    assert store.default().version == max(found)
    return len(found)


def test_a_publisher_killed_at_any_call_leaves_the_store_whole(tmp_path: Path, start: Callable[..., Process]) -> None:
    models_dir = tmp_path / "models"
    publish_one(models_dir)
    for kill_at in itertools.count(1):
        before = check_store(models_dir)
        publisher = start(publish_until_killed, models_dir, kill_at)
        publisher.join(60)
        after = check_store(models_dir)
        if publisher.exitcode == 0:
            break
        assert publisher.exitcode == -signal.SIGKILL
        assert after in (before, before + 1)
    assert after == before + 1
    assert kill_at > 20  # so many calls were met by a kill before one publisher got through
    # The last publisher, which was not killed, has removed what the others left.
    assert [path.name for path in models_dir.iterdir() if path.name.startswith(".publishing")] == []


def test_a_publisher_killed_at_any_moment_leaves_the_store_whole(
    tmp_path: Path, start: Callable[..., Process], rng: np.random.Generator
) -> None:
    models_dir = tmp_path / "models"
    publish_one(models_dir)
    for seconds in rng.uniform(0, 0.15, 40):
        publisher = start(publish_for_ever, models_dir)
        time.sleep(seconds)
        publisher.kill()
        publisher.join(60)
        check_store(models_dir)
    publish_one(models_dir)
    check_store(models_dir)
