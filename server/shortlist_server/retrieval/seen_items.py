"""The items that each user interacted with."""

import numpy as np
import numpy.typing as npt


class SeenItems:
    """Item rows per user row, as compressed sparse rows.

    Args:
        offsets: (users + 1,) int64, where each user's items begin.
        items: int32 item rows, ascending within a user.
    """

    def __init__(self, offsets: npt.NDArray[np.int64], items: npt.NDArray[np.int32]) -> None:
        self._offsets = offsets
        self._items = items

    def of(self, user_row: int) -> npt.NDArray[np.int32]:
        """(n,) the item rows of a user, ascending."""
        return self._items[self._offsets[user_row] : self._offsets[user_row + 1]]

    def of_each(self, user_rows: npt.NDArray[np.int64]) -> list[npt.NDArray[np.integer]]:
        """The same for each of (n,) user rows."""
        begins, ends = self._offsets[user_rows].tolist(), self._offsets[user_rows + 1].tolist()
        return [self._items[begin:end] for begin, end in zip(begins, ends, strict=True)]
