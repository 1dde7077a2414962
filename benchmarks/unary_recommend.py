"""Unary Recommend against a bare threaded grpc.server that echoes the same answer, in the same run.

The server is pinned to one core and a native generator, h2load (Debian package nghttp2-client), to another, so that
the generator is never the slower side. Rounds alternate between the two servers; medians are reported.
"""

import argparse
import os
import platform
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path

import grpc

from shortlist.v1 import recommender_pb2, recommender_pb2_grpc
from shortlist_client import Client

METHOD = "/shortlist.v1.RecommenderService/Recommend"
SERVER_CORE, GENERATOR_CORE = 0, 1


def echo_server(answer: bytes) -> None:
    """Serves Recommend with a fixed answer by the plainest server grpcio has, until standard input closes."""
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(
        lambda _request, _context: answer
    )
    server = grpc.server(futures.ThreadPoolExecutor(16))
    server.add_registered_method_handlers("shortlist.v1.RecommenderService", {"Recommend": handler})
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"listening on 127.0.0.1:{port}", flush=True)
    sys.stdin.read()


@contextmanager
def pinned(command: list[str]) -> Iterator[str]:
    """A server process on its own core; gives its address, and fails in the end if the server logged an error.

    h2load sees HTTP statuses alone, which are 200 for calls that fail as well.
    """
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            ["taskset", "-c", str(SERVER_CORE), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            yield line.split()[-1]
        finally:
            process.terminate()
            process.wait()
            log.seek(0)
            errors = [line for line in log if " ERROR " in line]
            assert not errors, errors[0]


def load(address: str, request: bytes, requests: int, method: str = METHOD) -> float:
    """Requests/s with 64 in flight over 4 connections; fails when an answer is no HTTP 200."""
    with tempfile.NamedTemporaryFile() as message:
        message.write(b"\0" + struct.pack(">I", len(request)) + request)
        message.flush()
        command = ["taskset", "-c", str(GENERATOR_CORE), "h2load", "-n", str(requests), "-c", "4", "-m", "16"]
        command += ["-d", message.name, "-H", "content-type: application/grpc", "-H", "te: trailers"]
        output = subprocess.run(
            [*command, f"http://{address}{method}"], capture_output=True, text=True, check=True
        ).stdout
    assert f"{requests} succeeded" in output, output
    rate = re.search(r"([\d.]+) req/s", output)
    assert rate is not None
    return float(rate.group(1))


def main() -> None:
    """Prints one line per round and the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models-dir", type=Path, default=Path("models"))
    parser.add_argument("--user", default="196")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", default="", metavar="OPTIONS", help="more options of shortlist serve")
    parser.add_argument("--echo", metavar="ANSWER_FILE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.echo:
        return echo_server(Path(options.echo).read_bytes())
    if shutil.which("h2load") is None or (os.cpu_count() or 1) < 2:
        sys.exit("this needs h2load (apt-get install nghttp2-client) and two cores")

    request = recommender_pb2.RecommendRequest(user_id=options.user, k=10).SerializeToString()
    shortlist = [sys.executable, "-m", "shortlist_client.main", "serve", "--models-dir", str(options.models_dir)]
    with pinned([*shortlist, "--port", "0", *options.serve.split()]) as ours, tempfile.NamedTemporaryFile() as answer:
        with Client(ours, timeout_seconds=30) as client:
            manifest = client.get_model().manifest
        with grpc.insecure_channel(ours) as channel:
            stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
            responses = [stub.Recommend(recommender_pb2.RecommendRequest.FromString(request)) for _ in range(1_000)]
        response = responses[-1]
        computed = statistics.median(response.timing.computed_micros for response in responses)
        answer.write(response.SerializeToString())
        answer.flush()
        print(f"machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
        recall = {entry["k"]: entry["recall"] for entry in manifest["item_index"]["recalls"]}
        print(f"model: {manifest['model_name']}, {manifest['item_count']} items, index recall@10 {recall[10]:.3f}")
        print(f"one request at a time: {computed:.0f} µs from the start of the search to the answer (median)")
        with pinned([sys.executable, "-m", "benchmarks.unary_recommend", "--echo", answer.name]) as echo:
            rates = [
                (load(ours, request, options.requests), load(echo, request, options.requests))
                for _ in range(options.rounds + 1)
            ]
        for our_rate, echo_rate in rates[1:]:  # the first round warms both up
            print(f"shortlist {our_rate:>8,.0f} requests/s   echo {echo_rate:>8,.0f} requests/s")
        our_median, echo_median = (statistics.median(column) for column in zip(*rates[1:], strict=True))
        ratio = statistics.median(ours / echo for ours, echo in rates[1:])
        print(f"median    {our_median:>8,.0f} requests/s   echo {echo_median:>8,.0f} requests/s   ratio {ratio:.2f}")
    return None


if __name__ == "__main__":
    main()
