"""Publishes on a small file system that is full at ever other places: for a process with mounts of its own.

``unshare --mount -- python -m tests.reliability.full_disk DIRECTORY SEED COUNT``
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from shortlist_client import Client
from shortlist_server.model.store import ModelStore
from shortlist_trainer.export.publish import versions
from tests.reliability.worlds import digests, publish_kinds
from tests.running import serving, shortlist

_DISK_BYTES = 1 << 20


def main(disk: Path, seed: int, count: int) -> None:
    """Publishes so many times with ever other room on the disk."""
    rng = np.random.default_rng(seed)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(disk)], check=True)
    models_dir = disk / "models"
    publish_kinds(models_dir, "hnsw", "ivf")
    before = {1: digests(models_dir / "1")}
    needed = sum(path.stat().st_size for path in (models_dir / "1").iterdir())
    refused = 0
    for _ in range(count):
        filler = fill(disk, int(rng.integers(0, needed + 30_000)))
        try:
            publish_kinds(models_dir, "hnsw", "ivf")
        except OSError:
            refused += 1
            assert versions(models_dir) == [1]
        check_whole(models_dir, before)
        shutil.rmtree(models_dir / "2", ignore_errors=True)
        filler.unlink()
    assert refused
    fill(disk, 0)
    tuned = shortlist("index", str(models_dir / "1"))
    assert (tuned.returncode, tuned.stdout) == (1, ""), tuned
    assert "No space left on device" in tuned.stderr
    assert "Traceback" not in tuned.stderr
    with serving(models_dir) as app, Client(app.address, timeout_seconds=20) as client:  # which writes nothing
        assert client.recommend("u0").model_version == 1
    sys.stdout.write("as it should be\n")


def fill(disk: Path, free_bytes: int) -> Path:
    """Leaves about so much room on a file system; the file that takes the rest."""
    filler = disk / "filler"
    state = os.statvfs(disk)
    filler.write_bytes(bytes(max(0, state.f_bavail * state.f_frsize - free_bytes)))
    return filler


def check_whole(models_dir: Path, before: dict[int, dict[str, str]]) -> None:
    """The versions of before are as they were, and every version loads."""
    assert {number: digests(models_dir / str(number)) for number in before} == before
    store = ModelStore(models_dir, "cpu")
    assert store.refresh()
    assert store.default().version == max(versions(models_dir))
    assert [path.name for path in models_dir.iterdir() if path.name.startswith(".publishing")] == []


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
