"""A large model on one machine: starting by memory mapping, memory of workers, id lookup, recall and latency.

Beside them in the same run: a server without a model, the first worker, a small id table, and brute force.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from safetensors.numpy import save_file

from benchmarks.exact_answers import ExactAnswers, item_rows
from benchmarks.made_up import add_options, published
from shortlist.v1 import recommender_pb2, recommender_pb2_grpc
from shortlist_server.model.tensors import map_tensors
from shortlist_server.retrieval.id_table import IdTable
from shortlist_trainer.export.id_table import id_table

_BATCH = 64
_LOOKUPS = 20_000
_HEALTH_SECONDS = 0.005
_SERVING = health_pb2.HealthCheckResponse.SERVING


@dataclass(frozen=True)
class Server:
    """A server that runs.

    Attributes:
        pid: of the process that was started.
        address: where it listens.
        seconds: from the start of the process to health SERVING, or to listening where there is no model.
    """

    pid: int
    address: str
    seconds: float


@contextmanager
def serving(models_dir: Path, workers: int = 1, *, has_model: bool = True) -> Iterator[Server]:
    """``shortlist serve`` with so many workers."""
    command = [sys.executable, "-m", "shortlist_client.main", "serve", "--models-dir", str(models_dir), "--port", "0"]
    began = time.perf_counter()
    with subprocess.Popen(
        [*command, "--workers", str(workers)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[-1]
            with grpc.insecure_channel(address) as channel:
                health = health_pb2_grpc.HealthStub(channel)
                while has_model and health.Check(health_pb2.HealthCheckRequest()).status != _SERVING:
                    time.sleep(_HEALTH_SECONDS)
            yield Server(process.pid, address, time.perf_counter() - began)
        finally:
            process.terminate()


def drop_from_page_cache(folder: Path) -> None:
    """Lets the system forget the files of a folder, as far as no process maps them."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def start_up(folder: Path, rounds: int) -> None:
    """Prints the seconds from starting the process to health SERVING."""
    gigabytes = sum(path.stat().st_size for path in folder.iterdir()) / 1e9
    seconds: dict[str, list[float]] = {"no model": [], "files not in memory": [], "files in the page cache": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as empty, serving(Path(empty), has_model=False) as server:
            seconds["no model"].append(server.seconds)
        drop_from_page_cache(folder)
        for name in ("files not in memory", "files in the page cache"):
            with serving(folder.parent) as server:
                seconds[name].append(server.seconds)
    print(f"start to ready, folder of {gigabytes:.2f} GB (medians of {rounds})")
    for name, measured in seconds.items():
        print(f"  {name:<26}{statistics.median(measured):>8.2f} s")


def memory(folder: Path, workers: list[int], warm_up: int) -> None:
    """Prints the memory of one worker and of more, each of which has answered the same queries.

    A page that several processes map counts in Pss as a share for each, so that the sum is what they take together.
    The process that starts several workers is a column of its own.
    """
    # Not by mapping the tables here, which would take a share of their pages.
    users = int(json.loads((folder / "manifest.json").read_text())["user_count"])
    rows = np.random.default_rng(1).integers(users, size=warm_up).tolist()
    requests = [recommender_pb2.RecommendRequest(user_id=f"u{row}", k=10) for row in rows]
    print(f"memory after {warm_up:,} users asked for of each worker; MB, Pss where nothing else is said")
    print(f"  {'workers':>7}{'together':>10}{'each':>8}{'Rss':>8}{'private':>9}{'starter':>9}{'each further':>14}")
    first = 0.0
    for count in workers:
        with serving(folder.parent, count) as server:
            pids = [server.pid] if count == 1 else _children(server.pid)
            assert len(pids) == count
            with ExitStack() as stack:
                for channel in _channels(server.address, pids, stack):
                    stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
                    for start in range(0, warm_up, _BATCH):
                        batch = recommender_pb2.BatchRecommendRequest(requests=requests[start : start + _BATCH])
                        assert all(one.response.items for one in stub.BatchRecommend(batch).outcomes)
                figures = [_megabytes(pid) for pid in pids]
            total = sum(one["Pss"] for one in figures)
            rss = statistics.mean(one["Rss"] for one in figures)
            private = statistics.mean(one["Private_Clean"] + one["Private_Dirty"] for one in figures)
            starter = _megabytes(server.pid)["Pss"] if count > 1 else 0.0
        row = f"  {count:>7}{total:>10,.0f}{total / count:>8,.0f}{rss:>8,.0f}{private:>9,.0f}{starter:>9,.0f}"
        first = first or total
        if count > 1:
            more = (total - first) / (count - 1)
            row += f"{more:>8,.0f} = {more / first:.1%} of the first"
        print(row)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _channels(address: str, pids: list[int], stack: ExitStack) -> list[grpc.Channel]:
    """A connection to each worker: the system deals them out, and open files tell who got the newest."""
    reached: dict[int, grpc.Channel] = {}
    while len(reached) < len(pids):
        before = {pid: _open_files(pid) for pid in pids}
        channel = stack.enter_context(grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]))
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        owner = max(pids, key=lambda pid: _open_files(pid) - before[pid])
        reached.setdefault(owner, channel)
    return list(reached.values())


