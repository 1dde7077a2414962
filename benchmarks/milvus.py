"""Unary Recommend against a search by Milvus 2.3.5's HNSW at equal recall, over the same made-up items.

Both servers are pinned to one core and h2load (Debian package nghttp2-client) to another, with 64 calls in flight.
Rounds alternate, each with another user; medians are reported. Milvus is given the user's vector and searches by HNSW
(inner product, M 32, efConstruction 200, one segment), with the least ef that reaches the recall asked for and with the
least that reaches Shortlist's. Shortlist is given the user's id, searches the published index as it was tuned, and
leaves out what the user has seen. Recall is measured through gRPC, against brute force, before the load.

Milvus lives in an environment of its own:
  python3 -m venv milvus-env
  milvus-env/bin/pip install milvus==2.3.5 pymilvus==2.3.7 'setuptools<80' 'marshmallow<3.20' 'environs<10'
"""

import argparse
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np

from benchmarks.exact_answers import ExactAnswers, item_rows
from benchmarks.made_up import CACHE, add_options, published
from benchmarks.unary_recommend import SERVER_CORE, load, pinned
from shortlist.v1 import recommender_pb2_grpc
from shortlist_server.model.tensors import map_tensors

SEARCH = "/milvus.proto.milvus.MilvusService/Search"
K = 10

_EF = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1_024, 1_536, 2_048, 4_096)
_STOP_SECONDS = 60.0


class Milvus:
    """Milvus with its client, both in another environment.

    Args:
        python: the interpreter of that environment.
        data: where the server keeps its data.
    """

    def __init__(self, python: Path, data: Path) -> None:
        self._python, self._data = python, data

    @contextmanager
    def serving(self, *before: str) -> Iterator[str]:
        """The server, its command preceded by others such as taskset; gives its address."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [*before, str(self._python.parent / "milvus-server"), "--data", str(self._data)]
        # All items in one segment: several would each be searched.
        command += ["--extra-config", "dataCoord.segment.maxSize=8192"]
        command += ["--extra-config", "dataCoord.segment.sealProportion=1", "--proxy-port", str(port)]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            start_new_session=True,
        ) as process:
            try:
                assert process.stdout is not None
                # It goes on running where its server has died, and tells so only by what it prints in the end.
                last = next((line for line in process.stdout if re.search("Ctrl|timeout|stopped", line)), "")
                if "Ctrl" not in last:
                    sys.exit(f"Milvus did not start, perhaps beside another one; its logs are in {self._data / 'logs'}")
                yield f"127.0.0.1:{port}"
            finally:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(_STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)  # a session of its own: this wrapper and the server

    def peer(self, *arguments: str) -> str:
        """What benchmarks/milvus_peer.py prints."""
        script = Path(__file__).with_name("milvus_peer.py")
        return subprocess.run(
            [self._python, script, *arguments], stdout=subprocess.PIPE, text=True, check=True
        ).stdout.strip()

    def fill(self, vectors: np.typing.NDArray[np.float32]) -> None:
        """Makes the collection and its index on all cores, unless an earlier run has."""
        done = self._data / "filled"
        if done.exists():
            return
        with self.serving() as address, tempfile.TemporaryDirectory() as folder:
            np.save(Path(folder) / "vectors.npy", vectors)
            assert self.peer("fill", address, f"{folder}/vectors.npy") == str(len(vectors))
        done.touch()

    def ask(self, address: str, exact: ExactAnswers, ef: int) -> tuple[list[bytes], float]:
        """The bytes of a search for each user, and the recall of what they were answered with."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            np.save(folder / "queries.npy", exact.vectors)
            self.peer("ask", address, f"{folder}/queries.npy", str(K), str(ef), name)
            requests = [(folder / f"{place}.request").read_bytes() for place in range(len(exact.rows))]
            return requests, exact.recall(np.load(folder / "found.npy"), without_seen=False)


@dataclass(frozen=True)
class Rival:
    """Milvus with one setting.

    Attributes:
        ef: of its HNSW.
        recall: of its answers.
        requests: the bytes of a search for each user.
    """

    ef: int
    recall: float
    requests: list[bytes]


