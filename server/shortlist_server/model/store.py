"""The models folder: which of the versions that are read answer, and what is to be read next."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from shortlist_server.device.tables import DeviceTables
from shortlist_server.errors import BadModel, ModelNotFound, ModelRefused, VersionInUse
from shortlist_server.model.choices import Choices, ChoicesFile
from shortlist_server.model.folder import LoadedModel
from shortlist_server.model.handover import Handover, Standing, latest_default
from shortlist_server.model.manifest import read_manifest
from shortlist_server.model.plan import Policy, Situation, plan_for
from shortlist_server.model.readings import Readings
from shortlist_server.model.serving import Serving
from shortlist_server.model.shelf import OnEvent, Shelf
from shortlist_server.model.traffic import Split, label_of
from shortlist_server.model.versions import State, Version, numbers_in

log = logging.getLogger(__name__)

AGAIN_SECONDS = 0.05
"""How often is looked while a version waits for the other workers: so far apart they begin to answer from it."""

_ONLY_ONE = "is the only one that can answer, but for those that were unloaded"


class ModelStore:
    """Keeps the versions of a models folder loaded that shall answer.

    These are the newest good one, ``policy.keep`` good ones before it, and whatever operators chose (model/choices.py).
    To look is quick, and brings what answers in line with the folder; to read a version is not, and nobody who looks
    waits for it (model/shelf.py). Where several workers serve, a version that has been read answers when all have read
    it (model/handover.py).

    Args:
        models_dir: holds one folder per version.
        device: where user tables live, and those of rankers.
        policy: what shall answer.
        handover: how this process and the other workers of its server agree.
        prepare: gets a version that has been read ready to answer; what it raises refuses the version.
        keep_going: is called many times while a version is read or waited for, and may raise LoadingStopped.
        on_event: is told what becomes of a version: "reading", "ready", "default", "refused" or "unloaded", its
            number, and the version itself where it is ready.
    """

    def __init__(
        self,
        models_dir: Path,
        device: DeviceTables | torch.device | str,
        policy: Policy | None = None,
        *,
        handover: Handover | None = None,
        prepare: Callable[[LoadedModel], None] = lambda _: None,
        keep_going: Callable[[], None] = lambda: None,
        on_event: OnEvent = lambda *_: None,
    ) -> None:
        self._models_dir = models_dir
        self._policy = policy or Policy()
        self._handover = handover or Handover()
        self._keep_going = keep_going
        self._on_event = on_event
        self._choices = ChoicesFile(models_dir)
        self._shelf = Shelf(models_dir, device, prepare, keep_going, on_event, Readings(self._handover.folder))
        self._serving = Serving()
        self._looking = threading.RLock()
        self._asked_for: list[int] = []
        self._hands_over = False
        self._trouble = ""  # what was wrong with the folder

    @property
    def hands_over(self) -> bool:
        """Whether a version is ready and waits for the other workers: it is to be looked at again soon."""
        return self._hands_over

    def refresh(self) -> bool:
        """Looks, and reads in this thread what is to be read, until nothing is; says whether a version answers."""
        while (number := self.look()) is not None:
            self._shelf.read(number)
        return self._serving.default is not None

    def read(self, number: int) -> bool:
        """Reads a version aside, if it is to be read; says whether it, or what it was before it changed, is loaded.

        Raises:
            LoadingStopped: the server is stopping.
        """
        return self._shelf.read(number)

    def look(self) -> int | None:
        """Brings what answers in line with the folder, as far as versions have been read; reads none.

        A version that cannot be loaded leaves everything as it is, and so does a folder without a good version, but for
        what operators choose: the only good one is never unloaded.

        Returns:
            The version to be read next; None where there is none, or it is being read.
        """
        with self._looking:
            numbers, choices = self._numbers(), self._choices.read()
            others = self._handover.others() if self._has_news() else []
            models, waiting = self._in_service(others)
            joined = latest_default(others)
            plan = plan_for(self._policy, Situation(numbers, choices, self._shelf, self._serving, models, joined))
            due = next((number for number in plan.due if not self._shelf.is_being_read(number)), None)
            if plan.due:
                self._hands_over = bool(waiting)
            else:  # who waits and is wanted no more waits for nothing
                self._drop_waiting(waiting - plan.wanted - {*self._asked_for})
                self._hands_over = bool(waiting & {*plan.wanted, *self._asked_for})
            if plan.default is None:
                return due
            self._drop(models, {*plan.wanted, *self._asked_for}, choices, settled=not plan.due and not self._hands_over)
            self._serve(models, plan.labels, plan.default)
            self._shelf.forget_refusals(numbers)
            self._tell()
            return due

    def _has_news(self) -> bool:
        """Whether something has been read that no request gets yet."""
        serving = self._serving.models
        return not serving or any(entry.model is not serving.get(n) for n, entry in self._shelf.entries.items())

    def _in_service(self, others: Sequence[Standing]) -> tuple[dict[int, LoadedModel], set[int]]:
        """The versions that requests may get: those that the other workers have as well, or a first one.

        Returns:
            These, and those that wait for the others.
        """
        serving, models, waiting = self._serving, {}, set()
        for number, entry in self._shelf.entries.items():
            before = serving.models.get(number)
            if (
                before is entry.model
                or serving.default is None
                or self._handover.may_answer(entry.mark, entry.since, others)
            ):
                models[number] = entry.model
            else:
                waiting.add(number)
                if before is not None:
                    models[number] = before
        return models, waiting

    def _drop_waiting(self, numbers: set[int]) -> None:
        """Lets go of versions that no request has got."""
        for number in numbers - self._serving.models.keys():
            log.info("version %d is freed before it has answered: a newer one has come", number)
            self._shelf.drop(number)
            self._on_event("unloaded", number, None)

    def _drop(self, models: dict[int, LoadedModel], wanted: set[int], choices: Choices, *, settled: bool) -> None:
        """Lets go of what is not wanted: at once of what was taken back, of others once all that is wanted is there."""
        for number in self._shelf.entries.keys() - wanted:
            if settled or number in choices.unloaded:
                log.info("version %d answers no more and is freed after its last request", number)
                self._shelf.drop(number)
                models.pop(number, None)
                self._on_event("unloaded", number, None)

    def _serve(self, models: Mapping[int, LoadedModel], labels: Mapping[str, int], number: int) -> None:
        before, default = self._serving.default, models[number]
        self._serving = Serving(models, labels, default)
        if before is not default:
            self._on_event("default", default.version, default)
            log.info("version %d answers now%s", default.version, f" in place of {before.version}" if before else "")

    def _tell(self) -> None:
        serving, entries = self._serving, self._shelf.entries
        answering = {number for number, entry in entries.items() if serving.models.get(number) is entry.model}
        self._handover.tell(
            Standing(
                ready={entry.mark: entry.since for entry in entries.values()},
                refused=sorted(refusal.mark for refusal in self._shelf.refusals.values()),
                answering=sorted(entries[number].mark for number in answering),
                default=None if serving.default is None else serving.default.version,
                since=time.monotonic(),
                pid=os.getpid(),
            )
        )

    def default(self) -> LoadedModel:
        """The version that answers when none is named.

        Raises:
            NoModelReady: none is loaded yet.
        """
        return self._serving.the_default()

    def select(self, version: int | None = None, label: str | None = None) -> LoadedModel:
        """The loaded version that is named, or the default.

        Raises:
            ModelNotFound: it is not loaded.
            NoModelReady: none is loaded yet.
        """
        if version is None and label is None:
            return self.default()
        return self._serving.named(version, label)

    def for_user(self, user_id: str) -> LoadedModel:
        """The version that answers a user when none is named: always the same one while the splits and labels stay.

        Args:
            user_id: empty where the request names no user: such requests go to the default.

        Raises:
            NoModelReady: none is loaded yet.
        """
        if not self._policy.splits or not user_id:
            return self.default()
        return self._serving.of_label(label_of(user_id, self._policy.splits))

    def load(self, number: int) -> Version:
        """Loads a version beside the others, here and by the other workers.

        Raises:
            ModelNotFound: there is none of this number.
            ModelRefused: it cannot be loaded; the text says why.
            ChoicesUnusable: store.json is damaged, cannot be read, or is full.
            StoreNotWritable: the models folder cannot be written.
        """
        self._choose(number, lambda old: replace(old, loaded=old.loaded | {number}, unloaded=old.unloaded - {number}))
        return self._describe(number)

    def unload(self, number: int) -> Version:
        """Frees a version after its last request, and keeps it from being loaded again, here and by other workers.

        Raises:
            ModelNotFound: there is none of this number.
            VersionInUse: no other can answer, or it bears a label.
            ChoicesUnusable: store.json is damaged, cannot be read, or is full.
            StoreNotWritable: the models folder cannot be written.
        """
        with self._looking:
            labels = {*self.version(number).labels}
            labels |= {label for label, labelled in self._choices.read().labels.items() if labelled == number}
            if labels:
                raise VersionInUse(number, f"bears the label {', '.join(sorted(labels))}")
            before = self._choices.read()
            loaded = before.loaded & {number}
            if all(other in before.unloaded or not self._may_answer(other) for other in self._others_than(number)):
                raise VersionInUse(number, _ONLY_ONE)
            self._choices.change(
                lambda old: replace(old, loaded=old.loaded - {number}, unloaded=old.unloaded | {number})
            )
        while True:
            due = self.look()
            default = self._serving.default
            if default is None or default.version != number:
                return self._describe(number)
            if due is not None:
                self._shelf.read(due)
            elif self._hands_over or self._shelf.is_reading:
                self._keep_going()
                time.sleep(AGAIN_SECONDS)
            else:  # those that were to be read turned out to be bad
                self._choices.change(
                    lambda old: replace(old, loaded=old.loaded | loaded, unloaded=old.unloaded - {number})
                )
                raise VersionInUse(number, _ONLY_ONE)

    def _others_than(self, number: int) -> Iterator[int]:
        return (other for other in self._known_numbers() if other != number)

    def _may_answer(self, number: int) -> bool:
        shelf = self._shelf
        return number in self._serving.models or shelf.is_being_read(number) or shelf.is_due(number)

    def set_label(self, label: str, number: int | None) -> Version | None:
        """Points a label at a version, which is loaded if need be; takes the label away for None.

        Between versions that are loaded a label moves at once, whatever is being read.

        Raises:
            ModelNotFound: there is none of this number.
            ModelRefused: it cannot be loaded; the label stays where it is.
            ChoicesUnusable: store.json is damaged, cannot be read, or is full.
            StoreNotWritable: the models folder cannot be written.
        """
        if number is None:
            self._choices.change(lambda old: replace(old, labels=_without(old.labels, label)))
            self.look()
            return None
        self._choose(
            number,
            lambda old: replace(old, labels={**old.labels, label: number}, unloaded=old.unloaded - {number}),
        )
        return self._describe(number)

    def _choose(self, number: int, change: Callable[[Choices], Choices]) -> None:
        """Loads a version, writes down that it was chosen, and waits until it answers.

        Raises:
            ModelNotFound: there is none of this number.
            ModelRefused: it cannot be loaded.
            ChoicesUnusable: store.json is damaged, cannot be read, or is full.
            StoreNotWritable: the models folder cannot be written.
        """
        with self._asking_for(number):
            self.version(number)
            if self._shelf.is_due(number, at_once=True):
                self._shelf.read(number, at_once=True)
            if number not in self._shelf.entries:
                refusal = self._shelf.refusals.get(number)
                raise ModelRefused(number, refusal.reason if refusal else "its folder changes, or cannot be looked at")
            self._choices.change(change)
            self.look()
            while self._hands_over and number in self._shelf.entries and number not in self._serving.models:
                self._keep_going()
                time.sleep(AGAIN_SECONDS)
                self.look()

    @contextmanager
    def _asking_for(self, number: int) -> Iterator[None]:
        """Keeps a version from being dropped until it has been written down that it is wanted."""
        with self._looking:
            self._asked_for.append(number)
        try:
            yield
        finally:
            with self._looking:
                self._asked_for.remove(number)

    @property
    def splits(self) -> Sequence[Split]:
        """The shares of users that labels answer."""
        return self._policy.splits

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
        loaded, refused = serving.models.get(number), self._shelf.refusals.get(number)
        if loaded is not None:
            reason = f"its folder has changed since and is refused: {refused.reason}" if refused else ""
            return Version(number, State.READY, reason, labels, loaded.manifest)
        try:
            manifest = read_manifest(self._models_dir / str(number))
        except BadModel as error:
            return Version(number, State.FAILED, refused.reason if refused else str(error), labels, None)
        if self._shelf.is_being_read(number):
            return Version(number, State.LOADING, "being read and warmed", labels, manifest)
        if number in self._shelf.entries:
            return Version(
                number, State.LOADING, "read and warmed; answers once the other workers have it", labels, manifest
            )
        if refused:
            return Version(number, State.FAILED, refused.reason, labels, manifest)
        return Version(number, State.AVAILABLE, "not loaded", labels, manifest)

    def _known_numbers(self) -> list[int]:
        """The version numbers in the folder and those that are loaded, whatever became of their folders."""
        return sorted({*self._serving.models, *self._numbers()}, reverse=True)

    def _numbers(self) -> list[int]:
        """The version numbers in the folder, newest first; none where it cannot be listed, which is said once."""
        try:
            numbers = numbers_in(self._models_dir)
        except OSError as error:
            # Before the first version is published, there need be no folder.
            missed = self._serving.default is not None or not isinstance(error, FileNotFoundError)
            if missed and str(error) != self._trouble:
                self._trouble = str(error)
                log.error("%s cannot be listed, what answers goes on answering: %s", self._models_dir, error)
            return []
        self._trouble = ""
        return numbers


def _without(labels: Mapping[str, int], label: str) -> dict[str, int]:
    return {name: number for name, number in labels.items() if name != label}
