"""Files that are read again when they change; broken ones leave what was read before in force."""

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

_Looks = tuple[int, int, int]


class Watched(Generic[T]):
    """What some files hold together.

    Args:
        paths: the files.
        read: reads them; raises OSError or ValueError, naming the file, where they are not as they must be.

    Attributes:
        value: what was last read without an error.

    Raises:
        OSError, ValueError: they cannot be read now.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[], T]) -> None:
        self._paths = paths
        self._read = read
        self._reading = threading.Lock()
        self._seen: tuple[_Looks | None, ...] | None
        self._seen = self._appearance()  # before reading: a change in between is seen the next time
        self._told = ""
        self.value = read()

    def refresh(self) -> bool:
        """Reads the files again if they look different; says whether ``value`` is a new one."""
        with self._reading:
            appearance = self._appearance()
            if appearance == self._seen:
                return False
            self._seen = appearance  # a broken file is looked at again when it changes
            try:
                self.value = self._read()
            except (OSError, ValueError) as error:
                if isinstance(error, OSError):  # it may pass by itself
                    self._seen = None
                if str(error) != self._told:
                    self._told = str(error)
                    log.error("%s; what was read before stays in force", error)
                return False
            self._told = ""
            log.info("read again: %s", ", ".join(map(str, self._paths)))
            return True

    def _appearance(self) -> tuple[_Looks | None, ...]:
        return tuple(map(_appearance, self._paths))


def _appearance(path: Path) -> _Looks | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def read_bytes(path: Path, option: str) -> bytes:
    """What a file holds.

    Args:
        path: the file.
        option: that named it.

    Raises:
        OSError: it cannot be read; the text names option and file.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise OSError(f"{option} {path} cannot be read: {error.strerror}") from error
