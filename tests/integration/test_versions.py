"""Versions are read, swapped, kept and refused while requests are answered."""

import errno
import gc
import json
import logging
import os
import shutil
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from shortlist_client import ModelNotFound, ModelState
from shortlist_server.app import ServerApp
from shortlist_server.errors import unreadable
from shortlist_server.model import shelf
from shortlist_server.model.folder import LoadedModel, load_model
from shortlist_server.model.shelf import Shelf
from tests.running import HeldSearch
from tests.scraping import patiently
from tests.versions import answering, change_manifest, held_reading, publish_one, served, states


def test_a_new_version_answers_soon_and_those_before_it_are_kept_as_told(models_dir: Path, lane: str) -> None:
    with served(models_dir, lane, keep=1) as (_, client):
        assert answering(client) == 1
        before = client.recommend("u0").items
        for version in (2, 3):
            assert publish_one(models_dir, seed=version) == version
            patiently(lambda version=version: answering(client) == version)  # type: ignore[misc]
        assert states(client) == {3: ModelState.READY, 2: ModelState.READY, 1: ModelState.AVAILABLE}
        assert client.recommend("u0", model_version=2).model_version == 2
        with pytest.raises(ModelNotFound, match="version 1 is not loaded; loaded: 2, 3"):
            client.recommend("u0", model_version=1)
        assert client.recommend("u0", model_version=2).items != before
    with served(models_dir, lane, keep=0) as (_, client):
        time.sleep(0.2)
        assert states(client) == {3: ModelState.READY, 2: ModelState.AVAILABLE, 1: ModelState.AVAILABLE}


