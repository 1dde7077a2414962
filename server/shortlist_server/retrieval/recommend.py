"""From queries to ranked items: user row -> embedding -> candidates -> re-rank -> the best that may be returned."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shortlist_server.errors import (
    ClusterNotFound,
    ItemNotFound,
    NoClusters,
    NoRanker,
    QueryError,
    UserNotFound,
    shown,
)
from shortlist_server.retrieval.clusters import NO_CLUSTER, Clusters
from shortlist_server.retrieval.exact import Found, Neighbours
from shortlist_server.retrieval.fold_in import FoldIn
from shortlist_server.retrieval.id_table import UNKNOWN, IdTable
from shortlist_server.retrieval.item_attributes import AllowedItems, ItemAttributes
from shortlist_server.retrieval.item_index import NO_ROWS, ItemIndex, Searches
from shortlist_server.retrieval.plans import DEEPER, Plans, candidates
from shortlist_server.retrieval.queries import (
    BEST_UNSEEN,
    Cluster,
    ClusterKind,
    ClusterQuery,
    Fallback,
    History,
    Ranking,
    RecommendQuery,
    Remarks,
    Shortfall,
    SimilarItemsQuery,
    Source,
)
from shortlist_server.retrieval.ranker import Ranker
from shortlist_server.retrieval.rankings import Rankings
from shortlist_server.retrieval.seen_items import SeenItems
from shortlist_server.retrieval.user_embeddings import UserEmbeddings

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
RowArray = npt.NDArray[np.integer]

_EXHAUSTED = Remarks(Source.PERSONALIZED, Shortfall.CATALOGUE_EXHAUSTED)


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
        fold_in: makes a vector of a history.
        clusters: of the users and of the items; None where the model was published without them.
        ranker: the network behind the vectors; None where there is none.
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
    fold_in: FoldIn
    clusters: Mapping[ClusterKind, Clusters] | None = None
    ranker: Ranker | None = None

    def recommend(self, queries: Sequence[RecommendQuery]) -> Rankings:
        """The best items for each query, or why there are none; no query depends on another.

        Errors are UserNotFound, ItemNotFound (of a history, none is known), InvalidField (a filter or a diversity limit
        that does not fit the items' attributes), NoClusters and NoRanker.
        """
        users = self.user_ids.rows([query.user if isinstance(query.user, str) else "" for query in queries])
        some_row = users.clip(0)  # what is looked up for unknown users is not used
        vectors = self.users.gather(some_row)  # one trip to the GPU for all
        plans = Plans.for_users(queries, users, vectors, self.users.biases(some_row), self.seen.of_each(some_row))
        if not any(plans.special) and UNKNOWN not in users:
            return self._best_unseen(plans)
        answers: list[Ranking | QueryError | None] = [None] * len(queries)
        for place, user in enumerate(users.tolist()):
            try:
                if plans.special[place] or user == UNKNOWN:
                    answers[place] = self._plan(plans, place)
            except QueryError as error:
                answers[place] = error.with_traceback(None)  # which would hold this frame, and it the error
        left = [place for place, answer in enumerate(answers) if answer is None]
        depth = 1
        while left:
            for place, answer in zip(left, self._attempt(plans.take(left), depth), strict=True):
                answers[place] = answer
            left = [place for place in left if answers[place] is None]
            depth *= DEEPER
        return Rankings.of([answer for answer in answers if answer is not None])

    def _best_unseen(self, plans: Plans) -> Rankings:
        """What most callers ask for, with no work for each of them."""
        found = self._search(plans)
        remarks = [BEST_UNSEEN] * len(plans)
        for place in np.flatnonzero(found.lengths < plans.ks):
            remarks[place] = _EXHAUSTED
        return Rankings(found.rows, found.scores, found.lengths, remarks)

    def _search(self, plans: Plans) -> Found:
        found = self.items.search(plans)
        offsets = (plans.biases + self.score_constant).astype(np.float32)
        if offsets.any():
            found.scores = found.scores + np.repeat(offsets, found.lengths)
        return found

    def _plan(self, plans: Plans, place: int) -> Ranking | None:
        """Sets what to search for where that is not a known user's best; the answer where it takes no search."""
        query, user, seen = plans.queries[place], int(plans.users[place]), plans.excluded[place]
        allowed = None if query.filter is None else self.attributes.allowed(query.filter)
        if query.diversity is not None:
            self.attributes.check_name("diversity.attribute", query.diversity.attribute)
        if query.rerank and self.ranker is None:
            raise NoRanker
        excluded: RowArray = self._known_rows(query.exclude_item_ids) if query.exclude_item_ids else NO_ROWS
        plans.ks[place], plans.allowed[place], plans.efforts[place] = candidates(query), allowed, query.effort
        if isinstance(query.user, History):
            return self._plan_history(plans, place, query.user, excluded)
        # The vector of a user without interactions was never learned.
        if query.fallback is not Fallback.NONE and (user == UNKNOWN or len(seen) == 0):
            return self._fall_back(query, excluded, allowed)
        if user == UNKNOWN:
            raise UserNotFound(query.user)
        if query.exclude_seen:
            excluded = np.union1d(seen, excluded) if len(excluded) else seen
        plans.excluded[place] = excluded
        return None

    def _plan_history(self, plans: Plans, place: int, history: History, excluded: RowArray) -> Ranking | None:
        query = plans.queries[place]
        rows = self.item_ids.rows(history.item_ids)
        unknown = int(np.count_nonzero(rows == UNKNOWN))
        # Of an item that comes twice the last one counts.
        last_place = {row: place for place, row in enumerate(rows.tolist()) if row != UNKNOWN}
        if not last_place:
            if query.fallback is Fallback.NONE:
                raise ItemNotFound(history.item_ids[0])
            return self._fall_back(query, excluded, plans.allowed[place], unknown)
        known = np.fromiter(last_place, dtype=np.int64, count=len(last_place))
        weights = None
        if history.weights is not None:
            weights = np.array([history.weights[place] for place in last_place.values()], dtype=np.float32)
        if query.exclude_seen:
            excluded = np.union1d(known, excluded) if len(excluded) else np.sort(known)
        plans.vectors[place], plans.biases[place] = self.fold_in.vector(known, weights)
        plans.excluded[place], plans.unknown_history_items[place] = excluded, unknown
        plans.sources[place] = Source.FOLDED_IN
        return None

    def _attempt(self, plans: Plans, depth: int) -> list[Ranking | None]:
        """The answers, None where it takes more than ``depth`` times as many candidates as it usually does."""
        if depth > 1:
            plans.ks = [candidates(query) * depth for query in plans.queries]
        found = [*self._search(plans)]
        self._rerank(plans, found)
        answers: list[Ranking | None] = []
        columns = (found, plans.queries, plans.ks, plans.sources, plans.unknown_history_items)
        for (rows, scores), query, k, source, unknown in zip(*columns, strict=True):
            answers.append(self._page(query, Remarks(source, None, unknown), rows, scores, everything=len(rows) < k))
        return answers

    def _rerank(self, plans: Plans, found: list[Neighbours]) -> None:
        """Puts the network's order in place of the vectors' where that is asked for: all in one batch."""
        places = [place for place, query in enumerate(plans.queries) if query.rerank and len(found[place].rows)]
        if not places or self.ranker is None:
            return
        users = plans.users[places]
        items = np.full((len(places), max(len(found[place].rows) for place in places)), -1, dtype=np.int64)
        for row, place in zip(items, places, strict=True):
            row[: len(found[place].rows)] = found[place].rows
        for place, scores in zip(places, self.ranker.score(users, items), strict=True):
            rows = found[place].rows
            order = np.argsort(-scores[: len(rows)], kind="stable")
            found[place] = Neighbours(rows[order], scores[order])

    def _page(
        self, query: RecommendQuery, remarks: Remarks, rows: Int64Array, scores: Float32Array, *, everything: bool
    ) -> Ranking | None:
        """The part of a ranking that is asked for; None if it takes more candidates.

        Args:
            query: what is asked.
            remarks: what is known to be said, but for the shortfall.
            rows: (n,) the candidates, best first.
            scores: (n,) float32.
            everything: there are no other candidates.
        """
        end = query.offset + query.k
        shortfall = Shortfall.FILTER
        if query.filter is None:
            shortfall = Shortfall.SUPPORT if remarks.source is Source.CLUSTER else Shortfall.CATALOGUE_EXHAUSTED
        if query.min_score is not None:
            kept = int(np.count_nonzero(scores >= query.min_score))
            if kept < len(rows):
                rows, everything, shortfall = rows[:kept], True, Shortfall.MIN_SCORE
        if query.diversity is not None:
            spread = self._spread(rows, query.diversity.attribute, query.diversity.max_per_value, end)
            if len(spread) < min(end, len(rows)):
                shortfall = Shortfall.DIVERSITY
            rows, scores = rows[spread], scores[spread]
        if len(rows) < end and not everything:
            return None
        page = slice(query.offset, min(end, len(rows)))
        if len(rows) < end:
            remarks = remarks._replace(shortfall=shortfall)
        return Ranking(rows[page], scores[page], remarks)

    def _spread(self, rows: Int64Array, attribute: str, at_most: int, wanted: int) -> list[int]:
        """The places of the first ``wanted`` rows of which no more than ``at_most`` share a value of an attribute."""
        counts: Counter[object] = Counter()
        places: list[int] = []
        for place, value in enumerate(self.attributes.values(attribute, rows)):
            values = value if isinstance(value, list) else [] if value is None else [value]
            if all(counts[one] < at_most for one in values):
                counts.update(values)
                places.append(place)
                if len(places) == wanted:
                    break
        return places

    def similar_items(self, queries: Sequence[SimilarItemsQuery]) -> Rankings:
        """The items nearest to the mean of each query's items, by cosine, the query's items left out.

        Errors are ItemNotFound, and InvalidField for a filter that does not fit the items' attributes.
        """
        answers: list[Ranking | QueryError | None] = [None] * len(queries)
        searches: dict[int, tuple[Float32Array, RowArray, AllowedItems | None]] = {}
        for place, query in enumerate(queries):
            try:
                searches[place] = self._similarity(query)
            except QueryError as error:
                answers[place] = error.with_traceback(None)  # which would hold this frame, and it the error
        if searches:
            directions, excluded, allowed = map(list, zip(*searches.values(), strict=True))
            ks, efforts = ([getattr(queries[place], name) for place in searches] for name in ("k", "effort"))
            found = self.neighbours.search(Searches(np.stack(directions), ks, excluded, allowed, efforts))
            for place, (rows, scores) in zip(searches, found, strict=True):
                query, shortfall = queries[place], None
                if len(rows) < query.k:
                    shortfall = Shortfall.CATALOGUE_EXHAUSTED if query.filter is None else Shortfall.FILTER
                answers[place] = Ranking(rows, scores, Remarks(shortfall=shortfall))
        return Rankings.of([answer for answer in answers if answer is not None])

    def _similarity(self, query: SimilarItemsQuery) -> tuple[Float32Array, RowArray, AllowedItems | None]:
        """The direction to look in, what to leave out, and what may come back."""
        liked = self._require_items(query.item_ids)
        direction = self.neighbours.vectors(liked).mean(axis=0)
        disliked = NO_ROWS
        if query.negative_item_ids:
            disliked = self._require_items(query.negative_item_ids)
            direction = direction - self.neighbours.vectors(disliked).mean(axis=0)
        length = np.linalg.norm(direction)
        if length > 0:
            direction = direction / length
        allowed = None if query.filter is None else self.attributes.allowed(query.filter)
        return direction.astype(np.float32), np.unique(np.concatenate([liked, disliked])), allowed

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
        offset = np.float32(self.users.biases(np.array([user]))[0] + self.score_constant)
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

    def _fall_back(
        self, query: RecommendQuery, excluded: RowArray, allowed: AllowedItems | None, unknown_history_items: int = 0
    ) -> Ranking:
        if query.fallback is Fallback.CLUSTER:
            source, clusters = Source.CLUSTER, self._clusters(ClusterKind.USER)
            rows, scores = clusters.top(clusters.largest, len(self.items), excluded)
        else:
            source = Source.POPULAR
            rows = self.popular[~np.isin(self.popular, excluded)] if len(excluded) else self.popular
            scores = self.popularity[rows].astype(np.float32)
        if allowed is not None:
            kept = allowed.mask[rows]
            rows, scores = rows[kept], scores[kept]
        answer = self._page(query, Remarks(source, None, unknown_history_items), rows, scores, everything=True)
        assert answer is not None
        return answer

    def _known_rows(self, item_ids: Sequence[str]) -> Int64Array:
        """The rows of those ids that the model knows, ascending and distinct."""
        rows = np.unique(self.item_ids.rows(item_ids))
        known: Int64Array = rows[rows != UNKNOWN]
        return known

    def _require_items(self, item_ids: Sequence[str]) -> Int64Array:
        rows = self.item_ids.rows(item_ids)
        unknown = np.flatnonzero(rows == UNKNOWN)
        if len(unknown):
            raise ItemNotFound(item_ids[unknown[0]])
        return rows
