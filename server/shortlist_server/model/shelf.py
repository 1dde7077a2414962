"""The versions that this process has read, and why it has refused others."""

import logging
import math
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from shortlist_server.device.choice import memory_of, return_unused_memory
from shortlist_server.device.tables import DeviceTables, tables_on
from shortlist_server.errors import BadModel, LoadingStopped, UnreadableModel
from shortlist_server.model.folder import MAPPED, LoadedModel, load_model
from shortlist_server.model.manifest import MANIFEST, listed_files
from shortlist_server.model.pages import touch
from shortlist_server.model.readings import Readings
from shortlist_server.model.versions import Appearance, appearance, changed, mark

log = logging.getLogger(__name__)

OnEvent = Callable[[str, int, LoadedModel | None], None]

_SWITCH_SECONDS = 0.0001
"""So long whoever reads keeps Python to itself while others want it, and a call takes it up several times."""

_OTHER_TRIES_SECONDS = 1.0
"""After so long is looked again whether another worker has survived what others died of."""

_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 5.0
"""Between two tries of a folder that is bad each time, though it changes: somebody is writing it, and not yet done."""

_RETRY_SECONDS = 60.0
"""After so long a folder that is not itself at fault, for want of memory perhaps, is read again."""


@dataclass(frozen=True)
class Entry:
    """A version that has been read.

    Attributes:
        model: it.
        names: its files, as its manifest lists them, and the manifest.
        appearance: what they looked like.
        mark: tells it, as it looked, from all others.
        since: when it could answer, by ``time.monotonic``.
        spoilt: its files were written since, and are bad now: nobody knows what it answers from.
    """

    model: LoadedModel
    names: frozenset[str]
    appearance: Appearance
    mark: str
    since: float
    spoilt: bool = False


@dataclass(frozen=True)
class Refusal:
    """Why a version is not loaded.

    Attributes:
        names: its files, as its manifest lists them, and the manifest; None where that cannot be read, for all.
        changed: when they were changed: it is read again when one of them has been since.
        mark: tells it, as it looked, from all others.
        reason: what is wrong.
        again: when it is read again all the same, by ``time.monotonic``.
    """

    names: frozenset[str] | None
    changed: frozenset[tuple[str, int]]
    mark: str
    reason: str
    again: float = math.inf


_DIED_OF_IT = (
    "workers that have died while they read it: {}, for want of memory perhaps; it is read again, later each time"
)


