"""BatchRecommend of 64 and StreamRecommend against unary Recommend: recommendations/s, the server on one core.

All of them come from a native generator on another core, which is never the slower side. Streams of 640 messages, four
at a time, stand beside those of the plainest grpc server, which answers each message with the same bytes: what gRPC
takes for a message is most of it. Users differ within a batch and a stream. Rounds alternate and medians are reported.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path

import grpc

from benchmarks.unary_recommend import GENERATOR_CORE, echo_command, load, pinned, require_generator, serve_command
from shortlist.v1 import recommender_pb2, recommender_pb2_grpc
from shortlist_trainer.data.source import load_dataset

AT_ONCE = 64
STREAMED = 640
BATCH = "/shortlist.v1.RecommenderService/BatchRecommend"
STREAM = "/shortlist.v1.RecommenderService/StreamRecommend"


def main() -> None:
    """Prints the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models-dir", type=Path, default=Path("models"), help="of a model of MovieLens 100K")
    parser.add_argument("--data", default="ml-100k", help="whose users to ask for")
    parser.add_argument("--requests", type=int, default=38_400, help="in each round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    require_generator()
    users = load_dataset(options.data).user_ids
    requests = [recommender_pb2.RecommendRequest(user_id=users[place % len(users)], k=10) for place in range(12_800)]
    streamed = [
        recommender_pb2.StreamRecommendRequest(request_id=str(place), request=request)
        for place, request in enumerate(requests[:STREAMED])
    ]
    stream = [message.SerializeToString() for message in streamed]
    os.sched_setaffinity(0, {GENERATOR_CORE})
    with pinned(serve_command(options.models_dir)) as ours, tempfile.NamedTemporaryFile() as answer:
        with grpc.insecure_channel(ours) as channel:
            stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
            answer.write(next(stub.StreamRecommend(iter(streamed[:1]))).SerializeToString())
            answer.flush()
        with pinned(echo_command(Path(answer.name))) as echo:
            rates: dict[str, list[float]] = {"unary": [], "batch": [], "stream": [], "bare stream": []}
            for turn in range(options.rounds + 1):
                first = turn * AT_ONCE % len(requests)
                some = recommender_pb2.BatchRecommendRequest(requests=requests[first : first + AT_ONCE])
                batches, streams = options.requests // AT_ONCE, options.requests // STREAMED
                measured = {
                    "unary": load(ours, requests[turn].SerializeToString(), options.requests),
                    "batch": AT_ONCE * load(ours, some.SerializeToString(), batches, BATCH, in_flight=8),
                    "stream": STREAMED * load(ours, stream, streams, STREAM, in_flight=4),
                    "bare stream": STREAMED * load(echo, stream, streams, STREAM, in_flight=4),
                }
                for name, rate in measured.items() if turn else ():  # the first round warms up
                    rates[name].append(rate)
    for name, of in rates.items():
        ratio = statistics.median(one / unary for one, unary in zip(of, rates["unary"], strict=True))
        print(f"{name:<12}{statistics.median(of):>10,.0f} recommendations/s   {ratio:.2f} times unary")


if __name__ == "__main__":
    main()
