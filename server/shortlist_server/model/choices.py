"""What operators chose about a models folder: labels, and versions to load or to leave alone.

They lie in the folder itself, in ``store.json``, so that every worker and every server of the folder goes by them
and they outlive a restart. docs/model-format.md describes the file.
"""

import fcntl
import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from shortlist_server.errors import ChoicesUnusable, StoreNotWritable
from shortlist_server.model.versions import SMALL_BYTES, read_file

log = logging.getLogger(__name__)

FILE = "store.json"
_LOCK = ".store.lock"
_ASIDE = ".store.json.new"
_FILE_MODE = 0o644

_LOCK_SECONDS = 3.0
_LOCK_LOOK_SECONDS = 0.02
_LABEL = re.compile(r"[a-z0-9-]{1,63}")


@dataclass(frozen=True)
class Choices:
    """What operators chose.

    Attributes:
        labels: label to version.
        loaded: versions to be loaded beside those that are loaded anyway.
        unloaded: versions not to be loaded.
        known: False while nobody can say what they are, as the file could not be read yet.
        written: False where there is no file.
    """

    labels: Mapping[str, int] = field(default_factory=dict)
    loaded: frozenset[int] = frozenset()
    unloaded: frozenset[int] = frozenset()
    known: bool = True
    written: bool = True


def is_label(text: str) -> bool:
    """Whether a version may bear this label: 1 to 63 of a-z, 0-9 and '-'."""
    return _LABEL.fullmatch(text) is not None


class ChoicesFile:
    """Reads the choices again when they have changed, and changes them.

    Args:
        models_dir: the models folder.
    """

    def __init__(self, models_dir: Path) -> None:
        self._models_dir = models_dir
        self._path = models_dir / FILE
        self._seen: tuple[int, int, int] | None = None
        self._choices = Choices(known=False)
        self._told = ""  # what was wrong with the file, to say it once

    def read(self) -> Choices:
        """The choices; of a file that cannot be read, the last that could."""
        try:
            status = self._path.stat()
            seen = status.st_ino, status.st_size, status.st_mtime_ns
            if seen != self._seen:
                self._choices = _parse(read_file(self._path))
                self._seen = seen
        except (OSError, ValueError) as error:
            if isinstance(error, FileNotFoundError) and not self._path.is_symlink():
                self._seen, self._choices = None, Choices(written=False)
            elif str(error) != self._told:
                self._told = str(error)
                holds = (
                    "what it said before goes on holding"
                    if self._choices.known
                    else "no label is known, nor what was loaded or unloaded by hand"
                )
                log.error("%s cannot be read, %s: %s", self._path, holds, error)
        else:
            self._told = ""
        return self._choices

    def change(self, change: Callable[[Choices], Choices]) -> None:
        """Changes the choices; processes take turns, and a crash leaves the old ones or the new.

        Raises:
            ChoicesUnusable: the file is damaged or cannot be read, or would be too large to be read again.
            StoreNotWritable: the folder cannot be written.
        """
        try:
            with _open_lock(self._models_dir / _LOCK) as lock:
                _lock(lock)
                content = _as_bytes(change(self._as_written()))
                aside = self._models_dir / _ASIDE
                aside.unlink(missing_ok=True)  # what a crash left may be another user's, whom alone it lets write
                with aside.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                aside.chmod(_FILE_MODE)
                aside.replace(self._path)
                _sync(self._models_dir)
        except OSError as error:
            reason = error.strerror or "unknown error"
            name = Path(error.filename).name if error.filename else ""
            raise StoreNotWritable(f"{name}: {reason}" if name else reason) from error

    def _as_written(self) -> Choices:
        """The choices as the file has them now; none where there is no file.

        Raises:
            ChoicesUnusable: it cannot be read; what it should say would be lost if it were written anew.
        """
        if not os.path.lexists(self._path):
            return Choices()
        try:
            return _parse(read_file(self._path))
        except OSError as error:
            raise ChoicesUnusable(f"{FILE} cannot be read: {error.strerror or 'unknown error'}") from error
        except ValueError as error:
            raise ChoicesUnusable(f"{FILE} is damaged: {error}") from error


def _open_lock(path: Path) -> IO[bytes]:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, _FILE_MODE)  # over NFS only who may write can lock it
    except PermissionError:
        if not path.exists():
            raise
        descriptor = os.open(path, os.O_RDONLY)  # another user made it; elsewhere this is enough
    return os.fdopen(descriptor, "rb")


def _lock(file: IO[bytes]) -> None:
    """Waits for its turn, though not for ever: whoever waits holds up the versions of this process.

    Raises:
        OSError: it does not come.
    """
    until = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > until:
                raise OSError(error.errno, f"another process has held {_LOCK} for {_LOCK_SECONDS:g} s") from error
            time.sleep(_LOCK_LOOK_SECONDS)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parse(content: bytes) -> Choices:
    """The choices a file holds.

    Raises:
        ValueError: it holds something else; the text names the field.
    """
    try:
        given = json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(given, dict) or not given.keys() <= {"labels", "loaded", "unloaded"}:
        raise ValueError("it must be an object of labels, loaded and unloaded")
    labels = given.get("labels", {})
    if not isinstance(labels, dict) or not all(is_label(label) for label in labels):
        raise ValueError("labels must be an object whose keys are 1 to 63 of a-z, 0-9 and '-'")
    versions = {name: given.get(name, []) for name in ("loaded", "unloaded")}
    for name, numbers in (("labels", [*labels.values()]), *versions.items()):
        if not isinstance(numbers, list) or not all(type(number) is int and number > 0 for number in numbers):
            raise ValueError(f"{name} must name versions, which are positive whole numbers")
    return Choices(labels, frozenset(versions["loaded"]), frozenset(versions["unloaded"]))


def _as_bytes(choices: Choices) -> bytes:
    """What the file is to hold.

    Raises:
        ChoicesUnusable: that is more than is read of it.
    """
    fields = {
        "labels": dict(sorted(choices.labels.items())),
        "loaded": sorted(choices.loaded),
        "unloaded": sorted(choices.unloaded),
    }
    content = json.dumps(fields, indent=2).encode() + b"\n"
    if len(content) > SMALL_BYTES:
        raise ChoicesUnusable(f"{FILE} would have more than {SMALL_BYTES:,} bytes: take some of its labels away first")
    return content
