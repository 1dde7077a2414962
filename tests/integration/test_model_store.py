"""Which versions of a models folder are served, and when they are read again."""

import io
import json
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from shortlist_server.model.folder import (
    ITEM_EMBEDDINGS,
    LoadedModel,
    load_model,
)
from shortlist_server.model.handover import Handover
from shortlist_server.model.plan import Policy
from shortlist_server.model.store import ModelStore
from shortlist_server.model.versions import State
from shortlist_server.telemetry.logs import AsideHandler
from tests.running import serving
from tests.versions import change_manifest


def test_a_folder_that_is_still_being_copied_is_served_once_it_is_whole(folder: Path) -> None:
    content = (folder / "user_ids.safetensors").read_bytes()
    (folder / "user_ids.safetensors").write_bytes(content[:100])
    store = ModelStore(folder.parent, "cpu")
    assert not store.refresh()
    assert not store.refresh()
    (folder / "user_ids.safetensors").write_bytes(content)
    assert store.refresh()


def test_a_bad_folder_is_read_again_only_when_it_has_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "items.faiss").write_bytes(b"bad")
    reads: list[Path] = []

    def counted(path: Path, *others: Any) -> LoadedModel:
        reads.append(path)
        return load_model(path, *others)

    monkeypatch.setattr("shortlist_server.model.shelf.load_model", counted)
    store = ModelStore(folder.parent, "cpu")
    for _ in range(3):
        assert not store.refresh()
    assert len(reads) == 1


class SlowStream(io.StringIO):
    """Takes a while for each line."""

    def write(self, text: str) -> int:
        time.sleep(0.2)
        return super().write(text)


def test_that_a_version_is_being_read_is_written_before_it_is(
    small_models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever reads it may die of it, as where memory runs out, and could not say it afterwards."""
    stream = SlowStream()
    written: list[str] = []

    def looked_at(*arguments: Any) -> LoadedModel:
        written.append(stream.getvalue())
        return load_model(*arguments)

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(logging.getLogger(), "handlers", [AsideHandler(stream)])
    monkeypatch.setattr("shortlist_server.model.shelf.load_model", looked_at)
    with serving(small_models):
        assert "version 1 is being read\n" in written[0]


def test_a_folder_that_fails_in_an_unforeseen_way_does_not_keep_others_from_serving(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, folder.parent / "2")
    change_manifest(folder.parent / "2", version="2")

    def fails_for_2(path: Path, *others: Any) -> LoadedModel:
        if path.name == "2":
            raise MemoryError("no room")
        return load_model(path, *others)

    monkeypatch.setattr("shortlist_server.model.shelf.load_model", fails_for_2)
    store = ModelStore(folder.parent, "cpu")
    assert store.refresh()
    assert store.default().version == 1
    assert store.version(2).reason == "it cannot be loaded; the server's log tells why"


def test_a_served_version_stays_listed_when_its_folder_is_taken_away(folder: Path) -> None:
    store = ModelStore(folder.parent, "cpu")
    assert store.refresh()
    shutil.rmtree(folder)
    assert [version.number for version in store.versions()] == [1]
    assert store.version(1).state is State.READY


def test_the_store_serves_the_newest_good_version_and_says_why_not_the_others(folder: Path) -> None:
    models_dir = folder.parent
    for version in (2, 3):
        shutil.copytree(folder, models_dir / str(version))
        change_manifest(models_dir / str(version), version=str(version))
    (models_dir / "3" / "items.faiss").write_bytes(b"")
    (models_dir / "4").mkdir()
    (models_dir / "not-a-version").mkdir()
    (models_dir / "007").mkdir()
    (models_dir / ("9" * 30)).mkdir()
    store = ModelStore(models_dir, "cpu", Policy(keep=0))
    assert store.refresh()
    assert store.default().version == 2
    versions = {version.number: (version.state, version.reason) for version in store.versions()}
    assert versions[4] == (State.FAILED, "manifest.json is missing")
    assert versions[3][0] is State.FAILED
    assert versions[3][1].startswith("items.faiss has 0 bytes")
    assert versions[2] == (State.READY, "")
    assert versions[1][0] is State.AVAILABLE
    assert list(versions) == [4, 3, 2, 1]


@pytest.mark.parametrize("good", [True, False])
def test_a_folder_that_changes_while_it_is_read_counts_for_nothing_and_is_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, good: bool
) -> None:
    """What was verified need not be what is mapped, and what was wrong need not be wrong any more."""
    other = folder.parent.parent / "other"
    shutil.copytree(folder, other)
    (folder if not good else other).joinpath(ITEM_EMBEDDINGS).write_bytes(b"bad")
    reads: list[Path] = []

    def replaced(path: Path, *others: Any) -> LoadedModel:
        reads.append(path)
        try:
            return load_model(path, *others)
        finally:
            if len(reads) == 1:
                folder.rename(folder.parent.parent / "before")
                other.rename(folder)

    monkeypatch.setattr("shortlist_server.model.shelf.load_model", replaced)
    store = ModelStore(folder.parent, "cpu")
    assert store.refresh() is not good
    assert len(reads) == 2
    if good:
        assert "does not match its checksum" in store.version(1).reason or "has 3 bytes" in store.version(1).reason


def two_versions(folder: Path) -> Path:
    """Its models folder, with a version 2 beside it, and the label "stable" at version 1."""
    shutil.copytree(folder, folder.parent / "2")
    change_manifest(folder.parent / "2", version="2")
    (folder.parent / "store.json").write_text('{"labels": {"stable": 1}}')
    return folder.parent


def test_the_version_that_bears_the_default_label_goes_on_though_its_folder_is_gone(folder: Path) -> None:
    store = ModelStore(two_versions(folder), "cpu", Policy(default_label="stable"))
    assert store.refresh()
    assert store.default().version == 1
    shutil.rmtree(folder)
    assert store.refresh()
    assert store.default().version == 1
    store.set_label("stable", 2)
    assert store.default().version == 2


def test_a_worker_that_cannot_read_the_choices_goes_by_what_the_others_answer_from(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models_dir, policy = two_versions(folder), Policy(default_label="stable")
    first, second = (ModelStore(models_dir, "cpu", policy, handover=Handover(tmp_path)) for _ in range(2))
    assert first.refresh()
    own, other = tmp_path / f"{os.getpid()}.json", tmp_path / f"{os.getppid()}.json"
    other.write_text(json.dumps(json.loads(own.read_text()) | {"pid": os.getppid()}))  # as if it were another process
    own.unlink()
    (models_dir / "store.json").write_text("{")
    for _ in range(3):
        assert second.refresh()
        assert second.default().version == 1
    assert "no label is known" in caplog.text
    assert first.refresh()
    assert first.default().version == 1
    assert "what it said before goes on holding" in caplog.text
    (models_dir / "store.json").write_text('{"labels": {"stable": 2}}')
    assert first.refresh()
    assert first.default().version == 2
