"""Unary Recommend against a bare threaded grpc.server that echoes the same answer, in the same run.

The server is pinned to one core and a native generator, h2load (Debian package nghttp2-client), to another, so that
the generator is never the slower side. Rounds alternate between the servers; medians are reported. With ``--cpp-echo``
an echo in C++ (Debian packages g++, pkg-config and libgrpc++-dev) is one of them: what gRPC reaches on this machine
with no Python at all.
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
from collections.abc import Iterator, Sequence
from concurrent import futures
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc

from benchmarks.options import parser_for, request_of
from shortlist.v1 import recommender_pb2, recommender_pb2_grpc
from shortlist_client import Client

METHOD = "/shortlist.v1.RecommenderService/Recommend"
SERVER_CORE, GENERATOR_CORE = 0, 1
ECHO_SOURCE = Path(__file__).parent / "echo" / "echo.cc"


def echo_server(answer: bytes) -> None:
    """Answers every message the same, by the plainest server grpcio has, until standard input closes."""
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Recommend": grpc.unary_unary_rpc_method_handler(lambda _request, _context: answer),
        "StreamRecommend": grpc.stream_stream_rpc_method_handler(lambda messages, _context: (answer for _ in messages)),
    }
    server = grpc.server(futures.ThreadPoolExecutor(16))
    server.add_registered_method_handlers("shortlist.v1.RecommenderService", handlers)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"listening on 127.0.0.1:{port}", flush=True)
    sys.stdin.read()


def build_cpp_echo(folder: Path) -> Path:
    """Compiles the echo in C++ into a folder; returns the program, which takes the answer's file."""
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "grpc++"], capture_output=True, text=True, check=True
    ).stdout.split()
    program = folder / "echo"
    subprocess.run(["g++", "-std=c++17", "-O2", str(ECHO_SOURCE), "-o", str(program), *flags], check=True)
    return program


@contextmanager
def pinned(command: list[str]) -> Iterator[str]:
    """A server process on its own core; gives its address, and fails in the end if the server logged an error."""
    with serving(command, SERVER_CORE) as (address, _):
        yield address


