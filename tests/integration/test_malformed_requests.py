"""Bytes that are not the message they should be, to every kind of method."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from shortlist.v1 import recommender_pb2
from tests.running import serving

MALFORMED = b"\x0a\xff"
RECOMMENDER, MODELS = "/shortlist.v1.RecommenderService/", "/shortlist.v1.ModelService/"
REFUSED = (
    grpc.StatusCode.INVALID_ARGUMENT,
    "the request is malformed: it cannot be read as the message that this method takes",
)


@pytest.fixture
def channel(small_models: Path, lane: str) -> Iterator[grpc.Channel]:
    with serving(small_models, lane) as app, grpc.insecure_channel(app.address) as channel:
        yield channel


@pytest.mark.parametrize(
    "path",
    [
        f"{RECOMMENDER}Recommend",
        f"{RECOMMENDER}SimilarItems",
        f"{RECOMMENDER}Score",
        f"{RECOMMENDER}BatchRecommend",
        f"{MODELS}GetModel",
        "/grpc.health.v1.Health/Check",
    ],
)
def test_a_malformed_request_is_refused_as_the_callers_fault_and_logs_nothing(
    channel: grpc.Channel, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    method: Any = channel.unary_unary(path)
    with pytest.raises(grpc.RpcError) as refused:
        method(MALFORMED, timeout=10)
    assert (refused.value.code(), refused.value.details()) == REFUSED
    assert caplog.text == ""


def test_a_malformed_request_ends_a_stream_after_the_answers_to_those_before_it(channel: grpc.Channel) -> None:
    good = recommender_pb2.StreamRecommendRequest(
        request_id="1", request=recommender_pb2.RecommendRequest(user_id="u0")
    )
    method: Any = channel.stream_stream(f"{RECOMMENDER}StreamRecommend")
    stream = method(iter([good.SerializeToString(), MALFORMED, good.SerializeToString()]), timeout=10)
    answer = recommender_pb2.StreamRecommendResponse.FromString(next(stream))
    assert answer.request_id == "1"
    assert len(answer.outcome.response.items) == 10
    with pytest.raises(grpc.RpcError) as refused:
        next(stream)
    assert (refused.value.code(), refused.value.details()) == REFUSED


@pytest.mark.parametrize("path", ["/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"])
def test_a_malformed_request_ends_a_stream_of_reflection(channel: grpc.Channel, path: str) -> None:
    method: Any = channel.stream_stream(path)
    stream = method(iter([MALFORMED]), timeout=10)
    with pytest.raises(grpc.RpcError):
        next(stream)
    assert (stream.code(), stream.details()) == REFUSED
