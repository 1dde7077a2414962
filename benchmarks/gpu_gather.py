"""User embeddings gathered on the GPU, the copy back included, and a batch re-ranked there, each beside its floor.

The floor of a gather is what no program can do without: the same bytes copied there and back, to and from page-locked
memory, with one empty kernel in between and one wait at the end, in buffers made beforehand. The floor of the whole
path is the same for its gather and its ranking, with the network's bare matrix products in place of the empty kernel;
the search between them is the CPU's and counts as it is. Beside both stands the CPU by itself, from the same tables.

The path is that of a batch of requests with ``rerank``: gather, search of the candidates, ranking, order. Reading
requests, looking ids up and writing answers are not in it. Calls of all kinds take turns, each with users of its own,
and medians are reported. Without a GPU only the CPU's figures are there, and this says so.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from benchmarks.made_up import embeddings
from shortlist_server.device.choice import choose_device
from shortlist_server.device.tables import DeviceTables
from shortlist_server.retrieval.exact import best_rows
from shortlist_server.retrieval.ranker import Ranker
from shortlist_server.retrieval.user_embeddings import UserEmbeddings

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
Call = Callable[[Int64Array], object]
"""Takes (b,) user rows."""

_HIDDEN = (64, 32, 16)
_WARM_UP = 20


class Floor:
    """Copies there and back with kernels in between, and nothing else.

    Args:
        device: a GPU.
        there: bytes that go there.
        back: bytes that come back.
        kernels: what is started in between.
    """

    def __init__(self, device: torch.device, there: int, back: int, kernels: Callable[[], object]) -> None:
        self._stream = torch.cuda.current_stream(device)
        self._sent = torch.zeros(there, dtype=torch.uint8, pin_memory=True)
        self._arrived = torch.zeros(there, dtype=torch.uint8, device=device)
        self._result = torch.zeros(back, dtype=torch.uint8, device=device)
        self._received = torch.zeros(back, dtype=torch.uint8, pin_memory=True)
        self._kernels = kernels

    def __call__(self, _: Int64Array) -> None:
        """Does it once."""
        self._arrived.copy_(self._sent, non_blocking=True)
        self._kernels()
        self._received.copy_(self._result, non_blocking=True)
        self._stream.synchronize()


def network(users: int, items: int, size: int, rng: np.random.Generator) -> dict[str, Float32Array]:
    """NeuMF with half of the columns in each part, and random weights."""
    half = size // 2
    tensors = {
        f"{part}.{side}_embeddings": rng.random((rows, half), dtype=np.float32) - np.float32(0.5)
        for part in ("mlp", "gmf")
        for side, rows in (("user", users), ("item", items))
    }
    inputs = size
    for layer, outputs in enumerate((*_HIDDEN, 1)):
        tensors[f"mlp.layers.{layer}.weight"] = rng.standard_normal((outputs, inputs), dtype=np.float32) / outputs
        tensors[f"mlp.layers.{layer}.bias"] = np.zeros(outputs, np.float32)
        inputs = outputs
    return tensors | {"bias": np.zeros(1, np.float32), "mlp.slope": np.zeros(1, np.float32)}


def products(pairs: int, size: int, device: torch.device) -> Callable[[], object]:
    """The matrix products of ``network`` for so many pairs, over tensors that are on the device already."""
    widths = (size // 2, *_HIDDEN, 1)
    layers = [
        (torch.zeros(pairs, inputs, device=device), torch.zeros(outputs, inputs, device=device))
        for inputs, outputs in pairwise(widths)
    ]

    @torch.inference_mode()
    def start() -> None:
        for hidden, weight in layers:
            functional.linear(hidden, weight)

    return start


def whole_path(users: UserEmbeddings, items: Float32Array, ranker: Ranker, candidates: int) -> Call:
    """From user rows to candidates in the network's order."""

    def call(rows: Int64Array) -> list[Int64Array]:
        count = len(rows)
        nothing = [np.empty(0, np.int64)] * count
        found = best_rows(items, None, users.gather(rows), [candidates] * count, nothing)
        ranked = found.rows.reshape(count, candidates)
        scores = ranker.score(rows, ranked)
        return [row[np.argsort(-score, kind="stable")] for row, score in zip(ranked, scores, strict=True)]

    return call


def floor_of_path(
    gather: Call, ranking: Call, table: npt.NDArray[np.floating], items: Float32Array, candidates: int
) -> Call:
    """The floors of both, and the search between them for the same users."""

    def call(rows: Int64Array) -> None:
        gather(rows)
        nothing = [np.empty(0, np.int64)] * len(rows)
        best_rows(items, None, table[rows].astype(np.float32), [candidates] * len(rows), nothing)
        ranking(rows)

    return call


