"""A models folder as it lies on disk: which versions there are, and whether one of them has changed."""

import hashlib
import os
from collections.abc import Sequence
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
        names = [entry.name for entry in entries if entry.is_dir()]
    numbers = (int(name) for name in names if name.isdecimal() and len(name) <= _LONGEST_NUMBER)
    return sorted((number for number in numbers if number > 0 and str(number) in names), reverse=True)


def appearance(folder: Path) -> Appearance:
    """Name, size, place and time of change of every file: equal as long as nothing in the folder has changed.

    Raises:
        OSError: the folder cannot be looked at.
    """
    entries = ((entry.name, entry.stat()) for entry in folder.iterdir())
    return frozenset((name, status.st_size, status.st_ino, status.st_mtime_ns) for name, status in entries)


def mark(folder: Path, looks: Appearance) -> str:
    """What tells a version, as it looks now, from all others: the same in every process of this machine."""
    return f"{folder.name}-{hashlib.sha256(repr(sorted(looks)).encode()).hexdigest()[:16]}"


def changed(folder: Path) -> frozenset[tuple[str, int]]:
    """When each file was changed, its content or who may read it; a link to it from elsewhere is a change as well."""
    try:
        return frozenset((entry.name, entry.stat().st_ctime_ns) for entry in folder.iterdir())
    except OSError:
        return frozenset()
