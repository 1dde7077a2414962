"""Answers to several requests, written into one message or each into one of a stream."""

from collections.abc import Sequence

from shortlist.v1 import recommender_pb2
from shortlist_server.service import wire
from shortlist_server.service.answers import Outcome
from shortlist_server.service.guard import failure

_RESPONSE = recommender_pb2.RecommendOutcome.RESPONSE_FIELD_NUMBER
_OUTCOMES = recommender_pb2.BatchRecommendResponse.OUTCOMES_FIELD_NUMBER
_REQUEST_ID = recommender_pb2.StreamRecommendResponse.REQUEST_ID_FIELD_NUMBER
_OUTCOME = recommender_pb2.StreamRecommendResponse.OUTCOME_FIELD_NUMBER


def batch_response(outcomes: Sequence[Outcome]) -> bytes:
    """A BatchRecommendResponse."""
    return b"".join([wire.field(_OUTCOMES, _outcome(outcome, "BatchRecommend")) for outcome in outcomes])


def stream_response(request_id: str, outcome: Outcome) -> bytes:
    """A StreamRecommendResponse."""
    return wire.field(_REQUEST_ID, request_id.encode()) + wire.field(_OUTCOME, _outcome(outcome, "StreamRecommend"))


def _outcome(outcome: Outcome, method: str) -> bytes:
    """A RecommendOutcome; what nobody foresaw is logged as the method's."""
    if isinstance(outcome, Exception):
        return recommender_pb2.RecommendOutcome(error=failure(outcome, method)).SerializeToString()
    return wire.field(_RESPONSE, outcome)