@contextmanager
def serving(command: list[str], *cores: int) -> Iterator[tuple[str, int]]:
    """A server process on these cores: its address and process id. Fails in the end if the server logged an error.

    h2load sees HTTP statuses alone, which are 200 for calls that fail as well.
    """
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            ["taskset", "-c", ",".join(map(str, cores)), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            yield line.split()[-1], process.pid
        finally:
            process.terminate()
            process.wait()
            log.seek(0)
            errors = [line for line in log if " ERROR " in line]
            assert not errors, errors[0]


def load(
    address: str,
    message: bytes | Sequence[bytes],
    requests: int = 10_000,
    method: str = METHOD,
    *,
    seconds: float | None = None,
    connections: int = 4,
    in_flight: int = 64,
    cores: Sequence[int] = (GENERATOR_CORE,),
    more: Sequence[str] = (),
    deadline: float | None = None,
) -> float:
    """Requests/s with so many in flight over all connections; fails when an answer is no HTTP 200.

    Each connection sends its part of the requests, or as many as it can in so many seconds. Several messages are those
    of a stream, all sent without waiting for answers. ``more`` are further options of h2load. With a deadline, in
    seconds, calls may be cut off.
    """
    if deadline is not None:
        more = [*more, "-H", f"grpc-timeout: {round(deadline * 1000)}m"]
    length = ["-n", str(requests)] if seconds is None else ["-D", f"{round(seconds * 1000)}ms"]
    messages = [message] if isinstance(message, bytes) else message
    with tempfile.NamedTemporaryFile() as body:
        body.write(b"".join(b"\0" + struct.pack(">I", len(one)) + one for one in messages))
        body.flush()
        command = ["taskset", "-c", ",".join(map(str, cores)), "h2load", *length]
        command += ["-c", str(connections), "-m", str(in_flight // connections), *more]
        command += ["-d", body.name, "-H", "content-type: application/grpc", "-H", "te: trailers"]
        output = subprocess.run(
            [*command, f"http://{address}{method}"], capture_output=True, text=True, check=True
        ).stdout
    assert deadline is not None or re.search(r"requests: ([1-9]\d*) total, .* \1 succeeded", output), output
    rate = re.search(r"([\d.]+) req/s", output)
    assert rate is not None
    return float(rate.group(1))


def serve_command(models_dir: Path) -> list[str]:
    """Runs ``shortlist serve`` on a free port; exits where it would have nothing to serve."""
    if not list(models_dir.glob("[0-9]*/manifest.json")):
        sys.exit(
            f"no version is published in {models_dir}: make demo publishes one, or name a folder with --models-dir"
        )
    return [sys.executable, "-m", "shortlist_client.main", "serve", "--models-dir", str(models_dir), "--port", "0"]


def echo_command(answer: Path) -> list[str]:
    """Runs the threaded echo of an answer."""
    return [sys.executable, "-m", "benchmarks.unary_recommend", "--echo", str(answer)]


def require_generator() -> None:
    """Exits where there is no h2load or no core of its own for it."""
    if shutil.which("h2load") is None or (os.cpu_count() or 1) < 2:
        sys.exit("this needs h2load (apt-get install nghttp2-client) and two cores")


def one_by_one(
    address: str, request: recommender_pb2.RecommendRequest, count: int
) -> list[recommender_pb2.RecommendResponse]:
    """The answers to so many calls, each after the other."""
    with grpc.insecure_channel(address) as channel:
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        return [stub.Recommend(request) for _ in range(count)]


def print_model(address: str) -> None:
    """Prints the machine, and the model that a server answers from."""
    with Client(address, timeout_seconds=30) as client:
        manifest = client.get_model().manifest
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    recall = {entry["k"]: entry["recall"] for entry in manifest["item_index"]["recalls"]}
    print(f"model: {manifest['model_name']}, {manifest['item_count']} items, index recall@10 {recall[10]:.3f}")


def main() -> None:
    """Prints one line per round, and the medians with the ratio of ours to each echo."""
    parser = parser_for(__doc__, rounds=5)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--serve", default="", metavar="OPTIONS", help="more options of shortlist serve")
    parser.add_argument("--cpp-echo", action="store_true", help="compile the echo in C++ and measure it too")
    parser.add_argument("--echo", metavar="ANSWER_FILE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.echo:
        return echo_server(Path(options.echo).read_bytes())
    require_generator()
    if options.cpp_echo and not (shutil.which("g++") and shutil.which("pkg-config")):
        sys.exit("--cpp-echo needs a compiler and gRPC (apt-get install g++ pkg-config libgrpc++-dev)")

    request = request_of(options)
    with ExitStack() as stack:
        ours = stack.enter_context(pinned([*serve_command(options.models_dir), *options.serve.split()]))
        responses = one_by_one(ours, request, 1_000)
        print_model(ours)
        computed = statistics.median(response.timing.computed_micros for response in responses)
        print(f"one request at a time: {computed:.0f} µs from the start of the search to the answer (median)")
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        answer = folder / "answer"
        answer.write_bytes(responses[-1].SerializeToString())
        echoes = {"echo": stack.enter_context(pinned(echo_command(answer)))}
        if options.cpp_echo:
            echoes["C++ echo"] = stack.enter_context(pinned([str(build_cpp_echo(folder)), str(answer)]))
        for address in echoes.values():
            assert one_by_one(address, request, 1) == responses[-1:]
        servers = {"shortlist": ours} | echoes
        message = request.SerializeToString()
        rounds = [
            {name: load(address, message, options.requests) for name, address in servers.items()}
            for _ in range(options.rounds + 1)
        ][1:]  # the first warms all up
    for rates in rounds:
        print("   ".join(f"{name} {rate:>8,.0f} requests/s" for name, rate in rates.items()))
    medians = {name: statistics.median(rates[name] for rates in rounds) for name in servers}
    print("medians: " + ", ".join(f"{name} {median:,.0f} requests/s" for name, median in medians.items()))
    for name in echoes:
        ratio = statistics.median(rates["shortlist"] / rates[name] for rates in rounds)
        print(f"ratio to the {name}: {ratio:.2f}")
    return None


if __name__ == "__main__":
    main()