def timed(calls: dict[str, Call], draw: Callable[[], Int64Array], rounds: int) -> dict[str, list[float]]:
    """Microseconds of each kind of call, which take turns."""
    micros: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(_WARM_UP + rounds):
        for name, call in calls.items():
            rows = draw()
            began = time.perf_counter()
            call(rows)
            if turn >= _WARM_UP:
                micros[name].append((time.perf_counter() - began) * 1e6)
    return micros


def show(title: str, micros: dict[str, list[float]]) -> None:
    """Prints p50 and p99, and how many times the floor ours is."""
    print(f"{title}\n  {'':<44}{'p50 µs':>10}{'p99 µs':>10}")
    for name, times in micros.items():
        print(f"  {name:<44}{statistics.median(times):>10,.0f}{np.percentile(times, 99):>10,.0f}")
    if "floor" in micros:
        ratio = statistics.median(micros["ours on the GPU"]) / statistics.median(micros["floor"])
        print(f"  ours is {ratio:.2f} times the floor")


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="as shortlist serve takes it")
    parser.add_argument("--users", type=int, default=10_000_000)
    parser.add_argument("--items", type=int, default=40_000)
    parser.add_argument("--size", type=int, default=64, help="columns of the vectors")
    parser.add_argument("--batch", type=int, default=256, help="users asked for at once")
    parser.add_argument("--candidates", type=int, default=500, help="of each user, to be ranked again")
    parser.add_argument("--float16", action="store_true", help="the table is in half precision")
    parser.add_argument("--rounds", type=int, default=1_000, help="of the gather; a tenth of them of the whole path")
    options = parser.parse_args()
    device = choose_device(options.device)
    on_gpu = device.type == "cuda"
    if on_gpu:
        print(f"{device}: {torch.cuda.get_device_name(device)}, torch {torch.__version__}")
    else:
        print("no GPU is used here: every figure below is the CPU's, and none says anything of a GPU")
    rng = np.random.default_rng(0)
    table, items = embeddings(options.users, options.items, options.size)
    if options.float16:
        table = table.astype(np.float16)
    tensors = network(options.users, options.items, options.size, rng)

    def draw() -> Int64Array:
        rows: Int64Array = rng.integers(options.users, size=options.batch)
        return rows

    in_memory, ranker_in_memory = UserEmbeddings(table), Ranker(tensors)
    gathers: dict[str, Call] = {}
    paths: dict[str, Call] = {}
    if on_gpu:
        tables = DeviceTables(device)
        users = UserEmbeddings(table, on_device=tables.place("users", "", table))
        ranker = Ranker(tensors, lambda name, tensor: tables.place(name, "", tensor))
        check(users, in_memory, ranker, ranker_in_memory, draw())
        pairs = options.batch * options.candidates
        empty = torch.zeros(1, device=device).zero_
        gathers["one empty kernel, and its end waited for"] = Floor(device, 0, 0, empty)
        floor = Floor(device, 8 * options.batch, options.batch * options.size * table.itemsize, empty)
        gathers["floor"], gathers["ours on the GPU"] = floor, users.gather
        bare = products(pairs, options.size, device)
        paths["the floor of ranking"] = Floor(device, 8 * (options.batch + pairs), 4 * pairs, bare)
        paths["floor"] = floor_of_path(floor, paths["the floor of ranking"], table, items, options.candidates)
        paths["ours on the GPU"] = whole_path(users, items, ranker, options.candidates)
    gathers["the CPU, from memory"] = in_memory.gather
    paths["the CPU"] = whole_path(in_memory, items, ranker_in_memory, options.candidates)
    what = f"{options.batch} users of {options.users:,} x {options.size}, {table.dtype}"
    show(f"gather of {what}, the copy back included", timed(gathers, draw, options.rounds))
    what = f"{options.candidates} candidates of {options.items:,} items found by exact search, and ranked again"
    show(f"the same, {what}", timed(paths, draw, max(1, options.rounds // 10)))


def check(
    users: UserEmbeddings, in_memory: UserEmbeddings, ranker: Ranker, ranker_in_memory: Ranker, rows: Int64Array
) -> None:
    """Holds the GPU's answers against the CPU's: a fast wrong one would be no figure."""
    np.testing.assert_array_equal(users.gather(rows), in_memory.gather(rows))
    items = np.tile(np.arange(64), (len(rows), 1))
    np.testing.assert_allclose(ranker.score(rows, items), ranker_in_memory.score(rows, items), rtol=1e-3, atol=1e-3)
    assert users.device.type == ranker.device.type == "cuda"


if __name__ == "__main__":
    main()
