"""What a report tells of: everything it needs is handed to it."""

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from shortlist_trainer.data.dataset import Dataset
from shortlist_trainer.data.statistics import Statistics
from shortlist_trainer.evaluation.protocols import EvaluationResult
from shortlist_trainer.export.index import BuiltIndex, Float32Array, unit_length
from shortlist_trainer.models.base import Embeddings
from shortlist_trainer.models.history import TrainingHistory


@dataclass(frozen=True)
class ClusterView:
    """One cluster as the report shows it.

    Attributes:
        kind: what it is a cluster of.
        label: its number among the clusters of its kind.
        size: how many users or items it has.
        top: titles of its top items and a figure for each, best first.
    """

    kind: Literal["users", "items"]
    label: int
    size: int
    top: Sequence[tuple[str, float]]


@dataclass(frozen=True)
class ClustersShown:
    """The clusters of a model.

    Attributes:
        views: of users, of items or of both, in the order in which they are shown.
        item_labels: (items,) integer label of each item's cluster, -1 for none.
        figure_name: what the figures beside the top titles are, such as "interactions".
    """

    views: Sequence[ClusterView]
    item_labels: npt.NDArray[np.integer]
    figure_name: str = "interactions"


@dataclass(frozen=True)
class ReportContent:
    """Everything that a report is made of.

    Attributes:
        model_name: what ``--model`` calls the model.
        version: the number it is published as.
        created: when, with a time zone.
        hyperparameters: name to value.
        libraries: name of a library to the version that was used.
        dataset: what the model was trained on.
        statistics: the figures of ``dataset``.
        embeddings: the trained vectors.
        evaluation: how good the model is.
        refit_on_all: whether it was trained again on all interactions after the evaluation.
        items: index over the item embeddings.
        neighbours: index over the unit-length item embeddings without bias columns.
        history: how the training went; None where nobody kept it.
        clusters: the clusters of users and items; None where there are none.
    """

    model_name: str
    version: int
    created: dt.datetime
    hyperparameters: Mapping[str, object]
    libraries: Mapping[str, str]
    dataset: Dataset
    statistics: Statistics
    embeddings: Embeddings
    evaluation: EvaluationResult
    refit_on_all: bool
    items: BuiltIndex
    neighbours: BuiltIndex
    history: TrainingHistory | None = None
    clusters: ClustersShown | None = None

    @cached_property
    def popularity(self) -> npt.NDArray[np.int64]:
        """(items,) how many users interacted with each item."""
        return self.dataset.interactions.item_popularity()

    @cached_property
    def unit_items(self) -> Float32Array:
        """(items, d) item embeddings of length 1 without bias columns, whose inner product is the cosine."""
        vectors = self.embeddings.items
        return unit_length(vectors[:, : vectors.shape[1] - self.embeddings.bias_columns])

    @cached_property
    def titles(self) -> list[str]:
        """The title of each item, or its id where the data has no title for it."""
        return item_titles(self.dataset)

    @cached_property
    def genres(self) -> list[list[str]]:
        """The genres of each item; empty lists where the data has none."""
        attributes = self.dataset.item_attributes
        if "genres" not in attributes.columns:
            return [[] for _ in self.dataset.item_ids]
        return [_names(value) for value in attributes["genres"]]


def item_titles(dataset: Dataset) -> list[str]:
    """The title of each item, or its id where the data has no title for it."""
    attributes, ids = dataset.item_attributes, dataset.item_ids
    if "title" not in attributes.columns:
        return list(ids)
    return [
        str(title).strip() or item_id if _is_there(title) else item_id
        for title, item_id in zip(attributes["title"], ids, strict=True)
    ]


def _is_there(value: object) -> bool:
    missing = value is None or value is pd.NA or value is pd.NaT
    return not missing and not (isinstance(value, float) and math.isnan(value))


def _names(value: object) -> list[str]:
    """The names in a list, or in a string that divides them by bars as MovieLens does."""
    if isinstance(value, str):
        return [name.strip() for name in value.split("|") if name.strip()]
    if isinstance(value, (list, tuple, np.ndarray)):
        return [str(name) for name in value if _is_there(name) and str(name)]
    return []
