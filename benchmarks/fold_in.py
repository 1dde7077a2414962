"""Recommend for a history of 100 items against Recommend for a known user, through gRPC in the same run.

Each model is trained on ML-1M with 64 columns for a few epochs, as only time is measured, and kept for the next run.
Histories are what known users touched. Calls come one at a time and alternate between both ways, the server on one core
and the caller on another.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import grpc
import numpy as np
from google.protobuf import json_format

from benchmarks.made_up import CACHE
from benchmarks.unary_recommend import GENERATOR_CORE, pinned
from shortlist.v1 import manifest_pb2, recommender_pb2, recommender_pb2_grpc
from shortlist_server.model.tensors import map_tensors
from shortlist_server.retrieval.id_table import IdTable
from shortlist_trainer.export.publish import existing_version

_SHORTLIST = (sys.executable, "-m", "shortlist_client.main")
_EPOCHS = 3
_STARS = (3.0, 4.0, 5.0)  # of the history's items in turn, where the model predicts ratings


def trained(model: str, data: str, models_dir: Path, size: int) -> Path:
    """The folder of a model's newest version, trained now if there is none."""
    if not models_dir.is_dir():
        settings = [f"--set=embedding_size={size}", f"--set=epochs={_EPOCHS}"]
        command = [*_SHORTLIST, "train", "--data", data, "--model", model, *settings, "--no-refit"]
        subprocess.run([*command, "--models-dir", str(models_dir)], stdout=subprocess.DEVNULL, check=True)
    return models_dir / str(existing_version(models_dir, None))


def pairs(
    folder: Path, calls: int, history: int, *, rated: bool
) -> list[tuple[recommender_pb2.RecommendRequest, recommender_pb2.RecommendRequest]]:
    """For so many users who touched enough items, what asks by the user's id and by as many of the items."""
    ids = [
        IdTable(tensors["text"], tensors["offsets"], tensors["hashes"], tensors["rows"])
        for tensors in (map_tensors(folder / f"{side}_ids.safetensors") for side in ("user", "item"))
    ]
    seen = map_tensors(folder / "seen.safetensors")
    able = np.flatnonzero(np.diff(seen["offsets"]) >= history)
    asked = []
    rng = np.random.default_rng(0)
    for row in rng.choice(able, calls).tolist():
        touched = rng.permutation(seen["items"][seen["offsets"][row] : seen["offsets"][row + 1]])[:history]
        items = [
            recommender_pb2.HistoryItem(item_id=item_id, weight=_STARS[place % len(_STARS)] if rated else None)
            for place, item_id in enumerate(ids[1].ids(touched))
        ]
        known = recommender_pb2.RecommendRequest(user_id=ids[0].ids([row])[0], k=10)
        asked.append((known, recommender_pb2.RecommendRequest(history=recommender_pb2.History(items=items), k=10)))
    return asked


def main() -> None:
    """Prints a row for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="ml-1m", help="as shortlist train takes it")
    parser.add_argument("--models", nargs="+", default=["ials", "mf", "softmax-mf"])
    parser.add_argument("--models-dir", type=Path, default=CACHE / "fold-in", metavar="DIR", help="one folder a model")
    parser.add_argument("--size", type=int, default=64, help="columns of the vectors")
    parser.add_argument("--history", type=int, default=100, metavar="N", help="items of a history")
    parser.add_argument("--calls", type=int, default=1_000, metavar="N", help="of each way")
    options = parser.parse_args()
    if (os.cpu_count() or 1) < 2:
        sys.exit("this needs two cores")
    folders = {
        model: trained(model, options.data, options.models_dir / f"{model}-{options.size}", options.size)
        for model in options.models
    }
    os.sched_setaffinity(0, {GENERATOR_CORE})
    print(f"p50 of {options.calls:,} calls each way, one at a time, {options.history} items of history; µs")
    print(f"{'':12}{'through gRPC':^28}{'in the server':^28}")
    print(f"{'':12}{'known':>9}{'history':>9}{'ratio':>9} {'known':>9}{'history':>9}{'ratio':>9}   index")
    for model, folder in folders.items():
        manifest = json_format.Parse((folder / "manifest.json").read_bytes(), manifest_pb2.ModelManifest())
        rated = manifest.score_kind == manifest_pb2.SCORE_KIND_RATING
        asked = pairs(folder, options.calls, options.history, rated=rated)
        called, computed = times(folder.parent, asked)
        recall = {one.k: one.recall for one in manifest.item_index.recalls}[10]
        row = " ".join(
            f"{known:>9,.0f}{history:>9,.0f}{history / known:>9.2f}"
            for known, history in ([statistics.median(way) for way in side] for side in (called, computed))
        )
        print(f"{model:<12}{row}   {manifest.item_index.kind}, recall@10 {recall:.3f}")


def times(
    models_dir: Path, asked: list[tuple[recommender_pb2.RecommendRequest, recommender_pb2.RecommendRequest]]
) -> tuple[tuple[list[float], list[float]], tuple[list[float], list[float]]]:
    """Microseconds that each call of both ways took: for the caller, and by the server's own account."""
    called: tuple[list[float], list[float]] = ([], [])
    computed: tuple[list[float], list[float]] = ([], [])
    sources = (recommender_pb2.SOURCE_PERSONALIZED, recommender_pb2.SOURCE_FOLDED_IN)
    command = [*_SHORTLIST, "serve", "--models-dir", str(models_dir), "--port", "0"]
    with pinned(command) as address, grpc.insecure_channel(address) as channel:
        stub = recommender_pb2_grpc.RecommenderServiceStub(channel)
        for both in asked[:50]:  # warm up
            for request in both:
                stub.Recommend(request)
        for both in asked:
            for way, request in enumerate(both):
                began = time.perf_counter()
                response = stub.Recommend(request)
                called[way].append((time.perf_counter() - began) * 1e6)
                computed[way].append(response.timing.computed_micros)
                assert response.source == sources[way]
    return called, computed


if __name__ == "__main__":
    main()