def sweep(milvus: Milvus, address: str, exact: ExactAnswers, recalls: list[float]) -> list[Rival]:
    """The least ef that reaches each recall, ascending, printing what was tried; the best where none does."""
    wanted, rivals, best = sorted(set(recalls)), [], Rival(0, 0.0, [])
    for ef in _EF:
        requests, recall = milvus.ask(address, exact, ef)
        print(f"  Milvus, HNSW ef {ef:<6} recall@{K} {recall:.4f}")
        if recall > best.recall:
            best = Rival(ef, recall, requests)
        reached = [one for one in wanted if recall >= one]
        if reached:
            rivals.append(Rival(ef, recall, requests))
            wanted = wanted[len(reached) :]
        if not wanted:
            return rivals
    print(f"  its ceiling, {best.recall:.4f}, lies below {wanted[0]:.4f}")
    return rivals if best in rivals else [*rivals, best]


def ours(address: str, exact: ExactAnswers) -> tuple[list[bytes], float]:
    """The bytes of a request for each user, and the recall of what they were answered with."""
    with grpc.insecure_channel(address) as channel:
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        recall = exact.recall([item_rows(stub.Recommend(request)) for request in exact.requests()])
    return [request.SerializeToString() for request in exact.requests()], recall


def main() -> None:
    """Prints the sweep of ef, the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, users=100_000, items=40_000)
    parser.add_argument("--milvus-python", type=Path, required=True, help="the interpreter of its environment")
    parser.add_argument("--milvus-data", type=Path, metavar="DIR", help=f"kept for the next run; below {CACHE}")
    parser.add_argument("--recall", type=float, default=0.99)
    parser.add_argument("--queries", type=int, default=200, metavar="N", help="users to measure recall on")
    parser.add_argument("--requests", type=int, default=10_000, help="of Shortlist in a round")
    parser.add_argument("--milvus-requests", type=int, default=3_000, help="of Milvus in a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if shutil.which("h2load") is None or (os.cpu_count() or 1) < 2:
        sys.exit("this needs h2load (apt-get install nghttp2-client) and two cores")
    folder = published(options)
    name = f"milvus-{options.items}x{options.size}-{options.seed}"
    milvus = Milvus(options.milvus_python.absolute(), (options.milvus_data or CACHE / name).absolute())
    milvus.fill(map_tensors(folder / "item_embeddings.safetensors")["embeddings"])
    exact = ExactAnswers(folder, options.queries, K)
    serve = [sys.executable, "-m", "shortlist_client.main", "serve", "--models-dir", str(folder.parent), "--port", "0"]
    with milvus.serving("taskset", "-c", str(SERVER_CORE)) as theirs, pinned(serve) as address:
        print(f"{options.items:,} items of {options.size} columns; Milvus has {milvus.peer('load', theirs)} segment(s)")
        requests, our_recall = ours(address, exact)
        rivals = sweep(milvus, theirs, exact, [options.recall, max(options.recall, our_recall)])
        rates: dict[int, list[tuple[float, float]]] = {rival.ef: [] for rival in rivals}
        for turn in range(options.rounds + 1):
            place = turn % len(requests)
            for rival in rivals:
                pair = (
                    load(address, requests[place], options.requests),
                    load(theirs, rival.requests[place], options.milvus_requests, SEARCH),
                )
                if turn:  # the first round warms up
                    rates[rival.ef].append(pair)
        # h2load sees HTTP alone: were searches refused meanwhile, as over a quota, this would be too.
        for rival in rivals:
            assert milvus.ask(theirs, exact, rival.ef)[1] >= rival.recall - 0.01
    print(f"{'':24}{'recall@10':>10}{'requests/s':>12}{'Shortlist':>11}{'recall@10':>11}{'ratio':>7}")
    for rival in rivals:
        pairs = rates[rival.ef]
        our_median, their_median = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(one / other for one, other in pairs)
        row = f"{f'Milvus, HNSW ef {rival.ef}':<24}{rival.recall:>10.4f}{their_median:>12,.0f}"
        print(f"{row}{our_median:>11,.0f}{our_recall:>11.4f}{ratio:>7.2f}")


if __name__ == "__main__":
    main()
