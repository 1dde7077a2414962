"""What shall answer and what is to be read for that, as things are in a folder whose versions come and go."""

import json
from collections.abc import Collection
from pathlib import Path

import pytest

from shortlist_server.model.plan import Policy
from shortlist_server.model.store import ModelStore
from tests.versions import publish_one


@pytest.fixture
def apart(tmp_path: Path) -> Path:
    """Versions 1 to 3, which no server sees yet."""
    for seed in range(3):
        publish_one(tmp_path / "apart", seed)
    return tmp_path / "apart"


def store_of(folder: Path, apart: Path, *numbers: int, policy: Policy | None = None) -> ModelStore:
    """A store of a folder with these versions, all that it wants of them loaded."""
    folder.mkdir()
    for number in numbers:
        (apart / str(number)).rename(folder / str(number))
    store = ModelStore(folder, "cpu", policy=policy)
    assert store.refresh()
    return store


def unload(folder: Path, numbers: Collection[int]) -> None:
    """Has operators not want these versions."""
    (folder / "store.json").write_text(json.dumps({"labels": {}, "loaded": [], "unloaded": [*numbers]}))


@pytest.mark.parametrize("published", [[2], [2, 3]])
def test_a_version_published_after_the_one_that_answers_was_taken_away_is_read_and_that_one_stays_until_then(
    tmp_path: Path, apart: Path, published: list[int]
) -> None:
    folder = tmp_path / "models"
    store = store_of(folder, apart, 1)
    (folder / "1").rename(apart / "1")
    for number in published:
        (apart / str(number)).rename(folder / str(number))
    for _ in range(2):
        assert store.look() == published[-1]
        assert store.default().version == 1
    assert store.read(published[-1])
    store.look()
    assert store.default().version == published[-1]


def test_what_operators_unloaded_is_not_read_while_one_answers_whose_folder_is_gone(
    tmp_path: Path, apart: Path
) -> None:
    folder = tmp_path / "models"
    store = store_of(folder, apart, 1)
    (folder / "1").rename(apart / "1")
    unload(folder, [3])
    (apart / "3").rename(folder / "3")
    assert store.look() is None
    assert store.default().version == 1
    (apart / "2").rename(folder / "2")
    assert store.look() == 2
    assert store.default().version == 1


def test_an_empty_folder_takes_back_nothing_but_what_operators_do(tmp_path: Path, apart: Path) -> None:
    folder = tmp_path / "models"
    store = store_of(folder, apart, 1, 2, 3, policy=Policy(keep=2, default_label="stable"))
    store.set_label("stable", 2)
    for number in (1, 2, 3):
        (folder / str(number)).rename(apart / str(number))
    assert store.look() is None
    assert {version.number for version in store.versions()} == {1, 2, 3}
    assert store.default().version == 2
    store.unload(3)
    assert {version.number for version in store.versions()} == {1, 2}
    assert store.default().version == 2
