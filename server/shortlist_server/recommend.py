"""From a query to ranked items: user row -> embedding -> candidates -> drop seen and excluded -> top k."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np
import numpy.typing as npt

from shortlist_server.clusters import NO_CLUSTER, Clusters
from shortlist_server.errors import ClusterNotFound, ItemNotFound, NoClusters, UserNotFound, shown
from shortlist_server.fold_in import FoldIn
from shortlist_server.id_table import UNKNOWN, IdTable
from shortlist_server.item_attributes import ItemAttributes
from shortlist_server.item_index import NO_ROWS, ItemIndex
from shortlist_server.ranker import Ranker
from shortlist_server.seen_items import SeenItems
from shortlist_server.user_embeddings import UserEmbeddings

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
RowArray = npt.NDArray[np.integer]


class Fallback(Enum):
    """What to answer when the model has no vector to go by."""

    NONE = auto()
    POPULAR = auto()
    CLUSTER = auto()


class Source(Enum):
    """Where an answer came from."""

    PERSONALIZED = auto()
    POPULAR = auto()
    CLUSTER = auto()


class ClusterKind(Enum):
    """What a cluster groups."""

    USER = auto()
    ITEM = auto()


@dataclass(frozen=True)
class RecommendQuery:
    """Which items for this user?

    Attributes:
        user_id: external id.
        k: how many items, at least 1.
        exclude_seen: leave out what the user interacted with in training.
        exclude_item_ids: more items to leave out; unknown ids are ignored.
        fallback: what to answer when the model does not know the user, or only the id.
    """

    user_id: str
    k: int = 10
    exclude_seen: bool = True
    exclude_item_ids: Sequence[str] = ()
    fallback: Fallback = Fallback.NONE


@dataclass(frozen=True)
class SimilarItemsQuery:
    """Which items are like these?

    Attributes:
        item_ids: external ids, at least one.
        negative_item_ids: external ids of items to be unlike.
        k: how many items, at least 1.
    """

    item_ids: Sequence[str]
    negative_item_ids: Sequence[str] = ()
    k: int = 10


@dataclass(frozen=True)
class ClusterQuery:
    """Which cluster, and which of its items?

    Attributes:
        kind: what it groups.
        cluster: its label, or the external id of a member.
        k: how many top items, at least 1.
        exclude_seen: where a user is named, leave out what that user interacted with in training.
    """

    kind: ClusterKind
    cluster: int | str
    k: int = 10
    exclude_seen: bool = True


@dataclass(frozen=True)
class Ranking:
    """Items in order, best first; fewer than k only when the catalogue, or the cluster, holds no more.

    Attributes:
        rows: (n,) item rows.
        scores: (n,) float32.
    """

    rows: Int64Array
    scores: Float32Array


@dataclass(frozen=True)
class Recommendation(Ranking):
    """A ranking for a user.

    Attributes:
        source: where the items came from.
    """

    source: Source


@dataclass(frozen=True)
class Cluster:
    """A cluster with its best items.

    Attributes:
        kind: what it groups.
        label: its label.
        size: how many users or items it holds.
        top: users: the items they rate best, with their mean rating, or the share who touched them where there are no
            ratings; items: the members with the most interactions, with their number.
    """

    kind: ClusterKind
    label: int
    size: int
    top: Ranking


@dataclass(frozen=True)
class Recommender:
    """One model version, ready to answer.

    Attributes:
        user_ids: external ids of the user rows.
        item_ids: external ids of the item rows.
        users: the user table.
        items: index over the item embeddings.
        neighbours: index over the unit-length item embeddings.
        seen: what each user interacted with.
        attributes: what is known of the items.
        popular: (items,) item rows, most interactions first.
        popularity: (items,) interactions of each item row.
        score_constant: added to every score.
        clusters: of the users and of the items; None where the model was published without them.
        ranker: the network behind the vectors; None where the vectors give the model's own scores.
        fold_in: turns a history into the user side of the score.
    """

    user_ids: IdTable
    item_ids: IdTable
    users: UserEmbeddings
    items: ItemIndex
    neighbours: ItemIndex
    seen: SeenItems
    attributes: ItemAttributes
    popular: Int64Array
    popularity: Int64Array
    score_constant: float
    clusters: Mapping[ClusterKind, Clusters] | None = None
    ranker: Ranker | None = None
    fold_in: FoldIn | None = None

    def recommend(self, query: RecommendQuery) -> Recommendation:
        """The best items for a user.

        Raises:
            UserNotFound: the model does not know the user and no fallback was asked for.
            NoClusters: the fallback is a cluster and the model has none.
        """
        user = self.user_ids.row(query.user_id)
        excluded: RowArray = self._known_rows(query.exclude_item_ids)
        # The vector of a user without interactions was never learned.
        if query.fallback is not Fallback.NONE and (user == UNKNOWN or len(self.seen.of(user)) == 0):
            return self._fall_back(query.fallback, query.k, excluded)
        if user == UNKNOWN:
            raise UserNotFound(query.user_id)
        if query.exclude_seen:
            seen = self.seen.of(user)
            excluded = np.union1d(seen, excluded) if len(excluded) else seen
        vector = self.users.gather(np.array([user]))[0]
        found = self.items.search(vector, query.k, excluded)
        offset = np.float32(self.users.bias(user) + self.score_constant)
        return Recommendation(found.rows, found.scores + offset, Source.PERSONALIZED)

    def similar_items(self, query: SimilarItemsQuery) -> Ranking:
        """The items nearest to the mean of the query's items, by cosine, the query's items left out.

        Raises:
            ItemNotFound: the model does not know one of the items.
        """
        liked = self._require_items(query.item_ids)
        direction = self.neighbours.vectors(liked).mean(axis=0)
        disliked = NO_ROWS
        if query.negative_item_ids:
            disliked = self._require_items(query.negative_item_ids)
            direction = direction - self.neighbours.vectors(disliked).mean(axis=0)
        length = np.linalg.norm(direction)
        if length > 0:
            direction = direction / length
        excluded = np.unique(np.concatenate([liked, disliked]))
        found = self.neighbours.search(direction.astype(np.float32), query.k, excluded)
        return Ranking(found.rows, found.scores)

    def score(self, user_id: str, item_ids: Sequence[str]) -> Float32Array:
        """(n,) the model's prediction for a user and each item, in the order of ``item_ids``.

        Raises:
            UserNotFound: the model does not know the user.
            ItemNotFound: the model does not know one of the items.
        """
        user = self.user_ids.row(user_id)
        if user == UNKNOWN:
            raise UserNotFound(user_id)
        vectors = self.items.vectors(self._require_items(item_ids))  # (n, d)
        offset = np.float32(self.users.bias(user) + self.score_constant)
        return np.asarray(vectors @ self.users.gather(np.array([user]))[0] + offset, dtype=np.float32)

    def cluster(self, query: ClusterQuery) -> Cluster:
        """One cluster, by its label or one of its members.

        Raises:
            UserNotFound, ItemNotFound: the model does not know the member.
            ClusterNotFound: there is no such cluster, or the member has no interactions and so none.
            NoClusters: the model has none at all.
        """
        clusters = self._clusters(query.kind)
        excluded: RowArray = NO_ROWS
        if isinstance(query.cluster, int):
            label = query.cluster
            if not 0 <= label < len(clusters):
                what = f"{query.kind.name.lower()} cluster"
                raise ClusterNotFound(str(label), f"the model has no {what} {label}; it has {len(clusters)}")
        else:
            row = self._member(query.kind, query.cluster)
            label = clusters.label_of(row)
            if label == NO_CLUSTER:
                what = f"{query.kind.name.lower()} {shown(query.cluster)}"
                raise ClusterNotFound(query.cluster, f"{what} has no interactions and therefore no cluster")
            if query.kind is ClusterKind.USER and query.exclude_seen:
                excluded = self.seen.of(row)
        return self._cluster(query.kind, label, query.k, excluded)

    def all_clusters(self, kind: ClusterKind, k: int) -> list[Cluster]:
        """Every cluster of a kind with its ``k`` best items, in the order of their labels.

        Raises:
            NoClusters: the model has none at all.
        """
        return [self._cluster(kind, label, k, NO_ROWS) for label in range(len(self._clusters(kind)))]

    def cluster_count(self, kind: ClusterKind) -> int:
        """How many clusters of a kind there are.

        Raises:
            NoClusters: the model has none at all.
        """
        return len(self._clusters(kind))

    def _cluster(self, kind: ClusterKind, label: int, k: int, excluded: RowArray) -> Cluster:
        clusters = self._clusters(kind)
        return Cluster(kind, label, clusters.size(label), Ranking(*clusters.top(label, k, excluded)))

    def _clusters(self, kind: ClusterKind) -> Clusters:
        if self.clusters is None or len(self.clusters[kind]) == 0:
            raise NoClusters
        return self.clusters[kind]

    def _member(self, kind: ClusterKind, member_id: str) -> int:
        row = (self.user_ids if kind is ClusterKind.USER else self.item_ids).row(member_id)
        if row == UNKNOWN:
            raise UserNotFound(member_id) if kind is ClusterKind.USER else ItemNotFound(member_id)
        return row

    def _fall_back(self, fallback: Fallback, k: int, excluded: RowArray) -> Recommendation:
        if fallback is Fallback.POPULAR:
            return self._most_popular(k, excluded)
        clusters = self._clusters(ClusterKind.USER)
        return Recommendation(*clusters.top(clusters.largest, k, excluded), Source.CLUSTER)

    def _most_popular(self, k: int, excluded: RowArray) -> Recommendation:
        candidates = self.popular[: k + len(excluded)]
        rows = candidates[~np.isin(candidates, excluded)][:k]
        return Recommendation(rows, self.popularity[rows].astype(np.float32), Source.POPULAR)

    def _known_rows(self, item_ids: Sequence[str]) -> Int64Array:
        """The rows of those ids that the model knows, ascending and distinct."""
        if not item_ids:
            return NO_ROWS
        rows = np.unique(self.item_ids.rows(item_ids))
        known: Int64Array = rows[rows != UNKNOWN]
        return known

    def _require_items(self, item_ids: Sequence[str]) -> Int64Array:
        rows = self.item_ids.rows(item_ids)
        unknown = np.flatnonzero(rows == UNKNOWN)
        if len(unknown):
            raise ItemNotFound(item_ids[unknown[0]])
        return rows
