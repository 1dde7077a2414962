"""Unary Recommend with ten times the calls in flight that saturate the server, against what it answers at its best.

Callers of a native generator ask again as soon as they are answered or refused, which is the worst that they can do.
What was answered is read from the server's own account (ListModels). Server and generator have a core each; the rounds
alternate, and each overload is followed at once by the usual load, which says how soon the server recovers.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import grpc

from benchmarks.unary_recommend import GENERATOR_CORE, SERVER_CORE, load, require_generator, serve_command, serving
from shortlist.v1 import model_pb2, model_pb2_grpc, recommender_pb2

USUAL = (4, 64)
LOADS = {"10 times": (10, 640), "32 times": (32, 2_048)}
"""Connections, and calls in flight over all of them."""


def main() -> None:
    """Prints answers and refusals a second, and the server's memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models-dir", type=Path, default=Path("models"))
    parser.add_argument("--user", default="196")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    require_generator()
    os.sched_setaffinity(0, {GENERATOR_CORE})
    message = recommender_pb2.RecommendRequest(user_id=options.user, k=10).SerializeToString()
    rates: dict[str, list[tuple[float, float]]] = {"usual": []}
    memory: list[float] = []
    with (
        serving(serve_command(options.models_dir), SERVER_CORE) as (address, pid),
        grpc.insecure_channel(address) as channel,
    ):
        stub = model_pb2_grpc.ModelServiceStub(channel)

        def measured(in_flight: tuple[int, int], seconds: float) -> tuple[float, float]:
            before, began = counts(stub), time.perf_counter()
            load(address, message, seconds=seconds, connections=in_flight[0], in_flight=in_flight[1])
            took, after = time.perf_counter() - began, counts(stub)
            return (after[0] - before[0]) / took, (after[1] - before[1]) / took

        measured(USUAL, options.seconds)  # warms up
        for _ in range(options.rounds):
            rates["usual"].append(measured(USUAL, options.seconds))
            for name, in_flight in LOADS.items():
                rates.setdefault(name, []).append(measured(in_flight, options.seconds))
                rates.setdefault(f"first second after {name}", []).append(measured(USUAL, 1.0))
                memory.append(resident(pid))
    best = [answered for answered, _ in rates["usual"]]
    for name, of in rates.items():
        answered = statistics.median(rate for rate, _ in of)
        share = statistics.median(rate / usual for (rate, _), usual in zip(of, best, strict=True))
        failed = statistics.median(rate for _, rate in of)
        print(f"{name:<28}{answered:>8,.0f} answered/s{failed:>8,.0f} refused/s   {share:.2f} of the usual")
    print(f"resident memory: {memory[0]:,.0f} MB after the first overload, {memory[-1]:,.0f} MB after the last")


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
