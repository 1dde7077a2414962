"""Indexes and their measured recall, id tables, attributes, and publishing."""

import multiprocessing
import os
import resource
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from shortlist.v1 import manifest_pb2
from shortlist_trainer.errors import ConfigError, DataError
from shortlist_trainer.export.attributes import attribute_table, describe
from shortlist_trainer.export.id_table import id_table
from shortlist_trainer.export.index import unit_length
from shortlist_trainer.export.publish import publish, versions
from shortlist_trainer.pipeline import TrainingJob, run
from tests.small_world import publish_embeddings, random_dataset, random_embeddings


def test_unit_length_leaves_zero_vectors_alone() -> None:
    unit = unit_length(np.array([[3, 4], [0, 0]], np.float32))
    np.testing.assert_allclose(unit, np.array([[0.6, 0.8], [0, 0]]), rtol=1e-6)


def test_an_id_table_holds_every_id_once() -> None:
    table = id_table(["b", "ä", "", "10"])
    assert table["text"].tobytes().decode() == "bä10"
    assert table["offsets"].tolist() == [0, 1, 3, 3, 5]
    assert sorted(table["rows"].tolist()) == [0, 1, 2, 3]
    assert (np.diff(table["hashes"].astype(object)) > 0).all()


def test_attributes_keep_the_five_types_and_the_rest_become_strings() -> None:
    frame = pd.DataFrame(
        {
            "title": ["A", None],
            "year": pd.array([1990, None], dtype="Int64"),
            "price": [1.5, 2.5],
            "classic": [True, False],
            "genres": [["Drama"], []],
            "added": pd.to_datetime(["2020-01-01", "2020-01-02"]),
        }
    )
    table = attribute_table(frame, np.array([7, 8]))
    types = {attribute.name: attribute.type for attribute in describe(table)}
    assert types == {
        "interaction_count": manifest_pb2.ATTRIBUTE_TYPE_INT,
        "title": manifest_pb2.ATTRIBUTE_TYPE_STRING,
        "year": manifest_pb2.ATTRIBUTE_TYPE_INT,
        "price": manifest_pb2.ATTRIBUTE_TYPE_DOUBLE,
        "classic": manifest_pb2.ATTRIBUTE_TYPE_BOOL,
        "genres": manifest_pb2.ATTRIBUTE_TYPE_STRING_LIST,
        "added": manifest_pb2.ATTRIBUTE_TYPE_STRING,
    }
    assert table["year"].to_pylist() == [1990, None]
    assert table["title"].to_pylist() == ["A", None]
    assert table["added"].type == pa.string()


def test_a_reserved_attribute_name_is_refused() -> None:
    with pytest.raises(DataError, match="interaction_count"):
        attribute_table(pd.DataFrame({"interaction_count": [1]}), np.array([1]))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pd.DataFrame([[1, 2]], columns=["price", "price"]), "'price' is there more than once"),
        (pd.DataFrame({"mixed": [{"a": 1}]}), "'mixed' cannot be published"),
    ],
)
def test_attributes_that_have_no_type_of_the_manifest_are_refused(frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(DataError, match=message):
        attribute_table(frame, np.array([1]))


def write_note(folder: Path, version: int) -> None:
    (folder / "note").write_text(str(version))


def test_versions_count_up_from_the_newest(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / ("9" * 30)).mkdir()  # no 64 bits hold it
    assert [publish(tmp_path, write_note) for _ in range(2)] == [8, 9]
    assert sorted(versions(tmp_path)) == [7, 8, 9]
    assert (tmp_path / "9" / "note").read_text() == "9"


@pytest.mark.parametrize(
    ("choices", "version"),
    [
        ('{"labels": {"stable": 7}, "loaded": [8], "unloaded": [9]}', 10),
        ('{"labels": {"a": 7.5, "b": "9", "c": null, "d": true, "e": 1e400, "f": -3, "stable": 7}}', 8),
        ('{"labels": {"a": 99999999999999999999, "stable": 7}, "unloaded": ["8"]}', 8),
        ('{"loaded": 5}', 4),
        ('{"labels": 5}', 4),
        ("null", 4),
        ("{", 4),
        ("[" * 100_000, 4),
    ],
)
def test_no_version_comes_again_that_is_remembered_and_what_is_damaged_stops_nobody(
    tmp_path: Path, choices: str, version: int
) -> None:
    (tmp_path / "3").mkdir()
    (tmp_path / "store.json").write_text(choices)
    assert publish(tmp_path, write_note) == version
    assert version in versions(tmp_path)


def test_a_pipe_in_place_of_what_is_remembered_stops_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "store.json")
    assert publish(tmp_path, write_note) == 1


