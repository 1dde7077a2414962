"""Whether an answer can be right: what holds for every answer, and that the same question gets the same answer."""

import itertools
import math
import threading
from collections.abc import Sequence

import grpc
from google.protobuf.message import DecodeError

from shortlist.v1 import recommender_pb2
from shortlist_client.loadtest.tally import OK, WRONG_ANSWER
from shortlist_client.loadtest.workload import Call, Kind
from shortlist_client.rpcs import recommend_request

Answer = recommender_pb2.RecommendResponse | recommender_pb2.SimilarItemsResponse
Ranking = tuple[tuple[str, float], ...]

_STATUSES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}
_OK_CODE: int = grpc.StatusCode.OK.value[0]
_MOST_REMEMBERED = 1_000
_TIE = 1e-4  # of a score: items this close may come in either order, as sums in another order round differently


class WrongAnswer(Exception):
    """An answer that cannot be right; says why."""


class Checker:
    """Checks answers and remembers some, to be held against later answers to the same question.

    Safe to share between threads.

    Args:
        k: how many items every request asks for.
    """

    def __init__(self, k: int) -> None:
        self._k = k
        self._remembered: dict[tuple[Kind, str, int], Ranking] = {}
        self._lock = threading.Lock()

    def check(self, call: Call, message: bytes) -> None:
        """Looks into the answer to a call.

        Args:
            call: what was asked.
            message: the answer, serialized; of a stream, one StreamRecommendResponse.

        Raises:
            WrongAnswer: it cannot be right.
        """
        for asked, answer in zip(call.asked, read_answers(call, message), strict=True):
            check_answer(answer, self._k, asked if call.kind is Kind.SIMILAR else None)
            self._compare(call, asked, answer)

    def single(self, call: Call) -> Call:
        """A unary call that asks the first of what a call asked, and must be answered the same."""
        if call.kind is Kind.SIMILAR:
            return call
        user = call.asked[0]
        return Call(Kind.UNARY, recommend_request(user, k=self._k).SerializeToString(), (user,))

    def _compare(self, call: Call, asked: str, answer: Answer) -> None:
        # Batches and streams ask the same as single calls do, and so must be answered the same.
        kind = Kind.SIMILAR if call.kind is Kind.SIMILAR else Kind.UNARY
        key = kind, asked, answer.model_version
        ranking = tuple((item.item_id, item.score) for item in answer.items)
        with self._lock:
            if len(self._remembered) < _MOST_REMEMBERED:
                before = self._remembered.setdefault(key, ranking)
            else:
                before = self._remembered.get(key, ranking)
        if not _same(before, ranking, self._k):
            raise WrongAnswer(
                f"version {answer.model_version} answered {kind} {asked!r} with other items than before: "
                f"{_ids(ranking)} after {_ids(before)}"
            )


def batch_status(message: bytes) -> tuple[str, str]:
    """What a batch counts as: OK, or the status and words of the first entry that failed.

    Args:
        message: the answer, serialized.

    Raises:
        WrongAnswer: the message is no answer to a batch.
    """
    try:
        outcomes = recommender_pb2.BatchRecommendResponse.FromString(message).outcomes
    except DecodeError as error:
        raise WrongAnswer(f"the answer to {Kind.BATCH} is no such message: {error}") from error
    return next((outcome_status(each) for each in outcomes if each.HasField("error")), (OK, ""))


def outcome_status(outcome: recommender_pb2.RecommendOutcome) -> tuple[str, str]:
    """The status of an entry and what it says of an error; an error that calls itself OK is a wrong answer."""
    if not outcome.HasField("error"):
        return OK, ""
    error = outcome.error
    if error.code == _OK_CODE:
        return WRONG_ANSWER, f"an entry failed with the status OK: {error.message}"
    return _STATUSES.get(error.code, "UNKNOWN"), error.message


def read_answers(call: Call, message: bytes) -> Sequence[Answer]:
    """The answers in a message, one for each id that was asked about.

    Raises:
        WrongAnswer: the message is no answer, or has too few or too many.
    """
    try:
        if call.kind is Kind.SIMILAR:
            return [recommender_pb2.SimilarItemsResponse.FromString(message)]
        if call.kind is Kind.STREAM:
            return [recommender_pb2.StreamRecommendResponse.FromString(message).outcome.response]
        if call.kind is Kind.UNARY:
            return [recommender_pb2.RecommendResponse.FromString(message)]
        outcomes = recommender_pb2.BatchRecommendResponse.FromString(message).outcomes
    except DecodeError as error:
        raise WrongAnswer(f"the answer to {call.kind} is no such message: {error}") from error
    if len(outcomes) != len(call.asked):
        raise WrongAnswer(f"a batch of {len(call.asked)} got {len(outcomes)} answers")
    return [outcome.response for outcome in outcomes]


def check_answer(answer: Answer, k: int, query_item: str | None = None) -> None:
    """Holds one answer against what is true of every answer.

    Args:
        answer: to a Recommend or SimilarItems request without a filter or limits.
        k: how many items were asked for.
        query_item: the item whose neighbours these are; None for a user's items.

    Raises:
        WrongAnswer: it has too many items, too few without a reason, one twice, the query itself, or scores that are
            not finite or ascend.
    """
    ids = [item.item_id for item in answer.items]
    scores = [item.score for item in answer.items]
    if len(ids) > k or (len(ids) < k and not answer.shortfall_reason):
        raise WrongAnswer(f"{len(ids)} items instead of {k}, and no reason given")
    if len(set(ids)) < len(ids):
        raise WrongAnswer(f"an item comes twice: {', '.join(ids)}")
    if query_item in ids:
        raise WrongAnswer(f"{query_item!r} is among its own neighbours")
    if not all(map(math.isfinite, scores)):
        raise WrongAnswer(f"a score is not finite: {scores}")
    if any(later > earlier for earlier, later in itertools.pairwise(scores)):
        raise WrongAnswer(f"scores ascend: {scores}")


def _same(first: Ranking, second: Ranking, k: int) -> bool:
    """Whether two rankings are the same to within rounding.

    The same place has the same score and the same item the same score, so that items change places with those of all
    but equal score only. An item may be in one of them alone where the limit cuts through a tie: its score is that of
    the last place. A ranking of fewer than k items is not cut.
    """
    if len(first) != len(second):
        return False
    scores, other_scores = dict(first), dict(second)
    alone = [score for item, score in (*first, *second) if not (item in scores and item in other_scores)]
    return (
        all(_tie(score, other) for (_, score), (_, other) in zip(first, second, strict=True))
        and all(_tie(score, other_scores[item]) for item, score in first if item in other_scores)
        and (not alone or len(first) == k)
        and all(_tie(score, first[-1][1]) for score in alone)
    )


def _tie(score: float, other: float) -> bool:
    return math.isclose(score, other, rel_tol=_TIE, abs_tol=1e-6)


def _ids(ranking: Ranking) -> str:
    return " ".join(item_id for item_id, _ in ranking)
