"""The models folder: which versions are loaded, which of them answers, and why the others do not."""

import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from pathlib import Path

import torch

from shortlist.v1 import manifest_pb2
from shortlist_server.errors import (
    BadModel,
    ModelNotFound,
    ModelRefused,
    NoModelReady,
    UnreadableModel,
    VersionInUse,
    shown,
)
from shortlist_server.model.choices import Choices, ChoicesFile
from shortlist_server.model.folder import LoadedModel, load_model, read_manifest
from shortlist_server.model.traffic import Split, label_of
from shortlist_server.model.warming import warm

log = logging.getLogger(__name__)

Appearance = frozenset[tuple[str, int, int, int]]

_LONGEST_NUMBER = 19  # digits of a version that 64 bits hold for certain
_RETRY_SECONDS = 60.0
"""After so long a folder that is not itself at fault, for want of memory perhaps, is read again."""


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


@dataclass(frozen=True)
class _Entry:
    """A loaded version and what its folder looked like."""

    model: LoadedModel
    appearance: Appearance


@dataclass(frozen=True)
class _Refusal:
    """Why a version is not loaded.

    Attributes:
        changed: when its files were changed: it is read again when one of them has been since.
        reason: what is wrong.
        again: when it is read again all the same, by ``time.monotonic``.
    """

    changed: frozenset[tuple[str, int]]
    reason: str
    again: float = math.inf


@dataclass(frozen=True)
class _Serving:
    """What requests go by. It is replaced as a whole, so that each request sees one state of it.

    Attributes:
        models: the loaded versions by number.
        labels: label to version, loaded or not.
        default: what answers when nothing is named; None before a version is loaded.
    """

    models: Mapping[int, LoadedModel] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)
    default: LoadedModel | None = None


