"""From a query to ranked items: user row -> embedding -> candidates -> drop seen and excluded -> top k."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np
import numpy.typing as npt

from shortlist_server.errors import ItemNotFound, UserNotFound
from shortlist_server.id_table import UNKNOWN, IdTable
from shortlist_server.item_attributes import ItemAttributes
from shortlist_server.item_index import NO_ROWS, ItemIndex
from shortlist_server.seen_items import SeenItems
from shortlist_server.user_embeddings import UserEmbeddings

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
RowArray = npt.NDArray[np.integer]


class Fallback(Enum):
    """What to answer when the model does not know the user."""

    NONE = auto()
    POPULAR = auto()


class Source(Enum):
    """Where an answer came from."""

    PERSONALIZED = auto()
    POPULAR = auto()


@dataclass(frozen=True)
class RecommendQuery:
    """Which items for this user?

    Attributes:
        user_id: external id.
        k: how many items, at least 1.
        exclude_seen: leave out what the user interacted with in training.
        exclude_item_ids: more items to leave out; unknown ids are ignored.
        fallback: what to answer when the model does not know the user.
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
class Ranking:
    """Items in order, best first; fewer than k only when the catalogue holds no more.

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

    def recommend(self, query: RecommendQuery) -> Recommendation:
        """The best items for a user.

        Raises:
            UserNotFound: the model does not know the user and no fallback was asked for.
        """
        user = self.user_ids.row(query.user_id)
        excluded: RowArray = self._known_rows(query.exclude_item_ids)
        if user == UNKNOWN:
            if query.fallback is Fallback.POPULAR:
                return self._most_popular(query.k, excluded)
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
