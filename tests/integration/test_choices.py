"""What operators choose: labels, and versions to load or to leave alone, while requests are answered."""

import errno
import fcntl
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from shortlist_client import FailedPrecondition, InvalidArgument, ModelNotFound, ModelState
from shortlist_server.model import shelf
from shortlist_server.model.folder import LoadedModel, load_model
from tests.scraping import patiently
from tests.versions import answering, held_reading, publish_one, served, states


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
        patiently(lambda: states(client) == {3: ModelState.AVAILABLE, 2: ModelState.READY, 1: ModelState.READY})
        client.unload_model(1)
        with pytest.raises(FailedPrecondition, match="is the only one that can answer"):
            client.unload_model(2)
        (models_dir / "1" / "items.faiss").unlink()
        with pytest.raises(FailedPrecondition, match=r"version 1 cannot be loaded: items\.faiss is missing"):
            client.load_model(1)
        assert publish_one(models_dir, seed=4) == 4
        patiently(lambda: answering(client) == 4)


def test_unloading_brings_one_back_that_is_not_loaded_and_changes_nothing_where_there_is_none(models_dir: Path) -> None:
    publish_one(models_dir, seed=2)
    with served(models_dir, keep=0) as (_, client):
        assert states(client) == {2: ModelState.READY, 1: ModelState.AVAILABLE}
        client.unload_model(2)
        assert states(client) == {2: ModelState.AVAILABLE, 1: ModelState.READY}
        assert answering(client) == 1
        publish_one(models_dir, seed=3)
        patiently(lambda: answering(client) == 3)
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


def test_operators_choose_among_what_is_loaded_when_every_folder_is_gone(models_dir: Path) -> None:
    publish_one(models_dir, seed=2)
    with served(models_dir) as (app, client):
        client.set_label("stable", 2)
        patiently(lambda: set(states(client).values()) == {ModelState.READY})
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


def test_a_folder_that_cannot_be_listed_for_a_while_frees_no_version_though_a_default_label_is_in_force(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(folder: Path) -> list[int]:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(folder))

    for seed in (2, 3, 4):
        publish_one(models_dir, seed)
    with served(models_dir, default_label="stable") as (_, client):
        client.set_label("stable", 2)
        client.load_model(1)
        patiently(lambda: set(states(client).values()) == {ModelState.READY})
        with monkeypatch.context() as broken:
            broken.setattr("shortlist_server.model.store.numbers_in", fails)
            patiently(lambda: "cannot be listed" in caplog.text)
            time.sleep(0.2)  # ten looks
            assert states(client) == dict.fromkeys((4, 3, 2, 1), ModelState.READY)
            assert answering(client) == 2
            client.set_label("stable", 3)
            assert answering(client) == 3
            assert client.unload_model(4).state is ModelState.AVAILABLE


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
        patiently(lambda: states(client)[3] is ModelState.READY)
        (models_dir / "1" / "items.faiss").unlink()
        (models_dir / "store.json").write_text('{"labels": {"stable": 1}}')
        patiently(lambda: states(client)[1] is ModelState.FAILED)
        assert answering(client) == 2  # and not the newest, for which nobody has vouched
        shutil.rmtree(models_dir / "2")
        patiently(lambda: answering(client) == 3)


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
            patiently(lambda: states(client)[3] is ModelState.LOADING)
            began = time.monotonic()
            client.set_label("stable", 2)
            assert answering(client) == 2
            client.set_label("canary", 1)
            assert client.recommend("u0", model_label="canary").model_version == 1
            client.set_label("canary", None)
            assert client.load_model(1).state is ModelState.READY
            assert client.unload_model(1).state is ModelState.AVAILABLE
            (models_dir / "store.json").write_text('{"labels": {"stable": 2, "next": 2}}')  # another server's doing
            patiently(lambda: "next" in client.get_model(model_version=2).model.labels)
            assert time.monotonic() - began < 5
            assert states(client)[3] is ModelState.LOADING
        patiently(lambda: states(client)[3] is ModelState.READY)


def test_going_back_by_hand_does_not_wait_for_the_next_version(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_one(models_dir, seed=2)
    with served(models_dir, keep=1) as (_, client):
        patiently(lambda: set(states(client).values()) == {ModelState.READY})
        with held_reading(monkeypatch, 3) as begun:
            publish_one(models_dir, seed=3)
            assert begun.wait(10)
            assert client.unload_model(2).state is ModelState.AVAILABLE
            assert answering(client) == 1
        patiently(lambda: answering(client) == 3)


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
        patiently(lambda: client.recommend("u0", model_label="stable").model_version == 1)


def test_damaged_choices_are_not_overwritten(models_dir: Path) -> None:
    publish_one(models_dir, seed=2)
    with served(models_dir) as (_, client):
        (models_dir / "store.json").write_text('{"labels": {"stable": 1,}}')
        with pytest.raises(FailedPrecondition, match=r"^store\.json is damaged: "):
            client.set_label("next", 2)
        assert (models_dir / "store.json").read_text() == '{"labels": {"stable": 1,}}'


def test_a_number_that_a_label_or_a_choice_remembers_is_not_given_again(models_dir: Path) -> None:
    with served(models_dir) as (_, client):
        publish_one(models_dir, seed=2)
        patiently(lambda: answering(client) == 2)
        client.set_label("canary", 2)
        shutil.rmtree(models_dir / "2")
        patiently(lambda: answering(client) == 1)
        assert publish_one(models_dir, seed=3) == 3
        patiently(lambda: answering(client) == 3)


def test_a_lock_that_somebody_holds_holds_up_neither_versions_nor_the_end(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shortlist_server.model.choices._LOCK_SECONDS", 0.5)
    publish_one(models_dir, seed=2)
    with (models_dir / ".store.lock").open("w") as lock, served(models_dir, keep=1) as (_, client):
        patiently(lambda: set(states(client).values()) == {ModelState.READY})
        fcntl.flock(lock, fcntl.LOCK_EX)
        held = r"another process has held \.store\.lock for 0\.5 s"
        with pytest.raises(FailedPrecondition, match=held):
            client.set_label("stable", 1)
        with pytest.raises(FailedPrecondition, match=held):
            client.unload_model(1)
        publish_one(models_dir, seed=3)
        patiently(lambda: answering(client) == 3)
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
        patiently(lambda: "store.json cannot be read" in caplog.text)
        shutil.move(tmp_path / "2", models_dir / "2")
        patiently(lambda: answering(client) == 2)
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
            patiently(lambda: "store.json cannot be read" in caplog.text)
            caplog.clear()
            assert client.recommend("u0", model_label="stable").model_version == 1
        (models_dir / "store.json").write_text(json.dumps({"labels": {"stable": 2}}))
        patiently(lambda: client.recommend("u0", model_label="stable").model_version == 2)
