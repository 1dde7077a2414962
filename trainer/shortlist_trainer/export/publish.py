"""Atomic publishing: at every moment the store holds the old versions or the old and the new one, each complete."""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from shortlist_trainer.errors import ConfigError

_ASIDE_PREFIX = ".publishing-"
_LOCK = ".publish.lock"
_CHOICES = "store.json"  # docs/model-format.md describes it
_LONGEST_NUMBER = 19  # digits of a version that 64 bits hold for certain
_NO_VERSION = 2**63  # remembered, this or more is a mistake; the number after any below has no more digits than that
# A server often runs as another user than the trainer, and safetensors makes files that only their owner can read.
_FILE_MODE = 0o644


def publish(models_dir: Path, write: Callable[[Path, int], None]) -> int:
    """Adds a version to a models folder.

    The version is written aside, forced to the disk and renamed into place. Publishers take turns by a lock that the
    system releases when a publisher dies; what a dead one left aside is removed.

    Args:
        models_dir: the models folder; made if need be.
        write: fills an empty folder with the files of the version whose number it is given.

    Returns:
        The version published: one more than the newest before, whether it is still there or a label remembers it.

    Raises:
        ConfigError: no number is left.
        OSError: the disk is full or not writable; nothing is published.
    """
    models_dir.mkdir(parents=True, exist_ok=True)
    with (models_dir / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left_over in models_dir.glob(f"{_ASIDE_PREFIX}*"):
            if left_over.is_dir() and not left_over.is_symlink():
                shutil.rmtree(left_over)
            else:
                left_over.unlink()
        version = _next_version(models_dir)
        aside = models_dir / f"{_ASIDE_PREFIX}{version}"
        aside.mkdir()
        try:
            write(aside, version)
            for path in aside.iterdir():
                path.chmod(_FILE_MODE)
            for path in [*aside.iterdir(), aside]:
                _sync(path)
            aside.rename(models_dir / str(version))
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        _sync(models_dir)
    return version


def require_publishable(models_dir: Path) -> None:
    """Checks before a training that its model could be published as things are.

    Args:
        models_dir: the models folder; where there is none yet, it is not made.

    Raises:
        ConfigError: no number is left.
        OSError: the folder cannot be made, or not be written.
    """
    there = next(folder for folder in (models_dir, *models_dir.absolute().parents) if folder.exists())
    with tempfile.TemporaryDirectory(prefix=".checking-", dir=there):
        if there == models_dir:
            with (models_dir / _LOCK).open("w"):
                _next_version(models_dir)


def _next_version(models_dir: Path) -> int:
    version = max([*versions(models_dir), *_remembered(models_dir)], default=0) + 1
    if len(str(version)) > _LONGEST_NUMBER:
        raise ConfigError(f"{models_dir} holds version {version - 1}, after which servers read no other; rename it")
    return version


def versions(models_dir: Path) -> list[int]:
    """The version numbers in a models folder, whatever their state."""
    names = [entry.name for entry in models_dir.iterdir()]
    numbers = (int(name) for name in names if name.isdecimal() and len(name) <= _LONGEST_NUMBER)
    return [number for number in numbers if number > 0]


def _remembered(models_dir: Path) -> list[int]:
    """The versions that operators have labelled, loaded or unloaded: a new one shall not be taken for one of them."""
    file = models_dir / _CHOICES
    try:
        choices = json.loads(file.read_bytes()) if file.is_file() else {}  # to read a pipe would wait for ever
        numbers = [*choices.get("labels", {}).values(), *choices.get("loaded", []), *choices.get("unloaded", [])]
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):  # none, or damaged, of which servers tell
        return []
    return [number for number in numbers if type(number) is int and 0 < number < _NO_VERSION]


def existing_version(models_dir: Path, version: int | None) -> int:
    """The number of a version that is there: the one asked for, or the newest for None.

    Raises:
        ConfigError: there is no such version.
    """
    try:
        numbers = versions(models_dir)
    except OSError as error:
        raise ConfigError(f"there is no models folder {models_dir}") from error
    if not numbers:
        raise ConfigError(f"{models_dir} holds no version; `shortlist train` publishes one")
    if version is not None and version not in numbers:
        raise ConfigError(f"{models_dir} holds no version {version}; it holds {', '.join(map(str, sorted(numbers)))}")
    return max(numbers) if version is None else version


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
