"""Clusters of users or of items, each with its items in order."""

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
RowArray = npt.NDArray[np.integer]

NO_CLUSTER = -1
"""The label of a user or item without an interaction."""


class Clusters:
    """The clusters of one side, and their items, best first, as compressed sparse rows.

    Args:
        labels: (n,) int32, each user's or item's cluster, or ``NO_CLUSTER``.
        sizes: (k,) int64, how many users or items each cluster holds.
        offsets: (k + 1,) int64, where each cluster's items begin.
        items: item rows.
        scores: what the items are in order of, the i-th for the i-th of ``items``.
    """

    def __init__(
        self, labels: Int32Array, sizes: Int64Array, offsets: Int64Array, items: RowArray, scores: Float32Array
    ) -> None:
        self._labels = labels
        self._sizes = sizes
        self._offsets = offsets
        self._items = items
        self._scores = scores

    def __len__(self) -> int:
        return len(self._sizes)

    def label_of(self, row: int) -> int:
        """The cluster of a user or item, or ``NO_CLUSTER``."""
        return int(self._labels[row])

    def size(self, label: int) -> int:
        """How many users or items a cluster holds."""
        return int(self._sizes[label])

    @property
    def largest(self) -> int:
        """The label of the largest cluster; there must be one."""
        return int(np.argmax(self._sizes))

    def top(self, label: int, k: int, excluded: RowArray) -> tuple[Int64Array, Float32Array]:
        """A cluster's best items and their scores, as many as there are up to ``k``, without those ``excluded``."""
        first, end = int(self._offsets[label]), int(self._offsets[label + 1])
        # So many more that k are left even if all of the excluded are among them.
        places = np.arange(first, min(end, first + k + len(excluded)))
        places = places[~np.isin(self._items[places], excluded)][:k]
        return self._items[places].astype(np.int64), self._scores[places]


def item_clusters(labels: Int32Array, sizes: Int64Array, popularity: Int64Array) -> Clusters:
    """The clusters of items, the members of each in order of their interactions.

    Args:
        labels: (items,) int32, each item's cluster, or ``NO_CLUSTER``.
        sizes: (k,) items of each cluster.
        popularity: (items,) interactions of each item.
    """
    in_order = np.lexsort((-popularity, labels))  # stable: of equal counts the lower row comes first
    members = in_order[np.searchsorted(labels[in_order], 0) :]  # those of no cluster come first
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return Clusters(labels, sizes, offsets, members, popularity[members].astype(np.float32))
