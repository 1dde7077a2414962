"""Versions are swapped, labelled, kept and compared while requests are answered."""

import errno
import fcntl
import gc
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shortlist_client import Client, FailedPrecondition, InvalidArgument, ModelNotFound, ModelState
from shortlist_server.app import ServerApp
from shortlist_server.errors import unreadable
from shortlist_server.model import shelf
from shortlist_server.model.folder import LoadedModel, load_model
from shortlist_server.service import shadow as shadow_module
from shortlist_server.service.shadow import Shadow
from shortlist_server.telemetry.config import TelemetryConfig
from tests.running import HeldSearch, serving, shortlist
from tests.scraping import Scrape, scrape_until
from tests.small_world import publish_embeddings, random_dataset, random_embeddings

ITEMS = 120
USERS = [f"u{user}" for user in range(40)]


def publish_one(models_dir: Path, seed: int = 0) -> int:
    """Publishes a version whose answers depend on the seed; returns its number."""
    rng = np.random.default_rng(seed)
    dataset = random_dataset(users=len(USERS), items=ITEMS, per_user=10, rng=np.random.default_rng(0))
    folder = publish_embeddings(models_dir, dataset, random_embeddings(len(USERS), ITEMS, 8, rng))
    return int(folder.name)


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Waits for a condition to hold."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def served(models_dir: Path, lane: str = "auto", **config: object) -> Iterator[tuple[ServerApp, Client]]:
    with (
        serving(models_dir, lane, look_seconds=0.02, admin=True, **config) as app,
        Client(app.address, timeout_seconds=20) as client,
    ):
        yield app, client


def answering(client: Client, user: str = "u0") -> int:
    return client.recommend(user).model_version


def states(client: Client) -> dict[int, ModelState]:
    return {model.version: model.state for model in client.list_models()}


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    """A models folder with version 1."""
    publish_one(tmp_path / "models", seed=1)
    return tmp_path / "models"


def test_a_new_version_answers_soon_and_those_before_it_are_kept_as_told(models_dir: Path, lane: str) -> None:
    with served(models_dir, lane, keep=1) as (_, client):
        assert answering(client) == 1
        before = client.recommend("u0").items
        for version in (2, 3):
            assert publish_one(models_dir, seed=version) == version
            wait_until(lambda version=version: answering(client) == version)  # type: ignore[misc]
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
        wait_until(lambda: "version 2 answers now in place of 1" in caplog.text)
        time.sleep(0.1)
        assert "version 1 is freed" not in caplog.text
        slow_search.let_go()
        asking.join()
        assert answers == [1]
        wait_until(lambda: "version 1 is freed" in caplog.text)
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
        wait_until(lambda: states(client)[2] is ModelState.FAILED)
        time.sleep(0.2)  # ten looks at the folder
        assert caplog.text.count("version 2 in") == 1
        assert client.list_models()[0].state_reason.startswith("items.faiss has 12 bytes")
        assert answering(client) == 1
        shutil.copy(tmp_path / "good" / "items.faiss", models_dir / "2" / "items.faiss")
        wait_until(lambda: answering(client) == 2)


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
            wait_until(lambda reason=reason: told(reason) == 1)  # type: ignore[misc]
            time.sleep(0.2)  # ten looks
            assert told(reason) == 1
            assert client.recommend("u0", model_label="stable").model_version == 1
            models_dir.unlink(missing_ok=True)
            away.rename(models_dir)
            number = publish_one(models_dir, seed=seed)
            wait_until(lambda number=number: answering(client) == number)  # type: ignore[misc]
        assert client.recommend("u0", model_label="stable").model_version == 1


