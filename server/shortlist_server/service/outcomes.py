"""Answers to several requests, written into one message or each into one of a stream."""

from collections.abc import Callable, Sequence
from typing import Any

from shortlist.v1 import recommender_pb2
from shortlist_server.service import wire
from shortlist_server.service.answers import Outcome
from shortlist_server.service.guard import Guard

_RESPONSE = recommender_pb2.RecommendOutcome.RESPONSE_FIELD_NUMBER
_ERROR = recommender_pb2.RecommendOutcome.ERROR_FIELD_NUMBER
_OUTCOMES = recommender_pb2.BatchRecommendResponse.OUTCOMES_FIELD_NUMBER
_REQUEST_ID = recommender_pb2.StreamRecommendResponse.REQUEST_ID_FIELD_NUMBER
_OUTCOME = recommender_pb2.StreamRecommendResponse.OUTCOME_FIELD_NUMBER


def batch_response(outcomes: Sequence[Outcome], guard: Guard, metadata: Callable[[], Any] = tuple) -> bytes:
    """A BatchRecommendResponse; the guard says how a request of a call with this metadata failed."""
    return b"".join([part for one in outcomes for part in _outcome(_OUTCOMES, one, "BatchRecommend", guard, metadata)])


def stream_response(request_id: str, outcome: Outcome, guard: Guard) -> bytes:
    """A StreamRecommendResponse; the guard says how the request failed."""
    written = _outcome(_OUTCOME, outcome, "StreamRecommend", guard)
    return b"".join((wire.field(_REQUEST_ID, request_id.encode()), *written))


def _outcome(
    number: int, outcome: Outcome, method: str, guard: Guard, metadata: Callable[[], Any] = tuple
) -> tuple[bytes, bytes]:
    """A RecommendOutcome as a field: what comes first, and the rest."""
    if isinstance(outcome, bytes):
        return wire.nested_head(number, _RESPONSE, len(outcome)), outcome
    error = guard.entry_failure(outcome, method, metadata).SerializeToString()
    return wire.nested_head(number, _ERROR, len(error)), error
