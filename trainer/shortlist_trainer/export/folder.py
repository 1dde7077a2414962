"""Writing the files of a model folder, the manifest last. docs/model-format.md describes them."""

import datetime as dt
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version as library_version
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from google.protobuf import json_format
from safetensors import SafetensorError
from safetensors.numpy import save_file

from shortlist.v1 import manifest_pb2
from shortlist_trainer.data.dataset import Dataset
from shortlist_trainer.data.statistics import statistics_of
from shortlist_trainer.evaluation.protocols import EvaluationResult
from shortlist_trainer.export.attributes import attribute_table, describe
from shortlist_trainer.export.clusters import Clustering, Clusters
from shortlist_trainer.export.format import FORMAT_VERSION, NO_CLUSTER
from shortlist_trainer.export.id_table import id_table
from shortlist_trainer.export.index import BuiltIndex, IndexGoal, IndexPoint, build_index, unit_length
from shortlist_trainer.export.report import ClustersShown, ClusterView, ReportContent, item_titles, write_report
from shortlist_trainer.models.base import Embeddings, FoldIn, Ranker
from shortlist_trainer.models.history import TrainingHistory

Array = npt.NDArray[np.generic]
RowArray = npt.NDArray[np.integer]

_LIBRARIES = ("shortlist", "torch", "faiss-cpu", "numpy", "pyarrow", "safetensors", "scikit-learn")
MANIFEST = "manifest.json"
REPORT = "report.html"
ITEM_INDEX = "items.faiss"
NEIGHBOUR_INDEX = "neighbours.faiss"
_TOP_OF_CLUSTER = 10
_WRITTEN_AT_ONCE = 1 << 20
_SCORE_KINDS = {
    "rating": manifest_pb2.SCORE_KIND_RATING,
    "preference": manifest_pb2.SCORE_KIND_PREFERENCE,
}


@dataclass(frozen=True)
class Export:
    """Everything that goes into a model folder.

    Attributes:
        model_name: what ``--model`` calls the model.
        hyperparameters: name to value.
        embeddings: the trained vectors.
        dataset: what the model was trained on: ids, seen items and item attributes.
        evaluation: how good it is.
        refit_on_all: whether it was trained again on all interactions after the evaluation.
        items: index over the item embeddings.
        neighbours: index over the unit-length item embeddings without bias columns.
        clusters: of the users and of the items.
        history: how the training went, for the report; None where nobody kept it.
        with_report: whether to write the report, which takes seconds.
        ranker: the network behind the vectors, where there is one.
        fold_in: how a history becomes a user vector; None for the mean of its items' directions.
    """

    model_name: str
    hyperparameters: Mapping[str, object]
    embeddings: Embeddings
    dataset: Dataset
    evaluation: EvaluationResult
    refit_on_all: bool
    items: BuiltIndex
    neighbours: BuiltIndex
    clusters: Clusters
    history: TrainingHistory | None = None
    with_report: bool = True
    ranker: Ranker | None = None
    fold_in: FoldIn | None = None


def seen_items(offsets: RowArray, items: RowArray) -> Callable[[int], RowArray]:
    """What ``build_indexes`` asks for, of compressed sparse rows.

    Args:
        offsets: (users + 1,) where each user's items begin.
        items: (n,) item rows.
    """
    return lambda user: items[offsets[user] : offsets[user + 1]]


