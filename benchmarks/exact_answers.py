"""The true answers of a made-up model, and how many of them a server finds."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shortlist.v1 import recommender_pb2
from shortlist_server.model.tensors import map_tensors

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]


class ExactAnswers:
    """Users of a made-up model with the scores of their true best items, by scoring every item.

    Args:
        folder: the model's, of which only what is asked for is brought into memory.
        users: how many users to draw.
        k: how many items are asked for.
        seed: draws the users.

    Attributes:
        rows: (users,) rows of the users drawn.
        vectors: (users, d) float32 their vectors.
        seen: of each, the rows of the items that it has seen.
    """

    def __init__(self, folder: Path, users: int, k: int = 10, seed: int = 0) -> None:
        table = map_tensors(folder / "user_embeddings.safetensors")["embeddings"]
        self._items: Float32Array = map_tensors(folder / "item_embeddings.safetensors")["embeddings"]
        seen = map_tensors(folder / "seen.safetensors")
        self._k = k
        self.rows: Int64Array = np.random.default_rng(seed).choice(len(table), users, replace=users > len(table))
        self.vectors: Float32Array = table[self.rows]
        self.seen = [seen["items"][seen["offsets"][row] : seen["offsets"][row + 1]] for row in self.rows]
        # (users, 2) the k-th best score of all items and of those that were not seen.
        self._kth_best = np.array([self._bounds(place) for place in range(users)], np.float32)

    def _bounds(self, place: int) -> tuple[float, float]:
        scores = self._items @ self.vectors[place]
        of_all = np.partition(scores, -self._k)[-self._k]
        scores[self.seen[place]] = -np.inf
        return of_all, np.partition(scores, -self._k)[-self._k]

    def recall(self, found: Sequence[npt.NDArray[np.integer]], *, without_seen: bool = True) -> float:
        """The mean share of the true best k in what was found; of equal scores any counts.

        Args:
            found: of each user the rows of up to k items, -1 where there is none.
            without_seen: whether the truth is without seen items; one that was found then counts as wrong.
        """
        shares = []
        for place, answer in enumerate(found):
            kth_best = self._kth_best[place, int(without_seen)]
            rows = answer[answer >= 0]
            good = self._items[rows] @ self.vectors[place] >= kth_best - 1e-5 * abs(kth_best)  # but for rounding
            if without_seen:
                good &= ~np.isin(rows, self.seen[place])
            shares.append(np.count_nonzero(good) / self._k)
        return float(np.mean(shares))

    def requests(self) -> list[recommender_pb2.RecommendRequest]:
        """What asks a server for each user's best k."""
        return [recommender_pb2.RecommendRequest(user_id=f"u{row}", k=self._k) for row in self.rows]


def item_rows(response: recommender_pb2.RecommendResponse) -> Int64Array:
    """The rows of the items of an answer."""
    return np.array([int(item.item_id[1:]) for item in response.items], np.int64)
