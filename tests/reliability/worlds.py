"""Models with every kind of file and index that a model folder may hold."""

import hashlib
import os
import resource
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt

from shortlist_trainer.export.clusters import build_clusters
from shortlist_trainer.export.folder import Export, write_folder
from shortlist_trainer.export.index import BuiltIndex, unit_length
from shortlist_trainer.export.index_candidates import CANDIDATES, IndexBuilder
from shortlist_trainer.export.publish import publish
from shortlist_trainer.models.base import Embeddings, Ranker
from tests.small_world import NO_EVALUATION, random_dataset, random_embeddings

KINDS = (("hnsw-sq8", "pq-refine"), ("ivf-sq8", "hnsw"), ("ivf-pq-refine", "ivf"), ("flat", "ivf-sq8"))
"""Of the index over items and of that over neighbours."""

USERS, ITEMS, SIZE = 40, 400, 8

_PARAMETERS: dict[str, dict[str, float]] = {
    "flat": {},
    "ivf": {"nprobe": 10},
    "ivf-sq8": {"nprobe": 10},
    "pq-refine": {"k_factor": 4},
    "ivf-pq-refine": {"nprobe": 5, "k_factor": 4},
    "hnsw": {"efSearch": 64},
    "hnsw-sq8": {"efSearch": 64},
}


def publish_kinds(models_dir: Path, item_kind: str, neighbour_kind: str) -> Path:
    """Publishes a model of 40 users and 400 items with these indexes and a network; returns its folder."""
    rng = np.random.default_rng(5)
    dataset, embeddings = random_dataset(USERS, ITEMS, 20, rng), random_embeddings(USERS, ITEMS, SIZE, rng)
    export = Export(
        model_name="made",
        hyperparameters={},
        embeddings=embeddings,
        dataset=dataset,
        evaluation=NO_EVALUATION,
        refit_on_all=False,
        items=_index(embeddings.items, item_kind),
        neighbours=_index(unit_length(embeddings.items), neighbour_kind),
        clusters=build_clusters(embeddings, dataset.interactions, 3, 3),
        with_report=False,
        ranker=_network(embeddings),
    )
    version = publish(models_dir, lambda folder, version: write_folder(folder, version, export))
    return models_dir / str(version)


def publish_for_ever(models_dir: Path) -> None:
    """Publishes one version after the other; for a process that is killed."""
    while True:
        publish_kinds(models_dir, "hnsw", "ivf")


def publish_with_files_up_to(models_dir: Path, most_bytes: int) -> None:
    """Publishes in this process, whose files may be no longer; ends it with 3 when that is refused as it should be."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    try:
        publish_kinds(models_dir, "hnsw", "ivf")
    except OSError:
        os._exit(3)


def _index(vectors: npt.NDArray[np.float32], kind: str) -> BuiltIndex:
    if kind == "flat":
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(np.ascontiguousarray(vectors))
    else:
        candidate = next(one for one in CANDIDATES if one.kind == kind and one.transform == "none")
        index = IndexBuilder(vectors, seed=0).build(candidate)
    return BuiltIndex(index, kind, _PARAMETERS[kind], {10: 1.0}, recall_queries=1)


def _network(embeddings: Embeddings) -> Ranker:
    users, items = embeddings.users, embeddings.items
    tensors = {
        "bias": np.array([0.5], np.float32),
        "mlp.user_embeddings": np.ascontiguousarray(users[:, :2]),
        "mlp.item_embeddings": np.ascontiguousarray(items[:, :1]),
        "mlp.layers.0.weight": np.array([[1, 2, 3]], np.float32),
        "mlp.layers.0.bias": np.array([4], np.float32),
        "mlp.slope": np.zeros(1, np.float32),
    }
    return Ranker("mlp", tensors)


def digests(folder: Path) -> dict[str, str]:
    """File name to SHA-256 of everything in a version's folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
