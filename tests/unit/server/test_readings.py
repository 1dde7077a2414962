"""Who died while it read a version, and when it is read again."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shortlist_server.model.readings import Readings

_READS = """
import sys
import time
from pathlib import Path
from shortlist_server.model.readings import Readings
with Readings(Path(sys.argv[1])).of("9-a"):
    print("reads", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another worker, which reads the version 9-a until its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", _READS, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reads\n"
        yield process
        process.kill()


def test_after_a_death_a_version_is_read_later_and_later_until_somebody_has_read_it(
    tmp_path: Path, reader: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = Readings(tmp_path)
    assert readings.pause("9-a") == 0
    reader.kill()
    reader.wait()
    assert 4 < readings.pause("9-a") <= 5
    assert readings.pause("8-b") == 0
    (died,) = tmp_path.iterdir()
    for number in range(3):
        (tmp_path / f"{number}.died").write_text("9-a")
    assert 39 < readings.pause("9-a") <= 40
    for note in tmp_path.iterdir():
        os.utime(note, (0, 0))
    assert readings.pause("9-a") == 0
    assert len(readings.deaths("9-a")) == 4
    monkeypatch.setattr(time, "time", lambda: -1e6)  # the clock was put back
    assert readings.pause("9-a") == 40
    readings.succeeded("9-a")
    assert not died.exists()
    assert readings.pause("9-a") == 0


def test_who_ends_its_reading_well_leaves_nothing(tmp_path: Path, reader: subprocess.Popen[str]) -> None:
    reader.communicate("", timeout=20)
    assert Readings(tmp_path).pause("9-a") == 0
    assert [*tmp_path.iterdir()] == []
    with pytest.raises(ZeroDivisionError), Readings(tmp_path).of("9-a"):
        _ = 1 / 0
    assert [*tmp_path.iterdir()] == []


def test_what_others_have_died_of_is_tried_by_one_at_a_time(tmp_path: Path, reader: subprocess.Popen[str]) -> None:
    readings = Readings(tmp_path)
    with readings.of("9-a"):
        assert not readings.is_tried("9-a")  # nobody has died of it
        (tmp_path / "1.died").write_text("9-a")
        assert readings.is_tried("9-a")
        assert not readings.is_tried("8-b")
    reader.communicate("", timeout=20)
    with readings.of("9-a"):
        assert not readings.is_tried("9-a")


def test_without_a_folder_or_with_one_that_is_gone_nothing_is_noted(tmp_path: Path) -> None:
    for readings in (Readings(), Readings(tmp_path / "file" / "gone")):
        (tmp_path / "file").touch()
        with readings.of("9-a"):
            assert readings.pause("9-a") == 0
            assert not readings.is_tried("9-a")
        readings.succeeded("9-a")
