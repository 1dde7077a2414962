"""Which workers died while they read a version: whoever reads it next may die as well, and another after that.

A version may end the process that reads it, as memory runs out or a library fails, and nothing of that is left in the
process. So each worker of a server leaves a note while it reads, in a folder of their server's own. After a death a
version is read again only later, the later the more have died of it, and by one worker at a time, so that the others
answer from what they have.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shortlist_server.model.handover import is_alive

log = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 600.0
_READING, _DIED = ".reading", ".died"


class Readings:
    """The notes of a server's workers. Versions go by their marks (model/versions.py).

    Args:
        folder: of the server's own, on this machine; None for a server of one process, which has nobody to tell.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    @contextmanager
    def of(self, mark: str) -> Iterator[None]:
        """Notes that this process reads a version, until it does no more."""
        note = None if self._folder is None else self._folder / f"{os.getpid()}{_READING}"
        try:
            if note is not None:
                note.parent.mkdir(mode=0o700, exist_ok=True)  # somebody may have cleaned temporary folders up
                note.write_text(mark)
        except OSError as error:  # then nobody will know
            log.debug("%s cannot be written: %s", note, error)
        try:
            yield
        finally:
            _remove(note)

    def deaths(self, mark: str) -> list[float]:
        """When workers that read a version were found dead, in seconds since the epoch."""
        return [_when(note) for note in self._notes(mark, _DIED)]

    def pause(self, mark: str) -> float:
        """For how many seconds a version is not to be read, as others have died of it."""
        deaths = self.deaths(mark)
        if not deaths:
            return 0.0
        pause = min(_FIRST_PAUSE_SECONDS * 2.0 ** (len(deaths) - 1), _LONGEST_PAUSE_SECONDS)
        return min(max(max(deaths) + pause - time.time(), 0.0), pause)

    def is_tried(self, mark: str) -> bool:
        """Whether another worker has begun before this one, which has noted it, to read what others have died of."""
        begun = {int(note.stem): (_when(note), int(note.stem)) for note in self._notes(mark, _READING)}
        own = begun.pop(os.getpid(), None)
        return bool(self.deaths(mark)) and own is not None and any(other < own for other in begun.values())

    def succeeded(self, mark: str) -> None:
        """Forgets who died of a version, as somebody has read it."""
        for note in self._notes(mark, _DIED):
            _remove(note)

    def _notes(self, mark: str, kind: str) -> list[Path]:
        if self._folder is None:
            return []
        for note in self._folder.glob(f"*{_READING}"):
            try:
                if not is_alive(int(note.stem)):
                    note.touch()  # from now on counts how long it is ago
                    note.rename(note.with_suffix(_DIED))
            except (OSError, ValueError) as error:  # another worker was quicker, or it is of nobody's making
                log.debug("%s cannot be looked at: %s", note, error)
        return [note for note in self._folder.glob(f"*{kind}") if _content(note) == mark]


def _content(note: Path) -> str:
    try:
        return note.read_text()
    except (OSError, ValueError):
        return ""


def _when(note: Path) -> float:
    try:
        return note.stat().st_mtime
    except OSError:
        return 0.0


def _remove(note: Path | None) -> None:
    try:
        if note is not None:
            note.unlink(missing_ok=True)
    except OSError as error:
        log.debug("%s cannot be removed: %s", note, error)