def test_what_cannot_be_looked_at_hides_no_version(models_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("loop", "7"):
        (models_dir / name).symlink_to(name)
    with served(models_dir) as (_, client):
        assert answering(client) == 1
        number = publish_one(models_dir, seed=2)
        wait_until(lambda: answering(client) == number)
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
        wait_until(lambda: states(client)[2] is ModelState.FAILED)
        assert client.list_models()[0].state_reason == f"{name} cannot be read: it is no file"
        assert answering(client) == 1
        publish_one(models_dir, seed=3)
        wait_until(lambda: answering(client) == 3)


def test_the_only_good_version_goes_on_answering_when_its_folder_is_taken_away_or_spoilt(models_dir: Path) -> None:
    with served(models_dir) as (_, client):
        (models_dir / "1" / "manifest.json").write_text("{}")
        wait_until(lambda: "manifest.json" in client.list_models()[0].state_reason)
        assert answering(client) == 1
        shutil.rmtree(models_dir)
        time.sleep(0.2)
        assert answering(client) == 1


def test_a_version_that_is_taken_away_gives_way_to_the_one_before(models_dir: Path) -> None:
    publish_one(models_dir, seed=2)
    with served(models_dir, keep=0) as (_, client):
        assert answering(client) == 2
        shutil.rmtree(models_dir / "2")
        wait_until(lambda: answering(client) == 1)


def test_a_version_published_again_under_its_number_is_loaded_again(models_dir: Path) -> None:
    with served(models_dir) as (_, client):
        before = client.recommend("u0").items
        shutil.rmtree(models_dir / "1")
        publish_one(models_dir, seed=9)
        wait_until(lambda: client.recommend("u0").items != before)


def test_labels_are_set_moved_taken_away_and_outlive_the_server(models_dir: Path) -> None:
    publish_one(models_dir, seed=2)
    publish_one(models_dir, seed=3)
    with served(models_dir, keep=0) as (_, client):
        labelled = client.set_label("stable", 1)
        assert labelled is not None
        assert (labelled.version, labelled.state, list(labelled.labels)) == (1, ModelState.READY, ["stable"])
        assert client.recommend("u0", model_label="stable").model_version == 1
        assert client.get_model(model_label="stable").model.version == 1
        with pytest.raises(ModelNotFound, match="no version bears the label 'canary'"):
            client.recommend("u0", model_label="canary")
        with pytest.raises(ModelNotFound, match="there is no version 7"):
            client.set_label("stable", 7)
        with pytest.raises(FailedPrecondition, match="bears the label stable"):
            client.unload_model(1)
        with pytest.raises(InvalidArgument, match="label: must be 1 to 63 of a-z"):
            client.set_label("../etc", 1)
    with served(models_dir, keep=0, default_label="stable") as (_, client):
        assert answering(client) == 1
        client.set_label("stable", 2)
        assert answering(client) == 2
        assert states(client)[1] is ModelState.AVAILABLE
        assert client.set_label("stable", None) is None
        assert answering(client) == 3


def test_versions_are_loaded_and_unloaded_by_hand_and_stay_so(models_dir: Path) -> None:
    for seed in (2, 3):
        publish_one(models_dir, seed)
    with served(models_dir, keep=0) as (_, client):
        assert client.load_model(1).state is ModelState.READY
        assert states(client) == {3: ModelState.READY, 2: ModelState.AVAILABLE, 1: ModelState.READY}
        assert client.unload_model(3).state is ModelState.AVAILABLE  # going back by hand
        assert answering(client) == 2
        with pytest.raises(ModelNotFound, match="there is no version 9"):
            client.load_model(9)
        with pytest.raises(InvalidArgument, match="version: must be a positive number"):
            client.load_model(0)
    with served(models_dir, keep=0) as (_, client):
        wait_until(lambda: states(client) == {3: ModelState.AVAILABLE, 2: ModelState.READY, 1: ModelState.READY})
        client.unload_model(1)
        with pytest.raises(FailedPrecondition, match="is the only one that can answer"):
            client.unload_model(2)
        (models_dir / "1" / "items.faiss").unlink()
        with pytest.raises(FailedPrecondition, match=r"version 1 cannot be loaded: items\.faiss is missing"):
            client.load_model(1)
        assert publish_one(models_dir, seed=4) == 4
        wait_until(lambda: answering(client) == 4)


def test_unloading_brings_one_back_that_is_not_loaded_and_changes_nothing_where_there_is_none(models_dir: Path) -> None:
    publish_one(models_dir, seed=2)
    with served(models_dir, keep=0) as (_, client):
        assert states(client) == {2: ModelState.READY, 1: ModelState.AVAILABLE}
        client.unload_model(2)
        assert states(client) == {2: ModelState.AVAILABLE, 1: ModelState.READY}
        assert answering(client) == 1
        publish_one(models_dir, seed=3)
        wait_until(lambda: answering(client) == 3)
        (models_dir / "1" / "items.faiss").write_bytes(b"spoilt")
        with pytest.raises(FailedPrecondition, match="is the only one that can answer"):
            client.unload_model(3)
        assert answering(client) == 3
        assert json.loads((models_dir / "store.json").read_text())["unloaded"] == [2]


def test_unloading_does_not_wait_for_a_folder_that_somebody_is_always_writing(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_one(models_dir, seed=2)
    with served(models_dir, keep=0) as (_, client):
        load = load_model

        def written_meanwhile(folder: Path, *arguments: Any) -> LoadedModel:
            os.utime(folder / "seen.safetensors")
            return load(folder, *arguments)

        monkeypatch.setattr(shelf, "load_model", written_meanwhile)
        with pytest.raises(FailedPrecondition, match="is the only one that can answer"):
            client.unload_model(2)
        assert answering(client) == 2
        assert json.loads((models_dir / "store.json").read_text())["unloaded"] == []
        monkeypatch.undo()
        time.sleep(1)  # whoever writes a folder is given time
        client.unload_model(2)
        assert answering(client) == 1


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
        wait_until(lambda: "canary" in client.list_models()[2].labels and states(client)[1] is ModelState.READY)
        assert 2 <= len(tries) < 10
        monkeypatch.undo()
        wait_until(lambda: answering(client) == 3)


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
        wait_until(lambda: set(states(client).values()) == {ModelState.READY})
        client.set_label("stable", 2)
        whole = spoil(2)
        wait_until(lambda: answering(client) == 1 and states(client)[2] is ModelState.FAILED)
        with pytest.raises(ModelNotFound, match="version 2, which bears the label 'stable', is not loaded"):
            client.recommend("u0", model_label="stable")
        assert "files of version 2 were written while it answered" in caplog.text
        spoil(1)
        wait_until(lambda: "files of version 1 were written while it answered" in caplog.text)
        time.sleep(0.2)  # ten looks
        assert answering(client) == 1
        (models_dir / "2" / "item_embeddings.safetensors").write_bytes(whole)
        wait_until(lambda: answering(client) == 2)


def test_operators_choose_among_what_is_loaded_when_every_folder_is_gone(models_dir: Path) -> None:
    publish_one(models_dir, seed=2)
    with served(models_dir) as (app, client):
        client.set_label("stable", 2)
        wait_until(lambda: set(states(client).values()) == {ModelState.READY})
        with app._store._looking:  # no look finds one of them alone
            for number in ("1", "2"):
                shutil.rmtree(models_dir / number)
        time.sleep(0.2)  # ten looks
        labelled = client.set_label("stable", 1)
        assert labelled is not None
        assert list(labelled.labels) == ["stable"]
        assert client.recommend("u0", model_label="stable").model_version == 1
        client.set_label("stable", None)
        with pytest.raises(ModelNotFound):
            client.recommend("u0", model_label="stable")
        assert answering(client) == 2
        client.unload_model(2)
        assert answering(client) == 1
        assert [*states(client)] == [1]
        with pytest.raises(FailedPrecondition, match="is the only one that can answer"):
            client.unload_model(1)
        assert answering(client) == 1


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
        wait_until(lambda: caplog.text.count("version 1 is ready") == 2)


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
        wait_until(lambda: answering(client) == 2)
    assert caplog.text.count("version 2 in") == 1


def test_the_version_that_bears_the_default_label_is_loaded_first_and_no_other_takes_its_place(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (2, 3):
        publish_one(models_dir, seed)
    (models_dir / "store.json").write_text('{"labels": {"stable": 2}}')
    loaded: list[str] = []

    def told(path: Path, *others: Any) -> LoadedModel:
        loaded.append(path.name)
        return load_model(path, *others)

    monkeypatch.setattr("shortlist_server.model.shelf.load_model", told)
    with served(models_dir, default_label="stable") as (_, client):
        assert loaded[0] == "2"
        assert answering(client) == 2
        wait_until(lambda: states(client)[3] is ModelState.READY)
        (models_dir / "1" / "items.faiss").unlink()
        (models_dir / "store.json").write_text('{"labels": {"stable": 1}}')
        wait_until(lambda: states(client)[1] is ModelState.FAILED)
        assert answering(client) == 2  # and not the newest, for which nobody has vouched
        shutil.rmtree(models_dir / "2")
        wait_until(lambda: answering(client) == 3)


@contextmanager
def held_reading(monkeypatch: pytest.MonkeyPatch, version: int) -> Iterator[threading.Event]:
    """Reading this version begins, as the event tells, and ends only after the block."""
    begun, go = threading.Event(), threading.Event()
    load: Callable[..., LoadedModel] = vars(shelf)["load_model"]

    def held(path: Path, *others: Any) -> LoadedModel:
        if path.name == str(version):
            begun.set()
            assert go.wait(20)
        return load(path, *others)

    monkeypatch.setattr(shelf, "load_model", held)
    try:
        yield begun
    finally:
        go.set()


def test_labels_move_and_versions_are_taken_back_at_once_while_another_is_being_read(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_one(models_dir, seed=2)
    with served(models_dir, keep=2, default_label="stable") as (_, client):
        client.set_label("stable", 1)
        client.load_model(2)
        with held_reading(monkeypatch, 3) as begun:
            publish_one(models_dir, seed=3)
            assert begun.wait(10)
            wait_until(lambda: states(client)[3] is ModelState.LOADING)
            began = time.monotonic()
            client.set_label("stable", 2)
            assert answering(client) == 2
            client.set_label("canary", 1)
            assert client.recommend("u0", model_label="canary").model_version == 1
            client.set_label("canary", None)
            assert client.load_model(1).state is ModelState.READY
            assert client.unload_model(1).state is ModelState.AVAILABLE
            (models_dir / "store.json").write_text('{"labels": {"stable": 2, "next": 2}}')  # another server's doing
            wait_until(lambda: "next" in client.get_model(model_version=2).model.labels, seconds=5)
            assert time.monotonic() - began < 5
            assert states(client)[3] is ModelState.LOADING
        wait_until(lambda: states(client)[3] is ModelState.READY)


def test_going_back_by_hand_does_not_wait_for_the_next_version(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_one(models_dir, seed=2)
    with served(models_dir, keep=1) as (_, client):
        wait_until(lambda: set(states(client).values()) == {ModelState.READY})
        with held_reading(monkeypatch, 3) as begun:
            publish_one(models_dir, seed=3)
            assert begun.wait(10)
            assert client.unload_model(2).state is ModelState.AVAILABLE
            assert answering(client) == 1
        wait_until(lambda: answering(client) == 3)


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
        wait_until(lambda: answering(client) == 2)
        time.sleep(0.2)
    assert sorted(reads) == ["1", "2"]


def test_a_label_that_moves_to_a_version_yet_to_be_read_stays_where_it_was_until_then(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_one(models_dir, seed=2)
    publish_one(models_dir, seed=3)
    with served(models_dir, keep=0) as (_, client):
        client.set_label("stable", 2)
        with held_reading(monkeypatch, 1) as begun:
            (models_dir / "store.json").write_text('{"labels": {"stable": 1}}')  # by another worker
            assert begun.wait(10)
            assert client.recommend("u0", model_label="stable").model_version == 2
        wait_until(lambda: client.recommend("u0", model_label="stable").model_version == 1)


def test_a_newer_version_that_is_always_on_its_way_keeps_nobody_from_one_that_is_ready(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(models_dir) as (_, client), held_reading(monkeypatch, 3) as third:
        with held_reading(monkeypatch, 2) as second:
            publish_one(models_dir, seed=2)
            assert second.wait(10)
            publish_one(models_dir, seed=3)
            assert answering(client) == 1
        wait_until(lambda: answering(client) == 2)
        assert third.wait(10)
        assert answering(client) == 2


def test_damaged_choices_are_not_overwritten(models_dir: Path) -> None:
    publish_one(models_dir, seed=2)
    with served(models_dir) as (_, client):
        (models_dir / "store.json").write_text('{"labels": {"stable": 1,}}')
        with pytest.raises(FailedPrecondition, match=r"store\.json is damaged"):
            client.set_label("next", 2)
        assert (models_dir / "store.json").read_text() == '{"labels": {"stable": 1,}}'


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
        wait_until(lambda: answering(client) == 2)
        assert len(tries) == 2
        assert states(client)[2] is ModelState.READY


def test_a_number_that_a_label_or_a_choice_remembers_is_not_given_again(models_dir: Path) -> None:
    with served(models_dir) as (_, client):
        publish_one(models_dir, seed=2)
        wait_until(lambda: answering(client) == 2)
        client.set_label("canary", 2)
        shutil.rmtree(models_dir / "2")
        wait_until(lambda: answering(client) == 1)
        assert publish_one(models_dir, seed=3) == 3
        wait_until(lambda: answering(client) == 3)


def test_a_lock_that_somebody_holds_holds_up_neither_versions_nor_the_end(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shortlist_server.model.choices._LOCK_SECONDS", 0.5)
    publish_one(models_dir, seed=2)
    with (models_dir / ".store.lock").open("w") as lock, served(models_dir, keep=1) as (_, client):
        wait_until(lambda: set(states(client).values()) == {ModelState.READY})
        fcntl.flock(lock, fcntl.LOCK_EX)
        held = r"another process has held \.store\.lock for 0\.5 s"
        with pytest.raises(FailedPrecondition, match=held):
            client.set_label("stable", 1)
        with pytest.raises(FailedPrecondition, match=held):
            client.unload_model(1)
        publish_one(models_dir, seed=3)
        wait_until(lambda: answering(client) == 3)
        fcntl.flock(lock, fcntl.LOCK_UN)
        client.set_label("stable", 2)
        assert client.recommend("u0", model_label="stable").model_version == 2


@pytest.mark.parametrize("damage", ["pipe", "nesting", "link"])
def test_choices_that_are_no_file_or_too_deep_are_told_of_once_and_stop_nothing(
    models_dir: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    publish_one(models_dir, seed=2)
    shutil.move(models_dir / "2", tmp_path / "2")
    with served(models_dir) as (_, client):
        client.set_label("stable", 1)
        if damage == "pipe":
            os.mkfifo(tmp_path / "damaged")
        elif damage == "link":
            (tmp_path / "damaged").symlink_to(tmp_path / "nowhere")
        else:
            (tmp_path / "damaged").write_text("[" * 100_000)
        (tmp_path / "damaged").rename(models_dir / "store.json")
        wait_until(lambda: "store.json cannot be read" in caplog.text)
        shutil.move(tmp_path / "2", models_dir / "2")
        wait_until(lambda: answering(client) == 2)
        assert client.recommend("u0", model_label="stable").model_version == 1
        with pytest.raises(FailedPrecondition):
            client.set_label("stable", 2)
    assert caplog.text.count("store.json cannot be read") == 1
    assert "Traceback" not in caplog.text


def test_choices_that_cannot_be_read_leave_the_last_ones_standing(
    models_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish_one(models_dir, seed=2)
    with served(models_dir) as (_, client):
        client.set_label("stable", 1)
        for content in (
            '{"labels": {"stable": "2"}}',
            '{"labels": {"A/B": 2}}',
            "[]",
            '{"loaded": 3}',
            '{"x": 1}',
            "{",
        ):
            (models_dir / "store.json").write_text(content)
            wait_until(lambda: "store.json cannot be read" in caplog.text)
            caplog.clear()
            assert client.recommend("u0", model_label="stable").model_version == 1
        (models_dir / "store.json").write_text(json.dumps({"labels": {"stable": 2}}))
        wait_until(lambda: client.recommend("u0", model_label="stable").model_version == 2)


def test_a_split_answers_its_share_of_the_users_and_always_the_same(models_dir: Path, lane: str) -> None:
    publish_one(models_dir, seed=2)
    splits = {"splits": ("canary=30",), "default_label": "stable"}
    with served(models_dir, lane, **splits) as (_, client):
        client.set_label("stable", 1)
        assert {answering(client, user) for user in USERS} == {1}  # nobody bears the label yet
        client.set_label("canary", 2)
        versions = {user: answering(client, user) for user in USERS}
        canaries = [user for user, version in versions.items() if version == 2]
        assert 4 <= len(canaries) <= 20
        batch = client.batch_recommend(USERS)
        assert [answer.model_version for answer in batch] == list(versions.values())  # type: ignore[union-attr]
        assert client.score(canaries[0], ["i0"]).model_version == 2
        assert client.get_cluster("user", member_id=canaries[0]).model_version == 2
        assert client.recommend(canaries[0], model_version=1).model_version == 1
        assert client.recommend(history=["i0"]).model_version == 1
        assert client.list_models().splits == {"canary": 30}
    with served(models_dir, lane, **splits) as (_, client):
        wait_until(lambda: states(client) == {1: ModelState.READY, 2: ModelState.READY})
        assert {user: answering(client, user) for user in USERS} == versions


def test_a_shadow_is_asked_the_same_and_compared(models_dir: Path) -> None:
    shutil.copytree(models_dir / "1", models_dir / "2")
    manifest = models_dir / "2" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": "1"', '"version": "2"'))
    publish_one(models_dir, seed=3)
    telemetry = TelemetryConfig(metrics_port=0)
    with served(models_dir, keep=2, default_label="stable", shadow="next", telemetry=telemetry) as (app, client):
        client.set_label("stable", 1)
        before = {"answer": 0.0, "shadow": 0.0}
        for version, lowest, highest in ((2, 1.0, 1.0), (3, 0.0, 0.6)):
            client.set_label("next", version)
            for user in USERS:
                assert answering(client, user) == 1

            def compared(version: int = version) -> bool:
                shadow = client.list_models().shadow
                return shadow is not None and shadow.version == version and shadow.compared_requests == len(USERS)

            wait_until(compared)
            shadow = client.list_models().shadow
            assert shadow is not None
            assert lowest <= shadow.mean_overlap <= highest
            assert shadow.mean_answer_micros > 0
            assert shadow.mean_shadow_micros > 0
            assert app.metrics_url is not None
            scrape = Scrape(app.metrics_url)
            overlaps = {
                part: scrape.value(f"shortlist_shadow_overlap_{part}", version=str(version))
                for part in ("count", "sum")
            }
            assert overlaps["count"] == len(USERS)
            assert overlaps["sum"] / len(USERS) == pytest.approx(shadow.mean_overlap)
            below = scrape.value("shortlist_shadow_overlap_bucket", version=str(version), le="0.99")
            assert below == 0 if version == 2 else below > 0
            took = {
                source: scrape.value("shortlist_shadow_duration_seconds_sum", source=source) - before[source]
                for source in before
            }
            before = {source: before[source] + took[source] for source in before}
            assert took["answer"] / len(USERS) * 1e6 == pytest.approx(shadow.mean_answer_micros, rel=0.01, abs=1)
            assert took["shadow"] / len(USERS) * 1e6 == pytest.approx(shadow.mean_shadow_micros, rel=0.01, abs=1)
            assert scrape.value("shortlist_shadow_skipped_total") == 0
        printed = shortlist("models", "list", "--server", client_target(client)).stdout
        assert "shadow next, version 3: 40 compared" in printed


def test_a_shadow_that_has_no_time_leaves_requests_out_and_says_how_many(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = HeldSearch()
    monkeypatch.setattr(Shadow, "_compare", held.around(Shadow._compare))
    monkeypatch.setattr(shadow_module, "_BATCHES_WAITING", 1)
    with served(models_dir, shadow="next", telemetry=TelemetryConfig(metrics_port=0)) as (app, client):
        answering(client, "u0")
        assert held.begun.wait(10)
        for _ in range(3):  # the first of them waits
            answering(client, "u0")
        assert app.metrics_url is not None
        scrape_until(app.metrics_url, lambda scrape: scrape.value("shortlist_shadow_skipped_total") == 2)
        held.let_go()


def client_target(client: Client) -> str:
    target: str = client._channel._channel.target().decode().rpartition("/")[2]  # type: ignore[attr-defined]
    return target


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"splits": ("canary",)}, "a split must be LABEL=PERCENT"),
        ({"splits": ("canary=0",)}, "a split must be LABEL=PERCENT"),
        ({"splits": ("canary=nan",)}, "a split must be LABEL=PERCENT"),
        ({"splits": ("a=60", "b=50")}, "more than 100"),
        ({"splits": ("a=6", "a=5")}, "one split only"),
        ({"splits": ("A=6",)}, "a label must be"),
        ({"shadow": "../x"}, "a label must be"),
        ({"keep": -1}, "keep must lie between"),
    ],
)
def test_bad_traffic_settings_are_refused_at_the_start(
    models_dir: Path, config: dict[str, object], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason), serving(models_dir, **config):  # type: ignore[arg-type]
        pass
