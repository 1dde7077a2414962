"""Reading one model folder, and refusing it when it is not what its manifest says."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from shortlist.v1 import manifest_pb2
from shortlist_server.device.tables import DeviceTables, tables_on
from shortlist_server.errors import BadModel, unreadable
from shortlist_server.model.manifest import MANIFEST, read_manifest
from shortlist_server.model.tensors import map_tensors
from shortlist_server.model.versions import require_file
from shortlist_server.retrieval.clusters import NO_CLUSTER, Clusters, item_clusters
from shortlist_server.retrieval.faiss_index import USUAL_K, read_faiss_index
from shortlist_server.retrieval.fold_in import CosineMean, FoldIn, ImplicitLeastSquares, NormalPrior, UserLength
from shortlist_server.retrieval.id_table import IdTable
from shortlist_server.retrieval.item_attributes import ItemAttributes
from shortlist_server.retrieval.item_index import ItemIndex, rounded_up
from shortlist_server.retrieval.queries import ClusterKind
from shortlist_server.retrieval.ranker import Ranker, layer_count
from shortlist_server.retrieval.recommend import Recommender
from shortlist_server.retrieval.seen_items import SeenItems
from shortlist_server.retrieval.user_embeddings import UserEmbeddings

USER_EMBEDDINGS = "user_embeddings.safetensors"
ITEM_EMBEDDINGS = "item_embeddings.safetensors"
USER_IDS = "user_ids.safetensors"
ITEM_IDS = "item_ids.safetensors"
SEEN = "seen.safetensors"
ITEM_ATTRIBUTES = "item_attributes.arrow"
ITEM_INDEX = "items.faiss"
NEIGHBOUR_INDEX = "neighbours.faiss"
CLUSTERS = "clusters.safetensors"
"""Folders that were written before there were clusters lack it."""
RANKER = "ranker.safetensors"
"""There where the manifest has a ranker."""

REQUIRED = (
    USER_EMBEDDINGS, ITEM_EMBEDDINGS, USER_IDS, ITEM_IDS, SEEN, ITEM_ATTRIBUTES, ITEM_INDEX, NEIGHBOUR_INDEX
)  # fmt: skip

MAPPED = frozenset({*REQUIRED, CLUSTERS, RANKER})
"""Read from their pages as long as the version answers."""

_BLOCK_BYTES = 1 << 20

_LARGEST = 1e15
"""The size of a number in a table: float32 holds the inner product of two rows of such, whatever their length."""

INTERACTION_COUNT = "interaction_count"
"""The attribute that every model has: how many users interacted with the item."""


@dataclass(frozen=True)
class LoadedModel:
    """A version that answers queries.

    Attributes:
        version: the folder's number.
        manifest: what the folder says of itself.
        recommender: answers from it.
    """

    version: int
    manifest: manifest_pb2.ModelManifest
    recommender: Recommender


def load_model(
    folder: Path, device: DeviceTables | torch.device | str, keep_going: Callable[[], None] = lambda: None
) -> LoadedModel:
    """Verifies every checksum of a folder and makes it answer.

    Args:
        folder: MODELS_DIR/<version>.
        device: where the user table and those of the ranker shall live.
        keep_going: is called many times meanwhile, and may raise to end it.

    Raises:
        BadModel: a file is missing, changed, or does not fit the others; the text names it.
        torch.OutOfMemoryError: a GPU has no room for the tables.
    """
    tables = tables_on(device)
    manifest = read_manifest(folder)
    if not abs(manifest.score_constant) <= _LARGEST:
        raise BadModel(f"{MANIFEST}: score_constant must lie within {_LARGEST:g}, not be {manifest.score_constant}")
    _verify_files(folder, manifest, keep_going)
    users = _embeddings(folder / USER_EMBEDDINGS, manifest.user_count, manifest, (np.float32, np.float16), keep_going)
    items = _embeddings(folder / ITEM_EMBEDDINGS, manifest.item_count, manifest, (np.float32,), keep_going)
    attributes = _attributes(folder / ITEM_ATTRIBUTES, manifest.item_count)
    popularity = attributes.numbers(INTERACTION_COUNT)
    taste = items["embeddings"][:, : manifest.embedding_size - manifest.bias_columns]
    lengths = np.linalg.norm(taste, axis=1)
    recommender = Recommender(
        user_ids=_id_table(folder / USER_IDS, manifest.user_count),
        item_ids=_id_table(folder / ITEM_IDS, manifest.item_count),
        users=_users(users, manifest, tables),
        items=_item_index(folder / ITEM_INDEX, manifest.item_index, items["embeddings"]),
        neighbours=_item_index(
            folder / NEIGHBOUR_INDEX,
            manifest.neighbour_index,
            taste,
            np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0),
        ),
        seen=_seen(folder / SEEN, manifest),
        attributes=attributes,
        popular=np.argsort(-popularity, kind="stable"),
        popularity=popularity,
        score_constant=manifest.score_constant,
        clusters=_clusters(folder / CLUSTERS, manifest, popularity) if manifest.HasField("clusters") else None,
        ranker=_ranker(folder / RANKER, manifest, tables) if manifest.HasField("ranker") else None,
        fold_in=_fold_in(manifest, items["embeddings"], users),
    )
    return LoadedModel(manifest.version, manifest, recommender)


def _verify_files(folder: Path, manifest: manifest_pb2.ModelManifest, keep_going: Callable[[], None]) -> None:
    listed = {entry.name for entry in manifest.files}
    clusters = (CLUSTERS,) if manifest.HasField("clusters") else ()
    ranker = (RANKER,) if manifest.HasField("ranker") else ()
    for name in (*REQUIRED, *clusters, *ranker):
        if name not in listed:
            raise BadModel(f"{MANIFEST} does not list {name}")
    for entry in manifest.files:
        if Path(entry.name).name != entry.name:
            raise BadModel(f"{MANIFEST} lists {entry.name!r}, which is not a plain file name")
        try:
            require_file(folder / entry.name)
            with (folder / entry.name).open("rb") as file:
                size = file.seek(0, 2)
                if size != entry.size_bytes:
                    raise BadModel(f"{entry.name} has {size:,} bytes, but {MANIFEST} says {entry.size_bytes:,}")
                file.seek(0)
                digest = hashlib.sha256()
                while block := file.read(_BLOCK_BYTES):
                    digest.update(block)
                    keep_going()
                if digest.hexdigest() != entry.sha256:
                    raise BadModel(f"{entry.name} does not match its checksum in {MANIFEST}")
        except OSError as error:
            raise unreadable(entry.name, error) from error


def _require(condition: bool, path: Path, reason: str) -> None:
    if not condition:
        raise BadModel(f"{path.name} {reason}")


def _require_arrays(path: Path, tensors: Mapping[str, npt.NDArray[Any]], types: Mapping[str, type[np.generic]]) -> None:
    for name, type_ in types.items():
        _require(name in tensors, path, f"lacks the array {name}")
        found = tensors[name]
        fitting = found.ndim == 1 and found.dtype == type_
        _require(
            fitting, path, f"has {name} of type {found.dtype} and shape {found.shape}, not rows of {type_.__name__}"
        )


def _embeddings(
    path: Path,
    rows: int,
    manifest: manifest_pb2.ModelManifest,
    types: Sequence[type[np.floating]],
    keep_going: Callable[[], None],
) -> dict[str, npt.NDArray[Any]]:
    tensors = map_tensors(path)
    _require("embeddings" in tensors, path, "holds no embeddings")
    _require(tensors["embeddings"].dtype in types, path, f"has embeddings of type {tensors['embeddings'].dtype}")
    expected = (rows, manifest.embedding_size)
    shape = tensors["embeddings"].shape
    _require(shape == expected, path, f"has embeddings of shape {shape}, but {MANIFEST} says {expected}")
    _require("bias" not in tensors or tensors["bias"].shape == (rows,), path, "has biases of another length")
    _require(
        "bias" not in tensors or tensors["bias"].dtype == np.float32, path, "has biases of another type than float32"
    )
    for name in tensors.keys() & {"embeddings", "bias"}:
        _require_finite(path, tensors[name], keep_going)
    return tensors


def _require_finite(path: Path, table: npt.NDArray[np.floating], keep_going: Callable[[], None] = lambda: None) -> None:
    """One number that is none would make every score that it is part of none, and a huge one would make it infinite."""
    rows = max(1, _BLOCK_BYTES // max(1, table[:1].nbytes))
    largest = table.dtype.type(min(_LARGEST, float(np.finfo(table.dtype).max)))
    for begin in range(0, len(table), rows):
        block = table[begin : begin + rows]
        fits = np.abs(block) <= largest  # of NaN neither is true
        if not fits.all():
            row = begin + int(np.argwhere(~fits)[0, 0])
            raise BadModel(
                f"{path.name} holds numbers that are not finite, or beyond {_LARGEST:g}, first in row {row:,}"
            )
        keep_going()


def _users(
    tensors: Mapping[str, npt.NDArray[Any]], manifest: manifest_pb2.ModelManifest, tables: DeviceTables
) -> UserEmbeddings:
    table = tensors["embeddings"]
    fingerprint = _sha256(USER_EMBEDDINGS, manifest)
    on_device = None if tables.in_place else tables.place(USER_EMBEDDINGS, fingerprint, table)
    return UserEmbeddings(table, tensors.get("bias"), on_device)


def _sha256(name: str, manifest: manifest_pb2.ModelManifest) -> str:
    """Of a file that has been verified."""
    return next(entry.sha256 for entry in manifest.files if entry.name == name)


def _id_table(path: Path, rows: int) -> IdTable:
    tensors = map_tensors(path)
    _require_arrays(path, tensors, {"text": np.uint8, "offsets": np.uint64, "hashes": np.uint64, "rows": np.uint32})
    lengths = {len(tensors["offsets"]) - 1, len(tensors["hashes"]), len(tensors["rows"])}
    _require(lengths == {rows}, path, f"is for {lengths} rows, but {MANIFEST} says {rows}")
    text, offsets = tensors["text"], tensors["offsets"]
    _require(int(offsets[0]) == 0 and int(offsets[-1]) == len(text), path, "has offsets that do not fit its text")
    _require(rows == 0 or int(tensors["rows"].max()) < rows, path, "leads to rows that are not there")
    try:
        # Arrow checks that every id is UTF-8 and begins where the one before it ends, without a copy.
        pa.LargeStringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(text)).validate(full=True)
    except pa.ArrowInvalid as error:
        raise BadModel(f"{path.name} has an id that is no UTF-8, or offsets out of order") from error
    return IdTable(tensors["text"], tensors["offsets"], tensors["hashes"], tensors["rows"])


def _seen(path: Path, manifest: manifest_pb2.ModelManifest) -> SeenItems:
    tensors = map_tensors(path)
    _require_arrays(path, tensors, {"offsets": np.int64, "items": np.int32})
    offsets, items = tensors["offsets"], tensors["items"]
    _require(len(offsets) == manifest.user_count + 1, path, "is for another number of users")
    _require(int(offsets[0]) == 0 and int(offsets[-1]) == len(items), path, "has offsets that do not fit its items")
    there = len(items) == 0 or (items.min() >= 0 and items.max() < manifest.item_count)
    _require(bool(there), path, "names items that the model lacks")
    _require(bool((offsets[1:] >= offsets[:-1]).all()), path, "has offsets that are not ascending")
    begins = np.zeros(len(items) + 1, dtype=bool)
    begins[offsets] = True
    ascending = (items[1:] > items[:-1]) | begins[1:-1]
    _require(bool(ascending.all()), path, "has items that are not ascending within a user")
    return SeenItems(offsets, items)


def _clusters(
    path: Path, manifest: manifest_pb2.ModelManifest, popularity: npt.NDArray[np.int64]
) -> dict[ClusterKind, Clusters]:
    tensors = map_tensors(path)
    types: dict[str, type[np.generic]] = {
        "user_labels": np.int32,
        "user_sizes": np.int64,
        "item_labels": np.int32,
        "item_sizes": np.int64,
        "ranked_offsets": np.int64,
        "ranked_items": np.int32,
        "ranked_scores": np.float32,
    }
    _require_arrays(path, tensors, types)
    for side, rows, clustering in (
        ("user", manifest.user_count, manifest.clusters.users),
        ("item", manifest.item_count, manifest.clusters.items),
    ):
        labels, sizes = tensors[f"{side}_labels"], tensors[f"{side}_sizes"]
        _require(len(labels) == rows, path, f"is for another number of {side}s")
        _require(len(sizes) == clustering.count, path, f"has another number of {side} clusters than {MANIFEST} says")
        members = labels[labels != NO_CLUSTER]
        fitting = bool(np.all((members >= 0) & (members < len(sizes))))
        fitting = fitting and np.array_equal(np.bincount(members, minlength=len(sizes)), sizes)
        _require(fitting, path, f"has {side} labels that do not fit its sizes")
    offsets, items, scores = (tensors[f"ranked_{name}"] for name in ("offsets", "items", "scores"))
    _require(len(offsets) == len(tensors["user_sizes"]) + 1, path, "ranks items for another number of clusters")
    ascending = offsets[0] == 0 and bool(np.all(np.diff(offsets) >= 0))
    _require(ascending and offsets[-1] == len(items) == len(scores), path, "has offsets that do not fit its items")
    _require(bool(np.all((items >= 0) & (items < manifest.item_count))), path, "names items that the model lacks")
    return {
        ClusterKind.USER: Clusters(tensors["user_labels"], tensors["user_sizes"], offsets, items, scores),
        ClusterKind.ITEM: item_clusters(tensors["item_labels"], tensors["item_sizes"], popularity),
    }


def _ranker(path: Path, manifest: manifest_pb2.ModelManifest, tables: DeviceTables) -> Ranker:
    tensors = map_tensors(path)
    architecture = manifest.ranker.architecture
    _require(architecture in ("neumf", "mlp"), path, f"is a network {architecture!r}, which this server does not know")
    sides = (("user", manifest.user_count), ("item", manifest.item_count))
    parts = ("mlp", "gmf") if architecture == "neumf" else ("mlp",)
    rows_of = {f"{part}.{side}_embeddings": rows for part in parts for side, rows in sides}
    layers = [f"mlp.layers.{layer}" for layer in range(layer_count(tensors))]
    names = {"bias", "mlp.slope", *rows_of, *(f"{layer}.{part}" for layer in layers for part in ("weight", "bias"))}
    _require(len(layers) > 0 and names <= tensors.keys(), path, "lacks a tensor of the network")
    shapes: dict[str, tuple[int, ...]] = {"bias": (1,), "mlp.slope": (1,)}
    shapes |= {f"{side}_bias": (rows,) for side, rows in sides}
    shapes |= {name: (rows, *(tensors[name].shape[1:2] or (0,))) for name, rows in rows_of.items()}
    if architecture == "neumf":
        shapes["gmf.item_embeddings"] = (manifest.item_count, shapes["gmf.user_embeddings"][1])
    inputs = sum(shapes[f"mlp.{side}_embeddings"][1] for side, _ in sides)
    for layer in layers:
        outputs = 1 if layer == layers[-1] else tensors[f"{layer}.bias"].size
        shapes |= {f"{layer}.weight": (outputs, inputs), f"{layer}.bias": (outputs,)}
        inputs = outputs
    network = {name: tensors[name] for name in shapes if name in tensors}
    for name, tensor in network.items():
        _require(tensor.shape == shapes[name], path, f"has {name} of shape {tensor.shape}, not {shapes[name]}")
        _require(tensor.dtype == np.float32, path, f"has {name} of another type than float32")
        _require_finite(path, tensor)
    if tables.in_place:
        return Ranker(network)
    return Ranker(network, lambda name, table: tables.place(f"{RANKER} {name}", _sha256(RANKER, manifest), table))


def _fold_in(
    manifest: manifest_pb2.ModelManifest, items: npt.NDArray[np.float32], users: dict[str, npt.NDArray[Any]]
) -> FoldIn:
    info, table, biases = manifest.fold_in, users["embeddings"], manifest.bias_columns
    taste = items[:, : manifest.embedding_size - biases]
    if not manifest.HasField("fold_in"):
        return UserLength(CosineMean(taste), biases, table)
    match info.solver:
        case "implicit-least-squares":
            numbers = (info.unobserved_weight, info.regularization, info.regularization_exponent)
            if np.isfinite(numbers).all() and min(numbers) >= 0 and info.regularization > 0:
                solver = ImplicitLeastSquares(taste, *numbers)
                return UserLength(solver, biases, table) if biases else solver
        case "normal-prior":
            if 0 < info.noise_variance < np.inf:
                constant, variance = manifest.score_constant, info.noise_variance
                return NormalPrior(items, biases, table, users.get("bias"), constant, variance)
    raise BadModel(f"{MANIFEST} folds in by {info.solver!r}, which this server does not know, or with unfit numbers")


def _attributes(path: Path, items: int) -> ItemAttributes:
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate(full=True)  # else an offset that leads elsewhere is followed
        names = table.column_names  # which nobody has looked at yet: they may be no text
    except (pa.ArrowException, OSError, ValueError) as error:  # Arrow's may be all; the checksum has been read already
        raise BadModel(f"{path.name} is not a readable Arrow file") from error
    _require(table.num_rows == items, path, f"has {table.num_rows} rows, but {MANIFEST} says {items}")
    _require(len(set(names)) == len(names), path, "has two columns of one name")
    _require(INTERACTION_COUNT in names, path, f"has no column {INTERACTION_COUNT}")
    counts = table[INTERACTION_COUNT]
    _require(counts.type == pa.int64() and counts.null_count == 0, path, f"has {INTERACTION_COUNT} that are no numbers")
    return ItemAttributes(table)


def _item_index(
    path: Path,
    info: manifest_pb2.IndexInfo,
    vectors: npt.NDArray[np.float32],
    scale: npt.NDArray[np.float32] | None = None,
) -> ItemIndex:
    usual_k = rounded_up(info.goal.k) if info.goal.k > 0 else USUAL_K
    scan_cost = info.scan_cost if info.scan_cost > 0 else math.inf
    return ItemIndex(read_faiss_index(path, info, vectors.shape, usual_k), vectors, scale, scan_cost)
