"""What shall answer and what is to be read for that, decided from what there is; nothing is changed here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from shortlist_server.model.choices import Choices
from shortlist_server.model.folder import LoadedModel
from shortlist_server.model.serving import Serving
from shortlist_server.model.shelf import Shelf
from shortlist_server.model.traffic import Split


@dataclass(frozen=True)
class Policy:
    """What shall answer, as the server was started.

    Attributes:
        keep: how many older versions stay loaded, for requests that name them and for going back.
        default_label: bears the version that answers when none is named; None, or while no version bears it, for the
            newest. Where the one that bears it cannot be loaded, the one that answered before goes on.
        splits: shares of the users whose requests go to the version of a label when they name none.
    """

    keep: int = 1
    default_label: str | None = None
    splits: Sequence[Split] = ()


@dataclass(frozen=True)
class Plan:
    """What shall answer.

    Attributes:
        default: the version that answers when none is named; None while none can.
        labels: label to version.
        wanted: the versions to be kept loaded.
        due: the versions to be read, the most urgent one first.
    """

    default: int | None
    labels: Mapping[str, int]
    wanted: frozenset[int]
    due: Sequence[int]


@dataclass(frozen=True)
class Situation:
    """What there is.

    Attributes:
        numbers: the versions in the folder, newest first.
        choices: what operators chose.
        shelf: what has been read.
        serving: what requests go by until now.
        models: of what has been read, what requests may get from now on.
        joined: what the other workers answer from, for one that answers nothing yet; None for nothing.
    """

    numbers: Sequence[int]
    choices: Choices
    shelf: Shelf
    serving: Serving
    models: Mapping[int, LoadedModel]
    joined: int | None = None


def plan_for(policy: Policy, now: Situation) -> Plan:
    """What shall answer as things are."""
    default, urgent = _default(policy, now)
    labels = _labels(now)
    if default is None and now.serving.default is not None and now.models:
        return _as_before(now, now.serving.default.version, labels, urgent)
    borne = {number for number in labels.values() if number in now.models and not _is_spoilt(number, now)}
    wanted = borne.union(() if default is None else [default], _beside(policy, now))
    due = [number for number in sorted(wanted, reverse=True) if number != urgent and now.shelf.is_due(number)]
    return Plan(default, labels, frozenset(wanted), due if urgent is None else [urgent, *due])


def _default(policy: Policy, now: Situation) -> tuple[int | None, int | None]:
    """The version to answer requests that name none, and the one to be read for that; None for none.

    Where the folder has no good version, or not yet, there is none that answers.
    """
    before = None if now.serving.default is None else now.serving.default.version
    before = before if before in now.models else None
    labelled = now.choices.labels.get(policy.default_label or "")
    if not now.choices.known:  # what answers, here or by the other workers, goes on until they are
        labelled = now.joined if before is None else before
    urgent: int | None = None
    for number in _candidates(now, before, labelled):
        if urgent is None and now.shelf.is_due(number):
            urgent = number
        if number in now.models:
            return number, urgent
        # The one before goes on until what shall follow has come. Where that is newer, those between may answer until
        # then: whoever takes a version back, or publishes more quickly than can be read, does not wait for it.
        if _is_loadable(number, now.shelf) and (before is None or number == labelled or number < before):
            return before, urgent
    return None, urgent


def _as_before(now: Situation, default: int, labels: Mapping[str, int], urgent: int | None) -> Plan:
    """Where the folder has no good version everything stays as it is, but for what operators choose meanwhile.

    What was published since is read and takes over once it is there, but for what operators unloaded: that answers
    only where nothing else does.
    """
    unloaded = now.choices.unloaded
    staying = now.models.keys() - unloaded or {default} & now.models.keys() or now.models.keys()
    if not now.choices.written:  # the file is gone with everything else
        labels = now.serving.labels
    coming = {*now.numbers} & now.shelf.entries.keys() - unloaded  # the other workers do not have it yet
    due = () if urgent is None or urgent in unloaded or coming else (urgent,)
    return Plan(default if default in staying else max(staying), labels, frozenset(staying | coming), due)


def _candidates(now: Situation, before: int | None, labelled: int | None) -> Iterator[int]:
    """The versions that may be the default, first the one that shall be most of all."""
    first: list[int | None] = [labelled]
    if before is None:
        first = [now.joined, labelled]
    elif labelled is not None:  # a version that nobody has vouched for takes over only where there is no other
        first = [labelled, before]
    # Who bears the label goes on though its folder is gone: of the others nobody has said that they may follow.
    there = {*now.numbers, *({labelled} & now.models.keys())}
    yield from (n for n in first if n in there and n is not None and not _is_spoilt(n, now))
    # What operators unloaded comes last: it answers on, or again, when nothing else can. So does what is spoilt.
    unloaded = now.choices.unloaded
    yield from sorted(now.numbers, key=lambda n: (_is_spoilt(n, now), n in unloaded and 1 + (n != before), -n))


def _beside(policy: Policy, now: Situation) -> Iterator[int]:
    """The versions to be loaded beside the default, as far as they can be."""
    if not now.numbers:  # it is empty or cannot be listed, which takes back nothing that has been read
        yield from now.shelf.entries.keys() - now.choices.unloaded
        return
    places = policy.keep + 1  # among the newest good ones; one that was unloaded leaves its place empty
    for number in now.numbers:
        if places == 0:
            break
        if number in now.choices.unloaded:
            places -= 1
        elif _is_loadable(number, now.shelf) and not _is_spoilt(number, now):
            places -= 1
            yield number
    chosen = now.choices.loaded | frozenset(now.choices.labels.values())
    yield from (number for number in chosen if number in now.numbers and not _is_spoilt(number, now))


def _labels(now: Situation) -> dict[str, int]:
    """Label to version; one that is moved to a version on its way stays where it was until that has come."""
    before, labels = now.serving.labels, dict(now.choices.labels)
    for label, number in now.choices.labels.items():
        if number not in now.models and before.get(label) in now.models and _is_loadable(number, now.shelf):
            labels[label] = before[label]
    return labels


def _is_spoilt(number: int, now: Situation) -> bool:
    """Whether nobody knows what a version would answer from that has been read, until it is read again."""
    return number in now.shelf.entries and now.shelf.entries[number].spoilt and not now.shelf.is_due(number)


def _is_loadable(number: int, shelf: Shelf) -> bool:
    """Whether a version has been read, or may still be."""
    return number in shelf.entries or shelf.is_being_read(number) or shelf.is_due(number)
