"""Raw interaction rows as they are read from a file, checked row by row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from shortlist_trainer.errors import ConfigError, DataError

MAX_ID_BYTES = 512
"""The longest user or item id in UTF-8 bytes, as the wire contract states it."""

_LATEST_SECONDS = 1e14  # three million years: numbers beyond are no seconds

BoolArray = npt.NDArray[np.bool_]
T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True)
class ColumnNames:
    """Which column holds what; None where the data has no such column."""

    user: str = "user"
    item: str = "item"
    rating: str | None = None
    timestamp: str | None = None

    def __post_init__(self) -> None:
        if len(set(self.present())) < len(self.present()):
            raise ConfigError(
                f"a column can be only one of user, item, rating and timestamp: {', '.join(self.present())}"
            )

    def present(self) -> list[str]:
        """The names of the columns to read, in the order user, item, rating, timestamp."""
        return [name for name in (self.user, self.item, self.rating, self.timestamp) if name is not None]


@dataclass(frozen=True)
class Rows:
    """Well-formed interaction rows in the order of the file.

    Attributes:
        user_codes: (n,) int32, positions in ``user_ids``.
        item_codes: (n,) int32, positions in ``item_ids``.
        ratings: (n,) float32, or None where the data has none.
        timestamps: (n,) float64 seconds since 1970, or None where the data has none.
        user_ids: distinct external ids in the order of first appearance.
        item_ids: likewise.
        bad_row_count: rows left out because they were malformed.
    """

    user_codes: npt.NDArray[np.int32]
    item_codes: npt.NDArray[np.int32]
    ratings: npt.NDArray[np.float32] | None
    timestamps: npt.NDArray[np.float64] | None
    user_ids: list[str]
    item_ids: list[str]
    bad_row_count: int


@dataclass(frozen=True)
class BadRow:
    """The number of a malformed row and what is wrong with it."""

    number: int
    reason: str


def concatenate(first: Rows, second: Rows) -> Rows:
    """The rows of two files, one after the other, under one numbering of users and items.

    Ratings and timestamps are kept where both have them.
    """

    def codes(
        one: npt.NDArray[np.int32], one_ids: list[str], other: npt.NDArray[np.int32], other_ids: list[str]
    ) -> tuple[npt.NDArray[np.int32], list[str]]:
        places = {external_id: place for place, external_id in enumerate(one_ids)}
        mapped = np.array([places.setdefault(external_id, len(places)) for external_id in other_ids], dtype=np.int32)
        return np.concatenate([one, mapped[other]]), list(places)

    def joined(one: npt.NDArray[T] | None, other: npt.NDArray[T] | None) -> npt.NDArray[T] | None:
        return None if one is None or other is None else np.concatenate([one, other])

    user_codes, user_ids = codes(first.user_codes, first.user_ids, second.user_codes, second.user_ids)
    item_codes, item_ids = codes(first.item_codes, first.item_ids, second.item_codes, second.item_ids)
    return Rows(
        user_codes=user_codes,
        item_codes=item_codes,
        ratings=joined(first.ratings, second.ratings),
        timestamps=joined(first.timestamps, second.timestamps),
        user_ids=user_ids,
        item_ids=item_ids,
        bad_row_count=first.bad_row_count + second.bad_row_count,
    )


def check_rows(
    path: Path,
    table: pa.Table,
    columns: ColumnNames,
    numbers: npt.NDArray[np.int64],
    already_bad: Sequence[BadRow],
    *,
    skip_bad_rows: bool,
    place: Callable[[int], str],
) -> Rows:
    """Turns a table of raw columns into checked rows.

    Args:
        path: where the table came from, for messages.
        table: string, dictionary or number columns, one row per interaction.
        columns: which of them are which.
        numbers: (n,) the number in the file of each row of the table.
        already_bad: rows that could not be divided into columns and are not in the table.
        skip_bad_rows: leave malformed rows out and count them, instead of stopping.
        place: names the place of a row by its number, such as "line 7".

    Raises:
        DataError: a row is malformed and ``skip_bad_rows`` is false, or no row is left.
    """
    examples = list(already_bad)
    usable = np.ones(table.num_rows, dtype=np.bool_)

    def refuse(mask: BoolArray, reason: str, values: pa.ChunkedArray) -> None:
        rows = np.flatnonzero(mask & usable)
        usable[rows] = False
        if len(rows):  # the first of each kind is described, the rest are counted
            examples.append(BadRow(int(numbers[rows[0]]), reason.format(_shown(values[int(rows[0])]))))

    def ids(name: str) -> tuple[npt.NDArray[np.int32], list[str]]:
        values = table[name]
        encoded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
        array = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
        dictionary = array.dictionary.cast(pa.string())
        empty = pc.equal(dictionary, "").to_numpy(zero_copy_only=False)
        too_long = pc.greater(pc.binary_length(dictionary), MAX_ID_BYTES).to_numpy(zero_copy_only=False)
        codes = array.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        # A row's flag is that of its id; a missing id, code -1, reads the flag that is appended.
        refuse(np.append(empty, True)[codes], f"{name} is empty", values)
        refuse(np.append(too_long, False)[codes], f"{name} is longer than {MAX_ID_BYTES} bytes", values)
        return codes.astype(np.int32), dictionary.to_pylist()

    user_codes, user_ids = ids(columns.user)
    item_codes, item_ids = ids(columns.item)
    ratings = timestamps = None
    if columns.rating is not None:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused
            ratings = _numbers(table[columns.rating]).astype(np.float32)
        refuse(~np.isfinite(ratings), f"{columns.rating} is {{}}, not a finite number", table[columns.rating])
    if columns.timestamp is not None:
        timestamps = _seconds(table[columns.timestamp])
        known = np.abs(timestamps) < _LATEST_SECONDS  # false for NaN
        refuse(~known, f"{columns.timestamp} is {{}}, not a time", table[columns.timestamp])

    bad_row_count = len(already_bad) + int(np.count_nonzero(~usable))
    if bad_row_count and not skip_bad_rows:
        first = min(examples, key=lambda row: row.number)
        more = f" ({bad_row_count - 1:,} more bad rows)" if bad_row_count > 1 else ""
        raise DataError(f"{path}, {place(first.number)}: {first.reason}{more}; --skip-bad-rows leaves such rows out")
    if not usable.any():
        raise DataError(f"{path} holds no usable row" + (f" ({bad_row_count:,} malformed)" if bad_row_count else ""))

    user_codes, user_ids = _compact(user_codes[usable], user_ids)
    item_codes, item_ids = _compact(item_codes[usable], item_ids)
    return Rows(
        user_codes=user_codes,
        item_codes=item_codes,
        ratings=None if ratings is None else ratings[usable],
        timestamps=None if timestamps is None else timestamps[usable],
        user_ids=user_ids,
        item_ids=item_ids,
        bad_row_count=bad_row_count,
    )


def _compact(codes: npt.NDArray[np.int32], ids: list[str]) -> tuple[npt.NDArray[np.int32], list[str]]:
    """Numbers the ids that still have rows by first appearance."""
    new_codes, kept = pd.factorize(codes)
    return new_codes.astype(np.int32), [ids[code] for code in kept]


def _shown(value: Any) -> str:
    text = str(value.as_py())
    return "missing" if value.as_py() is None or text == "" else repr(text if len(text) <= 40 else text[:40] + "…")


def _numbers(values: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    """(n,) float64, NaN where there is no number."""
    try:
        return np.asarray(values.cast(pa.float64()).to_numpy(), dtype=np.float64)
    except pa.ArrowException:  # not all are numbers, or their type has no numbers at all
        return np.asarray(pd.to_numeric(values.to_pandas().astype(str), errors="coerce"), dtype=np.float64)


def _seconds(values: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    """(n,) float64 seconds since 1970, NaN where there is no time; numbers are taken as seconds."""
    if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):
        return (
            np.asarray(values.cast(pa.timestamp("us"), safe=False).cast(pa.int64()).to_numpy(), dtype=np.float64) / 1e6
        )
    numbers = _numbers(values)
    if np.isfinite(numbers).any() or len(numbers) == 0:
        return numbers
    times = pd.to_datetime(values.to_pandas().astype(str), errors="coerce", utc=True, format="ISO8601")
    seconds = (times - pd.Timestamp(0, tz="UTC")).dt.total_seconds()
    return np.asarray(seconds, dtype=np.float64)