def test_a_failed_publish_leaves_no_trace(tmp_path: Path) -> None:
    def fail(folder: Path, version: int) -> None:
        write_note(folder, version)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        publish(tmp_path, fail)
    assert [path.name for path in tmp_path.iterdir()] == [".publish.lock"]


@pytest.mark.parametrize("limit", [200, 1_000, 3_000, 6_000])
def test_a_full_disk_is_an_os_error_and_leaves_no_trace(tmp_path: Path, rng: np.random.Generator, limit: int) -> None:
    """A limit on the size of files stands for the disk: each library meets it in its own way."""
    dataset, embeddings = random_dataset(20, 100, 5, rng), random_embeddings(20, 100, 16, rng)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError):  # noqa: PT011 - what it says is the library's
            publish_embeddings(tmp_path, dataset, embeddings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == [".publish.lock"]


def test_what_a_dead_publisher_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".publishing-3").mkdir()
    (tmp_path / ".publishing-3" / "half").write_text("x")
    (tmp_path / ".publishing-4").write_text("no folder")
    (tmp_path / ".publishing-5").symlink_to(tmp_path)
    publish(tmp_path, write_note)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".publish.lock", "1"]


def test_a_number_that_no_server_reads_is_not_published_and_refused_before_a_training(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    (tmp_path / "9999999999999999999").mkdir()
    with pytest.raises(ConfigError, match="holds version 9999999999999999999, after which servers read no other"):
        publish(tmp_path, write_note)
    job = TrainingJob("ials", tmp_path, device="cpu", seed=1, refit=False)
    with pytest.raises(ConfigError, match="servers read no other"):
        run(job, random_dataset(20, 100, 5, rng))
    assert not (tmp_path / ".checkpoints").exists()


def test_a_models_folder_that_cannot_be_written_is_refused_before_a_training(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    (tmp_path / ".publish.lock").mkdir()
    with pytest.raises(IsADirectoryError):
        run(TrainingJob("ials", tmp_path, device="cpu", seed=1, refit=False), random_dataset(20, 100, 5, rng))
    assert [path.name for path in tmp_path.iterdir()] == [".publish.lock"]


def test_a_models_folder_that_cannot_be_made_is_refused_before_a_training(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    (tmp_path / "file").write_text("no folder")
    for models_dir in (tmp_path / "file", tmp_path / "file" / "models"):
        with pytest.raises(NotADirectoryError):
            run(TrainingJob("ials", models_dir, device="cpu", seed=1, refit=False), random_dataset(20, 100, 5, rng))


def test_published_files_can_be_read_by_other_users(tmp_path: Path) -> None:
    def write_secretly(folder: Path, version: int) -> None:
        write_note(folder, version)
        (folder / "note").chmod(0o600)

    publish(tmp_path, write_secretly)
    assert (tmp_path / "1" / "note").stat().st_mode & 0o777 == 0o644


def _publish_some(models_dir: str) -> None:
    for _ in range(5):
        publish(Path(models_dir), write_note)


def test_publishers_take_turns(tmp_path: Path) -> None:
    processes = [
        multiprocessing.get_context("spawn").Process(target=_publish_some, args=(str(tmp_path),)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sorted(versions(tmp_path)) == list(range(1, 16))
    assert all((tmp_path / str(version) / "note").read_text() == str(version) for version in range(1, 16))