class Shelf:
    """Reads versions, one at a time, and keeps them; any thread may ask for anything.

    Args:
        models_dir: holds one folder per version.
        device: where user tables live, and those of rankers.
        prepare: gets a version ready to answer; what it raises refuses the version.
        keep_going: is called many times while a version is read, and may raise LoadingStopped.
        on_event: is told "reading", "ready" with the version, and "refused".
        readings: tells who has died of a version.
    """

    def __init__(
        self,
        models_dir: Path,
        device: DeviceTables | torch.device | str,
        prepare: Callable[[LoadedModel], None],
        keep_going: Callable[[], None],
        on_event: OnEvent,
        readings: Readings,
    ) -> None:
        self._models_dir = models_dir
        self._readings = readings
        self._failures: Counter[int] = Counter()  # one after another, of the same version
        self._not_before: dict[int, float] = {}
        self._tables = tables_on(device)
        self._prepare = prepare
        self._keep_going = keep_going
        self._on_event = on_event
        self._entries: Mapping[int, Entry] = {}
        self._refusals: Mapping[int, Refusal] = {}
        self._being_read: int | None = None
        self._told: dict[int, str] = {}  # what was wrong with folders that could not be looked at
        # Reading takes long, and memory for one version more; putting down what came of it does neither.
        self._reading = threading.Lock()
        self._changing = threading.Lock()

    @property
    def entries(self) -> Mapping[int, Entry]:
        """The versions that have been read, by number; this one mapping never changes."""
        return self._entries

    @property
    def refusals(self) -> Mapping[int, Refusal]:
        """Why others have not, by number; this one mapping never changes."""
        return self._refusals

    @property
    def is_reading(self) -> bool:
        """Whether some thread reads some version now."""
        return self._being_read is not None

    def is_being_read(self, number: int) -> bool:
        """Whether some thread reads this version now."""
        return self._being_read == number

    def is_due(self, number: int, *, at_once: bool = False) -> bool:
        """Whether a version is to be read: it has not been, or has changed since, and was not refused as it is.

        Args:
            number: the version.
            at_once: though it was tried a moment ago, in vain, and has changed once more.
        """
        if not at_once and time.monotonic() < self._not_before.get(number, 0.0):
            return False
        folder, entry = self._models_dir / str(number), self._entries.get(number)
        try:
            looks = appearance(folder, None if entry is None else entry.names)
        except OSError as error:
            if entry is None:
                self._cannot_look(number, error)
            return False
        self._told.pop(number, None)
        refusal = self._refusals.get(number)
        if entry is not None and entry.appearance == looks:
            if refusal is not None:  # of a change that was taken back
                self._refuse(number, None)
            return False
        if refusal is None or time.monotonic() >= refusal.again:
            return True
        return refusal.changed != changed(folder, refusal.names)

    def read(self, number: int, *, at_once: bool = False) -> bool:
        """Reads a version if it is due, after what another thread is reading; says whether there is one to answer.

        Args:
            number: the version.
            at_once: as of ``is_due``.

        Raises:
            LoadingStopped: the server is stopping.
        """
        with self._reading:
            self._keep_going()
            if self.is_due(number, at_once=at_once):
                self._being_read = number
                try:
                    self._read(number, self._models_dir / str(number))
                finally:
                    self._being_read = None
            return number in self._entries

    def drop(self, number: int) -> None:
        """Lets go of a version, which is freed after its last request."""
        with self._changing:
            self._entries = {one: entry for one, entry in self._entries.items() if one != number}

    def forget_refusals(self, there: Collection[int]) -> None:
        """Forgets why versions were refused that are not there any more."""
        with self._changing:
            self._refusals = {one: refusal for one, refusal in self._refusals.items() if one in there}
            self._told = {one: text for one, text in self._told.items() if one in there}
            self._not_before = {one: until for one, until in self._not_before.items() if one in there}
            self._failures = Counter({one: count for one, count in self._failures.items() if one in there})

    def _read(self, number: int, folder: Path) -> None:
        names = _listed(folder)
        try:
            looks = appearance(folder, names)
        except OSError as error:
            self._cannot_look(number, error)
            return
        known_as = mark(folder, looks)
        with self._readings.of(known_as):
            if self._readings.is_tried(known_as):
                self._not_before[number] = time.monotonic() + _OTHER_TRIES_SECONDS
                return
            model, reason, again = self._try(number, folder, known_as)
        if _looks_otherwise(folder, names, looks):
            # What was verified need not be what was mapped afterwards, nor what was wrong still be wrong.
            log.warning(
                "version %d in %s changed while it was read, which counts for nothing", number, self._models_dir
            )
            self._failed(number)
            return
        if model is None:
            self._failed(number)
            self._refuse(number, Refusal(names, changed(folder, names), known_as, reason, again))
            self._spoil(number, looks)
            self._on_event("refused", number, None)
            return
        self._readings.succeeded(known_as)
        self._failures.pop(number, None)
        self._on_event("ready", number, model)
        entry = Entry(model, names or frozenset(), looks, known_as, time.monotonic())
        with self._changing:
            self._entries = {**self._entries, number: entry}
        self._refuse(number, None)

    def _try(self, number: int, folder: Path, known_as: str) -> tuple[LoadedModel | None, str, float]:
        """A version, if it can be loaded; else why not, and when to try again all the same."""
        again = math.inf
        try:
            if pause := self._readings.pause(known_as):
                again = time.monotonic() + pause
                raise BadModel(_DIED_OF_IT.format(len(self._readings.deaths(known_as))))
            log.info("version %d is being read", number)
            self._on_event("reading", number, None)
            with _giving_way():
                return self._load(folder), "", again
        except LoadingStopped:
            log.info("version %d is not read to its end: the server is stopping", number)
            raise
        except BadModel as error:
            if isinstance(error, UnreadableModel):
                again = time.monotonic() + _RETRY_SECONDS
            before = self._refusals.get(number)
            if before is None or before.reason != str(error):  # whoever writes a folder would hear it again and again
                log.error("version %d in %s is refused: %s", number, self._models_dir, error)
            return None, str(error), again
        except Exception:
            # A folder that passes every check and still cannot be loaded, for want of memory perhaps: others may do.
            log.exception("version %d in %s cannot be loaded", number, self._models_dir)
            reason = "it cannot be loaded; the server's log tells why"  # what nobody foresaw is for the log alone
            return None, reason, time.monotonic() + _RETRY_SECONDS

    def _failed(self, number: int) -> None:
        """Leaves time for others where a folder is bad again and again: somebody may be writing it."""
        self._failures[number] += 1
        if doublings := self._failures[number] - 1:
            pause = min(_FIRST_PAUSE_SECONDS * 2 ** min(doublings - 1, 9), _LONGEST_PAUSE_SECONDS)
            self._not_before[number] = time.monotonic() + pause

    def _spoil(self, number: int, looks: Appearance) -> None:
        """Takes note where the files themselves were written that a version is mapped from, and not replaced."""
        with self._changing:
            entry = self._entries.get(number)
            if entry is None or entry.spoilt or not _is_written(entry.appearance, looks):
                return
            self._entries = {**self._entries, number: replace(entry, spoilt=True)}
        log.error("files of version %d were written while it answered: what it answers is not to be trusted", number)

    def _cannot_look(self, number: int, error: OSError) -> None:
        if self._told.get(number) != str(error):  # at every look it would be the same again
            self._told[number] = str(error)
            log.warning("version %d in %s cannot be looked at: %s", number, self._models_dir, error)

    def _refuse(self, number: int, refusal: Refusal | None) -> None:
        with self._changing:
            others = {one: why for one, why in self._refusals.items() if one != number}
            self._refusals = others if refusal is None else {**others, number: refusal}

    def _load(self, folder: Path) -> LoadedModel:
        began = time.monotonic()
        return_unused_memory(self._tables.device)
        memory = memory_of(self._tables.device)
        try:
            model = load_model(folder, self._tables, self._keep_going)
            loaded = time.monotonic()
            touched = touch(folder, self._keep_going)
            self._prepare(model)
        except torch.OutOfMemoryError as error:
            log.warning("version %s does not fit: %s", folder.name, error)
            there = f", where {(memory['total'] - memory['used']) / 1e9:.1f} GB were free" if memory else ""
            reason = f"its tables do not fit into the memory of {self._tables.device} beside what is loaded{there}"
            raise UnreadableModel(reason) from None
        manifest = model.manifest
        log.info(
            "version %d is ready: %s, %d users, %d items, %d dimensions; read in %.2f s, warmed in %.2f s (%.0f MB)",
            *(model.version, manifest.model_name, manifest.user_count, manifest.item_count, manifest.embedding_size),
            *(loaded - began, time.monotonic() - loaded, touched / 1e6),
        )
        weakref.finalize(model, log.info, "version %d is freed", model.version).atexit = False
        return model


@contextmanager
def _giving_way() -> Iterator[None]:
    """Has the threads of this process, those that answer calls among them, wait less long for this one meanwhile."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(min(usual, _SWITCH_SECONDS))
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


def _listed(folder: Path) -> frozenset[str] | None:
    """The files of a version, so that others in its folder may change; None where nobody can say which they are."""
    try:
        return frozenset({MANIFEST, *listed_files(folder)})
    except BadModel:
        return None


def _is_written(before: Appearance, now: Appearance) -> bool:
    """Whether a file that tables are mapped from is the same as before and has another content."""
    places = {(name, inode): (size, changed) for name, size, inode, changed in before if name in MAPPED}
    return any(places.get((name, inode), (size, changed)) != (size, changed) for name, size, inode, changed in now)


def _looks_otherwise(folder: Path, names: Container[str] | None, looks: Appearance) -> bool:
    """Whether a folder has changed, or can be looked at no more."""
    try:
        return appearance(folder, names) != looks
    except OSError:
        return True
