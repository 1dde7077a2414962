"""The interactions of one side, user or item, in the forms that least-squares solvers work on."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shortlist_trainer.data.dataset import Float32Array, Int32Array, Int64Array, Interactions

# Vectors gathered at once: 2^16 of 64 float32 columns are 16 MiB.
_GATHERED_VECTORS = 1 << 16


@dataclass(frozen=True)
class Batch:
    """Rows of similar length, padded to the longest.

    Attributes:
        rows: (b,) int64 row numbers.
        others: (b, longest) int64 rows of the other side that each touched; the padding is ``other_count``, the number
            of a row of zeros that callers append.
        places: (b, longest) int64 where the interaction is in ``Rows.interaction_of``; the padding is n.
    """

    rows: Tensor
    others: Tensor
    places: Tensor


class Rows:
    """Interactions by the rows of one side: compressed sparse rows, and batches for torch.

    Args:
        rows: (n,) int32 row of each interaction on this side.
        others: (n,) int32 row of each interaction on the other side.
        row_count: rows of this side.
        other_count: rows of the other side.
    """

    def __init__(self, rows: Int32Array, others: Int32Array, row_count: int, other_count: int) -> None:
        self.row_count = row_count
        self.other_count = other_count
        self.lengths: Int64Array = np.bincount(rows, minlength=row_count).astype(np.int64)  # (row_count,)
        self.offsets: Int64Array = np.concatenate([[0], np.cumsum(self.lengths)])  # (row_count + 1,)
        self.interaction_of: Int64Array = np.argsort(rows, kind="stable")
        self.others: Int32Array = np.ascontiguousarray(others[self.interaction_of], dtype=np.int32)

    @cached_property
    def longest_first(self) -> Int64Array:
        """(row_count,) row numbers, those with the most interactions first, so that parallel work ends evenly."""
        return np.argsort(-self.lengths, kind="stable").astype(np.int64)

    def in_order(self, values: npt.NDArray[np.float32]) -> Float32Array:
        """(n,) values of interactions, in the order of ``others``."""
        return np.ascontiguousarray(values[self.interaction_of])

    def batches(self, device: torch.device) -> list[Batch]:
        """All rows that have interactions, in batches of bounded size."""
        batches = []
        shortest_first = self.longest_first[::-1]
        shortest_first = shortest_first[self.lengths[shortest_first] > 0]
        while len(shortest_first):
            # As many rows as fit the budget when padded to the longest of them.
            padded = self.lengths[shortest_first] * np.arange(1, len(shortest_first) + 1)
            size = max(1, int(np.searchsorted(padded, _GATHERED_VECTORS, side="right")))
            rows, shortest_first = shortest_first[:size], shortest_first[size:]
            columns = np.arange(self.lengths[rows[-1]])
            within = columns < self.lengths[rows][:, None]
            places = np.where(within, self.offsets[rows][:, None] + columns, len(self.others))
            others = np.append(self.others, np.int32(self.other_count))[places].astype(np.int64)
            batches.append(
                Batch(*(torch.from_numpy(np.ascontiguousarray(part)).to(device) for part in (rows, others, places)))
            )
        return batches


def both_sides(interactions: Interactions) -> tuple[Rows, Rows]:
    """The interactions by users and by items."""
    users, items = interactions.users, interactions.items
    return (
        Rows(users, items, interactions.user_count, interactions.item_count),
        Rows(items, users, interactions.item_count, interactions.user_count),
    )
