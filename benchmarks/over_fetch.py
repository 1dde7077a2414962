"""Asking a flat FAISS index for k items and more, against scoring every item with one matrix product, on one thread.

The figures behind the server's choice between the two; both are exact, so recall is 1 for each.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when FAISS and numpy are loaded

import statistics
import time
from collections.abc import Callable

import faiss
import numpy as np

from shortlist_server.faiss_index import FaissIndex
from shortlist_server.item_index import ItemIndex

ROUNDS = 200


def median_micros(work: Callable[..., object], *arguments: object) -> float:
    """The median time of one call, in microseconds."""
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work(*arguments)
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e6


def main() -> None:
    """Prints one line for each catalogue size and number of items asked for."""
    rng = np.random.default_rng(0)
    for items in (1_682, 40_000):
        vectors = rng.standard_normal((items, 64)).astype(np.float32)
        query = rng.standard_normal(64).astype(np.float32)
        flat = faiss.IndexFlatIP(64)
        flat.add(vectors)
        index = ItemIndex(FaissIndex(flat, "flat", "none", {}), vectors)
        excluded = np.sort(rng.choice(items, 100, replace=False))
        scan = median_micros(index._scan, query, 10, excluded)
        for wanted in (10, items // 200, items // 100, items // 50, items // 8):
            search = median_micros(flat.search, query[None], wanted)
            print(f"{items:>7,} items: asking for {wanted:>6,} {search:>7,.0f} us, a scan {scan:>7,.0f} us", flush=True)


if __name__ == "__main__":
    main()