def test_a_request_under_way_finishes_on_the_version_it_began_with_which_is_freed_afterwards(
    models_dir: Path, slow_search: HeldSearch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    gc.collect()  # what other tests have left, which would be freed, and logged, in the middle
    caplog.clear()
    gc.disable()  # a model must be freed by its last request, not some time later
    with served(models_dir, keep=0, lane="plain") as (_, client):
        answers: list[int] = []
        asking = threading.Thread(target=lambda: answers.append(answering(client)))
        asking.start()
        assert slow_search.begun.wait(10)
        publish_one(models_dir, seed=2)
        patiently(lambda: "version 2 answers now in place of 1" in caplog.text)
        time.sleep(0.1)
        assert "version 1 is freed" not in caplog.text
        slow_search.let_go()
        asking.join()
        assert answers == [1]
        patiently(lambda: "version 1 is freed" in caplog.text)
        assert answering(client) == 2
    gc.enable()


def test_a_bad_version_is_refused_with_its_reason_and_tried_again_only_when_it_changes(
    models_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish_one(models_dir, seed=2)
    shutil.move(models_dir / "2", tmp_path / "good")
    shutil.copytree(tmp_path / "good", tmp_path / "bad")
    (tmp_path / "bad" / "items.faiss").write_bytes(b"not an index")
    with served(models_dir) as (_, client):
        shutil.move(tmp_path / "bad", models_dir / "2")
        patiently(lambda: states(client)[2] is ModelState.FAILED)
        time.sleep(0.2)  # ten looks at the folder
        assert caplog.text.count("version 2 in") == 1
        assert client.list_models()[0].state_reason.startswith("items.faiss has 12 bytes")
        assert answering(client) == 1
        shutil.copy(tmp_path / "good" / "items.faiss", models_dir / "2" / "items.faiss")
        patiently(lambda: answering(client) == 2)


def test_a_models_folder_that_is_gone_or_no_folder_is_told_once_and_what_answers_goes_on(
    models_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def told(reason: str) -> int:
        lines = [line.getMessage() for line in caplog.records]
        return sum("cannot be listed" in line and reason in line for line in lines)

    away = models_dir.with_name("away")
    with served(models_dir) as (_, client):
        client.set_label("stable", 1)
        for seed, (reason, spoil) in enumerate({"No such file": False, "Not a directory": True}.items()):
            models_dir.rename(away)
            if spoil:
                models_dir.touch()  # by when a look may have found no folder
            patiently(lambda reason=reason: told(reason) == 1)  # type: ignore[misc]
            time.sleep(0.2)  # ten looks
            assert told(reason) == 1
            assert client.recommend("u0", model_label="stable").model_version == 1
            models_dir.unlink(missing_ok=True)
            away.rename(models_dir)
            number = publish_one(models_dir, seed=seed)
            patiently(lambda number=number: answering(client) == number)  # type: ignore[misc]
        assert client.recommend("u0", model_label="stable").model_version == 1


def test_what_cannot_be_looked_at_hides_no_version(models_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("loop", "7"):
        (models_dir / name).symlink_to(name)
    with served(models_dir) as (_, client):
        assert answering(client) == 1
        number = publish_one(models_dir, seed=2)
        patiently(lambda: answering(client) == number)
        (models_dir / "1" / "notes").symlink_to("nowhere")  # which the manifest does not list
        client.load_model(1)
        assert states(client)[1] is ModelState.READY
    assert "cannot be l" not in caplog.text  # listed, looked at


@pytest.mark.parametrize("name", ["manifest.json", "items.faiss"])
def test_a_pipe_in_place_of_a_file_is_refused_and_nothing_waits_for_it(models_dir: Path, name: str) -> None:
    publish_one(models_dir, seed=2)
    (models_dir / "2" / name).unlink()
    os.mkfifo(models_dir / "2" / name)
    with served(models_dir) as (_, client):
        patiently(lambda: states(client)[2] is ModelState.FAILED)
        assert client.list_models()[0].state_reason == f"{name} cannot be read: it is no file"
        assert answering(client) == 1
        publish_one(models_dir, seed=3)
        patiently(lambda: answering(client) == 3)


def test_the_only_good_version_goes_on_answering_when_its_folder_is_taken_away_or_spoilt(models_dir: Path) -> None:
    with served(models_dir) as (_, client):
        (models_dir / "1" / "manifest.json").write_text("{}")
        patiently(lambda: "manifest.json" in client.list_models()[0].state_reason)
        assert answering(client) == 1
        shutil.rmtree(models_dir)
        time.sleep(0.2)
        assert answering(client) == 1


def test_a_version_that_is_taken_away_gives_way_to_the_one_before(models_dir: Path) -> None:
    publish_one(models_dir, seed=2)
    with served(models_dir, keep=0) as (_, client):
        assert answering(client) == 2
        shutil.rmtree(models_dir / "2")
        patiently(lambda: answering(client) == 1)


def test_a_version_published_after_the_one_that_answers_was_taken_away_takes_over(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (2, 3):
        publish_one(models_dir, seed=number)
    for number in (2, 3):
        shutil.move(models_dir / str(number), tmp_path / str(number))
    with served(models_dir) as (_, client):
        for before, number in ((1, 2), (2, 3)):
            shutil.rmtree(models_dir / str(before))
            time.sleep(0.1)  # five looks
            with held_reading(monkeypatch, number) as begun:
                shutil.move(tmp_path / str(number), models_dir / str(number))
                assert begun.wait(10)
                assert answering(client) == before
            patiently(lambda number=number: states(client) == {number: ModelState.READY})  # type: ignore[misc]
            assert answering(client) == number


def test_a_version_published_again_under_its_number_is_loaded_again(models_dir: Path) -> None:
    with served(models_dir) as (_, client):
        before = client.recommend("u0").items
        shutil.rmtree(models_dir / "1")
        publish_one(models_dir, seed=9)
        patiently(lambda: client.recommend("u0").items != before)


def test_a_folder_that_is_being_written_keeps_nobody_from_another_version(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_one(models_dir, seed=2)
    publish_one(models_dir, seed=3)
    load, tries = load_model, []

    def load_or_write(folder: Path, *arguments: Any) -> LoadedModel:
        if folder.name == "3":
            tries.append(time.monotonic())
            os.utime(folder / "seen.safetensors")
        return load(folder, *arguments)

    monkeypatch.setattr(shelf, "load_model", load_or_write)
    with served(models_dir, keep=0) as (_, client):
        time.sleep(2)
        assert answering(client) == 2
        (models_dir / "store.json").write_text(json.dumps({"labels": {"canary": 1}}))
        patiently(lambda: "canary" in client.list_models()[2].labels and states(client)[1] is ModelState.READY)
        assert 2 <= len(tries) < 10
        monkeypatch.undo()
        patiently(lambda: answering(client) == 3)


def test_a_version_whose_files_are_written_under_it_gives_way_to_another_but_goes_on_where_there_is_none(
    models_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish_one(models_dir, seed=2)

    def spoil(number: int) -> bytes:
        file = models_dir / str(number) / "item_embeddings.safetensors"
        content = file.read_bytes()
        with file.open("r+b") as opened:
            opened.seek(-8, os.SEEK_END)
            opened.write(bytes(8))
        return content

    with served(models_dir) as (_, client):
        patiently(lambda: set(states(client).values()) == {ModelState.READY})
        client.set_label("stable", 2)
        whole = spoil(2)
        patiently(lambda: answering(client) == 1 and states(client)[2] is ModelState.FAILED)
        with pytest.raises(ModelNotFound, match="version 2, which bears the label 'stable', is not loaded"):
            client.recommend("u0", model_label="stable")
        assert "files of version 2 were written while it answered" in caplog.text
        spoil(1)
        patiently(lambda: "files of version 1 were written while it answered" in caplog.text)
        time.sleep(0.2)  # ten looks
        assert answering(client) == 1
        (models_dir / "2" / "item_embeddings.safetensors").write_bytes(whole)
        patiently(lambda: answering(client) == 2)


def test_files_that_no_manifest_lists_may_change_in_a_folder_that_answers(
    models_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with served(models_dir) as (_, client):
        for line in range(10):
            with (models_dir / "1" / "notes.log").open("a") as notes:
                notes.write(f"{line}\n")
            time.sleep(0.05)
        assert answering(client) == 1
        assert caplog.text.count("version 1 is ready") == 1
        (models_dir / "1" / "seen.safetensors").touch()
        patiently(lambda: caplog.text.count("version 1 is ready") == 2)


def test_a_folder_that_is_written_in_place_is_refused_once_for_each_reason(
    models_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = models_dir / ".good"
    publish_one(models_dir, seed=2)
    (models_dir / "2").rename(good)
    with served(models_dir) as (_, client):
        (models_dir / "2").mkdir()
        for file in sorted(good.iterdir(), key=lambda file: file.name == "manifest.json"):
            shutil.copy(file, models_dir / "2")
            time.sleep(0.1)  # five looks
        patiently(lambda: answering(client) == 2)
    assert caplog.text.count("version 2 in") == 1


def test_no_version_is_read_twice_however_many_ask_for_it(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []

    def slow(path: Path, *others: Any) -> LoadedModel:
        reads.append(path.name)
        time.sleep(0.3)
        return load_model(path, *others)

    monkeypatch.setattr("shortlist_server.model.shelf.load_model", slow)
    with served(models_dir) as (_, client):
        publish_one(models_dir, seed=2)
        asking = [threading.Thread(target=client.load_model, args=(2,)) for _ in range(4)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join(20)
        patiently(lambda: answering(client) == 2)
        time.sleep(0.2)
    assert sorted(reads) == ["1", "2"]


def test_a_newer_version_that_is_always_on_its_way_keeps_nobody_from_one_that_is_ready(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(models_dir) as (_, client), held_reading(monkeypatch, 3) as third:
        with held_reading(monkeypatch, 2) as second:
            publish_one(models_dir, seed=2)
            assert second.wait(10)
            publish_one(models_dir, seed=3)
            assert answering(client) == 1
        patiently(lambda: answering(client) == 2)
        assert third.wait(10)
        assert answering(client) == 2


def test_a_version_whose_files_could_not_be_read_for_a_while_is_tried_again(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shortlist_server.model.shelf._RETRY_SECONDS", 0.2)
    tries: list[int] = []

    def out_of_files_at_first(path: Path, *others: Any) -> LoadedModel:
        if path.name == "2":
            tries.append(1)
            if len(tries) == 1:
                raise unreadable("items.faiss", OSError(errno.EMFILE, "Too many open files"))
        return load_model(path, *others)

    monkeypatch.setattr("shortlist_server.model.shelf.load_model", out_of_files_at_first)
    with served(models_dir) as (_, client):
        publish_one(models_dir, seed=2)
        patiently(lambda: answering(client) == 2)
        assert len(tries) == 2
        assert states(client)[2] is ModelState.READY


def test_a_reading_that_fails_as_nobody_foresaw_is_tried_again_at_the_next_look_and_not_without_a_pause(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read = Shelf.read
    tries: list[float] = []

    def failing(self: Shelf, number: int) -> bool:
        tries.append(time.monotonic())
        if number == 2 and len(tries) < 6:
            raise RuntimeError("unforeseen")
        return read(self, number)

    with served(models_dir, look_seconds=0.2) as (_, client):
        monkeypatch.setattr(Shelf, "read", failing)
        publish_one(models_dir, seed=2)
        patiently(lambda: bool(tries))
        assert answering(client) == 1
        patiently(lambda: answering(client) == 2)
    assert caplog.text.count("version 2 could not be read") == 5
    assert min(later - before for before, later in pairwise(tries)) > 0.1


def test_a_version_is_read_later_where_no_thread_can_be_started_for_it_now(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start = threading.Thread.start
    refusals: list[str] = []

    def sometimes(thread: threading.Thread) -> None:
        if thread.name == "models" and len(refusals) < 3:
            refusals.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    with served(models_dir) as (_, client):
        monkeypatch.setattr(threading.Thread, "start", sometimes)
        publish_one(models_dir, seed=2)
        patiently(lambda: answering(client) == 2)
    assert caplog.text.count("version 2 cannot be read now: can't start new thread") == 3


def test_who_looks_again_because_a_version_was_read_reads_the_next_without_a_pause(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = ServerApp._read

    def lingering(self: ServerApp, version: int) -> None:
        read(self, version)
        time.sleep(0.2)  # after whoever looks was woken

    monkeypatch.setattr(ServerApp, "_read", lingering)
    change_manifest(models_dir / str(publish_one(models_dir, seed=2)), item_count=1)
    began = time.monotonic()
    with served(models_dir, look_seconds=20.0) as (_, client):
        assert answering(client) == 1
        assert time.monotonic() - began < 10
