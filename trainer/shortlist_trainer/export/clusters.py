"""Groups of users and of items by k-means, and what each group of users likes best.

The vectors are brought to length 1 first, so that near means alike in direction: squared distance is then
2 - 2 * cosine, the measure of SimilarItems (spherical k-means: Dhillon & Modha 2001, "Concept Decompositions for Large
Sparse Text Data Using Clustering"; here by Lloyd's steps). The length of an embedding tells how much is known of a user
or how popular an item is, and k-means over the vectors as they are spends its centroids on that: of 1,682 films under
``ials`` 762 end in one of ten groups, that of the little known.

Users and items without an interaction were never learned, so they belong to no cluster: their label is -1.
"""

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import silhouette_score
from threadpoolctl import threadpool_limits

from shortlist_trainer.data.dataset import Dataset, Float32Array, Int32Array, Int64Array, Interactions
from shortlist_trainer.errors import ConfigError
from shortlist_trainer.export.format import NO_CLUSTER
from shortlist_trainer.export.index import unit_length
from shortlist_trainer.models.base import Embeddings

MAX_CLUSTERS = 1_000

MINI_BATCH_ABOVE = 50_000
"""Tables with more rows are clustered by mini-batches (Sculley 2010, "Web-Scale K-Means Clustering")."""

USUAL_CLUSTERS = 10
"""How many where the vectors prefer no number: as many as one can read through."""

CLEAR_STRUCTURE = 0.25
"""The mean silhouette above which a grouping is more than an arbitrary cut (Kaufman & Rousseeuw 1990, "Finding Groups
in Data", chapter 2)."""

ROWS_A_CLUSTER = 10
"""A number of clusters is chosen such that they average at least so many rows."""

_CANDIDATES = (*range(2, 21), 25, 30, 40, 50)
_SAMPLE = 2_000  # silhouettes compare every pair of it: all candidates together take about a second
_LARGEST_BATCH = 4_096


@dataclass(frozen=True)
class Clustering:
    """Rows grouped by their vectors, the largest group first.

    Attributes:
        labels: (n,) int32, each row's cluster, 0 to k - 1, or ``NO_CLUSTER``.
        centroids: (k, d) float32, the mean of the members' unit-length vectors.
        sizes: (k,) int64 members, descending.
        chosen_by: who chose k: the caller, the silhouette, or neither, there being no clear structure.
        silhouette: mean over a sample, -1 to 1; 0 where there is one cluster only.
    """

    labels: Int32Array
    centroids: Float32Array
    sizes: Int64Array
    chosen_by: Literal["given", "silhouette", "default"]
    silhouette: float


@dataclass(frozen=True)
class RankedItems:
    """For each user cluster the items that enough of its users touched, best first.

    Attributes:
        offsets: (k + 1,) int64, where each cluster's items begin.
        items: int32 item rows.
        scores: float32, the mean rating by the cluster's users; without ratings the share of them who touched the item.
        support: int32, how many of the cluster's users the score rests on.
        minimum_support: (k,) int64, the fewest that an item needs to be listed.
    """

    offsets: Int64Array
    items: Int32Array
    scores: Float32Array
    support: Int32Array
    minimum_support: Int64Array


@dataclass(frozen=True)
class Clusters:
    """The clusters of a model.

    Attributes:
        users: the users' clusters.
        items: the items' clusters.
        ranked: what each user cluster likes best.
    """

    users: Clustering
    items: Clustering
    ranked: RankedItems


def check_cluster_counts(user_clusters: int | None, item_clusters: int | None, dataset: Dataset) -> None:
    """Checks the numbers of clusters that were asked for; None leaves one open.

    Raises:
        ConfigError: there cannot be so many.
    """
    for side, count, rows in (
        ("user", user_clusters, len(dataset.user_ids)),
        ("item", item_clusters, len(dataset.item_ids)),
    ):
        most = min(rows, MAX_CLUSTERS)
        if count is not None and not 1 <= count <= most:
            raise ConfigError(f"{side} clusters must number 1 to {most:,}, not {count:,}")


def build_clusters(
    embeddings: Embeddings,
    interactions: Interactions,
    user_clusters: int | None = None,
    item_clusters: int | None = None,
    seed: int = 0,
) -> Clusters:
    """Clusters users and items; equal arguments give equal clusters.

    Args:
        embeddings: the trained vectors; bias columns, and the ones on the users' side of them, do not count.
        interactions: what they were trained on.
        user_clusters: how many; None chooses. There are fewer where fewer users differ.
        item_clusters: likewise.
        seed: draws the samples and the first centroids.
    """
    size = embeddings.items.shape[1] - embeddings.bias_columns
    users_touch = np.bincount(interactions.users, minlength=interactions.user_count)
    # One thread: with several the sums of each step depend on which comes first.
    with threadpool_limits(1), warnings.catch_warnings():
        # Of fewer distinct vectors than clusters; the empty clusters are dropped.
        warnings.simplefilter("ignore", ConvergenceWarning)
        users = cluster(embeddings.users[:, :size], users_touch > 0, user_clusters, seed)
        items = cluster(embeddings.items[:, :size], interactions.item_popularity() > 0, item_clusters, seed)
    return Clusters(users, items, rank_items(interactions, users.labels, users.sizes))


