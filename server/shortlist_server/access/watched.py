"""Files that are read again when they change; broken ones leave what was read before in force."""

import logging
import os
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

_Looks = tuple[int, int, int]

_MAX_BYTES = 16 << 20


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
            except Exception as error:  # whatever it is, who looks now must look again
                if not isinstance(error, ValueError):  # it may pass by itself
                    self._seen = None
                why = str(error) or repr(error)
                if why != self._told:
                    self._told = why
                    unforeseen = not isinstance(error, (OSError, ValueError))
                    log.error("%s; what was read before stays in force", why, exc_info=unforeseen)
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
        ValueError: it is no file, or larger than any that is meant; the text names option and file.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:  # a path's own takes no opener
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError(f"{option} {path} is no file")
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise OSError(f"{option} {path} cannot be read: {error.strerror}") from error
    if len(content) > _MAX_BYTES:
        raise ValueError(f"{option} {path} has more than {_MAX_BYTES:,} bytes")
    return content


def _open_at_once(path: str, flags: int) -> int:
    """Opens a file; a pipe as well, which would otherwise wait for somebody to write."""
    return os.open(path, flags | os.O_NONBLOCK)
