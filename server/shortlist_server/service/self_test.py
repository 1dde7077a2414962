"""Tries the fast lane out at the start: it leans on what a new grpcio may have changed."""

from collections.abc import Sequence
from concurrent import futures
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import BoolValue

from shortlist_server.access.config import AccessConfig
from shortlist_server.access.gate import Gate
from shortlist_server.admission import Admission
from shortlist_server.errors import QueueFull
from shortlist_server.service.answers import Outcome
from shortlist_server.service.fast_calls import Method
from shortlist_server.service.fast_lane import FastLane
from shortlist_server.service.fast_streams import StreamMethod
from shortlist_server.service.guard import Guard

_GRACE_SECONDS = 1.0
"""Calls are not cancelled where that can be helped: of that gRPC writes a line to stderr, between those of a log."""

_STOP_SECONDS = 5.0


def self_test() -> None:
    """Answers and refuses a call, and answers a stream, over a lane of its own.

    Raises:
        Exception: of any kind, when this grpcio cannot carry the lane.
    """

    def answer(messages: Sequence[Any], _arrived: Sequence[float]) -> list[Any]:
        return [message.SerializeToString() if message.value else QueueFull(1.0) for message in messages]

    server = grpc.server(futures.ThreadPoolExecutor(1))
    path, streamed = "/shortlist.SelfTest/Echo", "/shortlist.SelfTest/EchoEach"

    def echo(value: BoolValue, outcome: Outcome) -> bytes:
        return outcome if isinstance(outcome, bytes) else value.SerializeToString()

    methods: dict[str, Method | StreamMethod] = {
        path: Method(BoolValue, answer),
        streamed: StreamMethod(BoolValue, answer, lambda value: value, echo),
    }
    lane = FastLane(server, methods, Admission(1, 1), Admission(1, 0), Guard(Gate(AccessConfig(), admin=False)))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    lane.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            ask = channel.unary_unary(path, BoolValue.SerializeToString, BoolValue.FromString)
            if not ask(BoolValue(value=True), timeout=2).value:
                raise RuntimeError("a call was answered otherwise")
            if ask.future(BoolValue(value=False), timeout=2).code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise RuntimeError("a call was not refused")
            ask_each = channel.stream_stream(streamed, BoolValue.SerializeToString, BoolValue.FromString)
            values = [BoolValue(value=value) for value in (True, False, True)]
            if list(ask_each(iter(values), timeout=2)) != values:
                raise RuntimeError("a stream was answered otherwise")
    finally:
        server.stop(_GRACE_SECONDS).wait(_STOP_SECONDS)
        lane.close()
