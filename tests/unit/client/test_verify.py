"""Which answers are wrong."""

import contextlib
import math

import pytest

from shortlist.v1 import recommender_pb2
from shortlist_client.loadtest.verify import Checker, WrongAnswer, check_answer
from shortlist_client.loadtest.workload import Call, Kind


def answer(*items: tuple[str, float], short: bool = False, version: int = 1) -> recommender_pb2.RecommendResponse:
    return recommender_pb2.RecommendResponse(
        items=[recommender_pb2.ScoredItem(item_id=item_id, score=score) for item_id, score in items],
        shortfall_reason=recommender_pb2.ShortfallReason.SHORTFALL_REASON_CATALOGUE_EXHAUSTED
        if short
        else recommender_pb2.ShortfallReason.SHORTFALL_REASON_UNSPECIFIED,
        model_version=version,
    )


def test_right_answers_pass() -> None:
    check_answer(answer(("a", 3), ("b", 3), ("c", -1)), 3)
    check_answer(answer(("a", 3), short=True), 3)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (answer(("a", 3)), "1 items instead of 3"),
        (answer(*[(str(place), 0) for place in range(4)]), "4 items instead of 3"),
        (answer(("a", 3), ("a", 2), ("b", 1)), "twice"),
        (answer(("a", 1), ("b", 2), ("c", 0)), "ascend"),
        (answer(("a", math.inf), ("b", 2), ("c", 0)), "finite"),
        (answer(("a", 3), ("q", 2), ("c", 0)), "own neighbours"),
    ],
)
def test_what_cannot_be_right_is_told(wrong: recommender_pb2.RecommendResponse, why: str) -> None:
    with pytest.raises(WrongAnswer, match=why):
        check_answer(wrong, 3, "q")


def test_the_same_question_must_get_the_same_answer_of_the_same_version() -> None:
    checker, call = Checker(2), Call(Kind.UNARY, b"", ("u",))
    checker.check(call, answer(("a", 2), ("b", 1)).SerializeToString())
    checker.check(call, answer(("c", 2), ("d", 1), version=2).SerializeToString())
    checker.check(call, answer(("a", 2), ("z", 1.00001)).SerializeToString())  # as good as b
    with pytest.raises(WrongAnswer, match="other items than before: a c after a b"):
        checker.check(call, answer(("a", 2), ("c", 1.5)).SerializeToString())
    with pytest.raises(WrongAnswer, match="no such message"):
        checker.check(call, b"\xff\xff")


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ((("a", 3), ("b", 2), ("c", 1)), (("x", 3), ("y", 2), ("z", 1)), False),  # equal scores alone say nothing
        ((("a", 3), ("b", 2), ("c", 1)), (("a", 3), ("x", 2), ("c", 1)), False),
        ((("a", 3), ("b", 2), ("c", 1)), (("b", 3), ("a", 2), ("c", 1)), False),
        ((("a", 3), ("b", 3), ("c", 1)), (("b", 3), ("a", 3), ("c", 1)), True),
        ((("a", 3), ("b", 3), ("c", 1)), (("a", 3), ("x", 3), ("c", 1)), False),  # who ties with x is all there
        ((("a", 3), ("b", 1), ("c", 1)), (("a", 3), ("x", 1), ("b", 1)), True),  # the limit cuts through those that tie
        ((("a", 3), ("b", 1.00002), ("c", 1)), (("a", 3.00001), ("c", 1.00001), ("x", 1)), True),
        ((("a", 3), ("b", 2), ("c", 1)), (("a", 3), ("b", 2), ("x", 0.99)), False),
        ((("a", 3), ("b", 1)), (("b", 3), ("a", 1)), False),
        ((("a", 3), ("b", 1)), (("a", 3), ("x", 1)), False),  # nothing was cut off a short answer
        ((("a", 3), ("b", 1)), (("a", 3),), False),
        ((), (), True),
    ],
)
def test_other_items_are_the_same_only_where_the_limit_cuts_through_a_tie(
    before: tuple[tuple[str, float], ...], after: tuple[tuple[str, float], ...], same: bool
) -> None:
    checker, call = Checker(3), Call(Kind.UNARY, b"", ("u",))
    checker.check(call, answer(*before, short=True).SerializeToString())
    with contextlib.nullcontext() if same else pytest.raises(WrongAnswer, match="other items than before"):
        checker.check(call, answer(*after, short=True).SerializeToString())
