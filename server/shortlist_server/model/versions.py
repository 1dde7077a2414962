"""A models folder as it lies on disk: which versions there are, and whether one of them has changed."""

import errno
import hashlib
import os
import stat
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from shortlist.v1 import manifest_pb2

Appearance = frozenset[tuple[str, int, int, int]]

_LONGEST_NUMBER = 19  # digits of a version that 64 bits hold for certain


class State(Enum):
    """How far a version has come."""

    AVAILABLE = auto()
    LOADING = auto()
    READY = auto()
    FAILED = auto()


@dataclass(frozen=True)
class Version:
    """A version in the models folder.

    Attributes:
        number: its version number.
        state: how far it has come.
        reason: why it is in this state; empty when it answers.
        labels: those that point at it.
        manifest: what it says of itself; None when that cannot be read.
    """

    number: int
    state: State
    reason: str
    labels: Sequence[str]
    manifest: manifest_pb2.ModelManifest | None


def numbers_in(models_dir: Path) -> list[int]:
    """The version numbers in a models folder, newest first.

    Raises:
        OSError: it cannot be listed.
    """
    with os.scandir(models_dir) as entries:
        names = [entry.name for entry in entries if _is_number(entry.name) and _is_folder(entry)]
    return sorted(map(int, names), reverse=True)


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal() and len(name) <= _LONGEST_NUMBER and name[0] != "0"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # it is a link that leads nowhere, or to where this process may not go
        return False


def appearance(folder: Path, names: Container[str] | None = None) -> Appearance:
    """Name, size, place and time of change of every file: equal as long as nothing in the folder has changed.

    Args:
        folder: of a version.
        names: the files that count; None for all.

    Raises:
        OSError: the folder cannot be looked at.
    """
    entries = ((path.name, _status(path)) for path in _files(folder, names))
    return frozenset((name, status.st_size, status.st_ino, status.st_mtime_ns) for name, status in entries)


def _files(folder: Path, names: Container[str] | None) -> Iterator[Path]:
    return (path for path in folder.iterdir() if names is None or path.name in names)


def _status(path: Path) -> os.stat_result:
    """Of a file, or of the link itself where it leads nowhere: the manifest may not list it."""
    try:
        return path.stat()
    except OSError:
        return path.lstat()


def require_file(path: Path) -> None:
    """Checks that a path leads to a file: to open a pipe would wait for somebody to write.

    Raises:
        OSError: it leads to something else, or nowhere.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no file")


SMALL_BYTES = 1 << 20
"""Larger files are not read of those that are to be small."""


def read_file(path: Path, at_most: int = SMALL_BYTES) -> bytes:
    """What a small file holds.

    Args:
        path: of the file.
        at_most: bytes; a larger one is not read.

    Raises:
        OSError: it cannot be read, is none, or is larger.
    """
    require_file(path)
    with path.open("rb") as file:
        content = file.read(at_most + 1)
    if len(content) > at_most:
        raise OSError(errno.EFBIG, f"it has more than {at_most:,} bytes")
    return content


def mark(folder: Path, looks: Appearance) -> str:
    """What tells a version, as it looks now, from all others: the same in every process of this machine."""
    return f"{folder.name}-{hashlib.sha256(repr(sorted(looks)).encode()).hexdigest()[:16]}"


def changed(folder: Path, names: Container[str] | None = None) -> frozenset[tuple[str, int]]:
    """When each file was changed, its content or who may read it; a link to it from elsewhere is a change as well.

    Args:
        folder: of a version.
        names: the files that count; None for all.
    """
    try:
        return frozenset((path.name, _status(path).st_ctime_ns) for path in _files(folder, names))
    except OSError:
        return frozenset()
