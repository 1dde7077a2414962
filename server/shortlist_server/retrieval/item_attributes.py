"""Titles, genres and whatever else is known of the items: to show them, and to say which of them may come back."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shortlist_server.errors import InvalidField, shown
from shortlist_server.remembering import remembering

Value = str | int | float | bool | list[str]
Scalar = str | int | float | bool
Int64Array = npt.NDArray[np.int64]
RowArray = npt.NDArray[np.integer]

_FILTERS_KEPT = 64
"""The items that a filter allows are kept for so many filters, as long as they are asked for."""


@dataclass(frozen=True)
class Condition:
    """A test of one attribute: its value, or any of its list, equals one of these.

    Attributes:
        path: where it stands in the request, such as "filter.must[0]".
        attribute: the attribute's name.
        any_of: the values.
    """

    path: str
    attribute: str
    any_of: tuple[Scalar, ...]


@dataclass(frozen=True)
class Filter:
    """Which items may come back: those that meet every condition of ``must`` and none of ``must_not``."""

    must: tuple[Condition, ...] = ()
    must_not: tuple[Condition, ...] = ()


class AllowedItems:
    """The items that a filter allows.

    Args:
        mask: (items,) whether each is allowed.
    """

    def __init__(self, mask: npt.NDArray[np.bool_]) -> None:
        self.mask = mask

    @cached_property
    def share(self) -> float:
        """How many of all items they are, 0 to 1."""
        return float(self.mask.mean())

    @cached_property
    def rows(self) -> Int64Array:
        """(n,) their rows, ascending."""
        return np.flatnonzero(self.mask)

    @cached_property
    def bitmap(self) -> npt.NDArray[np.uint8]:
        """The mask as FAISS takes it: bit i of byte j is item 8 j + i."""
        return np.packbits(self.mask, bitorder="little")

    def places(self, rows: RowArray) -> Int64Array:
        """(m,) where those of some item rows that are allowed stand in ``rows``."""
        return np.searchsorted(self.rows, rows[self.mask[rows]])


class ItemAttributes:
    """Columns of attributes, one row per item.

    Args:
        table: string, int64, double, bool or list<string> columns; a memory-mapped table stays so.

    Attributes:
        names: the columns' names.
        allowed: a Filter to the AllowedItems that pass it, kept for the next request; raises InvalidField when a
            condition names an attribute that the items lack, or a value of another type than its.
    """

    def __init__(self, table: pa.Table) -> None:
        self._count = table.num_rows
        self._columns: dict[str, Any] = {name: table[name].combine_chunks() for name in table.column_names}
        self.names: list[str] = list(self._columns)
        self.allowed = remembering(self._allowed, _FILTERS_KEPT)

    def values(self, name: str, rows: npt.NDArray[np.integer]) -> list[Value | None]:
        """(n,) one attribute of some items, the i-th for the i-th row, None where it is missing.

        Raises:
            KeyError: there is no such attribute.
        """
        values: list[Value | None] = self._columns[name].take(pa.array(rows)).to_pylist()
        return values

    def numbers(self, name: str) -> npt.NDArray[np.int64]:
        """(items,) an int64 column without missing values."""
        return np.asarray(self._columns[name].to_numpy(), dtype=np.int64)

    def check_name(self, path: str, name: str) -> None:
        """Checks that there is an attribute.

        Raises:
            InvalidField: there is none of this name.
        """
        if name not in self._columns:
            raise InvalidField(path, f"the model's items have no {shown(name)}, only {', '.join(self._columns)}")

    def _allowed(self, wanted: Filter) -> AllowedItems:
        mask = np.ones(self._count, dtype=np.bool_)
        for condition in wanted.must:
            mask &= self._meets(condition)
        for condition in wanted.must_not:
            mask &= ~self._meets(condition)
        return AllowedItems(mask)

    def _meets(self, condition: Condition) -> npt.NDArray[np.bool_]:
        self.check_name(f"{condition.path}.attribute", condition.attribute)
        column = self._columns[condition.attribute]
        type_ = column.type.value_type if pa.types.is_list(column.type) else column.type
        values = []
        for place, value in enumerate(condition.any_of):
            if not _fits(value, type_):
                raise InvalidField(
                    f"{condition.path}.any_of[{place}]",
                    f"{shown(str(value))} is no value of {condition.attribute}, which holds {type_}",
                )
            if _can_be_in(value, type_):
                values.append(value)
        wanted = pa.array(values, type=type_)
        if not pa.types.is_list(column.type):
            return np.asarray(pc.is_in(column, wanted).to_numpy(zero_copy_only=False), dtype=np.bool_)
        met = np.zeros(self._count, dtype=np.bool_)
        flat = pc.is_in(column.flatten(), wanted).to_numpy(zero_copy_only=False)
        met[pc.list_parent_indices(column).to_numpy()[flat]] = True
        return met


def _can_be_in(value: Scalar, type_: Any) -> bool:
    """Whether a column may hold exactly this: not so a whole number beyond what its numbers can tell apart."""
    try:
        pa.scalar(value, type_)
    except pa.ArrowInvalid:
        return False
    return True


def _fits(value: Scalar, type_: Any) -> bool:
    if isinstance(value, bool):
        return bool(pa.types.is_boolean(type_))
    if isinstance(value, int):
        return bool(pa.types.is_integer(type_) or pa.types.is_floating(type_))
    if isinstance(value, float):
        return bool(pa.types.is_floating(type_))
    return bool(pa.types.is_string(type_))
