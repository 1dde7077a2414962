"""Workers of one server begin to answer from a version together."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shortlist_server.model.handover import Handover, Standing, latest_default
from shortlist_server.model.store import ModelStore
from shortlist_server.model.versions import appearance, mark

HERE = Handover()


def now(seconds_ago: float = 0.0) -> float:
    return time.monotonic() - seconds_ago


def ready(seconds_ago: float = 0.0, **others: object) -> Standing:
    """A worker that has had version "2-a" for so long."""
    return Standing({"1-a": now(100), "2-a": now(seconds_ago)}, default=1, pid=7, **others)  # type: ignore[arg-type]


LATE = Standing({"1-a": now(100)}, answering=["1-a"], default=1, pid=8)


@pytest.mark.parametrize(
    ("others", "may"),
    [
        (list, True),
        (lambda: [ready()], True),
        (lambda: [ready(), LATE], False),
        (lambda: [LATE], False),
        (lambda: [Standing({}, refused=["2-a"], default=1)], True),
        (lambda: [ready(answering=["2-a"]), LATE], True),
        (lambda: [ready(seconds_ago=25), LATE], False),
        (lambda: [ready(seconds_ago=31), LATE], True),  # by the first that had it, so that it ends for all at once
    ],
)
def test_a_version_answers_when_all_have_it_or_refuse_it_or_one_answers_or_patience_is_at_an_end(
    others: Callable[[], list[Standing]], may: bool
) -> None:
    assert HERE.may_answer("2-a", now(), others()) is may


def test_patience_at_an_end_is_logged_once_and_names_who_was_late(caplog: pytest.LogCaptureFixture) -> None:
    handover = Handover(None, patience_seconds=1)
    for _ in range(2):
        assert handover.may_answer("2-a", now(2), [LATE])
    assert caplog.text.count("version 2 answers without the workers 8, which have not read it 1 s after the first") == 1


def test_that_the_others_cannot_be_told_is_said_once_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    handover = Handover(tmp_path / "gone" / "workers")
    for times in (1, 2):
        for _ in range(3):
            handover.tell(ready(times))
        assert caplog.text.count("the other workers cannot be told") == times
        (tmp_path / "gone").mkdir()
        handover.tell(ready(times))
        assert (tmp_path / "gone" / "workers" / "7.json").is_file()
        shutil.rmtree(tmp_path / "gone")


def test_what_was_told_is_told_again_where_somebody_has_removed_it(tmp_path: Path) -> None:
    folder = tmp_path / "workers"
    handover, standing = Handover(folder), ready()
    for _ in range(2):
        handover.tell(standing)
        assert (folder / "7.json").is_file()
        assert folder.stat().st_mode & 0o777 == 0o700
        shutil.rmtree(folder)


def test_who_starts_joins_the_default_that_changed_last() -> None:
    assert latest_default([]) is None
    assert latest_default([Standing(default=4, since=10), Standing(default=3, since=20)]) == 3


@pytest.fixture
def neighbour() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives, whose number another worker could have."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_what_a_worker_tells_is_read_by_the_others_for_as_long_as_it_lives(
    tmp_path: Path, neighbour: subprocess.Popen[bytes]
) -> None:
    told = Standing({"2-a": 5.0}, ["3-b"], ["2-a"], 2, 7.0, neighbour.pid)
    Handover(tmp_path).tell(told)
    Handover(tmp_path).tell(Standing(default=1, pid=os.getpid()))  # one's own
    (tmp_path / "garbage.json").write_text("{}")
    (tmp_path / f"{os.getppid()}.json").write_text("[1]")
    assert Handover(tmp_path).others() == [told]
    neighbour.kill()
    neighbour.wait()
    assert Handover(tmp_path).others() == []
    assert not (tmp_path / f"{neighbour.pid}.json").exists()


def test_a_worker_that_starts_joins_the_others_and_takes_the_next_version_when_they_have_it(
    tmp_path: Path, small_models: Path, neighbour: subprocess.Popen[bytes]
) -> None:
    models_dir, workers = tmp_path / "models", tmp_path / "workers"
    workers.mkdir()
    for number in (1, 2):
        shutil.copytree(small_models / "1", models_dir / str(number))
    manifest = models_dir / "2" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": "1"', '"version": "2"'))
    marks = {number: mark(models_dir / number, appearance(models_dir / number)) for number in ("1", "2")}
    other = Handover(workers)
    other.tell(Standing({marks["1"]: now(50)}, answering=[marks["1"]], default=1, since=now(50), pid=neighbour.pid))
    store = ModelStore(models_dir, "cpu", handover=Handover(workers))
    assert store.look() == 1  # and not the newest
    assert store.refresh()
    assert store.default().version == 1
    assert store.hands_over
    assert store.version(2).reason == "read and warmed; answers once the other workers have it"
    mine = json.loads((workers / f"{os.getpid()}.json").read_text())
    assert (mine["default"], sorted(mine["ready"])) == (1, sorted(marks.values()))
    other.tell(Standing({marks["1"]: now(50), marks["2"]: now()}, answering=[marks["1"]], default=1, pid=neighbour.pid))
    assert store.look() is None
    assert store.default().version == 2
    assert not store.hands_over


def test_a_version_waits_for_the_others_where_the_folder_of_the_one_that_answers_is_gone(
    tmp_path: Path, small_models: Path, neighbour: subprocess.Popen[bytes]
) -> None:
    models_dir, workers = tmp_path / "models", tmp_path / "workers"
    workers.mkdir()
    shutil.copytree(small_models / "1", models_dir / "1")
    store = ModelStore(models_dir, "cpu", handover=Handover(workers))
    assert store.refresh()
    mark_1 = mark(models_dir / "1", appearance(models_dir / "1"))
    other = Handover(workers)
    other.tell(Standing({mark_1: now(50)}, answering=[mark_1], default=1, pid=neighbour.pid))
    shutil.copytree(models_dir / "1", tmp_path / "2")
    manifest = tmp_path / "2" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": "1"', '"version": "2"'))
    shutil.rmtree(models_dir / "1")
    (tmp_path / "2").rename(models_dir / "2")
    assert store.refresh()
    for _ in range(3):
        assert store.look() is None  # it is not read again and again
        assert (store.default().version, store.hands_over) == (1, True)
        assert store.version(2).reason == "read and warmed; answers once the other workers have it"
    mark_2 = mark(models_dir / "2", appearance(models_dir / "2"))
    other.tell(Standing({mark_1: now(50), mark_2: now()}, answering=[mark_1], default=1, pid=neighbour.pid))
    assert store.look() is None
    assert (store.default().version, store.hands_over) == (2, False)
    assert [version.number for version in store.versions()] == [2]
