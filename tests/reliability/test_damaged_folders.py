"""Model folders that a disk, a copy or a bug has damaged: refused by name, never served, never a crash."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess as Process
from pathlib import Path

import numpy as np
import pytest

from shortlist_client import Client, ModelState
from shortlist_server.errors import BadModel
from shortlist_server.model.folder import load_model
from shortlist_server.model.manifest import MANIFEST
from shortlist_trainer.export.publish import versions
from tests.reliability.conftest import Size
from tests.reliability.faults import FAULTS, damage
from tests.reliability.full_disk import check_whole
from tests.reliability.worlds import digests, publish_kinds, publish_with_files_up_to
from tests.running import serving


def copy_of(folder: Path, to: Path) -> Path:
    """A copy of a version that may be damaged, as ``damage`` writes new files."""
    return Path(shutil.copytree(folder, to, copy_function=os.link))


@pytest.mark.parametrize("fault", FAULTS)
def test_every_file_that_is_damaged_is_refused_by_name(
    kinds: list[Path], tmp_path: Path, rng: np.random.Generator, size: Size, fault: str
) -> None:
    for _ in range(size.of(1, 100)):
        for folder in kinds:
            for name in digests(folder):
                copy = copy_of(folder, tmp_path / "1")
                damage(copy / name, FAULTS[fault], rng)
                if name == MANIFEST and fault == "bit flipped" and means_the_same(folder, copy):
                    load_model(copy, "cpu")  # another letter of a space between two values
                else:
                    with pytest.raises(BadModel, match=rf"^{name}\b"):
                        load_model(copy, "cpu")
                shutil.rmtree(copy)


def means_the_same(folder: Path, copy: Path) -> bool:
    """Whether two manifests hold the same."""
    try:
        return bool(json.loads((folder / MANIFEST).read_bytes()) == json.loads((copy / MANIFEST).read_bytes()))
    except ValueError:
        return False


def test_a_server_with_a_damaged_newest_version_serves_the_one_before_and_says_why(
    kinds: list[Path], tmp_path: Path, rng: np.random.Generator, size: Size
) -> None:
    for number in range(size.of(4, 100)):
        models_dir = tmp_path / str(number)
        models_dir.mkdir()
        folder = kinds[number % len(kinds)]
        copy_of(folder, models_dir / "1")
        newest = copy_of(folder, models_dir / "2")
        text = (newest / MANIFEST).read_text()
        assert '"version": "1"' in text
        (newest / MANIFEST).unlink()
        (newest / MANIFEST).write_text(text.replace('"version": "1"', '"version": "2"', 1))
        name = str(rng.choice(sorted(digests(newest))))
        damage(newest / name, FAULTS[str(rng.choice(list(FAULTS)))], rng)
        with serving(models_dir) as app, Client(app.address, timeout_seconds=20) as client:
            assert client.recommend("u0").model_version == 1
            newer, older = client.list_models()
            assert (newer.version, newer.state, older.state) == (2, ModelState.FAILED, ModelState.READY)
            assert newer.state_reason.startswith(name)
            assert not newer.default


def test_a_damaged_file_whose_checksum_fits_never_ends_the_process_and_is_refused_by_name_or_answers(
    kinds: list[Path], tmp_path: Path, rng: np.random.Generator, size: Size
) -> None:
    seed, count = int(rng.integers(1 << 32)), size.of(100, 20_000)
    command = [sys.executable, "-m", "tests.reliability.survival", str(tmp_path), str(seed), str(count)]
    survival = subprocess.run([*command, *map(str, kinds)], capture_output=True, text=True, check=False)
    lines = survival.stdout.splitlines()
    assert survival.returncode == 0, f"{survival.returncode} after {lines[-1:]}\n{survival.stderr[-2_000:]}"
    assert len(lines) == count
    assert [line for line in lines if "refused: " not in line and not line.endswith(": served")] == []


def test_a_publisher_whose_disk_is_full_says_so_and_publishes_nothing(
    tmp_path: Path, rng: np.random.Generator, size: Size
) -> None:
    """On a file system of a mebibyte, which only a process and its children see: it is gone when they are."""
    alone = ["unshare", "--mount", "--"]
    probe = [*alone, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    arguments = [str(tmp_path), str(rng.integers(1 << 32)), str(size.of(15, 500))]
    command = [*alone, sys.executable, "-m", "tests.reliability.full_disk", *arguments]
    published = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (published.returncode, published.stdout) == (0, "as it should be\n"), published.stderr


def test_a_file_that_cannot_be_written_to_its_last_byte_is_noticed(
    tmp_path: Path, rng: np.random.Generator, size: Size, start: Callable[..., Process]
) -> None:
    models_dir = tmp_path / "models"
    folder = publish_kinds(models_dir, "hnsw", "ivf")
    before = {1: digests(folder)}
    lengths = sorted({path.stat().st_size for path in folder.iterdir() if path.name != MANIFEST})
    for _ in range(size.of(2, 50)):
        for length in lengths:
            # One byte less is lost when a file is closed, where it is easily missed.
            most = length - int(rng.choice([1, 1 + int(rng.integers(min(length - 1, 5_000)))]))
            publisher = start(publish_with_files_up_to, models_dir, most)
            publisher.join(60)
            assert publisher.exitcode == 3, f"files of at most {most:,} bytes"
            check_whole(models_dir, before)
    assert versions(models_dir) == [1]
