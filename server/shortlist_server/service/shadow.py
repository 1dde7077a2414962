"""Asks a second version what callers asked the first, when there is time, and compares the answers."""

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from shortlist.v1.recommender_pb2 import RecommendRequest, RecommendResponse
from shortlist_server.errors import QueryError
from shortlist_server.model.store import ModelStore
from shortlist_server.service.answers import Answers, Outcome
from shortlist_server.telemetry.observer import Observer

log = logging.getLogger(__name__)

_BATCHES_WAITING = 64
_TOLD_SECONDS = 60.0
_NICENESS = 10
"""Where cores are short, callers go first."""


@dataclass(frozen=True)
class Comparison:
    """How the answers of a version differ from those that callers got.

    Attributes:
        version: the version compared; None while none bears the label.
        compared: requests that were compared.
        skipped: requests that were not, since there was no time.
        overlap: sum over the requests compared of the share of the items that both answered.
        answer_seconds: what the answers took that callers got.
        shadow_seconds: what the version compared took for the same.
    """

    version: int | None = None
    compared: int = 0
    skipped: int = 0
    overlap: float = 0.0
    answer_seconds: float = 0.0
    shadow_seconds: float = 0.0


class _Answered(NamedTuple):
    """What was asked together and answered, and the time it took."""

    pairs: Sequence[tuple[RecommendRequest, bytes]]
    seconds: float


class Shadow:
    """Compares the version that bears a label with the one that answered.

    Args:
        answers: asks the version.
        store: says which one it is.
        label: what it bears.
        observer: is told of every comparison.
    """

    def __init__(self, answers: Answers, store: ModelStore, label: str, observer: Observer) -> None:
        self.label = label
        self._observer = observer
        self._answers = answers
        self._store = store
        self._waiting: queue.Queue[_Answered | None] = queue.Queue(_BATCHES_WAITING)
        self._comparison = Comparison()
        self._counting = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    @property
    def comparison(self) -> Comparison:
        """Everything since the version that bears the label began to bear it."""
        with self._counting:
            return self._so_far()

    def close(self) -> None:
        """Compares no more."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._waiting.get_nowait()
        self._waiting.put(None)
        self._thread.join()

    def compare(self, requests: Sequence[RecommendRequest], outcomes: Sequence[Outcome], seconds: float) -> None:
        """Compares these answers when there is time; never waits.

        Args:
            requests: what was asked together.
            outcomes: what was answered, the i-th for the i-th request.
            seconds: how long it took.
        """
        pairs = zip(requests, outcomes, strict=True)
        answered = [(asked, got) for asked, got in pairs if isinstance(got, bytes) and not asked.HasField("model")]
        try:
            self._waiting.put_nowait(_Answered(answered, seconds * len(answered) / len(requests)))
        except queue.Full:
            with self._counting:
                so_far = self._so_far()
                self._comparison = replace(so_far, skipped=so_far.skipped + len(answered))
            self._observer.shadow_skipped(len(answered))

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # it has been given way already, or this is no Linux
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        told = time.monotonic()
        while (answered := self._waiting.get()) is not None:
            try:
                self._compare(answered)
            except Exception:  # callers must never feel the shadow
                log.exception("the shadow %s failed", self.label)
            if time.monotonic() - told >= _TOLD_SECONDS:
                told = time.monotonic()
                self._tell()

    def _version(self) -> int | None:
        """What bears the label; None where nobody does, or it is not loaded."""
        try:
            return self._store.select(label=self.label).version
        except QueryError:
            return None

    def _so_far(self) -> Comparison:
        """What was compared of the version that bears the label now; to be called by one thread at a time."""
        version = self._version()
        if self._comparison.version != version:
            self._comparison = Comparison(version)
        return self._comparison

    def _compare(self, answered: _Answered) -> None:
        version = self._version()
        if version is None:
            return
        asked, given = [], []
        for request, got in answered.pairs:
            response = RecommendResponse.FromString(got)
            if response.model_version == version:  # it answered by itself
                continue
            again = RecommendRequest()
            again.CopyFrom(request)
            again.model.label = self.label
            asked.append(again)
            given.append(response)
        if not asked:
            return
        began = time.perf_counter()
        outcomes = self._answers.recommend(asked, [began] * len(asked))
        seconds = time.perf_counter() - began
        overlaps = [
            _overlap(response, RecommendResponse.FromString(outcome)) if isinstance(outcome, bytes) else 0.0
            for response, outcome in zip(given, outcomes, strict=True)
        ]
        answer_seconds = answered.seconds * len(asked) / len(answered.pairs)
        self._observer.shadow_compared(version, overlaps, answer_seconds, seconds)
        self._add(Comparison(version, len(asked), 0, sum(overlaps), answer_seconds, seconds))

    def _add(self, more: Comparison) -> None:
        with self._counting:
            old = self._so_far()
            if old.version != more.version:  # the label has moved meanwhile
                return
            self._comparison = Comparison(
                old.version,
                old.compared + more.compared,
                old.skipped,
                old.overlap + more.overlap,
                old.answer_seconds + more.answer_seconds,
                old.shadow_seconds + more.shadow_seconds,
            )

    def _tell(self) -> None:
        so_far = self.comparison
        if so_far.compared:
            log.info(
                "shadow %s, version %d: overlap %.3f over %d requests, %.0f us each where the answers took %.0f us",
                *(self.label, so_far.version, so_far.overlap / so_far.compared, so_far.compared),
                *(1e6 * seconds / so_far.compared for seconds in (so_far.shadow_seconds, so_far.answer_seconds)),
            )


class ShadowedAnswers(Answers):
    """Answers that a shadow compares.

    Args:
        store: says which model answers.
        observer: is told of what callers ask, and of the comparisons.
        label: of the version to compare.
    """

    def __init__(self, store: ModelStore, observer: Observer, label: str) -> None:
        super().__init__(store, observer)
        self.shadow = Shadow(Answers(store, Observer()), store, label, observer)

    def recommend(self, messages: Sequence[RecommendRequest], arrived: Sequence[float]) -> list[bytes | QueryError]:
        """The best items for each user: RecommendResponses."""
        began = time.perf_counter()
        outcomes = super().recommend(messages, arrived)
        self.shadow.compare(messages, outcomes, time.perf_counter() - began)
        return outcomes


def _overlap(one: RecommendResponse, other: RecommendResponse) -> float:
    """The share of the items of one answer that the other has too; 1 for an answer without items."""
    if not one.items:
        return 1.0
    return len({item.item_id for item in one.items} & {item.item_id for item in other.items}) / len(one.items)
