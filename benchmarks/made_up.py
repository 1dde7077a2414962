"""Made-up models of any size, published by the trainer's own writer, for where no data is large enough.

The vectors are made to be as hard to search as those of ``ials``, and resemble its 64 columns on ML-1M in what decides
that: how lengths spread, those of popular items being bounded; how the variance falls from direction to direction, the
first, common to all, having a quarter; how near a user's best items are, and how long. Users and items gather around
the same centres. Ids are "u0", "u1", … and "i0", "i1", …, numbered by row.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from shortlist_trainer.data.dataset import Dataset, Interactions
from shortlist_trainer.evaluation.protocols import EvaluationResult
from shortlist_trainer.export.clusters import Clustering, Clusters, rank_items
from shortlist_trainer.export.folder import MANIFEST, Export, seen_items, write_folder
from shortlist_trainer.export.index import IndexGoal, build_index, parse_goal, unit_length
from shortlist_trainer.export.publish import publish as publish_version
from shortlist_trainer.export.publish import versions
from shortlist_trainer.models.base import Embeddings, FoldIn

Float32Array = npt.NDArray[np.float32]

CACHE = Path.home() / ".cache" / "shortlist-benchmarks"
RECALL_TARGET = "0.99@10"
SEEN_PER_USER = 5

_CENTRES = 256
_BLOCK = 1 << 17  # rows at once: tens of megabytes


def embeddings(users: int, items: int, size: int = 64, seed: int = 0) -> tuple[Float32Array, Float32Array]:
    """User and item vectors; equal arguments give equal vectors.

    Args:
        users: how many users.
        items: how many items.
        size: columns.
        seed: draws everything.

    Returns:
        (users, size) and (items, size) float32.
    """
    rng = np.random.default_rng(seed)
    spread = (1 + np.arange(size, dtype=np.float32)) ** np.float32(-0.28)
    turn = np.linalg.qr(rng.standard_normal((size, size)))[0].astype(np.float32)
    mix = spread[:, None] * turn  # (size, size): the directions are no columns
    centres = rng.standard_normal((_CENTRES, size), np.float32) @ mix
    centres += np.float32(np.linalg.norm(spread) / math.sqrt(2)) * turn[0]  # what is common to all

    def vectors(count: int, lengths: Callable[[Float32Array], Float32Array]) -> Float32Array:
        made = np.empty((count, size), np.float32)
        for start in range(0, count, _BLOCK):
            block = made[start : start + _BLOCK]
            np.matmul(rng.standard_normal(block.shape, np.float32), mix, out=block)
            block += centres[rng.integers(_CENTRES, size=len(block))]
            wanted = lengths(rng.standard_normal((len(block), 1), np.float32))
            block *= wanted / np.linalg.norm(block, axis=1, keepdims=True)
        return made

    # Medians are 1. Items are at most 3.5 long, however many there are.
    made_users = vectors(users, lambda drawn: np.exp(0.33 * drawn))
    return made_users, vectors(items, lambda drawn: 3.5 / (1 + 2.5 * np.exp(-1.1 * drawn)))


def interactions(users: int, item_lengths: Float32Array, seed: int = 0) -> Interactions:
    """Up to ``SEEN_PER_USER`` interactions of each user, with items in proportion to the squares of their lengths."""
    rng = np.random.default_rng([seed, 1])
    shares = np.cumsum(item_lengths.astype(np.float64) ** 2)
    touched = np.empty((users, SEEN_PER_USER), np.int32)
    for start in range(0, users, _BLOCK):
        block = touched[start : start + _BLOCK]
        block[:] = np.searchsorted(shares, rng.random(block.shape) * shares[-1])
    touched = np.minimum(touched, len(item_lengths) - 1)
    touched.sort(axis=1)
    first = np.ones(touched.shape, dtype=bool)
    first[:, 1:] = touched[:, 1:] != touched[:, :-1]
    rows = np.repeat(np.arange(users, dtype=np.int32), first.sum(axis=1))
    return Interactions(rows, touched[first], None, None, users, len(item_lengths))


def publish(models_dir: Path, users: int, items: int, size: int = 64, seed: int = 0) -> Path:
    """Publishes a made-up model, its index for user -> items tuned to ``RECALL_TARGET``, and says where it is.

    Where the models folder holds this model already, that is all that is done.

    Args:
        models_dir: the models folder.
        users: how many users.
        items: how many items.
        size: columns.
        seed: draws everything.

    Returns:
        The folder of the newest version.
    """
    settings = {"users": users, "items": items, "embedding_size": size, "seed": seed}
    if models_dir.is_dir() and (numbers := versions(models_dir)):
        folder = models_dir / str(max(numbers))
        held = json.loads((folder / MANIFEST).read_text())["hyperparameters"]
        if held != {name: str(value) for name, value in settings.items()}:
            sys.exit(f"{folder} is another model, {held}; --models-dir names a folder for this one")
        return folder
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {text}", file=sys.stderr, flush=True)

    user_vectors, item_vectors = embeddings(users, items, size, seed)
    say(f"made up {users:,} users and {items:,} items of {size} columns")
    goal = parse_goal(RECALL_TARGET)
    touched = interactions(users, np.linalg.norm(item_vectors, axis=1), seed)
    seen = seen_items(touched.user_offsets(), touched.items)
    index = build_index(item_vectors, user_vectors, seed, left_out=seen, goal=goal, say=say)
    # The other index is not measured: as exact search, it takes no time to tune.
    unit = unit_length(item_vectors)
    untuned = IndexGoal(exact_below=unit.size + 1)
    neighbours = build_index(unit, unit, seed, left_out=lambda row: np.array([row]), goal=untuned)
    neighbours = replace(neighbours, why="a made-up model's is not tuned")
    say("tuned")
    dataset = Dataset(
        name=f"made-up, seed {seed}",
        format="made-up",
        interactions=touched,
        user_ids=[f"u{row}" for row in range(users)],
        item_ids=[f"i{row}" for row in range(items)],
        item_attributes=pd.DataFrame(index=range(items)),
        duplicates_merged=0,
        bad_rows_skipped=0,
    )
    one_user_cluster, one_item_cluster = _one_cluster(user_vectors), _one_cluster(item_vectors)
    ranked = rank_items(touched, one_user_cluster.labels, one_user_cluster.sizes)
    export = Export(
        model_name="made-up",
        hyperparameters=settings,
        embeddings=Embeddings(user_vectors, item_vectors, "preference"),
        dataset=dataset,
        evaluation=EvaluationResult("none", "none", len(touched), 0, 0, {}, {}),
        refit_on_all=False,
        items=index,
        neighbours=neighbours,
        clusters=Clusters(one_user_cluster, one_item_cluster, ranked),
        with_report=False,
        fold_in=FoldIn("implicit-least-squares", unobserved_weight=0.1, regularization=0.1),
    )
    number = publish_version(models_dir, lambda folder, version: write_folder(folder, version, export))
    say(f"published {models_dir / str(number)}")
    return models_dir / str(number)


def _one_cluster(vectors: Float32Array) -> Clustering:
    """Everything in one: finding better ones of ten million rows takes more memory than all the rest."""
    labels = np.zeros(len(vectors), np.int32)
    return Clustering(labels, vectors.mean(axis=0, keepdims=True), np.array([len(vectors)]), "given", 0.0)


def add_options(parser: argparse.ArgumentParser, users: int, items: int) -> None:
    """Adds what says which made-up model is meant, with these sizes by default."""
    parser.add_argument("--users", type=int, default=users)
    parser.add_argument("--items", type=int, default=items)
    parser.add_argument("--size", type=int, default=64, help="columns of the vectors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--models-dir",
        type=Path,
        help=f"holds the made-up model, or will, for this run and the next; below {CACHE} if not given",
    )


def published(options: argparse.Namespace) -> Path:
    """The folder of the version that ``add_options`` means, published now if it is not yet."""
    name = f"{options.users}x{options.items}x{options.size}-{options.seed}"
    return publish(options.models_dir or CACHE / name, options.users, options.items, options.size, options.seed)


def main() -> None:
    """Publishes a made-up model and prints its folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, users=100_000, items=40_000)
    print(published(parser.parse_args()))


if __name__ == "__main__":
    main()
