"""Titles, genres and whatever else is known of the items."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Value = str | int | float | bool | list[str]


class ItemAttributes:
    """Columns of attributes, one row per item.

    Args:
        table: string, int64, double, bool or list<string> columns; a memory-mapped table stays so.
    """

    def __init__(self, table: pa.Table) -> None:
        self._columns: dict[str, Any] = {name: table[name].combine_chunks() for name in table.column_names}

    @property
    def names(self) -> list[str]:
        """The columns' names."""
        return list(self._columns)

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
