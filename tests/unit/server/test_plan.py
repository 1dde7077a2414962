"""What shall answer and what is to be read for that, as things are in a folder whose versions come and go."""

from collections.abc import Collection, Mapping, Sequence
from types import SimpleNamespace
from typing import cast

from shortlist_server.model.choices import Choices
from shortlist_server.model.folder import LoadedModel
from shortlist_server.model.plan import Policy, Situation, plan_for
from shortlist_server.model.serving import Serving
from shortlist_server.model.shelf import Shelf


def loaded(*numbers: int) -> dict[int, LoadedModel]:
    """Versions that requests may get, which nobody looks into here."""
    return {number: cast("LoadedModel", SimpleNamespace(version=number)) for number in numbers}


def shelf_of(read: Collection[int], due: Collection[int]) -> Shelf:
    """A shelf of what has been read, where some of the others are to be."""
    entries = dict.fromkeys(read, SimpleNamespace(spoilt=False))
    shelf = SimpleNamespace(entries=entries, is_due=lambda number: number in due, is_being_read=lambda _: False)
    return cast("Shelf", shelf)


def planned(
    there: Sequence[int],
    answering: Sequence[int],
    *,
    due: Collection[int] = (),
    waiting: Collection[int] = (),
    labels: Mapping[str, int] | None = None,
    unloaded: Collection[int] = (),
    policy: Policy | None = None,
) -> tuple[int | None, set[int], list[int]]:
    """What is planned for a folder: the default, the versions to be kept loaded, and those to be read.

    Args:
        there: the versions in it, newest first.
        answering: those that requests may get, first the one that answers when none is named.
        due: those that are to be read.
        waiting: those that have been read and that the other workers do not have yet.
        labels: label to version.
        unloaded: what operators unloaded.
        policy: what the server was started with.
    """
    models, choices = loaded(*answering), Choices(labels or {}, unloaded=frozenset(unloaded))
    serving = Serving(models, labels or {}, models[answering[0]])
    shelf = shelf_of({*answering, *waiting}, due)
    plan = plan_for(policy or Policy(), Situation(there, choices, shelf, serving, models))
    return plan.default, {*plan.wanted}, [*plan.due]


def test_a_version_published_after_the_one_that_answers_was_taken_away_is_read_and_that_one_stays_until_then() -> None:
    assert planned([2], [1], due=[2]) == (1, {1}, [2])
    assert planned([3, 2], [1], due=[2, 3]) == (1, {1}, [3])
    assert planned([2], [2, 1]) == (2, {2}, [])


def test_what_is_ready_and_waits_for_the_other_workers_is_kept_where_every_folder_of_before_is_gone() -> None:
    assert planned([2], [1], waiting=[2]) == (1, {1, 2}, [])
    assert planned([3, 2], [1], waiting=[3], due=[2]) == (1, {1, 3}, [])  # of which more need not be read meanwhile


def test_what_operators_unloaded_is_not_read_while_one_answers_whose_folder_is_gone() -> None:
    assert planned([2], [1], due=[2], unloaded=[2]) == (1, {1}, [])
    assert planned([2], [1], waiting=[2], unloaded=[2]) == (1, {1}, [])
    assert planned([3, 2], [1], due=[3, 2], unloaded=[3]) == (1, {1}, [2])


def test_a_folder_that_is_empty_or_cannot_be_listed_takes_back_nothing_but_what_operators_do() -> None:
    stable = Policy(keep=0, default_label="stable")
    assert planned([], [2, 3, 1], labels={"stable": 2}, policy=stable) == (2, {1, 2, 3}, [])
    assert planned([], [2, 1], waiting=[3], labels={"stable": 2}, policy=stable) == (2, {1, 2, 3}, [])
    assert planned([], [2, 3, 1], labels={"stable": 2}, unloaded=[3], policy=stable) == (2, {1, 2}, [])
    assert planned([], [2, 3, 1], unloaded=[3]) == (2, {1, 2}, [])
    assert planned([3, 2, 1], [2, 3, 1], labels={"stable": 2}, policy=stable) == (2, {2, 3}, [])