def _open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _megabytes(pid: int) -> dict[str, float]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) * 1024 / 1e6 for line in lines}


def lookup(folder: Path, rounds: int) -> None:
    """Prints the time of an id's lookup in tables of several sizes, each mapped from a file."""
    users = len(map_tensors(folder / "user_ids.safetensors")["rows"])
    print(f"id lookup, {_LOOKUPS:,} random ids in batches of {_BATCH}; µs an id")
    print("       users   the first time   again   one by one, again")
    with tempfile.TemporaryDirectory() as below:
        for count in sorted({min(1_000, users), min(100_000, users), users}):
            path = folder / "user_ids.safetensors"
            if count < users:
                path = Path(below) / f"{count}.safetensors"
                save_file(id_table([f"u{row}" for row in range(count)]), path)
            tensors = map_tensors(path)
            table = IdTable(tensors["text"], tensors["offsets"], tensors["hashes"], tensors["rows"])
            rows = np.random.default_rng(count).integers(count, size=_LOOKUPS)
            ids = [f"u{row}" for row in rows.tolist()]
            first = _micros(table, ids, rows, _BATCH)
            again = statistics.median(_micros(table, ids, rows, _BATCH) for _ in range(rounds))
            singly = statistics.median(_micros(table, ids, rows, 1) for _ in range(rounds))
            print(f"  {count:>10,}{first:>17.2f}{again:>8.2f}{singly:>20.2f}")
    print("  (the first time, pages that are in the page cache are mapped; each new page costs a fault)")


def _micros(table: IdTable, ids: list[str], rows: "np.typing.NDArray[np.int64]", batch: int) -> float:
    began = time.perf_counter()
    found = [table.rows(ids[start : start + batch]) for start in range(0, len(ids), batch)]
    seconds = time.perf_counter() - began
    assert np.array_equal(np.concatenate(found), rows)
    return seconds * 1e6 / len(ids)


def answers(folder: Path, users: int) -> None:
    """Prints recall and latency of single calls through gRPC beside brute force over the same vectors."""
    exact = ExactAnswers(folder, users)
    items = map_tensors(folder / "item_embeddings.safetensors")["embeddings"]
    with serving(folder.parent) as server, grpc.insecure_channel(server.address) as channel:
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        for request in exact.requests():  # brings the index into memory
            stub.Recommend(request)
        found, called, computed, brute = [], [], [], []
        for request in exact.requests():
            began = time.perf_counter()
            response = stub.Recommend(request)
            called.append(time.perf_counter() - began)
            computed.append(response.timing.computed_micros / 1e6)
            found.append(item_rows(response))
    for vector in exact.vectors:  # not in between: it would empty the server's caches
        began = time.perf_counter()
        np.argpartition(items @ vector, -10)[-10:]
        brute.append(time.perf_counter() - began)
    print(f"Recommend of 10, one call at a time, {users} users; µs")
    print("                            p50        p99   recall@10")
    for name, seconds, recall in (
        ("through gRPC", called, exact.recall(found)),
        ("  in the server", computed, exact.recall(found)),
        ("brute force in numpy", brute, 1.0),
    ):
        p50, p99 = (float(np.percentile(seconds, share)) * 1e6 for share in (50, 99))
        print(f"  {name:<22}{p50:>9,.0f}{p99:>11,.0f}{recall:>12.4f}")


def main() -> None:
    """Prints a table for each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, users=10_000_000, items=1_000_000)
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[2, 4], metavar="N", help="how many to set beside one"
    )
    parser.add_argument(
        "--warm-up", type=int, default=50_000, metavar="N", help="users asked for before memory is read"
    )
    parser.add_argument("--queries", type=int, default=200, metavar="N", help="users to measure recall and latency on")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    folder = published(options)
    print(f"{options.items:,} items and {options.users:,} users of {options.size} columns, {os.cpu_count()} cores")
    start_up(folder, options.rounds)
    memory(folder, [1, *options.workers], options.warm_up)
    lookup(folder, options.rounds)
    answers(folder, options.queries)


if __name__ == "__main__":
    main()
