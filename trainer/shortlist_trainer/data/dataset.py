"""Interactions with dense user and item rows, and what is known of the items."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from shortlist_trainer.data.rows import Rows
from shortlist_trainer.errors import DataError

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Interactions:
    """Who touched what, at most once per (user, item), ordered by user row, then item row.

    Attributes:
        users: (n,) int32 user rows, 0 to user_count - 1.
        items: (n,) int32 item rows, 0 to item_count - 1.
        ratings: (n,) float32 in the data's own unit, or None where the data has none.
        timestamps: (n,) int64 seconds since 1970, or None where the data has none.
        user_count: rows of a user table; some may have no interaction, as after a split.
        item_count: likewise.
    """

    users: Int32Array
    items: Int32Array
    ratings: Float32Array | None
    timestamps: Int64Array | None
    user_count: int
    item_count: int

    def __len__(self) -> int:
        return len(self.users)

    def select(self, mask: BoolArray) -> "Interactions":
        """The interactions where ``mask`` (n,) is true, with the same rows and counts."""
        return replace(
            self,
            users=self.users[mask],
            items=self.items[mask],
            ratings=None if self.ratings is None else self.ratings[mask],
            timestamps=None if self.timestamps is None else self.timestamps[mask],
        )

    def user_offsets(self) -> Int64Array:
        """(user_count + 1,) where each user's interactions begin, the last entry being n: a CSR row pointer."""
        offsets = np.zeros(self.user_count + 1, dtype=np.int64)
        np.cumsum(np.bincount(self.users, minlength=self.user_count), out=offsets[1:])
        return offsets

    def pair_codes(self) -> Int64Array:
        """(n,) one number for each (user, item), ascending."""
        return self.users.astype(np.int64) * self.item_count + self.items

    def item_popularity(self) -> Int64Array:
        """(item_count,) how many users interacted with each item."""
        return np.bincount(self.items, minlength=self.item_count).astype(np.int64)


@dataclass(frozen=True)
class GivenSplit:
    """A division that comes with the data.

    Attributes:
        in_test: (interactions,) whether each interaction is for testing.
        negatives: user row to (n,) int32 item rows to rank the user's test item among; None where none are given.
    """

    in_test: BoolArray
    negatives: Mapping[int, Int32Array] | None = None


@dataclass(frozen=True)
class Dataset:
    """Interactions with the external ids of their rows.

    Attributes:
        name: what the user called the data.
        format: the name of the format it was read as.
        interactions: the interactions.
        user_ids: external ids, the i-th for user row i.
        item_ids: likewise.
        item_attributes: one row per item row, string ("title"), integer ("year") or list-of-strings ("genres")
            columns; no column where the data says nothing of its items.
        duplicates_merged: repeated (user, item) rows that were merged.
        bad_rows_skipped: malformed rows that were left out.
        given_split: which interactions the data itself sets aside for testing; None where it leaves that open.
    """

    name: str
    format: str
    interactions: Interactions
    user_ids: list[str]
    item_ids: list[str]
    item_attributes: pd.DataFrame
    duplicates_merged: int
    bad_rows_skipped: int
    given_split: GivenSplit | None = None

    def fingerprint(self) -> str:
        """SHA-256 in hex over ids and interactions: equal for equal data."""
        digest = hashlib.sha256()
        for ids in (self.user_ids, self.item_ids):
            digest.update("\0".join(ids).encode() + b"\0\0")
        interactions = self.interactions
        for array in (interactions.users, interactions.items, interactions.ratings, interactions.timestamps):
            digest.update(b"none" if array is None else array.tobytes())
        return digest.hexdigest()


def build_dataset(
    name: str,
    data_format: str,
    rows: Rows,
    attributes: pd.DataFrame | None = None,
    *,
    training_rows: int | None = None,
    negatives: Mapping[str, list[str]] | None = None,
) -> Dataset:
    """Makes a data set of checked rows.

    Of the rows of one (user, item) pair the one with the latest timestamp counts, or the last in the file where
    timestamps are equal or there are none; a training row counts before any test row.

    Args:
        name: what the user called the data.
        data_format: the name of the format it was read as.
        rows: well-formed rows.
        attributes: indexed by external item id; ids without interactions are dropped.
        training_rows: how many of the rows, from the first, are for training; None where the data leaves that open.
        negatives: external user id to the external ids of items to rank the user's test item among.

    Raises:
        DataError: there are fewer than two users or two items.
    """
    for what, ids in (("user", rows.user_ids), ("item", rows.item_ids)):
        if len(ids) < 2:
            raise DataError(f"{name} has one {what} only ({ids[0]!r}); a recommender needs at least two")
    pair = rows.user_codes.astype(np.int64) * len(rows.item_ids) + rows.item_codes
    for_training = np.arange(len(pair)) < (len(pair) if training_rows is None else training_rows)
    times = np.zeros(len(pair)) if rows.timestamps is None else rows.timestamps
    order = _in_order(pair, for_training, times)
    last_of_pair = np.append(pair[order][1:] != pair[order][:-1], True)
    kept = order[last_of_pair]
    places = {external_id: place for place, external_id in enumerate(rows.item_ids)}
    item_rows = {
        user: np.array([places.setdefault(item, len(places)) for item in items], dtype=np.int32)
        for user, items in (negatives or {}).items()
    }
    item_ids = list(places)
    interactions = Interactions(
        users=rows.user_codes[kept],
        items=rows.item_codes[kept],
        ratings=None if rows.ratings is None else rows.ratings[kept],
        timestamps=None if rows.timestamps is None else np.floor(rows.timestamps[kept]).astype(np.int64),
        user_count=len(rows.user_ids),
        item_count=len(item_ids),
    )
    if attributes is None:
        attributes = pd.DataFrame(index=pd.Index([], dtype=str))
    attributes = attributes[~attributes.index.duplicated()].reindex(item_ids).reset_index(drop=True)
    return Dataset(
        name=name,
        format=data_format,
        interactions=interactions,
        user_ids=rows.user_ids,
        item_ids=item_ids,
        item_attributes=attributes,
        duplicates_merged=len(order) - len(kept),
        bad_rows_skipped=rows.bad_row_count,
        given_split=None if training_rows is None else _given_split(~for_training[kept], rows.user_ids, item_rows),
    )


def _in_order(pair: Int64Array, for_training: BoolArray, times: npt.NDArray[np.number]) -> Int64Array:
    """(n,) the rows by pair, those of one pair by part (test first), then time, then their place in the file."""
    order = np.argsort(pair)  # unstable, which is several times faster; few rows, if any, share a pair
    in_order = pair[order]
    follows = in_order[1:] == in_order[:-1]
    shared = np.flatnonzero(np.append(follows, False) | np.append(False, follows))
    repeated = order[shared]
    order[shared] = repeated[np.lexsort((repeated, times[repeated], for_training[repeated], pair[repeated]))]
    return order


def _given_split(in_test: BoolArray, user_ids: list[str], negatives: Mapping[str, Int32Array]) -> GivenSplit:
    if not negatives:
        return GivenSplit(in_test)
    return GivenSplit(in_test, {row: negatives[user] for row, user in enumerate(user_ids) if user in negatives})
