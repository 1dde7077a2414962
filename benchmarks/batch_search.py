"""BatchRecommend of 64 against FAISS's own batch search of the same index, each on the same one core.

FAISS is given the user vectors and searches with the server's parameters for as many items as the server has to ask
for: k, and those that the user has seen. Rounds alternate and medians are reported.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

import faiss
import grpc
import numpy as np
from google.protobuf import json_format
from safetensors.numpy import load_file

from benchmarks.exact_answers import ExactAnswers, Int64Array, item_rows
from benchmarks.made_up import SEEN_PER_USER, add_options, published
from benchmarks.unary_recommend import GENERATOR_CORE, SERVER_CORE, pinned
from shortlist.v1 import manifest_pb2, recommender_pb2, recommender_pb2_grpc
from shortlist_trainer.export.index_candidates import search_of
from shortlist_trainer.export.index_measuring import Search

AT_ONCE = 64
K = 10


def bare_search(folder: Path) -> tuple[str, Search]:
    """The published index for user -> items and how FAISS by itself searches it."""
    manifest = json_format.Parse((folder / "manifest.json").read_bytes(), manifest_pb2.ModelManifest())
    info = manifest.item_index
    index = faiss.read_index(str(folder / "items.faiss"))
    dial = ", ".join(f"{name} {value:g}" for name, value in info.search_parameters.items() if name != "squared_length")
    vectors = load_file(folder / "item_embeddings.safetensors")["embeddings"]
    search = search_of(index, info.transform, dict(info.search_parameters), vectors)
    return f"{info.kind} {info.transform}, {dial}", search


def main() -> None:
    """Prints the medians of the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, users=10_000_000, items=1_000_000)
    parser.add_argument("--queries", type=int, default=640, metavar="N", help="users asked for in a round")
    parser.add_argument("--in-flight", type=int, default=2, metavar="N", help="messages that the server has at once")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    if (os.cpu_count() or 1) < 2:
        sys.exit("this needs two cores")
    folder = published(options)
    exact = ExactAnswers(folder, -(-options.queries // AT_ONCE) * AT_ONCE, K)
    index, search = bare_search(folder)
    wanted = 1 << (K + SEEN_PER_USER - 1).bit_length()  # as the server rounds it
    faiss.omp_set_num_threads(1)
    command = [sys.executable, "-m", "shortlist_client.main", "serve", "--models-dir", str(folder.parent)]
    rates: dict[str, list[float]] = {"BatchRecommend": [], "FAISS": []}
    with pinned([*command, "--port", "0"]) as address, grpc.insecure_channel(address) as channel:
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        for turn in range(options.rounds + 1):
            os.sched_setaffinity(0, {GENERATOR_CORE})
            began = time.perf_counter()
            answered = through_grpc(stub, exact, options.in_flight)
            middle = time.perf_counter()
            os.sched_setaffinity(0, {SERVER_CORE})
            moved = time.perf_counter()
            blocks = range(0, len(exact.rows), AT_ONCE)
            bare = np.concatenate([search(exact.vectors[start : start + AT_ONCE], wanted) for start in blocks])
            ended = time.perf_counter()
            if turn:  # the first round warms up
                rates["BatchRecommend"].append(len(exact.rows) / (middle - began))
                rates["FAISS"].append(len(exact.rows) / (ended - moved))
    found = [rows[~np.isin(rows, seen)][:K] for rows, seen in zip(bare, exact.seen, strict=True)]
    print(f"{options.items:,} items of {options.size} columns, {index}; {K} of {wanted} found are kept")
    for name, recall in (("BatchRecommend", exact.recall(answered)), ("FAISS", exact.recall(found))):
        print(f"{name:<16}{statistics.median(rates[name]):>10,.0f} users/s   recall@{K} {recall:.4f}")
    ratio = statistics.median(ours / theirs for ours, theirs in zip(*rates.values(), strict=True))
    print(f"ratio {ratio:.2f}")


def through_grpc(
    stub: recommender_pb2_grpc.RecommenderServiceStub, exact: ExactAnswers, in_flight: int
) -> list[Int64Array]:
    """The rows that the server finds for each user, messages of ``AT_ONCE`` users being always under way."""
    requests = exact.requests()
    messages = [
        recommender_pb2.BatchRecommendRequest(requests=requests[start : start + AT_ONCE])
        for start in range(0, len(requests), AT_ONCE)
    ]
    calls = [stub.BatchRecommend.future(message) for message in messages[:in_flight]]
    outcomes: list[recommender_pb2.RecommendOutcome] = []
    for place in range(len(messages)):
        outcomes += calls[place].result().outcomes
        if place + in_flight < len(messages):
            calls.append(stub.BatchRecommend.future(messages[place + in_flight]))
    return [item_rows(one.response) for one in outcomes]


if __name__ == "__main__":
    main()
