"""What calls return: plain frozen dataclasses, free of gRPC and protobuf."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

AttributeValue = str | int | float | bool | list[str]


class Source(StrEnum):
    """Where an answer came from."""

    UNSPECIFIED = "unspecified"
    PERSONALIZED = "personalized"
    FOLDED_IN = "folded_in"
    CLUSTER = "cluster"
    POPULAR = "popular"


class Shortfall(StrEnum):
    """Why fewer than k items came back."""

    UNSPECIFIED = "unspecified"
    CATALOGUE_EXHAUSTED = "catalogue_exhausted"
    FILTER = "filter"
    MIN_SCORE = "min_score"
    DIVERSITY = "diversity"
    SUPPORT = "support"


class ModelState(StrEnum):
    """How far a version has come."""

    UNSPECIFIED = "unspecified"
    AVAILABLE = "available"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


class Fallback(StrEnum):
    """What to answer when the model does not know the user, or knows the id without any interaction."""

    NONE = "none"
    POPULAR = "popular"
    CLUSTER = "cluster"


class ClusterKind(StrEnum):
    """What a cluster groups."""

    UNSPECIFIED = "unspecified"
    USER = "user"
    ITEM = "item"


@dataclass(frozen=True, slots=True)
class Item:
    """One item of an answer.

    Attributes:
        id: the id it had in the training data.
        score: the model's prediction; the cosine from ``similar_items``; what a cluster's items are in order of.
        attributes: those that were asked for and that the item has.
    """

    id: str
    score: float
    attributes: Mapping[str, AttributeValue]


@dataclass(frozen=True, slots=True)
class Recommendations:
    """The best items for a user, best first.

    Attributes:
        items: exactly k wherever k allowed items exist; from a cluster, wherever so many have enough support.
        model_version: the version that answered.
        source: where the items came from.
        shortfall: why there are fewer than k; None when there are k.
        unknown_history_items: how many ids of the history the model does not know.
    """

    items: Sequence[Item]
    model_version: int
    source: Source
    shortfall: Shortfall | None
    unknown_history_items: int


@dataclass(frozen=True, slots=True)
class SimilarItems:
    """The nearest items, nearest first.

    Attributes:
        items: exactly k wherever k other items exist.
        model_version: the version that answered.
        shortfall: why there are fewer than k; None when there are k.
    """

    items: Sequence[Item]
    model_version: int
    shortfall: Shortfall | None


@dataclass(frozen=True, slots=True)
class Scores:
    """The model's predictions.

    Attributes:
        scores: the i-th belongs to the i-th item asked for.
        model_version: the version that answered.
    """

    scores: Sequence[float]
    model_version: int


@dataclass(frozen=True, slots=True)
class Cluster:
    """A group of users or items whose embeddings point the same way.

    Attributes:
        kind: what it groups.
        label: 0 to the number of clusters of this kind - 1, the largest cluster being 0.
        size: how many users or items it holds.
        top_items: best first. Users: the items they rate best, with their mean rating, or where the data has no ratings
            the share of them who touched the item. Items: the members with the most interactions, with their number.
        model_version: the version that answered.
    """

    kind: ClusterKind
    label: int
    size: int
    top_items: Sequence[Item]
    model_version: int


@dataclass(frozen=True, slots=True)
class Model:
    """One version in a server's models folder.

    Attributes:
        version: its number, the newest highest.
        state: how far it has come.
        state_reason: why it is in this state; empty when it is ready.
        labels: the labels that point at it.
        default: whether it answers when no version is named.
        model_name: the kind of model, such as "ials".
        answers: queries it has answered, as counted by the process that says so.
    """

    version: int
    state: ModelState
    state_reason: str
    labels: Sequence[str]
    default: bool
    model_name: str
    answers: int


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """How a server process is doing.

    Attributes:
        uptime_seconds: since it was started.
        pid: its process id.
        lane: how it answers unary queries: "fast", in batches; "plain", one by one.
        calls_answered: calls that ended with OK since it was started.
        calls_failed: calls that ended otherwise.
        calls_in_flight: calls that have arrived and are not answered, the one that asked among them.
        queue_depth: requests that wait or are computed.
        queue_places: how many may, before others are refused.
        last_swap_unix_seconds: since when the default version answers, after the epoch; None where there is none yet.
    """

    uptime_seconds: float
    pid: int
    lane: str
    calls_answered: int
    calls_failed: int
    calls_in_flight: int
    queue_depth: int
    queue_places: int
    last_swap_unix_seconds: float | None


@dataclass(frozen=True, slots=True)
class Shadow:
    """How the answers of a version differ from those that callers got, by the process that answered.

    Attributes:
        label: the label whose version is compared.
        version: that version; 0 while none bears the label.
        compared_requests: requests that were compared since it was loaded.
        skipped_requests: requests that were not, since there was no time.
        mean_overlap: the share of the items callers got that the version would have answered too, 0 to 1.
        mean_answer_micros: microseconds a request took that callers got answered.
        mean_shadow_micros: the same for the version compared.
    """

    label: str
    version: int
    compared_requests: int
    skipped_requests: int
    mean_overlap: float
    mean_answer_micros: float
    mean_shadow_micros: float


class ModelList(list[Model]):
    """The versions of a server, newest first, and how requests that name none are dealt out among them.

    Attributes:
        splits: label to the percentage of users whom its version answers; the rest go to the default.
        shadow: what the version compared would have answered; None where the operator has not asked for it.
    """

    def __init__(self, models: Iterable[Model], splits: Mapping[str, float], shadow: Shadow | None) -> None:
        super().__init__(models)
        self.splits = splits
        self.shadow = shadow


@dataclass(frozen=True, slots=True)
class ModelDetails:
    """One version with its manifest.

    Attributes:
        model: the version.
        manifest: the ModelManifest message in proto3 JSON form, its fields named as in manifest.proto: whole numbers
            of 64 bits are strings, and fields that are zero or empty are absent.
    """

    model: Model
    manifest: Mapping[str, Any]

    @property
    def attribute_names(self) -> list[str]:
        """The item attributes that a call may ask for."""
        return [attribute["name"] for attribute in self.manifest.get("item_attributes", [])]
