"""Unary Recommend with ten times the calls in flight that saturate the server, against what it answers at its best.

Callers of a native generator ask again as soon as they are answered or refused, which is the worst that they can do.
Some have deadlines, of which the shortest pass while a call waits for those before it. What was answered is read from
the server's own account (ListModels). Server and generator have a core each; before each overload comes the usual load,
and at once after it as well, which says how soon the server recovers. Overloads come over more connections than the
usual load, and what those cost by themselves is measured as well. Meanwhile a caller of its own asks once
in a while, without a deadline: how long it waits for its answers is how long others do, and what it has to wait for the
generator, whose core it shares.
"""

import argparse
import os
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks.options import parser_for, request_of
from benchmarks.unary_recommend import GENERATOR_CORE, SERVER_CORE, load, require_generator, serve_command, serving
from shortlist.v1 import model_pb2, model_pb2_grpc, recommender_pb2, recommender_pb2_grpc

Load = tuple[int, int, float | None]
"""Connections, calls in flight over all of them, and their deadline in seconds."""

_PROBES_PER_SECOND = 20

USUAL: Load = (4, 64, None)
LOADS: dict[str, Load] = {
    "10 connections": (10, 60, None),
    "10 times": (10, 640, None),
    "10 times, 250 ms": (10, 640, 0.25),
    "10 times, 100 ms": (10, 640, 0.1),
    "10 times, 50 ms": (10, 640, 0.05),
    "32 times": (32, 2_048, None),
    "32 times, 250 ms": (32, 2_048, 0.25),
}


def options_of(doc: str | None) -> argparse.Namespace:
    """The options of a benchmark that loads a server from the generator's core, where this process is from now on."""
    parser = parser_for(doc, rounds=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load")
    options = parser.parse_args()
    require_generator()
    os.sched_setaffinity(0, {GENERATOR_CORE})
    return options


def main() -> None:
    """Prints answers and failures a second, and the server's memory."""
    options = options_of(__doc__)
    request = request_of(options)
    message = request.SerializeToString()
    rates: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    waits: dict[str, list[float]] = defaultdict(list)
    memory: list[float] = []
    with (
        serving(serve_command(options.models_dir), SERVER_CORE) as (address, pid),
        grpc.insecure_channel(address) as channel,
    ):
        stub = model_pb2_grpc.ModelServiceStub(channel)
        ask = recommender_pb2_grpc.RecommenderServiceStub(channel)

        def measured(of: Load, seconds: float) -> tuple[float, float]:
            connections, in_flight, deadline = of
            before, began = counts(stub), time.perf_counter()
            load(address, message, seconds=seconds, connections=connections, in_flight=in_flight, deadline=deadline)
            took, after = time.perf_counter() - began, counts(stub)
            return (after[0] - before[0]) / took, (after[1] - before[1]) / took

        measured(USUAL, options.seconds)  # warms up
        for _ in range(options.rounds):
            for name, overload in LOADS.items():
                with probing(ask, request, waits["usual"]):
                    usual = measured(USUAL, options.seconds)
                with probing(ask, request, waits[name]):
                    of_it = measured(overload, options.seconds)
                for what, rate in (("usual", usual), (name, of_it), (f"after {name}", measured(USUAL, 1.0))):
                    rates[what].append((*rate, rate[0] / usual[0]))
                memory.append(resident(pid))
    for name, of in rates.items():
        answered, failed, share = (statistics.median(column) for column in zip(*of, strict=True))
        line = f"{name:<24}{answered:>8,.0f} answered/s{failed:>8,.0f} failed/s   {share:.2f} of the usual"
        if waits[name]:
            p50, p99 = np.quantile(waits[name], [0.5, 0.99]) * 1e3
            line += f"   p50 {p50:,.0f} ms, p99 {p99:,.0f} ms of {len(waits[name]):,}"
        print(line)
    print(f"resident memory: {memory[0]:,.0f} MB after the first overload, {memory[-1]:,.0f} MB after the last")


@contextmanager
def probing(
    stub: recommender_pb2_grpc.RecommenderServiceStub, request: recommender_pb2.RecommendRequest, waits: list[float]
) -> Iterator[None]:
    """Asks ``_PROBES_PER_SECOND`` times a second, and appends how long answers took, in seconds."""
    over = threading.Event()

    def done(began: float, call: Any) -> None:
        if call.code() is grpc.StatusCode.OK:
            waits.append(time.perf_counter() - began)

    def ask() -> None:
        while not over.wait(1 / _PROBES_PER_SECOND):
            began = time.perf_counter()
            stub.Recommend.future(request, timeout=60).add_done_callback(partial(done, began))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        over.set()
        asking.join()


def counts(stub: model_pb2_grpc.ModelServiceStub) -> tuple[int, int]:
    """Calls that the server has answered and that it has not, so far."""
    status = stub.ListModels(model_pb2.ListModelsRequest(), timeout=60).status
    return status.calls_answered, status.calls_failed


def resident(pid: int) -> float:
    """The memory of a process, in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
