"""Bare servers to load, and a generator process to load them."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import grpc

from shortlist.v1 import recommender_pb2
from shortlist_client.loadtest.generator import Counted, Setup, generate

SERVICE = "shortlist.v1.RecommenderService"
RECOMMEND = f"/{SERVICE}/Recommend"

Load = Callable[..., tuple[int, dict[str, Any]]]
"""Takes an address and options of the command; gives its exit status and figures."""


Stream = Callable[[Iterator[recommender_pb2.StreamRecommendRequest]], Iterator[bytes]]

GARBAGE = b"\xff" * 5  # no message at all


@contextmanager
def answering(
    answer: Callable[[bytes], bytes],
    threads: int = 16,
    port: int = 0,
    batch: Callable[[recommender_pb2.BatchRecommendRequest], bytes] | None = None,
    stream: Stream | None = None,
) -> Iterator[str]:
    """A bare server that answers as told: Recommend, and batches and streams where there is an answer to them."""
    unary: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(lambda request, _: answer(request))
    handlers: dict[str, Any] = {"Recommend": unary}
    if batch is not None:
        handlers["BatchRecommend"] = grpc.unary_unary_rpc_method_handler(
            lambda request, _: batch(request), recommender_pb2.BatchRecommendRequest.FromString
        )
    if stream is not None:
        handlers["StreamRecommend"] = grpc.stream_stream_rpc_method_handler(
            lambda requests, _: stream(requests), recommender_pb2.StreamRecommendRequest.FromString
        )
    server = grpc.server(futures.ThreadPoolExecutor(threads))
    server.add_registered_method_handlers(SERVICE, handlers)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def ranked(user: str, first: int = 0) -> recommender_pb2.RecommendResponse:
    """A right answer: ten items of scores far apart, numbered from ``first`` on, the same whenever it is asked for."""
    items = [recommender_pb2.ScoredItem(item_id=f"{user}/{first + place}", score=-place) for place in range(10)]
    return recommender_pb2.RecommendResponse(items=items, model_version=1)


def recommended(request: bytes) -> bytes:
    """The right answer to a Recommend request."""
    return ranked(recommender_pb2.RecommendRequest.FromString(request).user_id).SerializeToString()


def batch_of(request: recommender_pb2.BatchRecommendRequest) -> recommender_pb2.BatchRecommendResponse:
    """The right answer to a batch."""
    outcomes = [recommender_pb2.RecommendOutcome(response=ranked(each.user_id)) for each in request.requests]
    return recommender_pb2.BatchRecommendResponse(outcomes=outcomes)


def entry_of(request: recommender_pb2.StreamRecommendRequest) -> recommender_pb2.StreamRecommendResponse:
    """The right answer to an entry of a stream."""
    outcome = recommender_pb2.RecommendOutcome(response=ranked(request.request.user_id))
    return recommender_pb2.StreamRecommendResponse(request_id=request.request_id, outcome=outcome)


@contextmanager
def generating(setup: Setup, generator: Callable[[Setup, Any], None] = generate) -> Iterator[Connection]:
    """A generator process that is ready for a run, and the pipe by which it is told what to do and says what it did."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=generator, args=(setup, theirs), daemon=True)
    process.start()
    assert ours.recv() == ("ready", "gRPC core")
    yield ours
    ours.send(None)
    process.join(10)


def counted(pipe: Connection) -> Counted:
    """What a generator process has counted in the end."""
    while (said := pipe.recv())[0] != "counted":
        pass
    result: Counted = said[1]
    return result
