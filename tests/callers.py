"""Raw calls, as grpcurl and its like make them, and callers with tokens."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from shortlist.v1 import model_pb2, recommender_pb2
from shortlist_server.access.tokens import append_token, new_token

CODE = grpc.StatusCode
RECOMMENDER = recommender_pb2.DESCRIPTOR.services_by_name["RecommenderService"]
MODELS = model_pb2.DESCRIPTOR.services_by_name["ModelService"]
METHODS = [f"/{service.full_name}/{method.name}" for service in (RECOMMENDER, MODELS) for method in service.methods]
RECOMMEND = f"/{RECOMMENDER.full_name}/Recommend"
LIST_MODELS = f"/{MODELS.full_name}/ListModels"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
HEALTH = "/grpc.health.v1.Health/Check"
ASKED = recommender_pb2.RecommendRequest(user_id="u0").SerializeToString()

Metadata = Sequence[tuple[str, str]]


class TokensFile:
    """A tokens file and the tokens in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, name: str, *scopes: str, rate: float | None = None) -> Metadata:
        """Adds a token, and returns what a caller sends who bears it."""
        secret, token = new_token(name, scopes, rate)
        append_token(self.path, token)
        return (("authorization", f"Bearer {secret}"),)


def raw(channel: grpc.Channel, path: str, messages: Iterator[bytes], metadata: Metadata = ()) -> Any:
    """A raw call. On the wire every call is a stream."""
    return channel.stream_stream(path)(messages, metadata=tuple(metadata), timeout=20)  # type: ignore[arg-type]


def call(channel: grpc.Channel, path: str, metadata: Metadata = (), asked: bytes = b"") -> grpc.RpcError | None:
    """How a raw call of one message fails; None where it does not."""
    try:
        list(raw(channel, path, iter([asked]), metadata))
    except grpc.RpcError as error:
        return error
    return None


def code(channel: grpc.Channel, path: str, metadata: Metadata = (), asked: bytes = b"") -> grpc.StatusCode:
    """The status of a raw call."""
    error = call(channel, path, metadata, asked)
    return CODE.OK if error is None else error.code()


def retry_seconds(error: Any) -> float:
    """When a call may be made again, by the details of its error."""
    details = error_details_pb2.RetryInfo()
    assert rpc_status.from_call(error).details[0].Unpack(details)
    return float(details.retry_delay.seconds + details.retry_delay.nanos / 1e9)