def build_indexes(
    embeddings: Embeddings,
    seen: Callable[[int], RowArray],
    seed: int,
    goal: IndexGoal | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[BuiltIndex, BuiltIndex]:
    """The index for user -> items, measured on user vectors, and the one for item -> items, measured on items.

    Both are measured as they are asked: users without what they have seen, items without themselves.

    Args:
        embeddings: the trained vectors.
        seen: from a user row to the (m,) rows of the items that the user has seen, which are left out of answers.
        seed: draws queries and samples.
        goal: what each index shall reach; None for recall .99 at 10.
        say: is told how it goes.
    """
    items = build_index(
        embeddings.items,
        embeddings.users,
        seed,
        left_out=seen,
        goal=goal,
        say=lambda text: say(f"user to items: {text}"),
    )
    unit = unit_length(embeddings.items[:, : embeddings.items.shape[1] - embeddings.bias_columns])
    neighbours = build_index(
        unit,
        unit,
        seed,
        left_out=lambda row: np.array([row]),
        goal=goal,
        say=lambda text: say(f"item to items: {text}"),
    )
    return items, neighbours


def write_folder(folder: Path, version: int, export: Export) -> None:
    """Writes a complete model folder.

    Args:
        folder: an empty folder.
        version: the version it will be published as.
        export: what to write.

    Raises:
        OSError: a file cannot be written.
    """
    vectors, dataset = export.embeddings, export.dataset
    user_tensors: dict[str, Array] = {"embeddings": vectors.users}
    if vectors.user_bias is not None:
        user_tensors["bias"] = vectors.user_bias
    _save(user_tensors, folder / "user_embeddings.safetensors")
    _save({"embeddings": vectors.items}, folder / "item_embeddings.safetensors")
    _save(id_table(dataset.user_ids), folder / "user_ids.safetensors")
    _save(id_table(dataset.item_ids), folder / "item_ids.safetensors")
    seen: dict[str, Array] = {"offsets": dataset.interactions.user_offsets(), "items": dataset.interactions.items}
    _save(seen, folder / "seen.safetensors")
    attributes = attribute_table(dataset.item_attributes, dataset.interactions.item_popularity())
    with (
        pa.OSFile(str(folder / "item_attributes.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, attributes.schema) as out,
    ):
        out.write_table(attributes)
    write_index(export.items, folder / ITEM_INDEX)
    write_index(export.neighbours, folder / NEIGHBOUR_INDEX)
    _save(_cluster_tensors(export.clusters), folder / "clusters.safetensors")
    if export.ranker is not None:
        _save(export.ranker.tensors, folder / "ranker.safetensors")
    created = dt.datetime.now(dt.UTC)
    libraries = library_versions()
    if export.with_report:
        write_report(folder / REPORT, _report_content(version, created, libraries, export))

    manifest = manifest_pb2.ModelManifest(
        format_version=FORMAT_VERSION,
        version=version,
        model_name=export.model_name,
        hyperparameters={name: _as_given(value) for name, value in export.hyperparameters.items()},
        user_count=len(dataset.user_ids),
        item_count=len(dataset.item_ids),
        embedding_size=vectors.items.shape[1],
        bias_columns=vectors.bias_columns,
        score_constant=vectors.score_constant,
        score_kind=_SCORE_KINDS[vectors.score_kind],
        item_index=index_info(export.items),
        neighbour_index=index_info(export.neighbours),
        item_attributes=describe(attributes),
        evaluation=_evaluation(export.evaluation, export.refit_on_all),
        training_data=manifest_pb2.TrainingData(
            name=dataset.name,
            format=dataset.format,
            fingerprint=dataset.fingerprint(),
            interaction_count=len(dataset.interactions),
            duplicates_merged=dataset.duplicates_merged,
            bad_rows_skipped=dataset.bad_rows_skipped,
        ),
        libraries=libraries,
        files=[file_entry(path) for path in sorted(folder.iterdir())],
        clusters=manifest_pb2.ClusterInfo(
            users=_clustering(export.clusters.users),
            items=_clustering(export.clusters.items),
            ranking=_ranking(dataset),
            minimum_support=export.clusters.ranked.minimum_support.tolist(),
        ),
        ranker=None if export.ranker is None else manifest_pb2.RankerInfo(architecture=export.ranker.architecture),
        fold_in=None if export.fold_in is None else manifest_pb2.FoldInInfo(**asdict(export.fold_in)),
    )
    manifest.created.FromDatetime(created)
    write_manifest(folder, manifest)


def library_versions() -> dict[str, str]:
    """Name to version of the libraries that write a folder."""
    return {name: library_version(name) for name in _LIBRARIES}


def write_manifest(folder: Path, manifest: manifest_pb2.ModelManifest) -> None:
    """Writes manifest.json, with its own checksum."""
    manifest.manifest_sha256 = _manifest_checksum(manifest)
    text = json_format.MessageToJson(manifest, preserving_proto_field_name=True)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _manifest_checksum(manifest: manifest_pb2.ModelManifest) -> str:
    """The checksum that docs/model-format.md describes."""
    content = json_format.MessageToDict(manifest, preserving_proto_field_name=True)
    rest = {name: value for name, value in content.items() if name not in ("version", "manifest_sha256")}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _report_content(version: int, created: dt.datetime, libraries: Mapping[str, str], export: Export) -> ReportContent:
    return ReportContent(
        model_name=export.model_name,
        version=version,
        created=created,
        hyperparameters=export.hyperparameters,
        libraries=libraries,
        dataset=export.dataset,
        statistics=statistics_of(export.dataset),
        embeddings=export.embeddings,
        evaluation=export.evaluation,
        refit_on_all=export.refit_on_all,
        items=export.items,
        neighbours=export.neighbours,
        history=export.history,
        clusters=_clusters_shown(export),
    )


def _clusters_shown(export: Export) -> ClustersShown:
    titles = item_titles(export.dataset)
    popularity = export.dataset.interactions.item_popularity()
    clusters, ranked = export.clusters, export.clusters.ranked
    views = []
    for label, size in enumerate(clusters.items.sizes.tolist()):
        members = np.flatnonzero(clusters.items.labels == label)
        top = members[np.argsort(-popularity[members], kind="stable")][:_TOP_OF_CLUSTER].tolist()
        views.append(ClusterView("items", label, size, [(titles[row], float(popularity[row])) for row in top]))
    for label, size in enumerate(clusters.users.sizes.tolist()):
        begin = int(ranked.offsets[label])
        places = range(begin, min(begin + _TOP_OF_CLUSTER, int(ranked.offsets[label + 1])))
        top_of_users = [(titles[int(ranked.items[place])], float(ranked.scores[place])) for place in places]
        views.append(ClusterView("users", label, size, top_of_users))
    by_users = "mean rating" if export.dataset.interactions.ratings is not None else "share of the cluster's users"
    return ClustersShown(views, clusters.items.labels, f"number of interactions (of users: {by_users})")


def _as_given(value: object) -> str:
    """A hyper-parameter as ``--set`` takes it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _save(tensors: Mapping[str, Array], path: Path) -> None:
    try:
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        raise OSError(f"{path.name} cannot be written: {error}") from error


def write_index(built: BuiltIndex, path: Path) -> None:
    """Writes an index file.

    Raises:
        OSError: it cannot be written.
    """
    # Through a file of Python's: FAISS's own says nothing when the disk has no room for the last bytes.
    with path.open("wb") as file:
        faiss.write_index(built.index, faiss.PyCallbackIOWriter(file.write, _WRITTEN_AT_ONCE))  # type: ignore[attr-defined]  # stubs


def _cluster_tensors(clusters: Clusters) -> dict[str, Array]:
    users, items, ranked = clusters.users, clusters.items, clusters.ranked
    return {
        "user_labels": users.labels,
        "user_centroids": users.centroids,
        "user_sizes": users.sizes,
        "item_labels": items.labels,
        "item_centroids": items.centroids,
        "item_sizes": items.sizes,
        "ranked_offsets": ranked.offsets,
        "ranked_items": ranked.items,
        "ranked_scores": ranked.scores,
        "ranked_support": ranked.support,
    }


def _clustering(clustering: Clustering) -> manifest_pb2.Clustering:
    return manifest_pb2.Clustering(
        count=len(clustering.sizes),
        chosen_by=clustering.chosen_by,
        silhouette=clustering.silhouette,
        unclustered=int(np.count_nonzero(clustering.labels == NO_CLUSTER)),
    )


def _ranking(dataset: Dataset) -> "manifest_pb2.ClusterRanking.ValueType":
    if dataset.interactions.ratings is None:
        return manifest_pb2.CLUSTER_RANKING_SHARE
    return manifest_pb2.CLUSTER_RANKING_MEAN_RATING


def index_info(built: BuiltIndex) -> manifest_pb2.IndexInfo:
    """What the manifest says of an index."""
    return manifest_pb2.IndexInfo(
        kind=built.kind,
        search_parameters=built.search_parameters,
        recalls=[
            manifest_pb2.MeasuredRecall(k=k, recall=recall, queries=built.recall_queries)
            for k, recall in built.recalls.items()
        ],
        transform=built.transform,
        goal=None if built.goal is None else _goal(built, built.goal),
        why=built.why,
        curve=[_index_point(point) for point in built.curve],
        left_out=built.left_out,
        scan_cost=built.scan_cost,
    )


def _goal(built: BuiltIndex, goal: IndexGoal) -> manifest_pb2.IndexGoal:
    met = built.recalls[goal.k] >= goal.recall
    return manifest_pb2.IndexGoal(recall=goal.recall, k=goal.k, memory_bytes=goal.memory_bytes or 0, met=met)


def _index_point(point: IndexPoint) -> manifest_pb2.IndexPoint:
    return manifest_pb2.IndexPoint(
        kind=point.kind,
        transform=point.transform,
        search_parameters=point.search_parameters,
        recall=point.recall,
        single_query_micros=point.single_query_micros,
        batch_micros_per_query=point.batch_micros_per_query,
        bytes=point.bytes,
        chosen=point.chosen,
    )


def _evaluation(result: EvaluationResult, refit_on_all: bool) -> manifest_pb2.Evaluation:
    return manifest_pb2.Evaluation(
        protocol=result.protocol,
        split=result.split,
        training_interactions=result.training_interactions,
        test_interactions=result.test_interactions,
        cold_interactions=result.cold_interactions,
        metrics=result.metrics,
        baselines={name: manifest_pb2.MetricSet(metrics=metrics) for name, metrics in result.baselines.items()},
        refit_on_all=refit_on_all,
    )


def file_entry(path: Path) -> manifest_pb2.ModelFile:
    """What the manifest says of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return manifest_pb2.ModelFile(name=path.name, size_bytes=path.stat().st_size, sha256=digest)
