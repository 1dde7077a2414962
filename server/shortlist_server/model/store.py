"""The models folder: which versions there are, which one answers, and why the others do not."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

import torch

from shortlist.v1 import manifest_pb2
from shortlist_server.errors import BadModel, ModelNotFound, NoModelReady, shown
from shortlist_server.model.folder import LoadedModel, load_model, read_manifest

log = logging.getLogger(__name__)

Appearance = frozenset[tuple[str, int, int]]

_LONGEST_NUMBER = 19  # digits of a version that 64 bits hold for certain


class State(Enum):
    """How far a version has come."""

    AVAILABLE = auto()
    READY = auto()
    FAILED = auto()


@dataclass(frozen=True)
class Version:
    """A version in the models folder.

    Attributes:
        number: its version number.
        state: how far it has come.
        reason: why it is in this state; empty when it answers.
        manifest: what it says of itself; None when that cannot be read.
    """

    number: int
    state: State
    reason: str
    manifest: manifest_pb2.ModelManifest | None


class ModelStore:
    """Loads the newest good version of a models folder.

    Args:
        models_dir: holds one folder per version.
        device: where user tables live.
        on_event: is told what becomes of a version: "ready", "default" or "refused", its number, and the version itself
            once it is ready.
    """

    def __init__(
        self,
        models_dir: Path,
        device: torch.device | str,
        on_event: Callable[[str, int, LoadedModel | None], None] = lambda *_: None,
    ) -> None:
        self._on_event = on_event
        self._models_dir = models_dir
        self._device = device
        self._loaded: LoadedModel | None = None
        # Version to what its folder looked like and the reason it was refused: a bad version is read again only when
        # it has changed.
        self._refused: dict[int, tuple[Appearance, str]] = {}
        self._loading = threading.Lock()

    def load_newest(self) -> bool:
        """Loads the newest version that is good, unless one is loaded. Says whether one is loaded now."""
        with self._loading:
            for number in self._numbers():
                if self._loaded is not None:
                    break
                self._try(number)
            return self._loaded is not None

    def _try(self, number: int) -> None:
        folder = self._models_dir / str(number)
        try:
            appearance = _appearance(folder)
        except OSError as error:
            log.warning("version %d in %s cannot be looked at: %s", number, self._models_dir, error)
            return
        if self._refused.get(number, (None, ""))[0] == appearance:
            return
        try:
            self._loaded = load_model(folder, self._device)
        except BadModel as error:
            self._refused[number] = (appearance, str(error))
            self._on_event("refused", number, None)
            log.error("version %d in %s is refused: %s", number, self._models_dir, error)
        except Exception as error:
            # A folder that passes every check and still cannot be loaded, for want of memory perhaps: others may do.
            self._refused[number] = (appearance, f"cannot be loaded: {error}")
            self._on_event("refused", number, None)
            log.exception("version %d in %s cannot be loaded", number, self._models_dir)
        else:
            self._on_event("ready", number, self._loaded)
            self._on_event("default", number, self._loaded)
            manifest = self._loaded.manifest
            log.info(
                "version %d is ready: %s, %d users, %d items, %d dimensions",
                *(number, manifest.model_name, manifest.user_count, manifest.item_count, manifest.embedding_size),
            )

    def default(self) -> LoadedModel:
        """The version that answers when none is named.

        Raises:
            NoModelReady: none is loaded yet.
        """
        loaded = self._loaded
        if loaded is None:
            raise NoModelReady
        return loaded

    def select(self, version: int | None = None, label: str | None = None) -> LoadedModel:
        """The loaded version that is named, or the default.

        Raises:
            ModelNotFound: it is not loaded.
            NoModelReady: none is loaded yet.
        """
        loaded = self.default()
        if label is not None:
            raise ModelNotFound(label, f"no version bears the label {shown(label)}")
        if version is not None and version != loaded.version:
            raise ModelNotFound(str(version), f"version {version} is not loaded; version {loaded.version} is")
        return loaded

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
        loaded = self._loaded
        if loaded is not None and loaded.version == number:
            return Version(number, State.READY, "", loaded.manifest)
        refused = self._refused.get(number)
        try:
            manifest = read_manifest(self._models_dir / str(number))
        except BadModel as error:
            return Version(number, State.FAILED, refused[1] if refused else str(error), None)
        if refused:
            return Version(number, State.FAILED, refused[1], manifest)
        return Version(number, State.AVAILABLE, "not loaded", manifest)

    def _known_numbers(self) -> list[int]:
        """The version numbers in the folder and the one that is loaded, whatever became of its folder."""
        loaded = set() if self._loaded is None else {self._loaded.version}
        return sorted(loaded.union(self._numbers()), reverse=True)

    def _numbers(self) -> list[int]:
        """The version numbers in the folder, newest first."""
        try:
            names = [entry.name for entry in self._models_dir.iterdir() if entry.is_dir()]
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                log.error("%s cannot be listed: %s", self._models_dir, error)
            return []
        numbers = (int(name) for name in names if name.isdecimal() and len(name) <= _LONGEST_NUMBER)
        return sorted((number for number in numbers if number > 0 and str(number) in names), reverse=True)


def _appearance(folder: Path) -> Appearance:
    """Name, size and time of change of every file: equal as long as nothing in the folder has changed."""
    entries = ((entry.name, entry.stat()) for entry in folder.iterdir())
    return frozenset((name, status.st_size, status.st_mtime_ns) for name, status in entries)
