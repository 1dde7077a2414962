"""Unary Recommend against a search by Milvus 2.3.5's HNSW at equal recall, over the same made-up items.

Both servers are pinned to one core and h2load (Debian package nghttp2-client) to another, with 64 calls in flight.
Rounds alternate, each with another user; medians are reported. Milvus is given the user's vector and searches by HNSW
(inner product, M 32, efConstruction 200, one segment) with the least ef that reaches the recall; Shortlist is given the
user's id and leaves out what the user has seen. Recall is measured through gRPC, against brute force, before the load.

Milvus lives in an environment of its own:
  python3 -m venv milvus-env
  milvus-env/bin/pip install milvus==2.3.5 pymilvus==2.3.7 'setuptools<80' 'marshmallow<3.20' 'environs<10'
"""

import argparse
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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
                if not any("Ctrl+C" in line for line in process.stdout):
                    sys.exit(f"Milvus did not start; its logs are in {self._data / 'logs'}")
                yield f"127.0.0.1:{port}"
            finally:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(_STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)

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

    def ask(self, address: str, exact: ExactAnswers, ef: int, folder: Path) -> tuple[list[bytes], float]:
        """The bytes of a search for each user, and the recall of what they were answered with."""
        np.save(folder / "queries.npy", exact.vectors)
        self.peer("ask", address, f"{folder}/queries.npy", str(K), str(ef), str(folder))
        requests = [(folder / f"{place}.request").read_bytes() for place in range(len(exact.rows))]
        return requests, exact.recall(np.load(folder / "found.npy"), without_seen=False)


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
    parser.add_argument("--milvus-python", type=Path, required=True, help="the interpreter of Milvus's environment")
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
    with (
        milvus.serving("taskset", "-c", str(SERVER_CORE)) as theirs,
        pinned(serve) as address,
        tempfile.TemporaryDirectory() as aside,
    ):
        print(f"{options.items:,} items of {options.size} columns; Milvus has {milvus.peer('load', theirs)} segment(s)")
        tried = []
        for ef in _EF:
            searches, recall = milvus.ask(theirs, exact, ef, Path(aside))
            tried.append((recall, ef))
            print(f"  Milvus, HNSW ef {ef:<6} recall@{K} {recall:.4f}")
            if recall >= options.recall:
                break
        else:
            recall, ef = max(tried, key=lambda point: (point[0], -point[1]))
            print(f"  its ceiling lies below {options.recall:g}: it is measured at ef {ef}")
            searches, recall = milvus.ask(theirs, exact, ef, Path(aside))
        requests, our_recall = ours(address, exact)
        rates = []
        for turn in range(options.rounds + 1):
            place = turn % len(requests)
            rates.append(
                (
                    load(address, requests[place], options.requests),
                    load(theirs, searches[place], options.milvus_requests, SEARCH),
                )
            )
        # h2load sees HTTP alone: were searches refused meanwhile, as over a quota, this would be too.
        assert milvus.ask(theirs, exact, ef, Path(aside))[1] >= recall - 0.01
    medians = [statistics.median(column) for column in zip(*rates[1:], strict=True)]  # the first round warms both up
    print(f"Shortlist                {medians[0]:>8,.0f} requests/s   recall@{K} {our_recall:.4f}")
    print(f"Milvus, HNSW ef {ef:<8} {medians[1]:>8,.0f} requests/s   recall@{K} {recall:.4f}")
    print(f"ratio {statistics.median(one / other for one, other in rates[1:]):.2f}")


if __name__ == "__main__":
    main()
