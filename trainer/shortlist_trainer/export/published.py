"""Reading the clusters of a published model folder again. docs/model-format.md describes its files."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from google.protobuf import json_format
from safetensors import SafetensorError
from safetensors.numpy import load_file

from shortlist.v1 import manifest_pb2
from shortlist_trainer.errors import ConfigError, DataError
from shortlist_trainer.export.format import FORMAT_VERSION, INTERACTION_COUNT, NO_CLUSTER
from shortlist_trainer.export.id_table import IdTable, ids_of, row_of
from shortlist_trainer.export.publish import existing_version

Int64Array = npt.NDArray[np.int64]
RowArray = npt.NDArray[np.integer]


@dataclass(frozen=True)
class ListedItem:
    """One item of a cluster's list.

    Attributes:
        item_id: its external id.
        title: empty where the data has none.
        score: user clusters: the mean rating, or the share of users where there are no ratings; item clusters: the
            number of interactions.
        support: how many interactions the score rests on.
    """

    item_id: str
    title: str
    score: float
    support: int


@dataclass(frozen=True)
class ListedCluster:
    """A cluster with its best items.

    Attributes:
        label: its label.
        size: how many users or items it holds.
        minimum_support: user clusters: the fewest of its users who must have touched a listed item; item clusters: 0.
        items: best first.
    """

    label: int
    size: int
    minimum_support: int
    items: list[ListedItem]


class PublishedClusters:
    """The clusters of a version in a models folder.

    Args:
        models_dir: the models folder.
        version: its number; None for the newest.

    Attributes:
        manifest: what the version says of itself.

    Raises:
        ConfigError: there is no such version.
        DataError: it has no clusters, or cannot be read.
    """

    def __init__(self, models_dir: Path, version: int | None = None) -> None:
        self._folder = models_dir / str(existing_version(models_dir, version))
        try:
            text = (self._folder / "manifest.json").read_bytes()
            self.manifest = json_format.Parse(text, manifest_pb2.ModelManifest(), ignore_unknown_fields=True)
            if self.manifest.format_version != FORMAT_VERSION:
                raise DataError(f"{self._folder} is of format {self.manifest.format_version}, not {FORMAT_VERSION}")
            if not self.manifest.HasField("clusters"):
                raise DataError(f"{self._folder} has no clusters; train the model again to have them")
            self._tensors = load_file(self._folder / "clusters.safetensors")
            self._item_ids: IdTable = load_file(self._folder / "item_ids.safetensors")
            with pa.memory_map(str(self._folder / "item_attributes.arrow")) as source:
                table = pa.ipc.open_file(source).read_all()
                self._popularity: Int64Array = table[INTERACTION_COUNT].to_numpy()
                self._titles = table["title"].to_pylist() if "title" in table.column_names else None
        except (OSError, SafetensorError, pa.ArrowInvalid, json_format.ParseError) as error:
            raise DataError(f"{self._folder} cannot be read: {error}") from error

    def of_items(self, top: int) -> list[ListedCluster]:
        """Every item cluster with the ``top`` of its items that have the most interactions."""
        labels, sizes = self._tensors["item_labels"], self._tensors["item_sizes"]
        most_touched_first = np.argsort(-self._popularity, kind="stable")
        listed = []
        for label, size in enumerate(sizes.tolist()):
            rows = most_touched_first[labels[most_touched_first] == label][:top]
            counts = self._popularity[rows]
            listed.append(ListedCluster(label, size, 0, self._listed(rows, counts.astype(np.float64), counts)))
        return listed

    def of_users(self, top: int) -> list[ListedCluster]:
        """Every user cluster with the ``top`` items that its users like best."""
        return [self._user_cluster(label, top) for label in range(len(self._tensors["user_sizes"]))]

    def for_user(self, user_id: str, top: int) -> tuple[ListedCluster, int]:
        """The ``top`` items that a user's cluster likes best and the user has not touched, and how many they have.

        Raises:
            ConfigError: the model does not know the user.
            DataError: the user has no interaction and so no cluster, or a file cannot be read.
        """
        try:
            user_ids, seen = (load_file(self._folder / f"{name}.safetensors") for name in ("user_ids", "seen"))
        except (OSError, SafetensorError) as error:
            raise DataError(f"{self._folder} cannot be read: {error}") from error
        row = row_of(user_ids, user_id)
        if row is None:
            raise ConfigError(f"the model knows no user {user_id!r}")
        label = int(self._tensors["user_labels"][row])
        if label == NO_CLUSTER:
            raise DataError(f"user {user_id!r} has no interactions and therefore no cluster")
        own = seen["items"][seen["offsets"][row] : seen["offsets"][row + 1]]
        return self._user_cluster(label, top, own), len(own)

    def _user_cluster(self, label: int, top: int, left_out: RowArray | None = None) -> ListedCluster:
        tensors = self._tensors
        first, end = tensors["ranked_offsets"][label : label + 2]
        places = np.arange(first, end)
        if left_out is not None:
            places = places[~np.isin(tensors["ranked_items"][places], left_out)]
        places = places[:top]
        items = self._listed(*(tensors[f"ranked_{name}"][places] for name in ("items", "scores", "support")))
        needed = self.manifest.clusters.minimum_support[label]
        return ListedCluster(label, int(tensors["user_sizes"][label]), needed, items)

    def _listed(self, rows: RowArray, scores: npt.NDArray[np.floating], support: RowArray) -> list[ListedItem]:
        titles = [""] * len(rows) if self._titles is None else [str(self._titles[row] or "") for row in rows.tolist()]
        columns = zip(ids_of(self._item_ids, rows), titles, scores.tolist(), support.tolist(), strict=True)
        return [ListedItem(*values) for values in columns]