class ModelStore:
    """Keeps the versions of a models folder loaded that shall answer.

    These are the newest good one, ``keep`` good ones before it, and whatever operators chose (model/choices.py).

    Args:
        models_dir: holds one folder per version.
        device: where user tables live.
        keep: how many older versions stay loaded, for requests that name them and for going back.
        default_label: bears the version that answers when none is named; None, or while no version bears it, for the
            newest. Where the one that bears it cannot be loaded, the one that answered before goes on.
        splits: shares of the users whose requests go to the version of a label when they name none.
        on_event: is told what becomes of a version: "ready", "default", "refused" or "unloaded", its number, and the
            version itself where it is ready.
    """

    def __init__(
        self,
        models_dir: Path,
        device: torch.device | str,
        *,
        keep: int = 1,
        default_label: str | None = None,
        splits: Sequence[Split] = (),
        on_event: Callable[[str, int, LoadedModel | None], None] = lambda *_: None,
    ) -> None:
        self._on_event = on_event
        self._models_dir = models_dir
        self._device = device
        self._keep = keep
        self._default_label = default_label
        self._splits = tuple(splits)
        self._choices = ChoicesFile(models_dir)
        self._serving = _Serving()
        self._entries: dict[int, _Entry] = {}
        self._refused: dict[int, _Refusal] = {}
        self._being_loaded: int | None = None
        self._refreshing = threading.RLock()

    def refresh(self, *, everything: bool = True) -> bool:
        """Brings what is loaded in line with the folder; says whether a version answers now.

        A version that cannot be loaded leaves everything as it is, and so does a folder without a good version: the
        only good one is never unloaded.

        Args:
            everything: otherwise only what answers requests that name no version.
        """
        with self._refreshing:
            numbers, choices = self._numbers(), self._choices.read()
            default = self._choose_default(numbers, choices)
            if default is None:
                return bool(self._entries)
            self._serve(choices, default)
            if everything:
                wanted = {default, *self._others(numbers, choices)}
                for number in self._entries.keys() - wanted:
                    log.info("version %d answers no more and is freed after its last request", number)
                    del self._entries[number]
                    self._on_event("unloaded", number, None)
                self._serve(choices, default)
                self._refused = {number: refusal for number, refusal in self._refused.items() if number in numbers}
            return True

    def _choose_default(self, numbers: Sequence[int], choices: Choices) -> int | None:
        """The version to answer requests that name none, loaded; None where no version can be loaded."""
        labelled = choices.labels.get(self._default_label or "")
        if labelled is not None:
            if labelled in numbers and self._ensure(labelled):
                return labelled
            # A version that nobody has vouched for takes over only where there is no other.
            before = self._serving.default
            if before is not None and before.version in self._entries and before.version in numbers:
                return before.version
        # What operators unloaded comes last: it answers again when nothing else can.
        in_order = sorted(numbers, key=lambda number: (number in choices.unloaded, -number))
        return next((number for number in in_order if self._ensure(number)), None)

    def _others(self, numbers: Sequence[int], choices: Choices) -> Iterator[int]:
        """The versions to be loaded beside the default, each once it is."""
        places = self._keep + 1  # among the newest good ones; one that was unloaded leaves its place empty
        for number in numbers:
            if places == 0:
                break
            if number in choices.unloaded:
                places -= 1
            elif self._ensure(number):
                places -= 1
                yield number
        for number in choices.loaded | frozenset(choices.labels.values()):
            if number in numbers and self._ensure(number):
                yield number

    def _serve(self, choices: Choices, number: int) -> None:
        models = {number: entry.model for number, entry in self._entries.items()}
        before, default = self._serving.default, models[number]
        self._serving = _Serving(models, choices.labels, default)
        if before is not default:
            self._on_event("default", default.version, default)
            log.info("version %d answers now%s", default.version, f" in place of {before.version}" if before else "")

    def _ensure(self, number: int) -> bool:
        """Loads a version unless it is loaded as it is; says whether it is loaded."""
        folder = self._models_dir / str(number)
        loaded = self._entries.get(number)
        try:
            appearance = _appearance(folder)
        except OSError as error:
            if loaded is None:
                log.warning("version %d in %s cannot be looked at: %s", number, self._models_dir, error)
            return loaded is not None
        if loaded is not None and loaded.appearance == appearance:
            self._refused.pop(number, None)  # of a change that was taken back
            return True
        refusal = self._refused.get(number)
        if refusal is not None and refusal.changed == _changed(folder) and time.monotonic() < refusal.again:
            return loaded is not None
        self._being_loaded = number
        try:
            self._entries[number] = _Entry(self._load(folder), appearance)
            self._on_event("ready", number, self._entries[number].model)
            self._refused.pop(number, None)
        except BadModel as error:
            again = time.monotonic() + _RETRY_SECONDS if isinstance(error, UnreadableModel) else math.inf
            self._refused[number] = _Refusal(_changed(folder), str(error), again)
            self._on_event("refused", number, None)
            log.error("version %d in %s is refused: %s", number, self._models_dir, error)
        except Exception:
            # A folder that passes every check and still cannot be loaded, for want of memory perhaps: others may do.
            again = time.monotonic() + _RETRY_SECONDS
            # What nobody foresaw is for the log alone.
            self._refused[number] = _Refusal(_changed(folder), "it cannot be loaded; the server's log tells why", again)
            self._on_event("refused", number, None)
            log.exception("version %d in %s cannot be loaded", number, self._models_dir)
        finally:
            self._being_loaded = None
        return number in self._entries

    def _load(self, folder: Path) -> LoadedModel:
        began = time.monotonic()
        model = load_model(folder, self._device)
        loaded = time.monotonic()
        warm(model.recommender)
        manifest = model.manifest
        log.info(
            "version %d is ready: %s, %d users, %d items, %d dimensions; read in %.2f s, warmed in %.2f s",
            *(model.version, manifest.model_name, manifest.user_count, manifest.item_count, manifest.embedding_size),
            *(loaded - began, time.monotonic() - loaded),
        )
        weakref.finalize(model, log.info, "version %d is freed", model.version).atexit = False
        return model

    def default(self) -> LoadedModel:
        """The version that answers when none is named.

        Raises:
            NoModelReady: none is loaded yet.
        """
        default = self._serving.default
        if default is None:
            raise NoModelReady
        return default

    def select(self, version: int | None = None, label: str | None = None) -> LoadedModel:
        """The loaded version that is named, or the default.

        Raises:
            ModelNotFound: it is not loaded.
            NoModelReady: none is loaded yet.
        """
        if version is None and label is None:
            return self.default()
        serving = self._serving
        if serving.default is None:
            raise NoModelReady
        number = version
        if label is not None:
            if label not in serving.labels:
                raise ModelNotFound(label, f"no version bears the label {shown(label)}")
            number = serving.labels[label]
        model = None if number is None else serving.models.get(number)
        if model is None:
            name = f"version {number}" if label is None else f"version {number}, which bears the label {shown(label)},"
            loaded = ", ".join(map(str, sorted(serving.models)))
            raise ModelNotFound(label or str(number), f"{name} is not loaded; loaded: {loaded}")
        return model

    def for_user(self, user_id: str) -> LoadedModel:
        """The version that answers a user when none is named: always the same one while the splits and labels stay.

        Args:
            user_id: empty where the request names no user: such requests go to the default.

        Raises:
            NoModelReady: none is loaded yet.
        """
        default = self.default()
        if not self._splits or not user_id:
            return default
        label = label_of(user_id, self._splits)
        serving = self._serving
        return serving.models.get(serving.labels.get(label or "", 0), default)

    def load(self, number: int) -> Version:
        """Loads a version beside the others, here at once and by the other workers soon.

        Raises:
            ModelNotFound: there is none of this number.
            ModelRefused: it cannot be loaded; the text says why.
            StoreNotWritable: the models folder cannot be written.
        """
        with self._refreshing:
            self.version(number)
            if not self._ensure(number):
                refusal = self._refused.get(number)
                raise ModelRefused(number, refusal.reason if refusal else "its folder cannot be looked at")
            self._choices.change(
                lambda old: replace(old, loaded=old.loaded | {number}, unloaded=old.unloaded - {number})
            )
            self.refresh()
            return self._describe(number)

    def unload(self, number: int) -> Version:
        """Frees a version after its last request, and keeps it from being loaded again, here and by other workers.

        Raises:
            ModelNotFound: there is none of this number.
            VersionInUse: no other is loaded, or it bears a label.
            StoreNotWritable: the models folder cannot be written.
        """
        with self._refreshing:
            described = self.version(number)
            if described.labels:
                raise VersionInUse(number, f"bears the label {', '.join(described.labels)}")
            if self._serving.models.keys() == {number}:
                raise VersionInUse(number, "is the only one that is loaded")
            self._choices.change(
                lambda old: replace(old, loaded=old.loaded - {number}, unloaded=old.unloaded | {number})
            )
            self.refresh()
            return self._describe(number)

    def set_label(self, label: str, number: int | None) -> Version | None:
        """Points a label at a version, which is loaded if need be; takes the label away for None.

        Raises:
            ModelNotFound: there is none of this number.
            ModelRefused: it cannot be loaded; the label stays where it is.
            StoreNotWritable: the models folder cannot be written.
        """
        with self._refreshing:
            if number is None:
                self._choices.change(lambda old: replace(old, labels=_without(old.labels, label)))
                self.refresh()
                return None
            self.version(number)
            if not self._ensure(number):
                refusal = self._refused.get(number)
                raise ModelRefused(number, refusal.reason if refusal else "its folder cannot be looked at")
            self._choices.change(
                lambda old: replace(old, labels={**old.labels, label: number}, unloaded=old.unloaded - {number})
            )
            self.refresh()
            return self._describe(number)

    @property
    def splits(self) -> Sequence[Split]:
        """The shares of users that labels answer."""
        return self._splits

    def versions(self) -> list[Version]:
        """Every version in the folder, newest first."""
        return [self._describe(number) for number in self._known_numbers()]

    def version(self, number: int) -> Version:
        """One version in the folder.

        Raises:
            ModelNotFound: there is none of this number.
        """
        if number not in self._known_numbers():
            raise ModelNotFound(str(number), f"there is no version {number}")
        return self._describe(number)

    def _describe(self, number: int) -> Version:
        serving = self._serving
        labels = sorted(label for label, labelled in serving.labels.items() if labelled == number)
        loaded = serving.models.get(number)
        refused = self._refused.get(number)
        if loaded is not None:
            reason = f"its folder has changed since and is refused: {refused.reason}" if refused else ""
            return Version(number, State.READY, reason, labels, loaded.manifest)
        try:
            manifest = read_manifest(self._models_dir / str(number))
        except BadModel as error:
            return Version(number, State.FAILED, refused.reason if refused else str(error), labels, None)
        if self._being_loaded == number:
            return Version(number, State.LOADING, "being read and warmed", labels, manifest)
        if refused:
            return Version(number, State.FAILED, refused.reason, labels, manifest)
        return Version(number, State.AVAILABLE, "not loaded", labels, manifest)

    def _known_numbers(self) -> list[int]:
        """The version numbers in the folder and those that are loaded, whatever became of their folders."""
        return sorted({*self._serving.models, *self._numbers()}, reverse=True)

    def _numbers(self) -> list[int]:
        """The version numbers in the folder, newest first."""
        try:
            with os.scandir(self._models_dir) as entries:
                names = [entry.name for entry in entries if entry.is_dir()]
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                log.error("%s cannot be listed: %s", self._models_dir, error)
            return []
        numbers = (int(name) for name in names if name.isdecimal() and len(name) <= _LONGEST_NUMBER)
        return sorted((number for number in numbers if number > 0 and str(number) in names), reverse=True)


def _without(labels: Mapping[str, int], label: str) -> dict[str, int]:
    return {name: number for name, number in labels.items() if name != label}


def _appearance(folder: Path) -> Appearance:
    """Name, size, place and time of change of every file: equal as long as nothing in the folder has changed."""
    entries = ((entry.name, entry.stat()) for entry in folder.iterdir())
    return frozenset((name, status.st_size, status.st_ino, status.st_mtime_ns) for name, status in entries)


def _changed(folder: Path) -> frozenset[tuple[str, int]]:
    """When each file was changed, its content or who may read it; a link to it from elsewhere is a change as well."""
    try:
        return frozenset((entry.name, entry.stat().st_ctime_ns) for entry in folder.iterdir())
    except OSError:
        return frozenset()
