"""What the tuner of indexes chooses for made-up vectors of a given size, and all that it measured on the way.

Exact search stands in the same table: recall and cost of everything else are to be read against it.
"""

import argparse
import sys
import time

import faiss

from benchmarks.made_up import embeddings
from shortlist_trainer.export.index import RECALL_QUERIES, build_index, parse_goal


def main() -> None:
    """Prints a row for each index and setting, the cheapest first, and how long it all took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[40_000, 1_000_000], help="sizes of catalogues")
    parser.add_argument("--size", type=int, default=64, help="columns of the vectors")
    parser.add_argument("--recall-target", default="0.99@10", metavar="R@K")
    parser.add_argument("--index-memory-mb", type=float, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="to build with; all cores, if not given. Searches take one")
    options = parser.parse_args()
    if options.threads is not None:
        faiss.omp_set_num_threads(options.threads)
    goal = parse_goal(options.recall_target, options.index_memory_mb)
    for items in options.items:
        users, vectors = embeddings(RECALL_QUERIES, items, options.size, options.seed)
        began = time.perf_counter()
        built = build_index(
            vectors,
            users,
            options.seed,
            goal=goal,
            say=lambda text: print(text, file=sys.stderr, flush=True),
        )
        seconds = time.perf_counter() - began
        threads = faiss.omp_get_max_threads()
        print(f"{items:,} items of {options.size} columns, {goal}: {seconds:,.0f} s on {threads} threads")
        print(f"  {'index':<52}{f'recall@{goal.k}':>10}{'µs alone':>10}{'in a batch':>12}{'MB':>8}")
        for point in sorted(built.curve, key=lambda point: point.cost):
            times = f"{point.single_query_micros:>10,.0f}{point.batch_micros_per_query:>12,.0f}"
            name = point.name + (" (chosen)" if point.chosen else "")
            print(f"  {name:<52}{point.recall:>10.4f}{times}{point.bytes / 1e6:>8,.0f}")
        for reason in built.left_out:
            print(f"  left out: {reason}")
        print(f"  {built.why}")


if __name__ == "__main__":
    main()
