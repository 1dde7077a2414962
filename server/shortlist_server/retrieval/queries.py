"""What can be asked of a model, and what it answers.

Nothing here is changed once it has been passed on. What is made for every request is not frozen all the same: setting a
field of a frozen dataclass takes several times as long.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shortlist_server.retrieval.item_attributes import Filter

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]


class Fallback(Enum):
    """What to answer when the model has no vector to go by."""

    NONE = auto()
    POPULAR = auto()
    CLUSTER = auto()


class Source(Enum):
    """Where an answer came from."""

    PERSONALIZED = auto()
    FOLDED_IN = auto()
    POPULAR = auto()
    CLUSTER = auto()


class Shortfall(Enum):
    """Why fewer items came back than were asked for."""

    CATALOGUE_EXHAUSTED = auto()
    FILTER = auto()
    MIN_SCORE = auto()
    DIVERSITY = auto()
    SUPPORT = auto()


class ClusterKind(Enum):
    """What a cluster groups."""

    USER = auto()
    ITEM = auto()


class Remarks(NamedTuple):
    """What is said of a ranking beside its items.

    Attributes:
        source: where the items of a user come from; None for other rankings.
        shortfall: why there are fewer than were asked for; None where there are as many.
        unknown_history_items: how many ids of the user's history the model does not know.
    """

    source: Source | None = None
    shortfall: Shortfall | None = None
    unknown_history_items: int = 0


BEST_UNSEEN = Remarks(Source.PERSONALIZED)
"""Those of most answers, which all have this one: it is known by its identity, as comparing takes longer."""


@dataclass(frozen=True)
class History:
    """What a user whom the model does not know has interacted with.

    Attributes:
        item_ids: (n,) external ids, at least one; of repeated ones the last counts.
        weights: (n,) strengths, or ratings for a rating model; None for the model's usual interaction.
    """

    item_ids: Sequence[str]
    weights: Sequence[float] | None = None


@dataclass(frozen=True)
class Diversity:
    """At most ``max_per_value`` items may share a value of an attribute."""

    attribute: str
    max_per_value: int


@dataclass(slots=True)
class RecommendQuery:
    """Which items for this user?

    Attributes:
        user: external id, or what a user unknown to the model has interacted with.
        k: how many items, at least 1.
        offset: how many of the best to skip.
        exclude_seen: leave out what the user interacted with in training, or the history's items.
        exclude_item_ids: more items to leave out; unknown ids are ignored.
        filter: which items may come back.
        fallback: what to answer when the model does not know the user, or only the id.
        rerank: let the model's network order the best candidates.
        min_score: leave out items that score less; None for no limit.
        diversity: spreads the answer; None not to.
        effort: of an approximate index, as a multiple of the published one.
    """

    user: str | History
    k: int = 10
    offset: int = 0
    exclude_seen: bool = True
    exclude_item_ids: Sequence[str] = ()
    filter: Filter | None = None
    fallback: Fallback = Fallback.NONE
    rerank: bool = False
    min_score: float | None = None
    diversity: Diversity | None = None
    effort: float = 1.0


@dataclass(frozen=True)
class SimilarItemsQuery:
    """Which items are like these?

    Attributes:
        item_ids: external ids, at least one.
        negative_item_ids: external ids of items to be unlike.
        k: how many items, at least 1.
        filter: which items may come back.
        effort: of an approximate index, as a multiple of the published one.
    """

    item_ids: Sequence[str]
    negative_item_ids: Sequence[str] = ()
    k: int = 10
    filter: Filter | None = None
    effort: float = 1.0


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


@dataclass(slots=True)
class Ranking:
    """Items in order, best first.

    Attributes:
        rows: (n,) item rows.
        scores: (n,) float32.
        remarks: what else is to be said.
    """

    rows: Int64Array
    scores: Float32Array
    remarks: Remarks = field(default_factory=Remarks)


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
