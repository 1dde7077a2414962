"""Operations that gRPC does not take from the fast lane: the call ends at once and others go on.

Each fault is a real one: an operation that the core has been given already, which it refuses with an error.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # compiled, and without types

from shortlist.v1 import recommender_pb2_grpc
from shortlist.v1.recommender_pb2 import RecommendRequest, StreamRecommendRequest
from shortlist_server.service.fast_calls import Call
from shortlist_server.service.fast_streams import Stream
from tests.running import HeldSearch, serving
from tests.scraping import patiently

REQUEST = RecommendRequest(user_id="u0", k=5)
CLOSE, RECEIVE = cygrpc.ReceiveCloseOnServerOperation, cygrpc.ReceiveMessageOperation


@contextmanager
def starting_twice(operation: Any, owner: type, name: str, core_of: Callable[[Any], Any]) -> Iterator[None]:
    """Has an operation started behind the back of the method that is to start it."""
    method = getattr(owner, name)

    def faulty(self: Any, *arguments: Any) -> Any:
        core_of(self).start_server_batch((operation(0),), lambda _event: None)
        return method(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, faulty)
        yield


def ends_early(call: Any) -> None:
    """Fails unless a call ends long before its deadline."""
    began = time.monotonic()
    assert call.code() is grpc.StatusCode.CANCELLED
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("operation", [RECEIVE, CLOSE], ids=["receiving", "sending"])
def test_a_call_whose_operations_are_refused_ends_at_once(small_models: Path, operation: Any) -> None:
    with serving(small_models, "fast") as app, grpc.insecure_channel(app.address) as channel:
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        with starting_twice(operation, Call, "receive", lambda call: call.core):
            for user in ("u0", "nobody"):
                ends_early(stub.Recommend.future(RecommendRequest(user_id=user), timeout=20))
        patiently(lambda: app._guard.under_way.count == 0)
        assert app._admission.taken == 0
        assert len(stub.Recommend(REQUEST, timeout=20).items) == 5


def test_a_call_that_cannot_be_followed_ends_at_once(small_models: Path, slow_search: HeldSearch) -> None:
    with serving(small_models, "fast") as app, grpc.insecure_channel(app.address) as channel:
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        with starting_twice(CLOSE, Call, "follow", lambda call: call.core):
            working = stub.Recommend.future(REQUEST, timeout=20)
            assert slow_search.begun.wait(10)
            ends_early(stub.Recommend.future(REQUEST, timeout=20))
            slow_search.let_go()
            assert len(working.result().items) == 5
        patiently(lambda: app._guard.under_way.count == 0)
        assert app._admission.taken == 0
        assert len(stub.Recommend(REQUEST, timeout=20).items) == 5


@pytest.mark.parametrize("operation", [CLOSE, RECEIVE], ids=["watching", "receiving"])
def test_a_stream_whose_operations_are_refused_ends_at_once(small_models: Path, operation: Any) -> None:
    message = StreamRecommendRequest(request=REQUEST)
    over = threading.Event()

    def later() -> Iterator[StreamRecommendRequest]:
        over.wait(20)  # a message that is there already would end the first of the two operations
        yield message

    with serving(small_models, "fast", streams=1) as app, grpc.insecure_channel(app.address) as channel:
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        with starting_twice(operation, Stream, "open", lambda stream: stream._call.core):
            for _ in range(2):
                ends_early(stub.StreamRecommend(later(), timeout=20))
                patiently(lambda: app._guard.under_way.count == 0)
        over.set()
        assert len(list(stub.StreamRecommend(iter([message]), timeout=20))) == 1


def test_the_lane_is_tried_out_in_an_optimized_python_as_well() -> None:
    refused_nowhere = (
        "from shortlist_server.app import self_test; from shortlist_server.service import fast_lane; "
        "fast_lane._read = lambda request, _: request(value=True); self_test()"
    )
    tried = subprocess.run([sys.executable, "-O", "-c", refused_nowhere], capture_output=True, text=True, check=False)
    assert tried.returncode == 1
    assert tried.stderr.splitlines()[-1] == "RuntimeError: a call was not refused"
