"""BatchRecommend of 64 and StreamRecommend against unary Recommend: recommendations/s, the server on one core.

The same Python client process, on another core, asks in all three ways; rounds alternate and medians are reported.
Unary calls are pipelined, 64 in flight. The client is part of each figure, and is the slower side of the first two.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc

from benchmarks.unary_recommend import GENERATOR_CORE, pinned, serve_command
from shortlist.v1 import recommender_pb2, recommender_pb2_grpc

AT_ONCE = 64


def main() -> None:
    """Prints one line per round and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models-dir", type=Path, default=Path("models"))
    parser.add_argument("--user", default="196")
    parser.add_argument("--requests", type=int, default=12_800)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    os.sched_setaffinity(0, {GENERATOR_CORE})
    with pinned(serve_command(options.models_dir)) as address, grpc.insecure_channel(address) as channel:
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        request = recommender_pb2.RecommendRequest(user_id=options.user, k=10)
        ways: dict[str, Callable[[int], int]] = {
            "unary": lambda count: unary(stub, request, count),
            "batch": lambda count: batch(stub, request, count),
            "stream": lambda count: stream(stub, request, count),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(options.rounds + 1):
            for name, ask in ways.items():
                started = time.perf_counter()
                assert ask(options.requests) == options.requests
                if turn:  # the first round warms up
                    rates[name].append(options.requests / (time.perf_counter() - started))
    medians = {name: statistics.median(of) for name, of in rates.items()}
    for name, median in medians.items():
        print(f"{name:<8}{median:>10,.0f} recommendations/s   {median / medians['unary']:.1f} times unary")


def unary(
    stub: recommender_pb2_grpc.RecommenderServiceStub, request: recommender_pb2.RecommendRequest, count: int
) -> int:
    """Calls one by one, ``AT_ONCE`` of them in flight."""
    answered = 0
    for _ in range(0, count, AT_ONCE):
        calls = [stub.Recommend.future(request) for _ in range(AT_ONCE)]
        answered += sum(bool(call.result().items) for call in calls)
    return answered


def batch(
    stub: recommender_pb2_grpc.RecommenderServiceStub, request: recommender_pb2.RecommendRequest, count: int
) -> int:
    """Messages of ``AT_ONCE`` requests, four in flight."""
    message = recommender_pb2.BatchRecommendRequest(requests=[request] * AT_ONCE)
    answered = 0
    for _ in range(0, count, 4 * AT_ONCE):
        calls = [stub.BatchRecommend.future(message) for _ in range(4)]
        answered += sum(bool(one.response.items) for call in calls for one in call.result().outcomes)
    return answered


def stream(
    stub: recommender_pb2_grpc.RecommenderServiceStub, request: recommender_pb2.RecommendRequest, count: int
) -> int:
    """One stream of all requests."""

    def requests() -> Iterator[recommender_pb2.StreamRecommendRequest]:
        for place in range(count):
            yield recommender_pb2.StreamRecommendRequest(request_id=str(place), request=request)

    return sum(bool(answer.outcome.response.items) for answer in stub.StreamRecommend(requests()))


if __name__ == "__main__":
    main()