def cluster(vectors: Float32Array, touched: npt.NDArray[np.bool_], count: int | None, seed: int) -> Clustering:
    """Clusters the rows that have an interaction and a direction.

    k, where it is not given, is the one of some between 2 and 50 whose clusters of a sample have the highest mean
    silhouette (Rousseeuw 1987, "Silhouettes: A Graphical Aid to the Interpretation and Validation of Cluster
    Analysis"), provided that this is above ``CLEAR_STRUCTURE``, and else ``USUAL_CLUSTERS``: on embeddings that spread
    without gaps, as real ones do, it is low everywhere, and which number it prefers means nothing.

    Args:
        vectors: (n, d) float32.
        touched: (n,) whether each row has an interaction.
        count: how many clusters; None chooses.
        seed: draws the sample and the first centroids.
    """
    unit = unit_length(vectors)
    rows = np.flatnonzero(touched & unit.any(axis=1))
    labels = np.full(len(vectors), NO_CLUSTER, dtype=np.int32)
    unit = unit[rows]
    sample = unit[np.random.default_rng(seed).permutation(len(unit))[:_SAMPLE]]
    chosen_by: Literal["given", "silhouette", "default"] = "given"
    if count is None:
        count, chosen_by = _choose(sample, max(1, len(unit) // ROWS_A_CLUSTER), seed)
    if len(unit) == 0:
        return Clustering(labels, unit, np.empty(0, dtype=np.int64), chosen_by, 0.0)
    found = _k_means(unit, min(count, len(unit)), seed)
    sizes = np.bincount(found.labels_, minlength=found.n_clusters)
    largest_first = np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes)]
    place = np.empty(found.n_clusters, dtype=np.int32)
    place[largest_first] = np.arange(len(largest_first))
    labels[rows] = place[found.labels_]
    centroids = found.cluster_centers_[largest_first].astype(np.float32)
    silhouette = _silhouette(sample, found.predict(sample))
    return Clustering(labels, centroids, sizes[largest_first].astype(np.int64), chosen_by, silhouette)


def _choose(sample: Float32Array, most: int, seed: int) -> tuple[int, Literal["silhouette", "default"]]:
    """The number of clusters for a sample (n, d) of unit vectors, at most ``most``."""
    silhouettes = {
        count: _silhouette(sample, KMeans(count, n_init=2, random_state=seed).fit_predict(sample))
        for count in _CANDIDATES
        if count <= most
    }
    best = max(silhouettes, key=lambda count: silhouettes[count], default=1)
    if silhouettes.get(best, 0.0) > CLEAR_STRUCTURE:
        return best, "silhouette"
    return min(USUAL_CLUSTERS, most), "default"


def _k_means(unit: Float32Array, count: int, seed: int) -> KMeans | MiniBatchKMeans:
    if len(unit) > MINI_BATCH_ABOVE:
        batch = min(_LARGEST_BATCH, len(unit))
        return MiniBatchKMeans(count, batch_size=batch, n_init=3, random_state=seed).fit(unit)
    return KMeans(count, n_init=5, random_state=seed).fit(unit)


def _silhouette(sample: Float32Array, labels: Int32Array) -> float:
    """The mean silhouette of a grouping; 0 where it is undefined, each row or all rows being one group."""
    if not 1 < len(np.unique(labels)) < len(sample):
        return 0.0
    return float(silhouette_score(sample, labels))


def minimum_support(sizes: Int64Array) -> Int64Array:
    """(k,) the fewest of a cluster's users that an item needs, for clusters of ``sizes`` (k,) users.

    The square root of the size: 10 of 100 users, 100 of 10,000, so that the standard error of a listed mean falls as
    clusters grow, while the tail of a small cluster stays in. At least 2, as one user is no evidence, unless the
    cluster has one only.
    """
    return np.minimum(np.maximum(np.ceil(np.sqrt(sizes)).astype(np.int64), 2), sizes)


def rank_items(interactions: Interactions, labels: Int32Array, sizes: Int64Array) -> RankedItems:
    """Each cluster's items by the mean rating its users gave; without ratings by how many of its users touched them.

    Of equal scores the one with more support comes first, then the lower row.

    Args:
        interactions: who touched what.
        labels: (users,) int32 each user's cluster.
        sizes: (k,) users of each cluster.
    """
    needed = minimum_support(sizes)
    cluster_of = labels[interactions.users]
    by_cluster = np.argsort(cluster_of, kind="stable")
    bounds = np.searchsorted(cluster_of[by_cluster], np.arange(len(sizes) + 1))
    ranked = []
    for label in range(len(sizes)):
        of_cluster = by_cluster[bounds[label] : bounds[label + 1]]
        items = interactions.items[of_cluster]
        support = np.bincount(items, minlength=interactions.item_count)
        if interactions.ratings is None:
            scores = support / sizes[label]
        else:
            totals = np.bincount(items, interactions.ratings[of_cluster], minlength=interactions.item_count)
            scores = totals / np.maximum(support, 1)
        listed = np.flatnonzero(support >= needed[label])
        listed = listed[np.lexsort((listed, -support[listed], -scores[listed]))]
        ranked.append((listed, scores[listed], support[listed]))
    return RankedItems(
        offsets=np.cumsum([0, *(len(listed) for listed, _, _ in ranked)], dtype=np.int64),
        items=np.concatenate([[], *(listed for listed, _, _ in ranked)]).astype(np.int32),
        scores=np.concatenate([[], *(scores for _, scores, _ in ranked)]).astype(np.float32),
        support=np.concatenate([[], *(support for _, _, support in ranked)]).astype(np.int32),
        minimum_support=needed,
    )
