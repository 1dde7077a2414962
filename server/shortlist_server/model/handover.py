"""How the workers of one server begin to answer from a version together.

Each reads by itself, and one may take longer by seconds than another. So each tells the others, by a file in a folder
of their server's own, what it has ready, and a version answers from the moment when all have it, or have refused it.
Nobody is in charge: all decide by the same files and the same clock.
"""

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class Standing:
    """How far a worker that answers is.

    A version goes by its mark (model/versions.py), so that one published again under its number is another.

    Attributes:
        ready: the versions that it has read, each with since when, by ``time.monotonic``.
        refused: those that it will not have.
        answering: those of ``ready`` that requests get.
        default: the number of the version that answers when none is named.
        since: when this became so, by ``time.monotonic``.
        pid: its process.
    """

    ready: Mapping[str, float] = field(default_factory=dict)
    refused: Sequence[str] = ()
    answering: Sequence[str] = ()
    default: int | None = None
    since: float = 0.0
    pid: int = 0


class Handover:
    """What the workers of one server tell one another.

    Args:
        folder: of the server's own, on this machine; None for a server of one process, which waits for nobody.
        patience_seconds: for so long after the first is ready, the others are waited for.
    """

    def __init__(self, folder: Path | None = None, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._folder = folder
        self._patience = patience_seconds
        self._told: Standing | None = None
        self._blamed: set[str] = set()
        self._trouble = ""

    @property
    def folder(self) -> Path | None:
        """Where it is told; None where there is nobody to tell."""
        return self._folder

    def tell(self, standing: Standing) -> None:
        """Tells the others, if it is news or somebody removed what they were told.

        A worker that answers nothing yet tells nothing, and is not waited for.
        """
        if self._folder is None:
            return
        if self._told is not None and standing.default == self._told.default:
            standing = replace(standing, since=self._told.since)
        file, aside = self._folder / f"{standing.pid}.json", self._folder / f".{standing.pid}"
        try:
            if standing == self._told and file.exists():
                return
            self._folder.mkdir(mode=0o700, exist_ok=True)  # somebody may have cleaned temporary folders up
            aside.write_text(json.dumps(asdict(standing)))
            aside.replace(file)
            self._told, self._trouble = standing, ""
        except OSError as error:  # the others wait as long as they are patient
            if str(error) != self._trouble:  # which is said once, and tried again at every look
                self._trouble = str(error)
                log.error("the other workers cannot be told which versions are ready: %s", error)

    def others(self) -> list[Standing]:
        """How far the other workers are; those that are dead, or answer nothing yet, are not among them."""
        if self._folder is None:
            return []
        standings = []
        for path in self._folder.glob("*.json"):
            try:
                if not is_alive(int(path.stem)):
                    path.unlink(missing_ok=True)
                elif int(path.stem) != os.getpid():
                    standings.append(Standing(**json.loads(path.read_text())))
            except (OSError, ValueError, TypeError) as error:  # of a worker that has just died, or of nobody's making
                log.debug("%s cannot be read: %s", path, error)
        return standings

    def may_answer(self, mark: str, since: float, others: Sequence[Standing]) -> bool:
        """Whether a version that this worker has had ready since a time may answer its requests.

        It may when every other worker has it ready or refuses it, when one of them answers from it already, or when
        patience is at an end, which it is for all at once.
        """
        late = [one.pid for one in others if mark not in one.ready and mark not in one.refused]
        if not late or any(mark in one.answering for one in others):
            return True
        first = min(since, *(one.ready.get(mark, since) for one in others))
        if time.monotonic() - first < self._patience:
            return False
        if mark not in self._blamed:
            self._blamed.add(mark)
            log.warning(
                "version %s answers without the workers %s, which have not read it %.0f s after the first",
                *(mark.partition("-")[0], ", ".join(map(str, late)), self._patience),
            )
        return True


def latest_default(others: Sequence[Standing]) -> int | None:
    """The version that the worker answers from which was the last to change; None where nobody answers."""
    latest = max(others, key=lambda one: one.since, default=None)
    return None if latest is None else latest.default


def is_alive(pid: int) -> bool:
    """Whether a process runs, or waits to be reaped."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's, who has got the number of a worker that died
        return False
    return True
